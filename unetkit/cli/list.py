"""`unetkit list`: list parts and their options, without importing torch."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from unetkit.cli.options import Command, complete_part, get_parts, summarize_entry
from unetkit.errors import UnknownNameError
from unetkit.options import describe_type, format_value
from unetkit.registry import KINDS, Entry, Metric, Parts, Registry
from unetkit.utils.tables import TableData, make_console, print_table

if TYPE_CHECKING:  # `unetkit --help` imports this module and does not need rich
    from rich.console import Console


def _complete_kind(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(kind.attribute) for kind in KINDS if kind.attribute.startswith(incomplete)]


def _complete_name(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return complete_part(get_parts(ctx)[ctx.params.get("kind") or "encoders"], incomplete)


@click.command("list", cls=Command)
@click.argument("kind", required=False, shell_complete=_complete_kind)
@click.argument("name", required=False, shell_complete=_complete_name)
@click.pass_context
def list_parts(ctx: click.Context, kind: str | None, name: str | None) -> None:
    """List the kinds of parts, the parts of a KIND, or the options of the part NAME.

    NAME may be a glob in quotes. Options after a colon in NAME are ignored.

    \b
    unetkit list
    unetkit list encoders 'resnet*'
    unetkit list fuse add
    """
    parts = get_parts(ctx)
    console = make_console()
    if kind is None:
        print_table(console, _kinds_table(parts))
    elif name is None:
        _print_names(console, parts[kind], "*")
    elif any(c in name for c in "*?["):
        _print_names(console, parts[kind], name)
    else:
        _print_details(console, parts[kind].get(re.split("[:+]", name)[0]))


def _kinds_table(parts: Parts) -> TableData:
    rows = []
    for registry in parts:
        names = registry.names()
        shown = ", ".join(names[:7]) + (" ..." if len(names) > 7 else "")
        option = f"--{registry.kind.field}" if registry.kind.has_option else ""
        rows.append([registry.kind.attribute, option, str(len(names)), shown])
    return TableData(["kind", "option", "count", "names"], rows)


def _print_names(console: Console, registry: Registry, pattern: str) -> None:
    """Print built-in and plugins' parts with their summaries, then the names of each library's parts."""
    found = registry.find(pattern)
    if not found:
        raise UnknownNameError(
            f"no {registry.kind.title} matches {pattern!r}; see `unetkit list {registry.kind.attribute}`"
        )
    own = [entry for entry in found if entry.library is None]
    if own:
        rows = [[e.qualified_name, summarize_entry(e), *_describe_metric(e), e.owner] for e in own]
        heads = _METRIC_HEADERS if registry.kind.attribute == "metrics" else []
        print_table(console, TableData(["name", "description", *heads, "from"], rows))
    for source in registry.libraries:
        names = [entry.qualified_name for entry in found if entry.library == source]
        if names and console.is_terminal:
            console.print(f"{len(names)} from {source}:")
            from rich.columns import Columns

            console.print(Columns(names, padding=(0, 2)))
        elif names:
            console.print("\n".join(names))  # one name a line, for grep


_METRIC_HEADERS = ["measures", "unit", "better"]


def _describe_metric(entry: Entry) -> list[str]:
    """Return the cells of a metric under _METRIC_HEADERS; none for a part of another kind."""
    if not isinstance(entry, Metric):
        return []
    return [entry.measures, entry.unit, entry.better]


def _print_details(console: Console, entry: Entry) -> None:
    from rich.text import Text

    known = entry.signature
    source = f" for all of {entry.library}" if entry.library else ""
    console.print(Text.assemble((entry.qualified_name, "bold"), f": {known.summary}"))
    if cells := _describe_metric(entry):
        print_table(console, TableData(_METRIC_HEADERS, [cells]))
        if isinstance(entry, Metric) and entry.trained:
            console.print("Only `unetkit bench --data` measures it, since it trains networks.")
    rows = []
    for option in known.options:
        default = "required" if option.required else format_value(option.default, option.type)
        rows.append([option.name, describe_type(option.type), default, option.help])
    if rows:
        print_table(console, TableData(["option", "type", "default", "description"], rows))
    elif not cells:
        console.print("This part has no options.")
    if known.var_keyword:
        console.print(
            f"Other options are passed to {entry.library}'s constructor of {entry.name}; "
            "an option that it would ignore is an error.",
            soft_wrap=True,
        )
    console.print(f"registered by {entry.owner}{source}, in {known.file}:{known.line}", soft_wrap=True)
