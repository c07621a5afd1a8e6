"""Source that is carried over as it is: a plugin's class, with the functions and constants of its package that it uses.

What a part checks before it is built is left out, since the file has one network, whose options are right.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from unetkit.ejection.code import SourceFile
from unetkit.errors import BuildError
from unetkit.plugin_files import package_of

#: Modules of unetkit whose functions are carried over like those of the plugin.
_OWN_MODULES = ("unetkit.parts.upsamplers", "unetkit.utils.integers")
_ERRORS = "unetkit.errors"
#: What stands in the place of names of unetkit.
_REPLACED = {("unetkit.utils.formatting", "Size"): "Sequence[int]"}
_PLAIN = {"torch", *sys.stdlib_module_names}
#: Names that a file imports anyway where it uses them.
_KNOWN = {"torch", "nn", "F", "Tensor", "Sequence", "OrderedDict"}


@dataclass(frozen=True)
class _Source:
    """A module's text, with what it defines and imports."""

    module: ModuleType
    lines: tuple[str, ...]
    definitions: dict[str, ast.stmt]
    imports: dict[str, tuple[str, str]]

    @classmethod
    def read(cls, module: ModuleType, what: str) -> _Source:
        try:
            text = inspect.getsource(module)
        except (OSError, TypeError) as error:
            where = getattr(module, "__file__", None) or module.__name__
            raise BuildError(f"{what} cannot be written as source: {where} has none that can be read") from error
        tree = ast.parse(text)
        return cls(module, tuple(text.split("\n")), _read_definitions(tree), _read_imports(tree))


@dataclass(frozen=True)
class _Piece:
    """A definition to carry over."""

    name: str
    lines: tuple[str, ...]
    module: ModuleType


class Carrier:
    """Carries source over into a file.

    Attributes:
        file: the file.
        imports: the import statements that the source needs.
        licences: what each package whose source is carried over says of its licence.
    """

    def __init__(self, file: SourceFile) -> None:
        self.file = file
        self.imports: set[str] = set()
        self.licences: dict[str, str] = {}

    def add_class(self, kind: type, what: str) -> str:
        """Carry a class over, and return its name.

        Args:
            kind: the class.
            what: the part for messages, such as "fusion attention-gate".

        Raises:
            BuildError: Its source cannot be read, or uses more than torch, the standard library and its own package.
        """
        collector = _Collector(what)
        collector.collect(_Source.read(sys.modules[kind.__module__], what), kind.__name__)
        self._add(collector)
        return kind.__name__

    def add_methods(self, kind: type, names: Iterable[str], what: str) -> list[str]:
        """Return the source of methods of a class, and carry over what they use. Raises BuildError as `add_class`."""
        collector = _Collector(what)
        lines: list[str] = []
        for name in names:
            owner = next(one for one in kind.__mro__ if name in vars(one))
            source = _Source.read(sys.modules[owner.__module__], what)
            node = source.definitions.get(owner.__name__)
            found = [one for one in getattr(node, "body", []) if isinstance(one, ast.FunctionDef) and one.name == name]
            if not found:
                raise BuildError(
                    f"{what} cannot be written as source: {source.module.__file__} does not define {name}()"
                )
            method = textwrap.dedent("\n".join(collector.take(source, found[0], name))).split("\n")
            lines += [*([""] if lines else []), *method]
        self._add(collector)
        return lines

    def _add(self, collector: _Collector) -> None:
        self.imports |= collector.imports
        for piece in collector.pieces:
            self.file.carry(piece.name, piece.lines)
            package = package_of(piece.module.__name__)
            if package != "unetkit" and package not in self.licences:
                self.licences[package] = _find_licence(piece.module)


class _Collector:
    """Collects a definition and what it uses, before anything of it is added to the file."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.pieces: list[_Piece] = []
        self.imports: set[str] = set()
        self._seen: set[tuple[str, str]] = set()

    def collect(self, source: _Source, name: str) -> None:
        """Collect a definition of a module after those that it uses."""
        if (source.module.__name__, name) in self._seen:
            return
        self._seen.add((source.module.__name__, name))
        node = source.definitions.get(name)
        if node is None:
            raise BuildError(
                f"{self.what} cannot be written as source: {source.module.__file__} has no class, function or constant "
                f"{name} at its top level"
            )
        self.pieces.append(_Piece(name, tuple(self.take(source, node, name)), source.module))

    def take(self, source: _Source, node: ast.stmt, name: str) -> list[str]:
        """Return the lines of a definition without its checks, and collect what it uses."""
        removed = self._find_checks(source, node)
        kept = [one for one in ast.walk(node) if not _is_within(one, removed)]
        renamed: dict[str, str] = {}
        used = {one.id for one in kept if isinstance(one, ast.Name)} - {name}
        for one in sorted(used):
            if one in source.imports:
                self._import(one, source, renamed)
            elif one in source.definitions:
                self.collect(source, one)
        start = min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", []))])
        while start > 1 and source.lines[start - 2].startswith("#"):
            start -= 1
        numbered = enumerate(source.lines[start - 1 : node.end_lineno], start)
        lines = [line for number, line in numbered if not any(begin <= number <= end for begin, end in removed)]
        for old, new in renamed.items():
            lines = [re.sub(rf"\b{old}\b", new, line) for line in lines]
        return _drop_raises(lines) if removed else lines

    def _import(self, name: str, source: _Source, renamed: dict[str, str]) -> None:
        home, attribute = source.imports[name]
        package = home.partition(".")[0]
        if home == _ERRORS:
            renamed[name] = "ValueError"
        elif (home, attribute) in _REPLACED:
            renamed[name] = _REPLACED[home, attribute]
        elif package in _PLAIN:
            if name not in _KNOWN:
                alias = f" as {name}" if name != (attribute or home) else ""
                self.imports.add(f"from {home} import {attribute}{alias}" if attribute else f"import {home}{alias}")
        elif attribute and self._is_carried(home, source):
            self.collect(_Source.read(sys.modules[home], self.what), attribute)
        else:
            used = f"{attribute} of {home}" if attribute else home
            raise BuildError(
                f"{self.what} cannot be written as source: {source.module.__file__} uses {used}, and a part may use "
                "torch, the standard library and its own package"
            )

    def _is_carried(self, home: str, source: _Source) -> bool:
        package = package_of(source.module.__name__)
        return home in _OWN_MODULES or (package_of(home) == package != "unetkit")

    def _find_checks(self, source: _Source, node: ast.AST) -> list[tuple[int, int]]:
        """Return the lines of the statements that only refuse arguments."""
        statements = (one for one in ast.walk(node) if isinstance(one, ast.stmt) and one is not node)
        return [(one.lineno, one.end_lineno or one.lineno) for one in statements if self._is_check(source, one)]

    def _is_check(self, source: _Source, statement: ast.stmt) -> bool:
        """Return whether a statement only refuses arguments, or declares the outputs of a head for training."""
        match statement:
            case ast.Assign(
                targets=[ast.Name(id="outputs") | ast.Attribute(attr="outputs", value=ast.Name(id="self"))]
            ):
                return any(
                    isinstance(one, ast.Name | ast.Attribute) and _name(one) == "Output" for one in ast.walk(statement)
                )
            case ast.If(body=[ast.Raise(exc=ast.Call(func=ast.Name(id=name)))], orelse=[]):
                return source.imports.get(name, ("", ""))[0] == _ERRORS
            case ast.For(body=body, orelse=[]):
                return all(self._is_check(source, one) for one in body)
            case ast.Expr(value=ast.Call(func=ast.Name(id=name))):
                return self._only_checks(source, name)
        return False

    def _only_checks(self, source: _Source, name: str) -> bool:
        """Return whether a function does nothing but refuse arguments."""
        home, attribute = source.imports.get(name, ("", ""))
        if home in sys.modules and attribute and self._is_carried(home, source):
            return self._only_checks(_Source.read(sys.modules[home], self.what), attribute)
        node = source.definitions.get(name)
        if not isinstance(node, ast.FunctionDef):
            return False
        body = [one for one in node.body if not (isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant))]
        if isinstance(body[-1], ast.Return):  # what a call that is a statement of its own drops
            body.pop()
        return bool(body) and all(self._is_check(source, one) for one in body)


def _name(node: ast.Name | ast.Attribute) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr


def _read_definitions(tree: ast.Module) -> dict[str, ast.stmt]:
    found: dict[str, ast.stmt] = {}
    for node in tree.body:
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AnnAssign(target=ast.Name(id=name)):
                found[name] = node
            case ast.Assign(targets=targets):
                found |= {one.id: node for one in targets if isinstance(one, ast.Name)}
    return found


def _read_imports(tree: ast.Module) -> dict[str, tuple[str, str]]:
    """Return the module and the attribute of each name that a module imports; "" for a module itself."""
    found: dict[str, tuple[str, str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {one.asname or one.name.partition(".")[0]: (one.name, "") for one in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {one.asname or one.name: (node.module, one.name) for one in node.names}
    return found


def _is_within(node: ast.AST, removed: list[tuple[int, int]]) -> bool:
    line = getattr(node, "lineno", None)
    return line is not None and any(begin <= line <= end for begin, end in removed)


def _drop_raises(lines: list[str]) -> list[str]:
    """Remove the section "Raises" of docstrings, which describes the checks that were left out."""
    kept: list[str] = []
    inside = False
    for line in lines:
        if line.strip() == "Raises:":
            inside = True
            if kept and not kept[-1].strip():
                kept.pop()
        elif inside and (not line.strip() or line.strip() == '"""'):
            inside = False
        if not inside:
            kept.append(line)
        if line.strip() == '"""' and len(kept) > 1 and kept[-2].strip().startswith('"""'):
            kept[-2:] = [f'{kept[-2]}"""']
    return kept


def _find_licence(module: ModuleType) -> str:
    """Return what a package says of its licence: in the first lines of the source, or in its metadata."""
    package = package_of(module.__name__)
    said = list(_licence_lines(inspect.getsource(module)))
    try:
        about: Any = metadata(package.replace("_", "-"))
        name = f"{about['Name']} {about['Version']}"
        licence = about.get("License-Expression") or about.get("License")
    except PackageNotFoundError:
        name, licence = Path(str(module.__file__)).name, None
    return ", ".join([name, *said]) if said else f"{name}, {licence or 'which names no licence'}"


def _licence_lines(text: str) -> Iterator[str]:
    for line in text.split("\n")[:30]:
        if re.search(r"SPDX-License-Identifier|copyright|licen[cs]ed? under", line, re.IGNORECASE):
            yield line.strip("#\"' ")
