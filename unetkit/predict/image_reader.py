"""Image files as sources of windows: TIFF by the strips or tiles that a window touches, other formats as a whole.

tifffile finds and decodes the strips and tiles (TIFF 6.0). Shapes: C channels, H and W height and width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tifffile

from unetkit.data.io import (
    channels_along,
    check_not_empty,
    declared_nodata,
    describe_error,
    mark_missing,
    read_image,
    silence_tifffile,
    squeeze_axes,
    to_float_image,
    without_alpha,
)
from unetkit.errors import FileError
from unetkit.tiling.stitching import InMemoryImage
from unetkit.utils.formatting import Size, format_bytes
from unetkit.utils.integers import ceil_div


class UnsupportedTiff(Exception):
    """A TIFF file that cannot be read in windows."""


class TiffWindows:
    """The first image of a TIFF file, read in windows.

    tifffile's zarr store would decode a strip or tile anew for every window that touches it: six times as long for
    tiles of 256x256 and windows of 640x640, and 27 times for strips.

    Attributes:
        size: the height and width.
        channels: the indices of the channels that are read: all but alpha.
        segment_bytes: the bytes that are in memory at once for any window.
    """

    def __init__(self, file: tifffile.TiffFile) -> None:
        """Open the file. Raises UnsupportedTiff, or ValueError for a stack, if it cannot be read in windows."""
        series, page = file.series[0], file.series[0].keyframe
        shape, axes = squeeze_axes(series.shape, series.axes)
        place = channels_along(shape, axes)
        # Channels are planes before the image's axes, or samples after them.
        if axes not in ("YX", "YXS") and not (place == 0 and axes[1:] == "YX"):
            raise UnsupportedTiff(axes)
        if page.photometric == tifffile.PHOTOMETRIC.PALETTE or page.imagedepth != 1:
            raise UnsupportedTiff("palette")
        self._file, self._series, self._page, self._first = file, series, page, place == 0
        self.size: Size = (shape[axes.index("Y")], shape[axes.index("X")])
        self._count = 1 if place is None else shape[place]
        self.channels = without_alpha(self._count, page.extrasamples if "S" in axes else ())
        self._held: dict[tuple[int, int], tuple[np.ndarray, Any]] = {}
        self._flat = series.dataoffset if page.is_memmappable else None
        self._high = page.tilelength if page.is_tiled else min(page.rowsperstrip, self.size[0])
        self._wide = page.tilewidth if page.is_tiled else self.size[1]
        self.segment_bytes = 0 if self._flat is not None else self._high * self._wide * series.dtype.itemsize

    def read(self, rows: slice, columns: slice) -> np.ndarray:
        """Read a window (h, w, C), or (h, w) for one channel, in the machine's byte order."""
        read = self._read_decoded if self._flat is None else self._read_mapped
        window = read(rows, columns)[..., self.channels]
        return window.astype(window.dtype.newbyteorder("="))

    def _read_mapped(self, rows: slice, columns: slice) -> np.ndarray:
        """Read from an uncompressed file.

        It is mapped each time, so that pages that were read do not count as used memory.
        """
        shape = (self._count, *self.size) if self._first else (*self.size, self._count)
        kind = np.dtype(self._file.byteorder + self._series.dtype.char)
        mapped: np.ndarray = np.memmap(self._file.filehandle.path, kind, "r", self._flat or 0, shape)
        window = np.moveaxis(mapped[:, rows, columns], 0, -1) if self._first else mapped[rows, columns]
        return np.array(window)

    def _read_decoded(self, rows: slice, columns: slice) -> np.ndarray:
        window = np.zeros((rows.stop - rows.start, columns.stop - columns.start, self._count), self._series.dtype)
        # Windows come from the top down, so what lies above this one is not needed again.
        self._held = {key: kept for key, kept in self._held.items() if kept[1][0] + self._high > rows.start}
        for page, index in self._find_segments(rows, columns):
            data, (top, left, channel) = self._segment(page, index)
            low, high = max(top, rows.start), min(top + data.shape[0], rows.stop)
            near, far = max(left, columns.start), min(left + data.shape[1], columns.stop)
            part = data[low - top : high - top, near - left : far - left]
            into = window[low - rows.start : high - rows.start, near - columns.start : far - columns.start]
            into[..., channel : channel + data.shape[2]] = part
        return window

    def _find_segments(self, rows: slice, columns: slice) -> Iterator[tuple[int, int]]:
        """Return the page and the number of each segment that a window touches."""
        down, across = ceil_div(self.size[0], self._high), ceil_div(self.size[1], self._wide)
        planes = self._page.samplesperpixel if self._page.planarconfig == tifffile.PLANARCONFIG.SEPARATE else 1
        for page in range(len(self._series.pages)):
            for plane in range(planes):
                for row in range(rows.start // self._high, ceil_div(rows.stop, self._high)):
                    for column in range(columns.start // self._wide, ceil_div(columns.stop, self._wide)):
                        yield page, (plane * down + row) * across + column

    def _segment(self, page: int, index: int) -> tuple[np.ndarray, tuple[int, int, int]]:
        """Return the numbers of a segment (h, w, samples), and its row, column and channel."""
        if (page, index) not in self._held:
            frame: Any = self._series.pages[page]
            self._file.filehandle.seek(frame.dataoffsets[index])
            data = self._file.filehandle.read(frame.databytecounts[index]) or None
            found, (plane, _, top, left, _), shape = self._page.decode(data, index, jpegtables=frame.jpegtables)
            values = np.full(shape[1:], self._page.nodata, self._series.dtype) if found is None else found[0]
            self._held[page, index] = values, (top, left, page * self._page.samplesperpixel + plane)
        return self._held[page, index]


#: Larger allocations than this are announced, in bytes.
_LARGE = 512 << 20


class ImageReader(Protocol):
    """An open image file.

    Attributes:
        channels: the number of channels.
        note: how the file is read, if the user should know that; otherwise "".
    """

    channels: int
    note: str

    @property
    def size(self) -> Size: ...

    def read(self, rows: slice, columns: slice) -> np.ndarray: ...


class WholeImage(InMemoryImage):
    """An image (C, H, W) that was read as a whole."""

    def __init__(self, image: np.ndarray) -> None:
        super().__init__(image)
        self.channels = self.image.shape[0]
        held = self.image.nbytes
        self.note = (
            f"is read as a whole, {format_bytes(held)}; a tiled TIFF would be read in windows" if held > _LARGE else ""
        )


class _WindowReader:
    """A TIFF that is read in windows, with the same numbers as `read_image`."""

    def __init__(self, path: Path, file: tifffile.TiffFile, nodata: float | None) -> None:
        self._path, self._stored = path, TiffWindows(file)
        self._nodata = nodata, declared_nodata(file.series[0].keyframe)
        self.size: Size = self._stored.size
        self.channels = len(self._stored.channels)
        segment_bytes = self._stored.segment_bytes
        advice = "write it in tiles of 256x256, which are read in windows"
        self.note = (
            f"has strips or tiles of {format_bytes(segment_bytes)}, which are read as a whole; {advice}"
            if segment_bytes > _LARGE
            else ""
        )

    def read(self, rows: slice, columns: slice) -> np.ndarray:
        try:
            values = self._stored.read(rows, columns)
        except Exception as error:  # tifffile and its codecs raise whatever they meet
            raise FileError(f"{self._path}: {describe_error(error)}") from error
        return mark_missing(to_float_image(values), values, self._nodata, self._path)


@contextmanager
def open_image(path: Path, nodata: float | None = None) -> Iterator[ImageReader]:
    """Open an image file. Pixels without data are NaN, as `read_image` describes.

    Raises:
        FileError: The file cannot be read, possibly only later when a window is read.
    """
    if path.suffix.lower() not in (".tif", ".tiff") or not path.is_file():
        yield WholeImage(read_image(path, nodata))
        return
    with silence_tifffile(), ExitStack() as stack:
        try:
            file = stack.enter_context(tifffile.TiffFile(path))
            check_not_empty(file, path)
        except FileError:
            raise
        except Exception as error:
            raise FileError(f"{path}: {describe_error(error)}") from error
        try:
            picture: ImageReader = _WindowReader(path, file, nodata)
        except Exception:  # laid out in a way that no windows are read of
            picture = WholeImage(read_image(path, nodata))
        yield picture
