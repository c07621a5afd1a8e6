"""Image files as sources of windows: TIFF by the strips or tiles that a window touches, others read whole.

C channels, H and W height and width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

import tifffile
from torch import Tensor

from unetkit.data.files import read_image, scaled
from unetkit.data.tiff import check_holds, quiet, why
from unetkit.deploy.stitching import Held
from unetkit.errors import BadFile
from unetkit.inspect.figures import format_bytes
from unetkit.plan import Size
from unetkit.predict.segments import Segments

#: What takes more than this at once is worth a word, in bytes.
_LARGE = 512 << 20


class Picture(Protocol):
    """An image file that is open.

    Attributes:
        channels: of it.
        note: what a user should know of how it is read, or "".
    """

    channels: int
    note: str

    @property
    def size(self) -> Size: ...

    def read(self, rows: slice, columns: slice) -> Tensor: ...


class _Whole(Held):
    """A file that was read whole."""

    def __init__(self, path: Path) -> None:
        super().__init__(read_image(path))
        self.channels = self.image.shape[0]
        held = self.image.nbytes
        self.note = (
            f"is read whole, {format_bytes(held)}; a tiled TIFF would be read by windows" if held > _LARGE else ""
        )


class _Windows:
    """A TIFF that is read by windows, with the same numbers as `read_image` gives."""

    def __init__(self, path: Path, file: tifffile.TiffFile) -> None:
        self._path, self._stored = path, Segments(file)
        self.size: Size = self._stored.size
        self.channels = len(self._stored.channels)
        at_once = self._stored.least
        advice = "write it in tiles of 256x256, which are read by windows"
        self.note = (
            f"has strips or tiles of {format_bytes(at_once)}, which are read whole; {advice}"
            if at_once > _LARGE
            else ""
        )

    def read(self, rows: slice, columns: slice) -> Tensor:
        try:
            return scaled(self._stored.read(rows, columns))
        except Exception as error:  # tifffile and its codecs raise whatever they meet
            raise BadFile(f"{self._path}: {why(error)}") from error


@contextmanager
def opened(path: Path) -> Iterator[Picture]:
    """An image file.

    Raises:
        BadFile: it cannot be read, also later, when a window is.
    """
    if path.suffix.lower() not in (".tif", ".tiff") or not path.is_file():
        yield _Whole(path)
        return
    with quiet(), ExitStack() as stack:
        try:
            file = stack.enter_context(tifffile.TiffFile(path))
            check_holds(file, path)
        except BadFile:
            raise
        except Exception as error:
            raise BadFile(f"{path}: {why(error)}") from error
        try:
            picture: Picture = _Windows(path, file)
        except Exception:  # laid out in a way that no windows are read of
            picture = _Whole(path)
        yield picture
