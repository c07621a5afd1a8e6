"""A file of JSON lines that grows while work goes on: each is on disk before the next begins, and one process writes.

A last line that was cut off, as where the machine stopped, is none.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from unetkit.errors import BadFile

Line = dict[str, Any]


def read_lines(path: Path, take: Callable[[Line], None], what: str) -> None:
    """Give every whole line of a file to `take`; a file that is not there has none.

    Raises:
        BadFile: it cannot be read, or `take` raises ValueError, KeyError or TypeError of a line. `what` says whose
            lines are expected: "sweep".
    """
    try:
        lines = path.read_bytes().split(b"\n") if path.exists() else []
    except OSError as error:
        raise BadFile(f"{path} cannot be read: {error.strerror or error}") from error
    for number, line in enumerate(lines[:-1], 1):
        try:
            take(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadFile(f"{path}, line {number}, is no line of a {what}'s; give another file, or mend it") from error


def line_of(line: Line) -> bytes:
    """As it stands in the file."""
    return json.dumps(line, separators=(",", ":")).encode() + b"\n"


class Lines:
    """A file that this process alone adds lines to, until `close`."""

    def __init__(self, path: Path, what: str) -> None:
        """Make it if it is not there, and cut off a torn last line.

        Raises:
            BadFile: it cannot be written, or another process is writing to it.
        """
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab")
            self._lock = FileLock(path.with_name(f".{path.name}.lock"))
            self._lock.acquire(timeout=0)
            os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
        except Timeout:
            self._file.close()
            other = f"{path} is being written by another {what}"
            raise BadFile(f"{other}; wait for it, or give another --out") from None
        except OSError as error:
            raise BadFile(f"{path} cannot be written: {error.strerror or error}; give another --out") from error

    def append(self, line: Line) -> None:
        """Add a line; when this returns, it is on disk. Raises BadFile where it cannot be."""
        try:
            self._file.write(line_of(line))
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise BadFile(
                f"{self.path} cannot be written on: {error.strerror or error}; what it holds stands"
            ) from error

    def keep(self, count: int) -> None:
        """Leave the first so many lines alone; they are done again."""
        lines = self.path.read_bytes().splitlines(keepends=True)
        os.truncate(self.path, sum(map(len, lines[:count])))

    def remove(self) -> None:
        """Leave no file, and no folder that held nothing else; after `close`."""
        with suppress(OSError):
            self.path.unlink()
            Path(self._lock.lock_file).unlink(missing_ok=True)
            self.path.parent.rmdir()

    def close(self) -> None:
        """Let others write."""
        try:
            with suppress(OSError):  # what could not be written was told
                self._file.close()
        finally:
            self._lock.release()
