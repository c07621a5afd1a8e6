"""Files that are there whole or not at all."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from unetkit.errors import BadFile


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
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
    """`written_whole` for a file that a command was asked for.

    Raises:
        BadFile: it cannot be written; `asked` is the option that named it.
    """
    try:
        with written_whole(path) as temporary:
            yield temporary
    except OSError as error:
        raise BadFile(f"{asked} {path} cannot be written: {error.strerror or error}") from error
