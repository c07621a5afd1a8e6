"""What a network is, level by level: shapes, parameters, MACs, activation memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from unetkit.errors import InputSizeError, OptionError
from unetkit.network import Network
from unetkit.plan import spec_at
from unetkit.summary.forward_hooks import ModuleCall, input_size_for, meta_input, network_of, record_forward
from unetkit.summary.input_sizes import nearest_sizes, size_error, smallest_input
from unetkit.summary.receptive_field import receptive_field
from unetkit.summary.report import Side, Trace, TraceRow
from unetkit.unet import Stage, UNet
from unetkit.utils.flops import CostMeter, storage
from unetkit.utils.formatting import Size, format_size
from unetkit.utils.modules import meta_copy, preserve_mode
from unetkit.utils.spatial import size_of

STEPS = ("up", "align", "fuse", "block")


class MeteredPass:
    """A metered pass over a model on meta."""

    def __init__(self, ghost: nn.Module, size: Size, batch: int, *, follow: bool) -> None:
        """Run it; `follow` keeps the graph down to the input, which a net with frozen layers would not keep."""
        self.model = ghost
        self.network = network_of(ghost)
        self.x = meta_input(self.network, size, batch).requires_grad_(follow)
        self.meter = CostMeter([self.x], [*ghost.parameters(), *ghost.buffers()])
        with self.meter:
            self.seen = record_forward(ghost, self.x, clock=lambda: self.meter.operations)
        self.parameters = sum(p.numel() for p in ghost.parameters())


class RowBuilder:
    """Cuts a metered pass into rows: each has the operations since the row before, so that nothing is lost."""

    #: What the last row is for, in words.
    left_over = "what stands outside the network's parts"

    def __init__(self, run: MeteredPass) -> None:
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

    def rows(self) -> Iterator[TraceRow]:
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

    def parts(self) -> Iterator[TraceRow]:
        """The rows of the network's own parts, in order."""
        raise NotImplementedError

    def maps(self, encoder: ModuleCall) -> Iterator[tuple[Tensor, int]]:
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

    def find(self, module: nn.Module | None) -> ModuleCall | None:
        """The next call of a part, in order, since two levels may share one."""
        for index, call in enumerate(self.calls):
            if call.module is module:
                del self.calls[: index + 1]
                return call
        return None

    def call(self, module: nn.Module) -> ModuleCall:
        if call := self.find(module):
            return call
        raise InputSizeError(
            f"the forward pass never calls the network's {type(module).__name__}, so it cannot be traced"
        )

    def row(self, level: str, step: str, side: Side, what: str, x: Tensor, stride: float, end: int) -> TraceRow:
        start, self.done = self.done, max(self.done, end)
        meter = self.run.meter
        return TraceRow(
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


def rows_of(run: MeteredPass) -> Iterator[TraceRow]:
    """The rows of a pass, from input to output."""
    return (UNetRowBuilder if isinstance(run.network, UNet) else WholeModelRowBuilder)(run).rows()


class UNetRowBuilder(RowBuilder):
    """Of a U-Net of ours: what each of its parts does."""

    def parts(self) -> Iterator[TraceRow]:
        encoder = self.call(self.network.encoder)
        sources = getattr(self.network.encoder, "source", None) or ("",) * len(encoder.gave)
        for index, (tensor, end) in enumerate(self.maps(encoder)):
            yield self.row(f"encoder.{index}", "", "down", sources[index], tensor, self.network.strides[index], end)
        for index, stage in enumerate(self.network.stages):
            yield from self._stage(f"stages.{index}", index, cast(Stage, stage))
        stride = cast(Stage, self.network.stages[-1]).stride
        head = self.call(self.network.head)
        yield self.row("head", "", "up", str(self.network.resolved_plan.head), head.gave[0], stride, head.end)
        if logits := self.find(self.network.logits):
            what = f"{self.network.resolved_plan.logits} {_change(logits.given[0], logits.gave[0])}"
            yield self.row("logits", "", "up", what, logits.gave[0], 1, logits.end)

    def _stage(self, level: str, index: int, stage: Stage) -> Iterator[TraceRow]:
        whole = self.network.resolved_plan
        words = {step: spec_at(getattr(whole, step), index) for step in STEPS}
        for step in STEPS:
            if call := self.find(getattr(stage, step)):
                what = _what(step, words[step], stage, call)
                yield self.row(level, step, "up", what, call.gave[0], stage.stride, call.end)


class WholeModelRowBuilder(RowBuilder):
    """Of a whole model: the maps of the part that gives several, and the steps of those that give one."""

    left_over = "what no step above does or uses"

    def parts(self) -> Iterator[TraceRow]:
        rows = [*self._parts()]
        if all(row.side == "up" for row in rows):  # no part tells where it turns: at the coarsest map
            turn = max(range(len(rows)), key=lambda index: rows[index].stride)
            rows = [replace(row, side="down") if index <= turn else row for index, row in enumerate(rows)]
        yield from rows

    def _parts(self) -> Iterator[TraceRow]:
        model = self.call(self.network.model)
        inside = self.run.seen.calls_within(self.network.model)
        for call in _outermost(inside, model):
            level = call.name.removeprefix(f"{model.name}.")
            tensors = [tensor for tensor in call.gave if tensor.ndim == 4]
            if len(tensors) > 1:
                yield from self._several(level, call)
            else:
                yield from self._steps(level, call, inside)

    def _several(self, level: str, call: ModuleCall) -> Iterator[TraceRow]:
        own = [(tensor, end) for tensor, end in self.maps(call) if tensor.ndim == 4]
        sources = getattr(self.network.model, "source", ())
        said = sources if len(sources) == len(own) else ("",) * len(own)
        for index, ((tensor, end), source) in enumerate(zip(own, said, strict=True)):
            yield self.row(f"{level}.{index}", "", "down", source, tensor, self._stride(tensor), end)

    def _steps(self, level: str, call: ModuleCall, inside: list[ModuleCall]) -> Iterator[TraceRow]:
        steps = [step for step in _outermost(inside, call) if _gives_a_map(step)]
        for step in steps:
            name = step.name.removeprefix(f"{call.name}.")
            yield self._step(level, name, step)
        if not steps or self.done < call.end:
            yield self._step(level, "", call)

    def _step(self, level: str, name: str, call: ModuleCall) -> TraceRow:
        tensor = next((t for t in call.gave if t.ndim == 4), cast(Tensor, self.run.seen.output))
        what = type(call.module).__name__
        return self.row(level, name, "up", what, tensor, self._stride(tensor), call.end)

    def _stride(self, tensor: Tensor) -> float:
        """Input pixels to a pixel of a map, from their heights, since a whole model declares none."""
        return round(self.network.padded_size(size_of(self.run.x))[0] / tensor.shape[-2], 2)


def _outermost(calls: list[ModuleCall], within: ModuleCall) -> Iterator[ModuleCall]:
    """The calls of the modules of one that are in no other module of it."""
    last = ""
    for call in calls:
        if call.name.startswith(f"{within.name}.") and not (last and call.name.startswith(f"{last}.")):
            last = call.name
            yield call


def _gives_a_map(call: ModuleCall) -> bool:
    """Whether it makes one map; what passes its input on, as an nn.Identity does, makes none."""
    return len(call.gave) == 1 and call.gave[0].ndim == 4 and call.gave[0].numel() > 0 and call.end > call.start


def _change(before: Tensor, after: Tensor) -> str:
    return f"{format_size(size_of(before))} to {format_size(size_of(after))}"


def _what(step: str, word: str, stage: Stage, call: ModuleCall) -> str:
    match step:
        case "up":
            return f"{word} x{stage.scale:g}"
        case "align":
            return _align(word, call)
        case "fuse":
            return _fuse(word, call)
    return word


def _align(word: str, call: ModuleCall) -> str:
    (x, skip), (x_after, skip_after) = call.given, call.gave
    changes = [
        f"{what} {_change(before, after)}"
        for what, before, after in (("map", x, x_after), ("skip", skip, skip_after))
        if before.shape != after.shape
    ]
    return f"{word}: {', '.join(changes) or 'sizes agree'}"


def _fuse(word: str, call: ModuleCall) -> str:
    x, skip = call.given
    projections = [
        f"; {name} {m.kernel_size[0]}x{m.kernel_size[1]} conv {m.in_channels} to {m.out_channels}"
        for name, m in call.module.named_modules()
        if isinstance(m, nn.Conv2d)
    ]
    return f"{word} skip {skip.shape[1]} and map {x.shape[1]}{''.join(projections)}"


def trace(model: nn.Module, size: int | Size | None = None, *, batch: int = 1) -> Trace:
    """Follow one forward pass of a built network on meta tensors, which cost neither memory nor arithmetic.

    Args:
        model: as `unetkit.build` gives it, on any device; it is left as it was.
        size: height and width, or one number for both; the plan's own size, the encoder's fixed one, or 256, if None.
        batch: images in the pass.

    Raises:
        OptionError: a batch or size below 1.
        InputSizeError: the network cannot take this size; names the level and the two nearest sizes that it takes.
    """
    if batch < 1:
        raise OptionError(f"batch={batch}: takes at least 1")
    network = network_of(model)
    wanted = input_size_for(network, size)
    with torch.inference_mode(False), torch.enable_grad():
        ghost = model if next(model.parameters()).device.type == "meta" else meta_copy(model)
        with preserve_mode(ghost):
            run, notes = _run(ghost, wanted, batch)
            least = smallest_input(ghost) if network.valid else 1
            graph = run if run.x.requires_grad else MeteredPass(ghost, wanted, batch, follow=True)
            field = receptive_field(cast(Tensor, graph.seen.output), graph.x)
    return Trace(
        line=str(network.plan),
        batch=batch,
        rows=tuple(rows_of(run)),
        skips=_skips(network),
        weights=getattr(network.encoder, "weights_from", "random"),
        receptive_field=field,
        minimum=least,
        maximum=network.size,
        notes=tuple(notes),
    )


def _skips(network: Network) -> tuple[str | None, ...]:
    if not isinstance(network, UNet):
        return ()
    return tuple(f"encoder.{i}" for i in network.skips) + (None,) * (len(network.stages) - len(network.skips))


def _run(ghost: nn.Module, size: Size, batch: int) -> tuple[MeteredPass, list[str]]:
    """A pass in training mode, or in eval mode where that fails, and what to say of it."""
    network, notes = network_of(ghost), []
    follow = all(p.requires_grad for p in ghost.parameters())
    run = MeteredPass(ghost.train(), size, batch, follow=follow)
    if "more than 1 value per channel" in str(run.seen.error):
        notes.append("a norm is left with one value a channel: to train at this size takes a batch of 2 or more")
        run = MeteredPass(ghost.eval(), size, batch, follow=follow)
    ghost.eval()
    if run.seen.error is not None:
        raise size_error(ghost, size, run.seen) from run.seen.error
    if not isinstance(run.seen.output, Tensor):
        raise InputSizeError(f"a plugin's wrapper gives a {type(run.seen.output).__name__}; a trace follows one tensor")
    if network.valid and (dropped := run.seen.dropped()):
        sizes = " and ".join(format_size(s) for s in nearest_sizes(ghost, size))
        notes.append(f"{dropped[0]}, which leaves out a row or column; {sizes} leave none out")
    if ghost is not network:
        notes.append(f"it is wrapped in a {type(ghost).__name__}: figures are of its pass in training")
    if run.seen.others:
        notes.append(f"in training it gives {run.seen.others} more outputs, which a loss may use")
    if (padded := network.padded_size(size)) != size:
        notes.append(f"the input is padded with zeros to {format_size(padded)}, and the output cut back")
    return run, notes
