"""The text of every file of a new plugin."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from importlib.metadata import version
from importlib.resources import files
from string import Template

from unetkit.errors import BadOption, nearest
from unetkit.registry import KINDS, Kind
from unetkit.scaffold.names import Names

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
    """The text of every file of a new plugin, by its path in the plugin's folder. Raises BadOption."""
    made, names = _kind(kind).title, Names.of(name)
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


def _symbol(names: Names, made: str) -> str:
    """What the example is called in Python."""
    return {"recipe": names.function, "metric": names.function, "command": "command"}.get(made, names.cls)


def _kind(word: str) -> Kind:
    for kind in _MADE:
        if word in (kind.word, kind.title, kind.attribute):
            return kind
    raise BadOption(f"no plugin is made of {word!r}{nearest(word, TITLES)}; there are {', '.join(TITLES)}")


def _fields(names: Names, made: str) -> dict[str, str]:
    """What the templates leave open."""
    kind = _kind("head" if made == "wrap" else made)
    use = f"unetkit build --encoder resnet18 --{kind.word} {names.part}"
    if made in ("encoder", "recipe", "model"):
        use = f"unetkit build --{kind.word} {names.part}"
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


def _help(names: Names, kind: Kind) -> str:
    """Where more is said of the example."""
    if kind.title == "metric":
        return "`unetkit bench metrics` lists what can be measured."
    asked = f"unetkit {names.part} --help" if kind.title == "command" else f"unetkit list {kind.attribute} {names.part}"
    return f"`{asked}` tells its options."


def _call(function: str, *arguments: str) -> str:
    """A call with text arguments, in a function's body, as formatters write it."""
    quoted = [f'"{argument}"' for argument in arguments]
    line = f"    {function}({', '.join(quoted)})"
    if len(line) <= _WIDTH:
        return line
    return "\n".join([f"    {function}(", *(f"        {argument}," for argument in quoted), "    )"])


def _filled(template: str, fields: Mapping[str, str]) -> str:
    text = (files("unetkit.scaffold") / "templates" / f"{template}.txt").read_text(encoding="utf-8")
    return Template(text).substitute(fields)


def _imported(source: str) -> set[str]:
    """The names that a module imports something by."""
    imports = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import | ast.ImportFrom))
    return {alias.asname or alias.name for node in imports for alias in node.names}
