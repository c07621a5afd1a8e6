"""A plugin to start from: a whole distribution with one working part, its tests, and what it takes to publish it."""

from __future__ import annotations

import ast
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from string import Template

from unetkit.errors import BadFile, BadOption, nearest
from unetkit.registry import KINDS, Kind
from unetkit.scaffold.names import Names

#: What a plugin can be made of: the kinds of part, a wrap of the whole model, and a command.
_MADE = (*KINDS, Kind("wrap", "wrap", "wraps"), Kind("command", "command", "commands"))
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
}

#: As wide as a line of the generated code may be: what formatters take unless told otherwise.
_WIDTH = 88


def new_plugin(name: str, kind: str, folder: Path) -> Path:
    """Write a plugin with one working part: every file of it, or none.

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


def plugin_files(name: str, kind: str) -> dict[str, str]:
    """The text of every file of a new plugin, by its path in the plugin's folder. Raises BadOption."""
    made, names = _kind(kind).title, Names.of(name)
    symbol = {"recipe": names.function, "command": "command"}.get(made, names.cls)
    names.check(symbol)
    if made == "command":
        names.check_command()
    else:
        names.check_part("head" if made == "wrap" else made)
    fields = _fields(names, made)
    part = _filled(made, fields)
    if symbol in _imported(part):
        names.refuse(f"would make {symbol!r}, which the example needs for something else")
    return {
        "pyproject.toml": _filled("pyproject", fields),
        "README.md": _filled("readme", fields),
        "CHANGELOG.md": _filled("changelog", fields),
        ".gitignore": _filled("gitignore", fields),
        f"{names.package}/__init__.py": _filled(f"hook_{made}" if made in ("wrap", "command") else "hook", fields),
        f"{names.package}/{made}.py": part,
        f"{names.package}/py.typed": "",
        f"tests/test_{names.package}.py": _filled(f"{made}_test", fields),
    }


def _kind(word: str) -> Kind:
    for kind in _MADE:
        if word in (kind.word, kind.title, kind.attribute):
            return kind
    raise BadOption(f"no plugin is made of {word!r}{nearest(word, TITLES)}; there are {', '.join(TITLES)}")


def _fields(names: Names, made: str) -> dict[str, str]:
    """What the templates leave open."""
    kind = _kind("head" if made == "wrap" else made)
    symbol = names.function if made == "recipe" else names.cls
    use = f"unetkit build --encoder resnet18 --{kind.word} {names.part}"
    if made in ("encoder", "recipe", "model"):
        use = f"unetkit build --{kind.word} {names.part}"
    elif made == "command":
        use = f"unetkit {names.part} --encoder resnet18 --fuse add"
    return {
        "name": names.name,
        "part": names.part,
        "package": names.package,
        "function": names.function,
        "cls": names.cls,
        "title": kind.title,
        "summary": _DOES[made],
        "register": _call(f"parts.{kind.attribute}.add", names.part, f"{names.package}.{made}:{symbol}"),
        "use": use,
        "help": f"unetkit {names.part} --help" if made == "command" else f"unetkit list {kind.attribute} {names.part}",
        "version": ".".join(version("unetkit").split(".")[:2]),
    }


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
