"""Copies into the wheel the modules of unetkit that the runner imports, so that it is installed without torch.

The runner's own modules import them from `unetkit`, as the rest of the checkout does. In the wheel they lie in
`unetkit_runner._unetkit`, and all imports name that, so that the runner and unetkit may be installed together. The
sdist carries them as they are. An editable installation imports the installed unetkit.
"""

from __future__ import annotations

import ast
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from packaging.requirements import Requirement

_PACKAGE, _SOURCE, _COPY = "unetkit_runner", "unetkit", "unetkit_runner._unetkit"
#: Distributions whose modules have other names.
_DISTRIBUTIONS = {"PIL": "pillow"}


class CollectionError(Exception):
    """A module cannot be part of the runner."""


class Import(NamedTuple):
    """An import statement that is executed when the module runs.

    Attributes:
        module: what is imported, or imported from.
        names: what is imported from it; empty for `import module`.
        line: the number of the line.
    """

    module: str
    names: tuple[str, ...]
    line: int


def find_imports(tree: ast.Module) -> Iterator[Import]:
    """Yield the imports of a module, also those in functions, but not those for type checkers alone.

    Raises:
        CollectionError: What is imported cannot be read from the source.
    """
    nodes: list[ast.AST] = [tree]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            nodes += node.orelse
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == _SOURCE:
                    raise CollectionError(f"line {node.lineno}: write `from {alias.name} import ...` instead")
                yield Import(alias.name, (), node.lineno)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise CollectionError(f"line {node.lineno}: is a relative import, which is not followed")
            yield Import(node.module or "", tuple(alias.name for alias in node.names), node.lineno)
        elif isinstance(node, ast.Name | ast.Attribute) and (
            name := node.id if isinstance(node, ast.Name) else node.attr
        ) in ("import_module", "__import__"):
            raise CollectionError(f"line {node.lineno}: {name} imports what cannot be read from the source")
        nodes.extend(ast.iter_child_nodes(node))


def collect_modules(source: Path, package: Path, dependencies: set[str]) -> dict[str, Path]:
    """Find the modules of unetkit that the runner imports, directly or through others.

    Args:
        source: the folder of the package unetkit.
        package: the folder of the package unetkit_runner.
        dependencies: the normalized names of the distributions that may be imported.

    Returns:
        The file of each module by its name. Packages that are on the way to a module, and not imported themselves, are
        not among them.

    Raises:
        CollectionError: A module imports a distribution that is not among the dependencies, or cannot be followed.
    """
    found: dict[str, Path] = {}
    waiting = sorted(package.rglob("*.py"))
    while waiting:
        path = waiting.pop()
        try:
            for one in find_imports(ast.parse(path.read_text(encoding="utf-8"))):
                top = one.module.split(".")[0]
                if top == _SOURCE:
                    for name in _modules_of(source, one):
                        if name not in found:
                            found[name] = _file_of(source, name)
                            waiting.append(found[name])
                elif not _is_allowed(top, dependencies):
                    raise CollectionError(f"line {one.line}: imports {top}, which is not a dependency of the runner")
        except CollectionError as error:
            raise CollectionError(f"{path}, {error}") from None
    return dict(sorted(found.items()))


def _modules_of(source: Path, one: Import) -> list[str]:
    """Return the names of the modules that an import runs, without the packages on the way to them."""
    inside = [f"{one.module}.{name}" for name in one.names if _file_of(source, f"{one.module}.{name}").is_file()]
    return inside if len(inside) == len(one.names) else [one.module, *inside]


def _file_of(source: Path, name: str) -> Path:
    path = source.joinpath(*name.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _is_allowed(name: str, dependencies: set[str]) -> bool:
    return name in (_PACKAGE, *sys.stdlib_module_names) or _normalize(_DISTRIBUTIONS.get(name, name)) in dependencies


def _normalize(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def rewrite_imports(text: str) -> str:
    """Let a module import the copy instead of unetkit."""
    lines = text.split("\n")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == _SOURCE:
            line, at = lines[node.lineno - 1], node.col_offset
            lines[node.lineno - 1] = line[:at] + line[at:].replace(f"from {_SOURCE}", f"from {_COPY}", 1)
    return "\n".join(lines)


def write_copy(source: Path, package: Path, modules: dict[str, Path], into: Path) -> None:
    """Write the rewritten package unetkit_runner, with the modules of unetkit in it, to a folder."""
    texts = {path.relative_to(package.parent): path.read_text(encoding="utf-8") for path in package.rglob("*.py")}
    copies = into.joinpath(*_COPY.split(".")).relative_to(into)
    for path in modules.values():
        texts[copies / path.relative_to(source)] = path.read_text(encoding="utf-8")
        for folder in path.relative_to(source).parents:
            init = source / folder / "__init__.py"
            texts.setdefault(copies / folder / "__init__.py", _docstring(init.read_text(encoding="utf-8")))
    for path, text in texts.items():
        (into / path).parent.mkdir(parents=True, exist_ok=True)
        (into / path).write_text(rewrite_imports(text), encoding="utf-8")


def _docstring(text: str) -> str:
    """Return what is left of a package that is only on the way to its modules."""
    first = ast.parse(text).body[0]
    return f"{ast.get_source_segment(text, first)}\n"


class RunnerBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Adds the modules to the sdist as they are, and to the wheel rewritten."""

    _folder: tempfile.TemporaryDirectory[str] | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return
        root = Path(self.root)
        parent = root if (root / _SOURCE).is_dir() else root.parent.parent  # an sdist, or a checkout
        source, package = parent / _SOURCE, root / _PACKAGE
        core = self.metadata.core
        extras = [one for some in core.optional_dependencies.values() for one in some]
        allowed = {_normalize(Requirement(one).name) for one in (*core.dependencies, *extras)}
        modules = collect_modules(source, package, allowed)
        included = build_data["force_include"]
        if self.target_name == "sdist":
            for path in modules.values():
                included[str(path)] = str(path.relative_to(parent))
                for folder in path.relative_to(parent).parents[:-1]:
                    included[str(parent / folder / "__init__.py")] = str(folder / "__init__.py")
            included[str(parent / "LICENSE")] = "LICENSE"
            return
        self._folder = tempfile.TemporaryDirectory()
        into = Path(self._folder.name)
        write_copy(source, package, modules, into)
        included |= {str(path): str(path.relative_to(into)) for path in into.rglob("*.py")}
        included[str(parent / "LICENSE")] = f"{_COPY.replace('.', '/')}/LICENSE"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if self._folder:
            self._folder.cleanup()
