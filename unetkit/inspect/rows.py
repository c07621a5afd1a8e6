"""A metered pass cut into rows, one a step of the network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, cast

from torch import Tensor, nn

from unetkit.errors import CannotPass
from unetkit.inspect.figures import format_size
from unetkit.inspect.observe import Call, meta_input, network_of, observe
from unetkit.meter import Meter, storage
from unetkit.plan import Levels, Size
from unetkit.sizes import size_of

Side = Literal["down", "up"]
STEPS = ("up", "align", "fuse", "block")


@dataclass(frozen=True)
class Row:
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


class Run:
    """A metered pass over a model on meta."""

    def __init__(self, ghost: nn.Module, size: Size, batch: int, *, follow: bool) -> None:
        """Run it; `follow` keeps the graph down to the input, which a net with frozen layers would not keep."""
        self.model = ghost
        self.network = network_of(ghost)
        self.x = meta_input(self.network, size, batch).requires_grad_(follow)
        self.meter = Meter([self.x], [*ghost.parameters(), *ghost.buffers()])
        with self.meter:
            self.seen = observe(ghost, self.x, clock=lambda: self.meter.operations)
        self.parameters = sum(p.numel() for p in ghost.parameters())


class Rows:
    """Cuts a metered pass into rows: each has the operations since the row before, so that nothing is lost."""

    #: What the last row is for, in words.
    left_over = "what stands outside the network's parts"

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
        # Of a module of which only methods are called, as a timm model within another, the one around it tells.
        ends = {call.name: call.end for call in self.run.seen.calls}
        for name, module in self.run.model.named_modules():
            around = [name[:i] for i, c in enumerate(name) if c == "." and name[:i] in ends]
            if name not in ends and around and any(called.startswith(f"{name}.") for called in ends):
                own = [p for p in module._parameters.values() if p is not None and p not in counted]
                counted.update(own)
                owned.append((ends[around[-1]], sum(p.numel() for p in own)))
        return owned

    def rows(self) -> Iterator[Row]:
        """The input, the parts, and what is left over."""
        yield self.row("input", "", "down", "", self.run.x, 1, 0)
        yield from self.parts()
        last, end = cast(Tensor, self.run.seen.output), self.run.meter.operations
        given = size_of(self.run.x)
        if self.network.padded_size(given) != given:
            yield self.row("output", "", "up", f"cut back to {format_size(size_of(last))}", last, 1, end)
        rest = self.run.parameters - sum(n for _, n in self.owned)
        row = self.row("other", "", "up", self.left_over, last, 1, end)
        if rest or row.macs or row.activation_bytes or row.parameters:
            yield replace(row, parameters=row.parameters + rest)

    def parts(self) -> Iterator[Row]:
        """The rows of the network's own parts, in order."""
        raise NotImplementedError

    def maps(self, encoder: Call) -> Iterator[tuple[Tensor, int]]:
        """The encoder's maps, and when each was done: when the module that gave it alone was, or the operation was."""
        done, given = self.done, {storage(tensor) for tensor in encoder.given}
        for tensor in encoder.gave:
            made = storage(tensor)  # an encoder may give a view, such as NHWC as NCHW
            if made in given or not tensor.numel():
                continue  # some give their input as a first map, or one of no channels
            alone = [call for call in self.run.seen.calls if len(call.gave) == 1]
            ends = [call.end for call in alone if storage(call.gave[0]) == made]
            end = min(ends, default=self.run.meter.made(tensor) + 1)
            done = max(done, end) if tensor is not encoder.gave[-1] else encoder.end
            yield tensor, done

    def find(self, module: nn.Module | None) -> Call | None:
        """The next call of a part, in order, since two levels may share one."""
        for index, call in enumerate(self.calls):
            if call.module is module:
                del self.calls[: index + 1]
                return call
        return None

    def call(self, module: nn.Module) -> Call:
        if call := self.find(module):
            return call
        raise CannotPass(f"the forward pass never calls the network's {type(module).__name__}, so it cannot be traced")

    def row(self, level: str, step: str, side: Side, what: str, x: Tensor, stride: float, end: int) -> Row:
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
