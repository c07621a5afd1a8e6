"""A trace as a table, down one side of the U and up the other."""

from __future__ import annotations

from io import StringIO
from itertools import groupby

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from unetkit.inspect.figures import count, memory
from unetkit.inspect.rows import Row
from unetkit.inspect.trace import Trace


def as_text(trace: Trace, width: int = 160) -> str:
    """The table without colours."""
    out = StringIO()
    Console(file=out, width=width, color_system=None).print(render(trace))
    return out.getvalue().rstrip()


def render(trace: Trace) -> Group:
    """The table with its totals and notes, for a rich console."""
    return Group(Text(trace.line, style="bold"), _table(trace), *(Text(line) for line in _footer(trace)))


def _table(trace: Trace) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("level", "what it does"):
        table.add_column(name, overflow="fold")
    for name in ("channels", "HxW", "stride", "parameters", "MACs", "activations"):
        table.add_column(name, justify="right", no_wrap=True)
    for side, rows in groupby(trace.rows, key=lambda row: row.side):
        level = ""
        for row in rows:
            first, level = row.level != level, row.level
            arrow = "↓" if side == "down" else "↑"
            name = f"{arrow} {row.level}" if first else ""
            table.add_row(name, Text(f"{row.step}: {row.what}" if row.step else row.what), *_figures(row))
        table.add_section()
    table.add_row(
        "total",
        "",
        "",
        "",
        "",
        f"{trace.parameters:,}",
        count(trace.macs),
        memory(trace.activation_bytes),
        style="bold",
    )
    return table


def _figures(row: Row) -> tuple[str, ...]:
    return (
        str(row.channels),
        f"{row.height}x{row.width}",
        f"{row.stride:g}",
        f"{row.parameters:,}" if row.parameters else "",
        count(row.macs) if row.macs else "",
        memory(row.activation_bytes) if row.activation_bytes else "",
    )


def _footer(trace: Trace) -> list[str]:
    first, last = trace.rows[0], trace.rows[-1]
    images = f"batch {trace.batch}, " if trace.batch > 1 else ""
    return [
        f"{images}input {_shape(first)}, output {_shape(last)}",
        f"parameters {trace.parameters:,} ({memory(4 * trace.parameters)} in float32), MACs {count(trace.macs)}, "
        f"activations kept for training {memory(trace.activation_bytes)}",
        f"receptive field {trace.receptive_field}; smallest input {trace.minimum}x{trace.minimum}; "
        f"encoder weights {trace.weights}",
        *(f"note: {note}" for note in trace.notes),
    ]


def _shape(row: Row) -> str:
    return f"{row.channels}x{row.height}x{row.width}"
