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
    path = Path(os.path.realpath(path))  # a link's target is written, and the link stays
    _check_file(path)
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


def _check_file(path: Path) -> None:
    """Raise OSError if no file can be written to an absolute path."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is a folder" if path.is_dir() else "it is not a regular file")
    _check_folder(path.parent)


def _check_folder(path: Path) -> None:
    """Raise OSError if a folder cannot be created at an absolute path, or no file in it."""
    folder = next((one for one in (path, *path.parents) if one.exists()), None)
    if folder is None:  # a drive of Windows that does not exist
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
    if not folder.is_dir():
        raise OSError(errno.ENOTDIR, f"{folder.name} is a file, not a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))


@contextmanager
def describe_write_errors(path: Path, option: str = "") -> Iterator[None]:
    """Raise FileError in place of OSError for a file that cannot be written; `option` is the flag that named it."""
    try:
        yield
    except OSError as error:
        what = f"{option} {path}".strip()
        raise FileError(f"{what} cannot be written: {error.strerror or error}; give another path") from error


@contextmanager
def write_requested_file(path: Path, option: str = "") -> Iterator[Path]:
    """Write a file that an option of a command or an argument requested, like `atomic_write`.

    Raises:
        FileError: The file cannot be written; `option` is the flag that named it.
    """
    with describe_write_errors(path, option), atomic_write(path) as temporary:
        yield temporary


def check_requested_path(path: Path, option: str, *, is_folder: bool = False) -> None:
    """Raise FileError if a file, or files in a folder, cannot be written, before the work; nothing is created."""
    with describe_write_errors(path, option):
        (_check_folder if is_folder else _check_file)(Path(os.path.realpath(path)))
