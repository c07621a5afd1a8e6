"""`unetkit list`: what there is, without importing torch."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from unetkit.cli.options import complete_part, parts_of, summary
from unetkit.errors import UnknownNameError
from unetkit.options import describe_type, format_value
from unetkit.registry import KINDS, Entry, Parts, Registry
from unetkit.utils.tables import make_console, make_table

if TYPE_CHECKING:  # what `unetkit --help` loads with this command has no need of rich
    from rich.console import Console
    from rich.table import Table


def _complete_kind(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(kind.attribute) for kind in KINDS if kind.attribute.startswith(incomplete)]


def _complete_name(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return complete_part(parts_of(ctx)[ctx.params.get("kind") or "encoders"], incomplete)


@click.command("list")
@click.argument("kind", required=False, shell_complete=_complete_kind)
@click.argument("name", required=False, shell_complete=_complete_name)
@click.pass_context
def list_parts(ctx: click.Context, kind: str | None, name: str | None) -> None:
    """Show the kinds of parts, the parts of a KIND, or one part by NAME with its options.

    NAME may be a glob in quotes, or have options after a colon, which are left out.

    \b
    unetkit list
    unetkit list encoders 'resnet*'
    unetkit list fuse add
    """
    parts = parts_of(ctx)
    console = make_console()
    if kind is None:
        console.print(_kinds(parts))
    elif name is None:
        _names(console, parts[kind], "*")
    elif any(c in name for c in "*?["):
        _names(console, parts[kind], name)
    else:
        _detail(console, parts[kind].get(re.split("[:+]", name)[0]))


def add_row(listed: Table, *cells: str) -> None:
    """Add texts as they are: what a plugin says is no markup."""
    from rich.text import Text

    listed.add_row(*map(Text, cells))


def _kinds(parts: Parts) -> Table:
    listed = make_table("kind", "word", "how many", "names")
    for registry in parts:
        names = registry.names()
        shown = ", ".join(names[:7]) + (" ..." if len(names) > 7 else "")
        listed.add_row(registry.kind.attribute, f"--{registry.kind.word}", str(len(names)), shown)
    return listed


def _names(console: Console, registry: Registry, pattern: str) -> None:
    """Our own and plugins' parts with their summaries, then each library's names in columns."""
    found = registry.find(pattern)
    if not found:
        raise UnknownNameError(
            f"no {registry.kind.title} matches {pattern!r}; `unetkit list {registry.kind.attribute}` lists all"
        )
    own = [entry for entry in found if entry.source is None]
    if own:
        listed = make_table("name", "what it is", "from")
        for entry in own:
            add_row(listed, entry.name, summary(entry), entry.owner)
        console.print(listed)
    for source in registry.libraries:
        names = [entry.qualified_name for entry in found if entry.source == source]
        if names and console.is_terminal:
            console.print(f"{len(names)} from {source}:")
            from rich.columns import Columns

            console.print(Columns(names, padding=(0, 2)))
        elif names:
            console.print("\n".join(names))  # one a line, for grep and the like


def _detail(console: Console, entry: Entry) -> None:
    from rich.text import Text

    known = entry.signature
    source = f" for all of {entry.source}" if entry.source else ""
    console.print(Text.assemble((entry.qualified_name, "bold"), f": {known.summary}"))
    listed = make_table("option", "takes", "default", "what it does")
    for option in known.options:
        default = "must be given" if option.required else format_value(option.default, option.type)
        add_row(listed, option.name, describe_type(option.type), default, option.help)
    console.print(listed if known.options else "It has no options.")
    if known.var_keyword:
        theirs = (
            f"Other options go to {entry.source}'s own constructor of {entry.name}; what it would ignore is refused."
        )
        console.print(theirs, soft_wrap=True)
    console.print(f"registered by {entry.owner}{source}, in {known.file}:{known.line}", soft_wrap=True)
