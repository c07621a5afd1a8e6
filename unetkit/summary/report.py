"""A trace as a table, down one side of the U and up the other."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from io import StringIO
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal

from unetkit.summary.receptive_field import ReceptiveField
from unetkit.utils.formatting import Size, format_bytes, format_count, format_size

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

Side = Literal["down", "up"]


@dataclass(frozen=True)
class TraceRow:
    """One step of the forward pass.

    Attributes:
        level: the module that it belongs to, as in the state_dict: "input", "encoder.0" (its first map), "stages.0",
            "head", "logits", or what a whole model calls it; "output" where a padded input is cut back, "other" for
            what stands in none of them.
        step: "up", "align", "fuse" or "block" within a stage; within a part of a whole model, what it calls the step;
            else "".
        side: on which arm of the U it stands.
        what: in words.
        channels, height, width: of its output.
        stride: of its output, in input pixels.
        parameters: that this step alone has.
        macs: multiply-accumulates of this step, for the batch.
        activation_bytes: what autograd keeps of this step's results for the backward pass, for the batch.
    """

    level: str
    step: str
    side: Side
    what: str
    channels: int
    height: int
    width: int
    stride: float
    parameters: int
    macs: int
    activation_bytes: int


@dataclass(frozen=True)
class Trace:
    """Every step of one forward pass, with totals. `print` shows the table; `to_dict` is plain data.

    Attributes:
        line: the line that builds the network.
        batch: images in the pass.
        rows: the steps, in order: the input, the encoder's maps shallow to deep, each stage's steps deep to shallow,
            the head, and the logits' resize where there is one. Of a whole model: the maps of its encoder, and what
            its other parts do, by their names in it.
        skips: for each stage, the level ("encoder.1") whose map it joins, or None; empty for a whole model.
        weights: "random", or where the encoder's come from.
        receptive_field: input pixels that one output pixel can depend on.
        minimum: the smallest height and width that pass; None where none up to 2048 does.
        maximum: the largest size that passes, where the encoder is built for one; else None.
        notes: what a user should know of this size, one line each.
    """

    line: str
    batch: int
    rows: tuple[TraceRow, ...]
    skips: tuple[str | None, ...]
    weights: str
    receptive_field: ReceptiveField
    minimum: int | None
    maximum: Size | None
    notes: tuple[str, ...]

    @property
    def parameters(self) -> int:
        """Of the whole network."""
        return sum(row.parameters for row in self.rows)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one forward pass of the batch."""
        return sum(row.macs for row in self.rows)

    @property
    def activation_bytes(self) -> int:
        """What autograd keeps for the backward pass of the batch, in float32."""
        return sum(row.activation_bytes for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as `unetkit build --json` prints it."""
        totals = {"parameters": self.parameters, "macs": self.macs, "activation_bytes": self.activation_bytes}
        field = {"size": self.receptive_field.size, "because": self.receptive_field.because}
        return {**asdict(self), "receptive_field": field, "totals": totals}

    def __str__(self) -> str:
        return as_text(self)


#: Columns of a file or a pipe, which have no width of their own.
PAGE = 160
#: On a narrower terminal, figures are short and stand in one column less.
_ROOMY = 116


def as_text(trace: Trace, width: int = PAGE) -> str:
    """The table without colours."""
    from rich.console import Console

    out = StringIO()
    Console(file=out, width=width, color_system=None).print(render(trace, width))
    return out.getvalue().rstrip()


def render(trace: Trace, width: int = PAGE) -> Group:
    """The table with its totals and notes, for a rich console of so many columns."""
    from rich.console import Group
    from rich.text import Text

    return Group(Text(trace.line, style="bold"), _table(trace, width), *(Text(line) for line in _footer(trace)))


def _table(trace: Trace, width: int) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

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


def _figures(row: TraceRow, roomy: bool) -> tuple[str, ...]:
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


def _shape(row: TraceRow) -> str:
    return f"{row.channels}x{row.height}x{row.width}"
