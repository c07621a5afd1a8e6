"""The source code of a plugin's author: which frames of a traceback belong to it, and how a place in it is shown."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import unetkit
from unetkit.plugin_files import package_of

#: Built-in parts are the author's code where unetkit checks itself; everything else in unetkit only calls it.
_UNETKIT = Path(unetkit.__file__).parent


class AuthorSource:
    """The files of a package, or those in the folder of a single file.

    Attributes:
        folder: the folder of the package or file; None if there is no file, as for a class defined in a prompt.
        is_package: whether the folders in it belong to the author, too.
    """

    def __init__(self, module: str, file: str = "") -> None:
        """Find the files of a module.

        Args:
            module: the full name of a module that is imported.
            file: the file, for code without a module.
        """
        package = sys.modules.get(package_of(module))
        self.is_package = bool(getattr(package, "__path__", None))
        if package is sys.modules["unetkit"]:
            self.folder: Path | None = _UNETKIT / "parts"
            return
        origin = getattr(package, "__file__", None) or file
        self.folder = Path(origin).resolve().parent if origin else None

    def contains(self, file: str) -> bool:
        """Return whether a file is the author's."""
        path = Path(file).resolve()
        return self.folder is not None and (
            self.folder in path.parents if self.is_package else path.parent == self.folder
        )

    def select_frames(self, error: BaseException) -> list[traceback.FrameSummary]:
        """Return the author's frames of an error, or those of the innermost error that caused it and has some."""
        found: list[traceback.FrameSummary] = []
        for cause in iterate_causes(error):
            steps = [
                (frame, line) for frame, line in _walk(cause.__traceback__) if self.contains(frame.f_code.co_filename)
            ]
            found = list(traceback.StackSummary.extract(iter(steps))) or found
        return found


def _walk(step: TracebackType | None) -> Iterator[tuple[FrameType, int]]:
    yield from traceback.walk_tb(step)


def iterate_causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, the error that caused it, and so on."""
    seen: Any = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
