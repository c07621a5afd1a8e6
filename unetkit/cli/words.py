"""The words of a plan as options of a command, with completion of part names."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from unetkit.errors import UnetkitError
from unetkit.plan import WORDS, Word
from unetkit.plugins import default_parts, load_parts
from unetkit.registry import KINDS, Parts, Registry
from unetkit.resolve import kind_of

F = TypeVar("F", bound=Callable[..., Any])
_WORDS = {kind.word for kind in KINDS}


def parts_of(ctx: click.Context) -> Parts:
    """The parts with those of the plugins named before the command."""
    plugins = ctx.find_root().params.get("plugins") or ()
    return load_parts(plugins) if plugins else default_parts()


def plan_options(command: F) -> F:
    """Give a command an option for each word of a plan, in order."""
    return reduce(lambda wrapped, word: _option(word)(wrapped), reversed(WORDS), command)


def _option(word: Word) -> Callable[[F], F]:
    extra: dict[str, Any] = {}
    if word.name == "pretrained":  # unprocessed, or click would make the text "True" of it
        extra = {"is_flag": False, "flag_value": True, "type": click.UNPROCESSED}
    if kind_of(word.name) in _WORDS:
        extra["shell_complete"] = _completer(kind_of(word.name))
    return click.option(
        word.flag, word.name, metavar=word.metavar, help=f"{word.help[0].upper()}{word.help[1:]}.", **extra
    )


def _completer(kind: str) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem]]:
    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return complete_part(parts_of(ctx)[kind], incomplete)

    return complete


def complete_part(registry: Registry, incomplete: str) -> list[CompletionItem]:
    """Names that begin so; after a colon, the options of the part; after a slash, the next level's names."""
    levels = registry.kind.word not in ("encoder", "recipe", "head")
    before, slash, last = incomplete.rpartition("/") if levels else ("", "", incomplete)
    name, colon, options = last.partition(":")
    if not colon:
        source, _, bare = name.rpartition("/")
        found = [entry for entry in registry.find(f"{bare}*") if source in ("", entry.source)]
        before, slash = (source, "/") if source else (before, slash)
        return [
            CompletionItem(before + slash + e.name, help=e.signature.summary if len(found) < 50 else None)
            for e in found
        ]
    given, comma, key = options.rpartition(",")
    head = f"{before}{slash}{name}:{given}{comma}"
    try:
        known = registry.get(name).signature.options
    except UnetkitError:
        return []
    return [CompletionItem(f"{head}{o.name}=", help=o.help) for o in known if o.name.startswith(key)]
