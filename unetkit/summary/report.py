"""The trace of a network: its steps with their shapes and costs, and the table that shows them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from io import StringIO
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal

from unetkit.summary.outputs import OutputInfo, format_further
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
        level: the module that the step belongs to, as in the state_dict: "input", "encoder.0" (its first map),
            "stages.0", "head", "logits", or the name of a part of a whole model; "output" where a padded input is
            cropped, "other" for operations outside all of these.
        step: "up", "align", "fusion" or "block" within a stage; the name of a step in a part of a whole model; else "".
        side: the side of the U on which the step is drawn, "down" or "up".
        what: description of the step in words.
        channels: channels of the output.
        height: height of the output in pixels.
        width: width of the output in pixels.
        stride: stride of the output in input pixels.
        parameters: number of parameters that only this step has.
        macs: multiply-accumulates of this step, for the whole batch.
        activation_bytes: bytes of this step's results that autograd keeps for the backward pass, for the whole batch.
        takes: of a step of a whole model, the levels of the encoder's maps that it takes; else empty.
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
    takes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Trace:
    """Every step of one forward pass, with totals. `print` shows the table, `to_dict` returns plain data.

    Attributes:
        line: the line that builds the network.
        batch: number of images in the pass.
        rows: the steps in order: the input, the encoder's maps shallow to deep, each stage's steps deep to shallow, the
            head, and the resize of the logits where there is one. Of a whole model: the maps of its encoder, and the
            steps of its other parts under their names.
        skips: for each stage, the level ("encoder.1") whose map it fuses, or None; empty for a whole model.
        weights: where the encoder's weights come from; "random" where they are not pretrained.
        receptive_field: the input pixels that one output pixel depends on.
        minimum: the smallest height and width that the network takes; None where it is not known.
        maximum: the largest size that the network takes, if the encoder is built for one size; else None.
        outputs: the named outputs of a pass in training, beside the prediction.
        further: the number of further predictions that a pass in training returns in a tuple, for deep supervision.
        notes: remarks on this size, one line each.
    """

    line: str
    batch: int
    rows: tuple[TraceRow, ...]
    skips: tuple[str | None, ...]
    weights: str
    receptive_field: ReceptiveField
    minimum: int | None
    maximum: Size | None
    outputs: tuple[OutputInfo, ...]
    further: int
    notes: tuple[str, ...]

    @property
    def parameters(self) -> int:
        """Parameters of the whole network."""
        return sum(row.parameters for row in self.rows)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one forward pass of the batch."""
        return sum(row.macs for row in self.rows)

    @property
    def activation_bytes(self) -> int:
        """Bytes that autograd keeps for the backward pass of the batch."""
        return sum(row.activation_bytes for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, as `unetkit build --json` prints it."""
        totals = {"parameters": self.parameters, "macs": self.macs, "activation_bytes": self.activation_bytes}
        field = {"size": self.receptive_field.size, "because": self.receptive_field.because}
        return {**asdict(self), "receptive_field": field, "totals": totals}

    def __str__(self) -> str:
        return format_text(self)


#: Width in columns where the output is a file or a pipe.
PAGE_WIDTH = 160
#: On a terminal with fewer columns, numbers are abbreviated and the column of strides is left out.
_WIDE_FROM = 116
#: On a terminal with fewer columns, only level, size, parameters and MACs are shown.
_NARROW_BELOW = 64


def format_text(trace: Trace, width: int = PAGE_WIDTH) -> str:
    """Return the table as text without colours, for a width in columns."""
    from rich.console import Console

    out = StringIO()
    Console(file=out, width=width, color_system=None).print(render(trace, width))
    return out.getvalue().rstrip()


def render(trace: Trace, width: int = PAGE_WIDTH) -> Group:
    """Make the table with its totals and notes for a rich console, for a width in columns."""
    from rich.console import Group
    from rich.text import Text

    return Group(Text(trace.line, style="bold"), _table(trace, width), *(Text(line) for line in _footer(trace)))


def _table(trace: Trace, width: int) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    if width < _NARROW_BELOW:
        return _narrow_table(trace)
    is_wide = width >= _WIDE_FROM
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("level", "what it does"):
        table.add_column(name, overflow="fold")
    columns = ("channels", "HxW", "stride", "parameters", "MACs", "activations")
    for name in columns if is_wide else ("C", "HxW", "params", "MACs", "memory"):
        table.add_column(name, justify="right", no_wrap=True)
    for side, rows in groupby(trace.rows, key=lambda row: row.side):
        level = ""
        for row in rows:
            is_first, level = row.level != level, row.level
            arrow = "↓" if side == "down" else "↑"
            name = f"{arrow} {row.level}" if is_first else ""
            table.add_row(name, Text(f"{row.step}: {row.what}" if row.step else row.what), *_format_row(row, is_wide))
        table.add_section()
    costs = _format_costs(trace.parameters, trace.macs, trace.activation_bytes, is_wide)
    table.add_row("total", "", "", "", *([""] if is_wide else []), *costs, style="bold")
    return table


def _narrow_table(trace: Trace) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    table.add_column("level", overflow="fold")
    for name in ("HxW", "params", "MACs"):
        table.add_column(name, justify="right", no_wrap=True)
    level = ""
    for row in trace.rows:
        is_first, level = row.level != level, row.level
        name = f"{'↓' if row.side == 'down' else '↑'} {row.level}" if is_first else f"  {row.step}"
        parameters, macs, _ = _format_costs(row.parameters, row.macs, row.activation_bytes, is_wide=False)
        table.add_row(name, f"{row.height}x{row.width}", parameters, macs)
    parameters, macs, _ = _format_costs(trace.parameters, trace.macs, trace.activation_bytes, is_wide=False)
    table.add_row("total", "", parameters, macs, style="bold")
    return table


def _format_row(row: TraceRow, is_wide: bool) -> tuple[str, ...]:
    stride = (f"{row.stride:g}",) if is_wide else ()
    costs = _format_costs(row.parameters, row.macs, row.activation_bytes, is_wide)
    return str(row.channels), f"{row.height}x{row.width}", *stride, *costs


def _format_costs(parameters: int, macs: int, activation_bytes: int, is_wide: bool) -> tuple[str, str, str]:
    """Format the costs of a row, with "" for zero."""
    count = f"{parameters:,}" if is_wide else format_count(parameters)
    return (
        count if parameters else "",
        format_count(macs) if macs else "",
        format_bytes(activation_bytes) if activation_bytes else "",
    )


def _footer(trace: Trace) -> list[str]:
    first, last = trace.rows[0], trace.rows[-1]
    images = f"batch {trace.batch}, " if trace.batch > 1 else ""
    return [
        f"{images}input {_format_shape(first)}, output {_format_shape(last)}",
        f"parameters {trace.parameters:,} ({format_bytes(4 * trace.parameters)} in float32), "
        f"MACs {format_count(trace.macs)}, activations kept for training {format_bytes(trace.activation_bytes)}",
        f"receptive field {trace.receptive_field}; {_format_size_limits(trace)}; encoder weights {trace.weights}",
        *([f"in training, {format_further(trace.further)}"] if trace.further else []),
        *map(str, trace.outputs),
        *(f"note: {note}" for note in trace.notes),
    ]


def _format_size_limits(trace: Trace) -> str:
    smallest = trace.minimum
    largest = f", largest {format_size(trace.maximum)}" if trace.maximum else ""
    return (f"smallest input {smallest}x{smallest}" if smallest else "smallest input unknown") + largest


def _format_shape(row: TraceRow) -> str:
    return f"{row.channels}x{row.height}x{row.width}"
