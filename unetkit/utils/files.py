"""Files that are either complete or absent."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from unetkit.errors import FileError


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`, which replaces `path` if no exception is raised.

    Raises:
        OSError: The folder cannot be created or written to.
    """
    path = path.resolve()  # a link's target is written, and the link stays
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is not a regular file")
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        with temporary.open("r+b") as written:  # Windows flushes only what may be written
            os.fsync(written.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def write_requested_file(path: Path, option: str) -> Iterator[Path]:
    """Write a file that an option of a command requested, like `atomic_write`.

    Raises:
        FileError: The file cannot be written; `option` is the flag that named it.
    """
    try:
        with atomic_write(path) as temporary:
            yield temporary
    except OSError as error:
        raise FileError(f"{option} {path} cannot be written: {error.strerror or error}") from error
