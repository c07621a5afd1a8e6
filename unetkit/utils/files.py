"""Files that are there whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from unetkit.errors import FileError


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path` to write to; it takes `path`'s place only if nothing went wrong.

    Raises:
        OSError: the folder cannot be made or written to.
    """
    path = path.resolve()  # a link's target is written, and the link stays
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is no regular file")
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def written_as_asked(path: Path, asked: str) -> Iterator[Path]:
    """`atomic_write` for a file that a command was asked for.

    Raises:
        FileError: it cannot be written; `asked` is the option that named it.
    """
    try:
        with atomic_write(path) as temporary:
            yield temporary
    except OSError as error:
        raise FileError(f"{asked} {path} cannot be written: {error.strerror or error}") from error


JsonLine = dict[str, Any]


def read_json_lines(path: Path, take: Callable[[JsonLine], None], what: str) -> None:
    """Give every whole line of a file to `take`; a file that is not there has none.

    Raises:
        FileError: it cannot be read, or `take` raises ValueError, KeyError or TypeError of a line. `what` says whose
            lines are expected: "sweep".
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
                f"{path}, line {number}, is no line of a {what}'s; give another file, or mend it"
            ) from error


def encode_json_line(line: JsonLine) -> bytes:
    """As it stands in the file."""
    return json.dumps(line, separators=(",", ":")).encode() + b"\n"


class JsonLinesWriter:
    """A file that this process alone adds lines to, until `close`."""

    def __init__(self, path: Path, what: str) -> None:
        """Make it if it is not there, and cut off a torn last line.

        Raises:
            FileError: it cannot be written, or another process is writing to it.
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
            raise FileError(f"{other}; wait for it, or give another --out") from None
        except OSError as error:
            raise FileError(f"{path} cannot be written: {error.strerror or error}; give another --out") from error

    def append(self, line: JsonLine) -> None:
        """Add a line; when this returns, it is on disk. Raises FileError where it cannot be."""
        try:
            self._file.write(encode_json_line(line))
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise FileError(
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
