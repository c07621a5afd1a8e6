"""A trace as a table, down one side of the U and up the other."""

from __future__ import annotations

from io import StringIO
from itertools import groupby

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from unetkit.inspect.figures import format_bytes, format_count, format_size
from unetkit.inspect.rows import Row
from unetkit.inspect.trace import Trace

#: Columns of a file or a pipe, which have no width of their own.
PAGE = 160
#: On a narrower terminal, figures are short and stand in one column less.
_ROOMY = 116


def as_text(trace: Trace, width: int = PAGE) -> str:
    """The table without colours."""
    out = StringIO()
    Console(file=out, width=width, color_system=None).print(render(trace, width))
    return out.getvalue().rstrip()


def render(trace: Trace, width: int = PAGE) -> Group:
    """The table with its totals and notes, for a rich console of so many columns."""
    return Group(Text(trace.line, style="bold"), _table(trace, width), *(Text(line) for line in _footer(trace)))


def _table(trace: Trace, width: int) -> Table:
    roomy = width >= _ROOMY
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("level", "what it does"):
        table.add_column(name, overflow="fold")
    long = ("channels", "HxW", "stride", "parameters", "MACs", "activations")
    for name in long if roomy else ("C", "HxW", "params", "MACs", "memory"):
        table.add_column(name, justify="right", no_wrap=True)
    for side, rows in groupby(trace.rows, key=lambda row: row.side):
        level = ""
        for row in rows:
            first, level = row.level != level, row.level
            arrow = "↓" if side == "down" else "↑"
            name = f"{arrow} {row.level}" if first else ""
            table.add_row(name, Text(f"{row.step}: {row.what}" if row.step else row.what), *_figures(row, roomy))
        table.add_section()
    costs = _costs(trace.parameters, trace.macs, trace.activation_bytes, roomy)
    table.add_row("total", "", "", "", *([""] if roomy else []), *costs, style="bold")
    return table


def _figures(row: Row, roomy: bool) -> tuple[str, ...]:
    stride = (f"{row.stride:g}",) if roomy else ()
    costs = _costs(row.parameters, row.macs, row.activation_bytes, roomy)
    return str(row.channels), f"{row.height}x{row.width}", *stride, *costs


def _costs(parameters: int, macs: int, activation_bytes: int, roomy: bool) -> tuple[str, str, str]:
    """In words, and nothing where there is nothing."""
    how_many = f"{parameters:,}" if roomy else format_count(parameters)
    return (
        how_many if parameters else "",
        format_count(macs) if macs else "",
        format_bytes(activation_bytes) if activation_bytes else "",
    )


def _footer(trace: Trace) -> list[str]:
    first, last = trace.rows[0], trace.rows[-1]
    images = f"batch {trace.batch}, " if trace.batch > 1 else ""
    return [
        f"{images}input {_shape(first)}, output {_shape(last)}",
        f"parameters {trace.parameters:,} ({format_bytes(4 * trace.parameters)} in float32), "
        f"MACs {format_count(trace.macs)}, activations kept for training {format_bytes(trace.activation_bytes)}",
        f"receptive field {trace.receptive_field}; {_least(trace)}; encoder weights {trace.weights}",
        *(f"note: {note}" for note in trace.notes),
    ]


def _least(trace: Trace) -> str:
    least = trace.minimum
    largest = f", largest {format_size(trace.maximum)}" if trace.maximum else ""
    return (f"smallest input {least}x{least}" if least else "no size passes") + largest


def _shape(row: Row) -> str:
    return f"{row.channels}x{row.height}x{row.width}"
