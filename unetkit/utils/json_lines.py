"""Files of JSON lines that grow while work is in progress.

Each line is on disk before the next begins, and only one process writes. An incomplete last line is dropped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from unetkit.errors import FileError

JsonLine = dict[str, Any]


def read_json_lines(path: Path, take: Callable[[JsonLine], None], what: str) -> None:
    """Pass every complete line of a file to `take`; a file that does not exist has none.

    Raises:
        FileError: The file cannot be read, or `take` raises ValueError, KeyError or TypeError for a line. `what` names
            the expected content: "sweep".
    """
    try:
        lines = path.read_bytes().split(b"\n") if path.exists() else []
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror or error}") from error
    for number, line in enumerate(lines[:-1], 1):
        try:
            take(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FileError(
                f"{path}, line {number}, is not a line of a {what}; give another file, or repair it"
            ) from error


def encode_json_line(line: JsonLine) -> bytes:
    """Encode a line as it is stored in the file."""
    return json.dumps(line, separators=(",", ":")).encode() + b"\n"


class JsonLinesWriter:
    """A file to which only this process appends lines until `close`."""

    def __init__(self, path: Path, what: str) -> None:
        """Create the file if it does not exist, and remove an incomplete last line.

        Raises:
            FileError: The file cannot be written, or another process is writing to it.
        """
        from filelock import FileLock, Timeout  # costs more to import than `unetkit --help` otherwise takes

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
            raise FileError(f"{other}; wait for it, or give another --out") from None
        except OSError as error:
            raise FileError(f"{path} cannot be written: {error.strerror or error}; give another --out") from error

    def append(self, line: JsonLine) -> None:
        """Append a line; it is on disk when this returns. Raises FileError if that fails."""
        try:
            self._file.write(encode_json_line(line))
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise FileError(
                f"{self.path} cannot be extended: {error.strerror or error}; its previous content is unchanged"
            ) from error

    def truncate(self, count: int) -> None:
        """Keep only the first `count` lines; the others will be written again."""
        lines = self.path.read_bytes().splitlines(keepends=True)
        os.truncate(self.path, sum(map(len, lines[:count])))

    def delete_file(self) -> None:
        """Delete the file, and its folder if that is empty; call this after `close`."""
        with suppress(OSError):
            self.path.unlink()
            Path(self._lock.lock_file).unlink(missing_ok=True)
            self.path.parent.rmdir()

    def close(self) -> None:
        """Allow other processes to write."""
        try:
            with suppress(OSError):  # the error of a write was raised by that write
                self._file.close()
        finally:
            self._lock.release()
