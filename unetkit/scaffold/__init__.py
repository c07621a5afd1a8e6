"""Create a new plugin: an installable package with one working part, its tests, and everything needed to publish it."""

from __future__ import annotations

import ast
import builtins
import keyword
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from string import Template

from unetkit.commands import COMMANDS, plugin_commands
from unetkit.errors import FileError, OptionError, PluginError, UnknownNameError, did_you_mean
from unetkit.plugins import default_manager, default_parts
from unetkit.registry import KINDS, RUN_KINDS, Kind, Registry

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
_SEPARATOR = re.compile(r"[-_.]+")

#: The files of a distribution beside the package.
_FOLDERS = ("tests", "dist")


@dataclass(frozen=True)
class PluginNames:
    """The names of a new plugin.

    Attributes:
        name: the name of the distribution.
        part: the name of the part and of the plugin, without "unetkit-".
        package: the name of the package.
        function, cls: the name of the part's function or class.
    """

    name: str
    part: str
    package: str
    function: str
    cls: str

    @classmethod
    def of(cls, name: str) -> PluginNames:
        """Derive the names from the name of a distribution. Raises OptionError if that is not valid."""
        if not _NAME.fullmatch(name):
            rule = "use letters and digits, with '-', '_' or '.' between them"
            raise OptionError(f"{name!r} is not a valid name of a distribution: {rule}, such as my-gate")
        if name.lower().endswith(".py"):
            raise OptionError(f"{name!r} is the name of a file, but this command creates a folder; leave out .py")
        part = re.sub(r"^unetkit[-_.]+", "", name, flags=re.IGNORECASE)
        words = _SEPARATOR.split(part)
        return cls(
            name,
            part.lower(),
            _SEPARATOR.sub("_", name).lower(),
            "_".join(words).lower(),
            "".join(word[0].upper() + word[1:] for word in words),
        )

    def check(self, symbol: str) -> None:
        """Reject the name of a package, class or function that Python does not allow or that is already in use."""
        for identifier in (self.package, symbol):
            if not identifier.isidentifier() or keyword.iskeyword(identifier):
                self.reject(f"would define {identifier!r}, which is not a valid name in Python")
            if hasattr(builtins, identifier):
                self.reject(f"would define {identifier!r}, which is a builtin of Python")
        if self.package in _FOLDERS or _is_importable(self.package):
            self.reject(f"would define the package {self.package!r}, which already exists")

    def check_free(self, title: str) -> None:
        """Reject a name that something else of the kind has."""
        if title == "command":
            self.check_command()
            return
        registry = default_parts()["head" if title == "wrap" else title]
        for ending in ("", "-time", "-worst") if title == "metric" else ("",):
            self.check_part(registry, self.part + ending)

    def check_part(self, registry: Registry, name: str) -> None:
        """Reject the name of an existing part, or one that the registry does not allow."""
        try:
            entry = registry.get(name)
        except UnknownNameError:
            try:
                default_parts().stage(self.part)[registry.kind.field].add(name, "")
            except PluginError as error:
                self.reject(f"is not possible: {error}")
            return
        self.reject(
            f"would define the {registry.kind.title} {name!r}, which {entry.library or entry.owner} already has"
        )

    def check_command(self) -> None:
        """Reject the name of an existing command."""
        if self.part in COMMANDS or self.part in plugin_commands(default_manager()):
            self.reject(f"would define the command {self.part!r}, which already exists")

    def reject(self, why: str) -> None:
        """Raise OptionError with what to do instead."""
        raise OptionError(f"{self.name!r} {why}; choose another name, such as my-{self.part}")


def _is_importable(package: str) -> bool:
    if package in sys.stdlib_module_names or package in sys.modules:
        return True
    spec = find_spec(package)
    return spec is not None and spec.origin is not None  # a plain folder in the working directory has no origin


#: Kinds of plugins that add no parts; each has its own template.
_HOOKS = (
    Kind("wrap", "wrap", "wraps"),
    Kind("command", "command", "commands"),
)
_KINDS = (*KINDS, *_HOOKS)
#: Kinds whose `__init__.py` has a template of its own; the others register one name.
_OWN_HOOKS = (*(kind.title for kind in _HOOKS), "metric")
TITLES = tuple(kind.title for kind in _KINDS)

#: A description of each example, for its README and the package index.
_SUMMARIES = {
    "encoder": "An encoder for unetkit: strided convolutions.",
    "upsampler": "An upsampler for unetkit: interpolation, then a convolution.",
    "fusion": "A fusion for unetkit: the skip, gated by the map.",
    "align": "An align for unetkit: the skip is resampled to the map's size.",
    "block": "A block for unetkit: a depthwise convolution, then 1x1.",
    "head": "A head for unetkit: dropout, then a 1x1 convolution.",
    "recipe": "A recipe for unetkit: a small U-Net for quick trials.",
    "model": "A whole model for unetkit: patches of pixels, and back.",
    "wrap": "A head for unetkit whose model averages over mirror images.",
    "command": "A command for unetkit: counts parameters, part by part.",
    "dataset": "A dataset for unetkit: bright discs on a dark ground.",
    "loss": "A loss for unetkit: one minus the Tversky index.",
    "target": "A target for unetkit: the foreground, without its classes.",
    "augmentation": "An augmentation for unetkit: random erasing.",
    "optimizer": "An optimizer for unetkit: RMSprop.",
    "format": "An export format for unetkit: TorchScript.",
    "metric": "Metrics for unetkit: the largest layer, predicted classes, the worst image.",
}

#: The largest line length of the generated code: the default of formatters.
_WIDTH = 88


def plugin_files(name: str, kind: str) -> dict[str, str]:
    """Return the text of every file of a new plugin, by its path in the plugin's folder. Raises OptionError."""
    title, names = _find_kind(kind).title, PluginNames.of(name)
    symbol = _symbol_name(names, title)
    names.check(symbol)
    names.check_free(title)
    fields = _template_fields(names, title)
    part = _fill_template(title, fields)
    if symbol in _list_imports(part):
        names.reject(f"would define {symbol!r}, which the example imports from elsewhere")
    return {
        "pyproject.toml": _fill_template("pyproject", fields),
        "README.md": _fill_template("readme", fields),
        "CHANGELOG.md": _fill_template("changelog", fields),
        ".gitignore": _fill_template("gitignore", fields),
        f"{names.package}/__init__.py": _fill_template(f"hook_{title}" if title in _OWN_HOOKS else "hook", fields),
        f"{names.package}/{title}.py": part,
        f"{names.package}/py.typed": "",
        f"tests/test_{names.package}.py": _fill_template(f"{title}_test", fields),
    }


def _symbol_name(names: PluginNames, title: str) -> str:
    """Return the Python name of the example."""
    functions = ("recipe", "metric", "optimizer", "dataset")
    return "command" if title == "command" else names.function if title in functions else names.cls


def _find_kind(word: str) -> Kind:
    for kind in _KINDS:
        if word in (kind.field, kind.title, kind.attribute):
            return kind
    raise OptionError(f"there is no kind {word!r}{did_you_mean(word, TITLES)}; the kinds are {', '.join(TITLES)}")


def _template_fields(names: PluginNames, title: str) -> dict[str, str]:
    """Return the values for the placeholders of the templates."""
    kind = _find_kind("head" if title == "wrap" else title)
    use = f"unetkit build --encoder resnet18 --{kind.field} {names.part}"
    if title in ("encoder", "recipe", "model"):
        use = f"unetkit build --{kind.field} {names.part}"
    elif title == "command":
        use = f"unetkit {names.part} --encoder resnet18 --fuse add"
    elif title == "metric":
        use = f"unetkit bench --encoder resnet18,resnet34 --metrics {names.part},{names.part}-time"
    elif title == "target":
        use = f"unetkit list targets {names.part}"
    elif title == "format":
        use = f"unetkit export --encoder resnet18 --out model.{_suffix(names)}"
    elif kind in RUN_KINDS:
        use = f"unetkit train --encoder resnet18 --{kind.field} {names.part} --out runs/a"
    return {
        "name": names.name,
        "part": names.part,
        "package": names.package,
        "function": names.function,
        "cls": names.cls,
        "title": kind.title,
        "suffix": _suffix(names),
        "summary": _SUMMARIES[title],
        "register": _format_call(
            f"parts.{kind.attribute}.add", names.part, f"{names.package}.{title}:{_symbol_name(names, title)}"
        ),
        "use": use,
        "help": _help_line(names, kind),
        "version": ".".join(version("unetkit").split(".")[:2]),
    }


def _suffix(names: PluginNames) -> str:
    """Return the ending of the files of an export format, without a dot."""
    return names.function.replace("_", "")


def _help_line(names: PluginNames, kind: Kind) -> str:
    """Return where the example is documented, or how it is used."""
    if kind.title == "metric":
        return f"`{names.part}-worst` is a metric of trained networks; it needs `--data`, too."
    if kind.title == "target":
        return f'A head trains an output on it by `unetkit.Output("{names.part}")`.'
    command = (
        f"unetkit {names.part} --help" if kind.title == "command" else f"unetkit list {kind.attribute} {names.part}"
    )
    return f"`{command}` describes its options."


def _format_call(function: str, *arguments: str) -> str:
    """Format a call with text arguments in the body of a function."""
    quoted = [f'"{argument}"' for argument in arguments]
    line = f"    {function}({', '.join(quoted)})"
    if len(line) <= _WIDTH:
        return line
    return "\n".join([f"    {function}(", *(f"        {argument}," for argument in quoted), "    )"])


def _fill_template(template: str, fields: Mapping[str, str]) -> str:
    text = (files("unetkit.scaffold") / "templates" / f"{template}.txt").read_text(encoding="utf-8")
    return Template(text).substitute(fields)


def _list_imports(source: str) -> set[str]:
    """Return the names that a module imports."""
    imports = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import | ast.ImportFrom))
    return {alias.asname or alias.name for node in imports for alias in node.names}


__all__ = ["TITLES", "new_plugin", "plugin_files"]


def new_plugin(name: str, kind: str, folder: Path) -> Path:
    """Write a plugin with one working example; either all its files are written, or none.

    Args:
        name: the name of the distribution; the name of its part has no prefix "unetkit-".
        kind: what the plugin adds, one of TITLES; the option ("fuse") or plural ("fusions") of a kind are also
            accepted.
        folder: the folder in which the plugin's own folder, called `name`, is created.

    Returns:
        The plugin's folder.

    Raises:
        OptionError: The name is not valid or taken, the kind does not exist, the folder does not exist, or it already
            contains something with this name.
        FileError: The files cannot be written.
    """
    texts = plugin_files(name, kind)
    if not folder.is_dir():
        raise OptionError(f"there is no folder {folder}; create it first, or give another folder")
    target = folder / name
    try:
        if target.is_symlink() or (target.exists() and not (target.is_dir() and not any(target.iterdir()))):
            raise OptionError(f"{target} already exists and was not changed; choose another name or folder")
        with _replace_when_complete(target) as temporary:
            _write(texts, temporary)
    except OSError as error:
        raise FileError(f"{target} cannot be written: {error.strerror or error}") from error
    return target


@contextmanager
def _replace_when_complete(target: Path) -> Iterator[Path]:
    """Yield a temporary folder next to `target`, which is renamed to `target` if no exception is raised."""
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp"))
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)
        temporary.rename(target)  # fails if something was created there in the meantime
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write(texts: Mapping[str, str], folder: Path) -> None:
    for path, text in texts.items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8", newline="\n")
