"""A plugin to start from: a whole distribution with one working part, its tests, and what it takes to publish it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from unetkit.errors import BadFile, BadOption
from unetkit.scaffold.texts import TITLES, plugin_files

__all__ = ["TITLES", "new_plugin", "plugin_files"]


def new_plugin(name: str, kind: str, folder: Path) -> Path:
    """Write a plugin with one working example: every file of it, or none.

    Args:
        name: of the distribution, and of its part; a part's name goes without "unetkit-" at the front.
        kind: what it adds, one of TITLES; a kind's word ("fuse") or plural ("fusions") does too.
        folder: where the plugin's own folder is made, called `name`.

    Returns:
        The plugin's folder.

    Raises:
        BadOption: a name that cannot be a package's, a class's or a part's, or is taken; a kind that there is not;
            a folder that is not there, or holds something of this name.
        BadFile: the files cannot be written.
    """
    texts = plugin_files(name, kind)
    if not folder.is_dir():
        raise BadOption(f"there is no folder {folder}; make it first, or name another")
    target = folder / name
    try:
        if target.is_symlink() or (target.exists() and not (target.is_dir() and not any(target.iterdir()))):
            raise BadOption(f"{target} is there already, and stays as it is; choose another name or folder")
        with _made_whole(target) as temporary:
            _write(texts, temporary)
    except OSError as error:
        raise BadFile(f"{target} cannot be written: {error.strerror or error}") from error
    return target


@contextmanager
def _made_whole(target: Path) -> Iterator[Path]:
    """Give a temporary folder beside `target` to fill; it takes `target`'s place only if nothing went wrong."""
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp"))
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)
        temporary.rename(target)  # refused where something was put there meanwhile
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write(texts: Mapping[str, str], folder: Path) -> None:
    for path, text in texts.items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8", newline="\n")
