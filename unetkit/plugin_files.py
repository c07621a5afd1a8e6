"""Plugin files as modules: the name of each contains the path of its file, so that another process can import it.

What a file defines can therefore be pickled, as `torch.save(model)` and `torch.multiprocessing` do: unpickling imports
`unetkit.plugin_files.__data__gate` from /data/gate.py.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType

from unetkit.errors import UnknownNameError
from unetkit.utils.file_digest import short_digest

#: Makes a package of this module. Its modules are found by `_FileFinder` only.
__path__: list[str] = []
PREFIX = f"{__name__}."

_ESCAPES = {"/": "__", "_": "_u", ".": "_d"}
_CHARACTERS = {escape: character for character, escape in _ESCAPES.items()}


def module_name(path: Path) -> str:
    """Return the name of the module of a plugin file; every character of the path but letters and digits is escaped."""
    text = os.path.realpath(path).removesuffix(".py")
    return PREFIX + "".join(c if c.isascii() and c.isalnum() else _ESCAPES.get(c) or _escape(c) for c in text)


def package_of(module: str) -> str:
    """Return the top-level package of a module, whose code has one author; the module itself for a plugin file."""
    return module if module.startswith(PREFIX) else module.partition(".")[0]


def _escape(character: str) -> str:
    return "".join(f"_x{byte:02x}" for byte in os.fsencode(character))


def _file_of(name: str) -> Path:
    """Return the file of a module; the inverse of `module_name`."""
    pieces = re.split(rb"(_x[0-9a-f]{2}|_[_ud])", name.removeprefix(PREFIX).encode())
    return Path(os.fsdecode(b"".join(map(_unescape, pieces))) + ".py")


def _unescape(piece: bytes) -> bytes:
    if piece.startswith(b"_x"):
        return bytes.fromhex(piece[2:].decode())
    return _CHARACTERS.get(piece.decode(), piece.decode()).encode()


def import_file(path: Path) -> ModuleType:
    """Import a plugin file. It runs again only if it has changed since.

    Raises:
        UnknownNameError: There is no such file.
    """
    if not path.is_file():
        raise UnknownNameError(f"the file {path} does not exist; give the path of a Python file")
    name = module_name(path)
    before = sys.modules.get(name)
    if before is not None and getattr(before.__loader__, "source", None) == path.read_bytes():
        return before
    sys.modules.pop(name, None)
    try:
        return importlib.import_module(name)
    except BaseException:
        if before is not None:
            sys.modules[name] = before
        raise


class _FileLoader(SourceFileLoader):
    """Loads a plugin file from its source text, and leaves no bytecode beside it."""

    source = b""

    def get_code(self, fullname: str) -> CodeType:
        self.source = self.get_data(self.path)
        code: CodeType = self.source_to_code(self.source, self.path)
        return code

    def exec_module(self, module: ModuleType) -> None:
        if (folder := os.path.dirname(self.path)) not in sys.path:
            sys.path.append(folder)  # modules beside the file can be imported; installed ones take precedence
        super().exec_module(module)


class _FileFinder:
    """Finds the modules of plugin files."""

    @staticmethod
    def find_spec(fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if not fullname.startswith(PREFIX):
            return None
        file = _file_of(fullname)
        if not file.is_file():
            raise ModuleNotFoundError(
                f"{file} does not exist, and what was pickled needs it; put the plugin file there, or make it a module "
                "that is installed",
                name=fullname,
            )
        return importlib.util.spec_from_file_location(fullname, file, loader=_FileLoader(fullname, str(file)))


sys.meta_path.append(_FileFinder)


def digest_plugin(target: str) -> str:
    """Return a digest of the source of a plugin: of its file or module, or of all files of its package."""
    file = Path(target).expanduser()
    if file.is_file():
        return short_digest(file.read_bytes())
    try:
        spec = importlib.util.find_spec(package_of(target.partition(":")[0]))
    except (ImportError, ValueError):
        spec = None
    folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []
    files = [path for folder in folders for path in sorted(folder.rglob("*.py"))]
    files += [Path(spec.origin)] if spec and spec.origin and not folders else []
    contents = []
    for path in files:
        with suppress(OSError):  # of a module in a zip, whose file does not exist
            contents.append(path.read_bytes())
    return short_digest(*contents)
