"""A metered pass cut into rows, one a step of the network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, cast

from torch import Tensor, nn

from unetkit.errors import CannotPass
from unetkit.inspect.figures import by
from unetkit.inspect.observe import Call, meta_input, network_of, observe
from unetkit.meter import Meter, storage
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


class Run:
    """A metered pass over a model on meta."""

    def __init__(self, ghost: nn.Module, size: Size, batch: int, *, follow: bool) -> None:
        """Run it; `follow` keeps the graph down to the input, which a net with frozen layers would not keep."""
        self.network = network_of(ghost)
        self.x = meta_input(self.network, size, batch).requires_grad_(follow)
        self.meter = Meter([self.x], [*ghost.parameters(), *ghost.buffers()])
        with self.meter:
            self.seen = observe(ghost, self.x, clock=lambda: self.meter.operations)
        self.parameters = sum(p.numel() for p in ghost.parameters())


class Rows:
    """Cuts a metered pass into rows: each has the operations since the row before, so that nothing is lost."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.network = run.network
        self.calls = run.seen.calls_within(run.network)
        self.done = -1
        self.owned = self._parameters()

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
        encoder = self._call(self.network.encoder)
        sources = getattr(self.network.encoder, "source", None) or ("",) * len(encoder.gave)
        for index, (tensor, end) in enumerate(self._maps(encoder)):
            yield self._row(f"encoder.{index}", "", "down", sources[index], tensor, self.network.strides[index], end)
        for index, stage in enumerate(self.network.stages):
            yield from self._stage(f"stages.{index}", index, cast(Stage, stage))
        stride = cast(Stage, self.network.stages[-1]).stride
        head = self._call(self.network.head)
        yield self._row("head", "", "up", str(self.network.whole.head), head.gave[0], stride, head.end)
        if logits := self._find(self.network.logits):
            what = f"{self.network.whole.logits} {_change(logits.given[0], logits.gave[0])}"
            yield self._row("logits", "", "up", what, logits.gave[0], 1, logits.end)
        last = cast(Tensor, self.run.seen.output)
        given = size_of(self.run.x)
        if self.network.padded_size(given) != given:
            yield self._row("output", "", "up", f"cut back to {by(size_of(last))}", last, 1, self.run.meter.operations)
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
        words = {step: spec_at(getattr(whole, step), index) for step in STEPS}
        for step in STEPS:
            if call := self._find(getattr(stage, step)):
                what = _what(step, words[step], stage, call)
                yield self._row(level, step, "up", what, call.gave[0], stage.stride, call.end)

    def _find(self, module: nn.Module | None) -> Call | None:
        """The next call of a part, in order, since two levels may share one."""
        for index, call in enumerate(self.calls):
            if call.module is module:
                del self.calls[: index + 1]
                return call
        return None

    def _call(self, module: nn.Module) -> Call:
        if call := self._find(module):
            return call
        raise CannotPass(f"the forward pass never calls the network's {type(module).__name__}, so it cannot be traced")

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


def spec_at(levels: Levels | None, index: int) -> str:
    """The part that is said for a stage, as text; one said once goes for all."""
    return str(levels[min(index, len(levels) - 1)]) if levels else ""


def _change(before: Tensor, after: Tensor) -> str:
    return f"{by(size_of(before))} to {by(size_of(after))}"


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
