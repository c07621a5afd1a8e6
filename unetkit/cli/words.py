"""The words of a plan as options of a command, with completion of part names."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from unetkit.errors import UnetkitError
from unetkit.plan import WORDS, Word
from unetkit.plugins import Host, default_host, load_host
from unetkit.registry import KINDS, Registry

F = TypeVar("F", bound=Callable[..., Any])
_KINDS = {"logits": "up", **{kind.word: kind.word for kind in KINDS}}


def host_of(ctx: click.Context) -> Host:
    """The host with the plugins named before the command."""
    plugins = ctx.find_root().params.get("plugins") or ()
    return load_host(plugins) if plugins else default_host()


def plan_options(command: F) -> F:
    """Give a command an option for each word of a plan, in order."""
    return reduce(lambda wrapped, word: _option(word)(wrapped), reversed(WORDS), command)


def _option(word: Word) -> Callable[[F], F]:
    extra: dict[str, Any] = {"is_flag": False, "flag_value": True} if word.name == "pretrained" else {}
    if word.name in _KINDS:
        extra["shell_complete"] = _completer(_KINDS[word.name])
    return click.option(
        word.flag, word.name, metavar=word.metavar, help=f"{word.help[0].upper()}{word.help[1:]}.", **extra
    )


def _completer(kind: str) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem]]:
    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return complete_part(host_of(ctx).parts[kind], incomplete)

    return complete


def complete_part(registry: Registry, incomplete: str) -> list[CompletionItem]:
    """Names that begin so; after a colon, the options of the part; after a slash, the next level's names."""
    levels = registry.kind.word not in ("encoder", "recipe", "head")
    before, slash, last = incomplete.rpartition("/") if levels else ("", "", incomplete)
    name, colon, options = last.partition(":")
    if not colon:
        found = registry.find(f"{name}*")
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
