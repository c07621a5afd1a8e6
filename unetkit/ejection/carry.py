"""Parts of plugins as their own source, with the functions and constants of the plugin that it needs."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from unetkit.ejection.code import SourceFile
from unetkit.errors import BuildError

#: What a part may use of unetkit, and what stands in its place.
_REPLACED = {
    ("unetkit.errors", "OptionError"): "ValueError",
    ("unetkit.errors", "BuildError"): "ValueError",
    ("unetkit.errors", "UnetkitError"): "ValueError",
    ("unetkit.errors", "InputSizeError"): "ValueError",
    ("unetkit.utils.formatting", "Size"): "Sequence[int]",
}
#: Functions of unetkit that are carried over like those of the plugin.
_CARRIED_MODULES = ("unetkit.parts.upsamplers", "unetkit.utils.integers")
_PLAIN = {"torch", *sys.stdlib_module_names}
#: Names that every file imports where it uses them.
_KNOWN = {"torch", "nn", "F", "Tensor", "Sequence", "OrderedDict"}


class Carrier:
    """Adds the source of classes, and of what they use in their package, to a file.

    Attributes:
        file: the file.
        imports: the import statements that the source needs.
        licences: a line for each package whose source is carried over.
    """

    def __init__(self, file: SourceFile) -> None:
        self.file = file
        self.imports: set[str] = set()
        self.licences: dict[str, str] = {}
        self._done: set[tuple[str, str]] = set()

    def add(self, kind: type, what: str) -> str:
        """Add the source of a class, and return its name.

        Args:
            kind: the class.
            what: the part for messages, such as "fusion attention-gate of attention-gate".

        Raises:
            BuildError: Its source cannot be found, or it uses more than torch, the standard library and its package.
        """
        module = sys.modules[kind.__module__]
        self._add_name(module, kind.__name__, what)
        return kind.__name__

    def _add_name(self, module: ModuleType, name: str, what: str) -> None:
        if (module.__name__, name) in self._done:
            return
        self._done.add((module.__name__, name))
        text = _read_source(module, what)
        tree = ast.parse(text)
        node = _find_definition(tree, name)
        if node is None:
            raise BuildError(
                f"{what}: {module.__file__} defines no {name} at its top level, so it cannot be carried over"
            )
        first = min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", []))])
        start = first
        lines = text.split("\n")
        while start > 1 and lines[start - 2].startswith("#"):
            start -= 1
        renamed: dict[str, str] = {}
        imported = _read_imports(tree)
        removed = _find_checks(node, imported)
        used = {one.id for one in _walk(node, removed) if isinstance(one, ast.Name)} - {name}
        for one in sorted(used):
            if one in imported:
                self._add_import(one, imported[one], module, what, renamed)
            elif _find_definition(tree, one) is not None:
                self._add_name(module, one, what)
        kept = [
            line
            for number, line in enumerate(lines[start - 1 : node.end_lineno], start)
            if not any(begin <= number <= end for begin, end in removed)
        ]
        for old, new in renamed.items():
            kept = [re.sub(rf"\b{old}\b", new, line) for line in kept]
        self.file.carry(name, kept)
        self._note_licence(module)

    def _add_import(
        self, name: str, source: tuple[str, str], module: ModuleType, what: str, renamed: dict[str, str]
    ) -> None:
        home, attribute = source
        if (home, attribute) in _REPLACED:
            if _REPLACED[home, attribute] != name:
                renamed[name] = _REPLACED[home, attribute]
            return
        top = home.partition(".")[0]
        if top in _PLAIN:
            if name not in _KNOWN:
                alias = f" as {name}" if name != (attribute or home) else ""
                self.imports.add(f"from {home} import {attribute}{alias}" if attribute else f"import {home}{alias}")
            return
        is_own = top == module.__name__.partition(".")[0] and top != "unetkit"
        if attribute and (is_own or home in _CARRIED_MODULES):
            self._add_name(sys.modules[home], attribute, what)
            return
        raise BuildError(
            f"{what} cannot be written as source: {module.__file__} imports {attribute or home} from {home}; only a "
            "part whose module imports torch and the standard library alone can be"
        )

    def _note_licence(self, module: ModuleType) -> None:
        top = module.__name__.partition(".")[0]
        if top == "unetkit" or top in self.licences:
            return
        self.licences[top] = _licence_of(module)


def _read_source(module: ModuleType, what: str) -> str:
    try:
        return inspect.getsource(module)
    except (OSError, TypeError) as error:
        where = getattr(module, "__file__", None) or module.__name__
        raise BuildError(f"{what} cannot be written as plain source: the source of {where} is not there") from error


def _find_definition(tree: ast.Module, name: str) -> ast.stmt | None:
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return node
        if isinstance(node, ast.Assign) and any(isinstance(one, ast.Name) and one.id == name for one in node.targets):
            return node
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == name:
            return node
    return None


def _read_imports(tree: ast.Module) -> dict[str, tuple[str, str]]:
    """Return the module and the attribute of each name that a module imports; "" for a module itself."""
    found: dict[str, tuple[str, str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for one in node.names:
                found[one.asname or one.name.partition(".")[0]] = (one.name, "")
        elif isinstance(node, ast.ImportFrom) and node.module:
            for one in node.names:
                found[one.asname or one.name] = (node.module, one.name)
    return found


def _find_checks(node: ast.stmt, imported: dict[str, tuple[str, str]]) -> list[tuple[int, int]]:
    """Return the lines of statements that only refuse arguments, which a file with one network needs no more."""

    def only_raises(statement: ast.stmt) -> bool:
        match statement:
            case ast.If(body=[ast.Raise(exc=ast.Call(func=ast.Name(id=name)))], orelse=[]):
                return imported.get(name, ("", ""))[0] == "unetkit.errors"
            case ast.For(body=body, orelse=[]):
                return all(map(only_raises, body))
        return False

    return [
        (one.lineno, one.end_lineno or one.lineno)
        for one in ast.walk(node)
        if isinstance(one, ast.stmt) and only_raises(one)
    ]


def _walk(node: ast.AST, removed: list[tuple[int, int]]) -> Iterator[ast.AST]:
    for one in ast.walk(node):
        line = getattr(one, "lineno", None)
        if line is None or not any(begin <= line <= end for begin, end in removed):
            yield one


def _licence_of(module: ModuleType) -> str:
    """Return what a package says of its licence: in its source, or in its metadata."""
    top = module.__name__.partition(".")[0]
    name = str(getattr(module, "__file__", top))
    lines = [line.lstrip("# ").strip() for line in _read_source(module, top).split("\n")[:40]]
    said = [line for line in lines if re.search(r"SPDX-License-Identifier|[Cc]opyright|[Ll]icen[cs]ed? ", line)]
    if said:
        return "; ".join(said)
    try:
        about: Any = metadata(top.replace("_", "-"))
        licence = about.get("License-Expression") or about.get("License")
        return f"{about['Name']} {about['Version']}, {licence or 'no licence given'}"
    except PackageNotFoundError:
        return f"{Path(name).name}, no licence given"
