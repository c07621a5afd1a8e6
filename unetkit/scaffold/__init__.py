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

from unetkit.bench.metrics import collect_metrics
from unetkit.commands import COMMANDS, plugin_commands
from unetkit.errors import FileError, OptionError, PluginError, UnknownNameError, did_you_mean
from unetkit.plugins import default_manager, default_parts
from unetkit.registry import KINDS, Kind

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
_SEPARATOR = re.compile(r"[-_.]+")

#: What stands beside the package in its distribution.
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
            rule = "take letters and digits, with '-', '_' or '.' between them"
            raise OptionError(f"{name!r} is not a name for a distribution: {rule}, such as my-gate")
        if name.lower().endswith(".py"):
            raise OptionError(f"{name!r} is a file's name, and this makes a folder; leave out .py")
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
                self.refuse(f"would make {identifier!r}, which cannot be a name in Python")
            if hasattr(builtins, identifier):
                self.refuse(f"would make {identifier!r}, which is built into Python")
        if self.package in _FOLDERS or _importable(self.package):
            self.refuse(f"would make the package {self.package!r}, and there is one")

    def check_free(self, made: str) -> None:
        """Reject a name that another part of the kind has."""
        if made == "command":
            self.check_command()
        elif made == "metric":
            self.check_metrics()
        else:
            self.check_part("head" if made == "wrap" else made)

    def check_part(self, kind: str) -> None:
        """Reject the name of an existing part."""
        registry = default_parts()[kind]
        try:
            entry = registry.get(self.part)
        except UnknownNameError:
            return
        self.refuse(f"would make the {registry.kind.title} {self.part!r}, and {entry.library or entry.owner} has one")

    def check_command(self) -> None:
        """Reject the name of an existing command."""
        if self.part in COMMANDS or self.part in plugin_commands(default_manager()):
            self.refuse(f"would make the command {self.part!r}, and there is one")

    def check_metrics(self) -> None:
        """Reject the names of existing metrics and of grid options."""
        metrics = collect_metrics(default_manager())
        for name in (self.part, f"{self.part}-time"):
            try:
                metrics.add(name, "")
            except PluginError:
                self.refuse(f"would make the metric {name!r}, and that name is taken")

    def refuse(self, why: str) -> None:
        """Raise OptionError with what to do instead."""
        raise OptionError(f"{self.name!r} {why}; choose another name, such as my-{self.part}")


def _importable(package: str) -> bool:
    if package in sys.stdlib_module_names or package in sys.modules:
        return True
    spec = find_spec(package)
    return spec is not None and spec.origin is not None  # a folder that happens to be there has none


#: What a plugin can be made of beside parts: each has a template of its own for its hook.
_HOOKS = (
    Kind("wrap", "wrap", "wraps"),
    Kind("command", "command", "commands"),
    Kind("metric", "metric", "metrics"),
)
_MADE = (*KINDS, *_HOOKS)
_HOOKED = tuple(kind.title for kind in _HOOKS)
TITLES = tuple(kind.title for kind in _MADE)

#: What each example does, for its README and the package index.
_DOES = {
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
    "metric": "Metrics for unetkit: the largest layer's share, and a pass that gives classes.",
}

#: As wide as a line of the generated code may be: what formatters take unless told otherwise.
_WIDTH = 88


def plugin_files(name: str, kind: str) -> dict[str, str]:
    """Return the text of every file of a new plugin, by its path in the plugin's folder. Raises OptionError."""
    made, names = _kind(kind).title, PluginNames.of(name)
    symbol = _symbol(names, made)
    names.check(symbol)
    names.check_free(made)
    fields = _fields(names, made)
    part = _filled(made, fields)
    if symbol in _imported(part):
        names.refuse(f"would make {symbol!r}, which the example needs for something else")
    return {
        "pyproject.toml": _filled("pyproject", fields),
        "README.md": _filled("readme", fields),
        "CHANGELOG.md": _filled("changelog", fields),
        ".gitignore": _filled("gitignore", fields),
        f"{names.package}/__init__.py": _filled(f"hook_{made}" if made in _HOOKED else "hook", fields),
        f"{names.package}/{made}.py": part,
        f"{names.package}/py.typed": "",
        f"tests/test_{names.package}.py": _filled(f"{made}_test", fields),
    }


def _symbol(names: PluginNames, made: str) -> str:
    """Return the Python name of the example."""
    return {"recipe": names.function, "metric": names.function, "command": "command"}.get(made, names.cls)


def _kind(word: str) -> Kind:
    for kind in _MADE:
        if word in (kind.field, kind.title, kind.attribute):
            return kind
    raise OptionError(f"no plugin is made of {word!r}{did_you_mean(word, TITLES)}; there are {', '.join(TITLES)}")


def _fields(names: PluginNames, made: str) -> dict[str, str]:
    """Return the values for the placeholders of the templates."""
    kind = _kind("head" if made == "wrap" else made)
    use = f"unetkit build --encoder resnet18 --{kind.field} {names.part}"
    if made in ("encoder", "recipe", "model"):
        use = f"unetkit build --{kind.field} {names.part}"
    elif made == "command":
        use = f"unetkit {names.part} --encoder resnet18 --fuse add"
    elif made == "metric":
        use = f"unetkit bench --encoder resnet18,resnet34 --metrics {names.part},{names.part}-time"
    return {
        "name": names.name,
        "part": names.part,
        "package": names.package,
        "function": names.function,
        "cls": names.cls,
        "title": kind.title,
        "summary": _DOES[made],
        "register": _call(f"parts.{kind.attribute}.add", names.part, f"{names.package}.{made}:{_symbol(names, made)}"),
        "use": use,
        "help": _help(names, kind),
        "version": ".".join(version("unetkit").split(".")[:2]),
    }


def _help(names: PluginNames, kind: Kind) -> str:
    """Return where the example is documented."""
    if kind.title == "metric":
        return "`unetkit bench metrics` lists what can be measured."
    asked = f"unetkit {names.part} --help" if kind.title == "command" else f"unetkit list {kind.attribute} {names.part}"
    return f"`{asked}` tells its options."


def _call(function: str, *arguments: str) -> str:
    """Format a call with text arguments in the body of a function."""
    quoted = [f'"{argument}"' for argument in arguments]
    line = f"    {function}({', '.join(quoted)})"
    if len(line) <= _WIDTH:
        return line
    return "\n".join([f"    {function}(", *(f"        {argument}," for argument in quoted), "    )"])


def _filled(template: str, fields: Mapping[str, str]) -> str:
    text = (files("unetkit.scaffold") / "templates" / f"{template}.txt").read_text(encoding="utf-8")
    return Template(text).substitute(fields)


def _imported(source: str) -> set[str]:
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
        raise OptionError(f"there is no folder {folder}; make it first, or name another")
    target = folder / name
    try:
        if target.is_symlink() or (target.exists() and not (target.is_dir() and not any(target.iterdir()))):
            raise OptionError(f"{target} is there already, and stays as it is; choose another name or folder")
        with _made_whole(target) as temporary:
            _write(texts, temporary)
    except OSError as error:
        raise FileError(f"{target} cannot be written: {error.strerror or error}") from error
    return target


@contextmanager
def _made_whole(target: Path) -> Iterator[Path]:
    """Yield a temporary folder next to `target`, which is renamed to `target` if no exception is raised."""
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
