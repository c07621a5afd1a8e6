"""What a network is, level by level: shapes, parameters, MACs, activation memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, cast

from torch import Tensor, nn

from unetkit.errors import CannotPass
from unetkit.inspect.field import ReceptiveField, receptive_field
from unetkit.inspect.limits import nearest_sizes, smallest
from unetkit.inspect.meter import Meter, storage
from unetkit.inspect.observe import Call, Observation, meta_input, network_of, observe, size_for
from unetkit.meta import meta_copy
from unetkit.plan import Levels, Size
from unetkit.sizes import size_of
from unetkit.unet import Stage

Step = Literal["", "up", "align", "fuse", "block"]
Side = Literal["down", "up"]
STEPS: tuple[Step, ...] = ("up", "align", "fuse", "block")


@dataclass(frozen=True)
class Row:
    """One step of the forward pass.

    Attributes:
        level: the module that it belongs to, as in the state_dict: "input", "encoder.0" (its first map), "stages.0",
            "head", "logits"; "output" where a padded input is cut back, "other" for what stands in none of them.
        step: "up", "align", "fuse" or "block" within a stage, else "".
        side: on which arm of the U it stands.
        what: in words.
        channels, height, width: of its output.
        stride: of its output, in input pixels.
        parameters: that this step alone has.
        macs: multiply-accumulates of this step, for the batch.
        activation_bytes: what autograd keeps of this step's results for the backward pass, for the batch.
    """

    level: str
    step: Step
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
    """Every step of one forward pass, with totals. `print` shows the table; `as_dict` is plain data.

    Attributes:
        line: the line that builds the network.
        batch: images in the pass.
        rows: the steps, in order: the input, the encoder's maps shallow to deep, each stage's steps deep to shallow,
            the head, and the logits' resize where there is one.
        skips: for each stage, the level ("encoder.1") whose map it joins, or None.
        weights: "random", or where the encoder's come from.
        receptive_field: input pixels that one output pixel can depend on.
        minimum: the smallest height and width that pass.
        notes: what a user should know of this size, one line each.
    """

    line: str
    batch: int
    rows: tuple[Row, ...]
    skips: tuple[str | None, ...]
    weights: str
    receptive_field: ReceptiveField
    minimum: int
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

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as `unetkit build --json` prints it."""
        totals = {"parameters": self.parameters, "macs": self.macs, "activation_bytes": self.activation_bytes}
        field = {"size": self.receptive_field.size, "because": self.receptive_field.because}
        return {**asdict(self), "receptive_field": field, "totals": totals}

    def __str__(self) -> str:
        from unetkit.inspect.table import as_text

        return as_text(self)


def trace(model: nn.Module, size: int | Size | None = None, *, batch: int = 1) -> Trace:
    """Follow one forward pass of a built network on meta tensors, which cost neither memory nor arithmetic.

    Args:
        model: as `unetkit.build` gives it, on any device; it is left as it was.
        size: height and width, or one number for both; the plan's own size, the encoder's fixed one, or 256, if None.
        batch: images in the pass.

    Raises:
        CannotPass: the network cannot take this size; names the level and the two nearest sizes that it takes.
    """
    network = network_of(model)
    wanted = size_for(network, size)
    ghost = model if next(model.parameters()).device.type == "meta" else meta_copy(model)
    notes: list[str] = []
    with _mode(ghost):
        ghost.train()
        run = _Run(ghost, wanted, batch)
        if "more than 1 value per channel" in str(run.seen.error):
            notes.append("a norm is left with one value a channel: to train at this size takes a batch of 2 or more")
            ghost.eval()
            run = _Run(ghost, wanted, batch)
        ghost.eval()
        if run.seen.error is not None:
            raise CannotPass(_refusal(ghost, wanted, run.seen)) from run.seen.error
        valid = network.valid
        if valid and (dropped := run.seen.dropped()):
            sizes = " and ".join(_x(s) for s in nearest_sizes(ghost, wanted))
            notes.append(f"{dropped[0]}, which leaves out a row or column; {sizes} leave none out")
        least = (smallest(ghost) or 0) if valid else 1
    if not valid and min(wanted) < network.min_size:
        notes.append(f"padded with zeros to {network.min_size} where smaller, and the output cut back")
    return Trace(
        line=str(network.plan),
        batch=batch,
        rows=tuple(_Rows(run).rows()),
        skips=tuple(f"encoder.{i}" for i in network.skips) + (None,) * (len(network.stages) - len(network.skips)),
        weights=getattr(network.encoder, "weights_from", "random"),
        receptive_field=receptive_field(cast(Tensor, run.seen.output), run.x, max(network.strides)),
        minimum=least,
        notes=tuple(notes),
    )


def _refusal(ghost: nn.Module, size: Size, seen: Observation) -> str:
    what = f"size {_x(size)} does not pass: {seen.failure()}"
    if fixed := getattr(network_of(ghost).encoder, "size", None):
        return f"{what}; its encoder takes {_x(fixed)}"
    sizes = nearest_sizes(ghost, size)
    return what + (f"; the nearest sizes that pass are {' and '.join(map(_x, sizes))}" if sizes else "")


def _x(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


@contextmanager
def _mode(model: nn.Module) -> Iterator[None]:
    """Put training and eval mode back as they were, module by module."""
    was = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in was:
            module.training = mode


class _Run:
    """A metered pass over a model on meta."""

    def __init__(self, ghost: nn.Module, size: Size, batch: int) -> None:
        self.network = network_of(ghost)
        self.x = meta_input(self.network, size, batch)
        self.meter = Meter([self.x], [*ghost.parameters(), *ghost.buffers()])
        with self.meter:
            self.seen = observe(ghost, self.x, clock=lambda: self.meter.operations)
        self.parameters = sum(p.numel() for p in ghost.parameters())


class _Rows:
    """Cuts a metered pass into rows: each has the operations since the row before, so that nothing is lost."""

    def __init__(self, run: _Run) -> None:
        self.run = run
        self.network = run.network
        self.calls = {call.name.removeprefix(self._prefix()): call for call in run.seen.calls if call.end >= 0}
        self.done = -1
        self.owned = self._parameters()

    def _prefix(self) -> str:
        """What a plugin's wrapping puts before the network's own names."""
        name = next(call.name for call in self.run.seen.calls if call.module is self.network)
        return f"{name}." if name else ""

    def _parameters(self) -> list[tuple[int, int]]:
        """When each module was done, and how many parameters of its own it has."""
        counted: set[nn.Parameter] = set()
        owned: list[tuple[int, int]] = []
        for call in self.run.seen.calls:
            own = [p for p in call.module._parameters.values() if p is not None and p not in counted]
            counted.update(own)
            owned.append((call.end, sum(p.numel() for p in own)))
        return owned

    def rows(self) -> Iterator[Row]:
        x = self.run.x
        yield self._row("input", "", "down", "", x, 1, 0)
        encoder = self.calls["encoder"]
        sources = getattr(self.network.encoder, "source", None) or ("",) * len(encoder.gave)
        for index, (tensor, end) in enumerate(self._maps(encoder)):
            yield self._row(f"encoder.{index}", "", "down", sources[index], tensor, self.network.strides[index], end)
        for index, stage in enumerate(self.network.stages):
            yield from self._stage(f"stages.{index}", index, cast(Stage, stage))
        stride = cast(Stage, self.network.stages[-1]).stride
        head = self.calls["head"]
        yield self._row("head", "", "up", str(self.network.whole.head), head.gave[0], stride, head.end)
        if logits := self.calls.get("logits"):
            what = f"{self.network.whole.logits} {_change(logits.given[0], logits.gave[0])}"
            yield self._row("logits", "", "up", what, logits.gave[0], 1, logits.end)
        last = cast(Tensor, self.run.seen.output)
        if min(size_of(self.run.x)) < self.network.min_size:
            yield self._row("output", "", "up", f"cut back to {_x(size_of(last))}", last, 1, self.run.meter.operations)
        rest = self.run.parameters - sum(n for _, n in self.owned)
        row = self._row(
            "other", "", "up", "what stands outside the network's parts", last, 1, self.run.meter.operations
        )
        if rest or row.macs or row.activation_bytes or row.parameters:
            yield replace(row, parameters=row.parameters + rest)

    def _maps(self, encoder: Call) -> Iterator[tuple[Tensor, int]]:
        """The encoder's maps, and when each was done: when the module that gave it was."""
        done = self.done
        for tensor in encoder.gave:
            made = storage(tensor)  # an encoder may give a view, such as NHWC as NCHW
            ends = [call.end for call in self.run.seen.calls if any(storage(gave) == made for gave in call.gave)]
            done = max(done, min(ends, default=done)) if tensor is not encoder.gave[-1] else encoder.end
            yield tensor, done

    def _stage(self, level: str, index: int, stage: Stage) -> Iterator[Row]:
        whole = self.network.whole
        words = {step: _at(getattr(whole, step), index) for step in STEPS}
        for step in STEPS:
            call = self.calls.get(f"{level}.{step}")
            if call is not None:
                what = _what(step, words[step], stage, call)
                yield self._row(level, step, "up", what, call.gave[0], stage.stride, call.end)

    def _row(self, level: str, step: Step, side: Side, what: str, x: Tensor, stride: float, end: int) -> Row:
        start, self.done = self.done, max(self.done, end)
        meter = self.run.meter
        return Row(
            level,
            step,
            side,
            what,
            x.shape[1],
            x.shape[2],
            x.shape[3],
            stride,
            parameters=sum(n for done, n in self.owned if start < done <= self.done),
            macs=sum(meter.macs[max(start, 0) : self.done]),
            activation_bytes=meter.bytes_made(start, self.done),
        )


def _at(levels: Levels | None, index: int) -> str:
    return str(levels[min(index, len(levels) - 1)]) if levels else ""


def _change(before: Tensor, after: Tensor) -> str:
    return f"{_x(size_of(before))} to {_x(size_of(after))}"


def _what(step: str, word: str, stage: Stage, call: Call) -> str:
    match step:
        case "up":
            return f"{word} x{stage.scale:g}"
        case "align":
            return _align(word, call)
        case "fuse":
            return _fuse(word, call)
    return word


def _align(word: str, call: Call) -> str:
    (x, skip), (x_after, skip_after) = call.given, call.gave
    changes = [
        f"{what} {_change(before, after)}"
        for what, before, after in (("map", x, x_after), ("skip", skip, skip_after))
        if before.shape != after.shape
    ]
    return f"{word}: {', '.join(changes) or 'sizes agree'}"


def _fuse(word: str, call: Call) -> str:
    x, skip = call.given
    projections = [
        f"; {name} {m.kernel_size[0]}x{m.kernel_size[1]} conv {m.in_channels} to {m.out_channels}"
        for name, m in call.module.named_modules()
        if isinstance(m, nn.Conv2d)
    ]
    return f"{word} skip {skip.shape[1]} and map {x.shape[1]}{''.join(projections)}"
