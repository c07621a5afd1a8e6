"""Tracing of a network: its shapes, parameters, MACs and activation memory, step by step.

A forward pass on meta tensors is metered and cut into rows, one per step. The rows of a U-Net are its feature maps and
the steps of its stages; those of a whole model are its feature maps and the steps of its other parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from unetkit.errors import BuildError, InputSizeError, OptionError
from unetkit.network import Network
from unetkit.plan import part_at_level
from unetkit.summary.forward_hooks import ModuleCall, find_network, make_meta_input, record_forward, resolve_input_size
from unetkit.summary.input_sizes import (
    SizeSearch,
    failing_part,
    is_mistake,
    size_error,
)
from unetkit.summary.outputs import (
    count_further,
    describe_output_source,
    find_output_error,
    list_outputs,
    outputs_of_model,
)
from unetkit.summary.receptive_field import ReceptiveField, receptive_field
from unetkit.summary.report import Side, Trace, TraceRow
from unetkit.unet import Stage, UNet
from unetkit.utils.flops import CostMeter, storage_key
from unetkit.utils.formatting import Size, format_size, format_type
from unetkit.utils.integers import round_up
from unetkit.utils.modules import explain_norm_error, materialized_copy, preserve_mode, to_meta
from unetkit.utils.spatial import size_of


def trace(model: nn.Module, size: int | Size | None = None, *, batch: int = 1) -> Trace:
    """Trace one forward pass of a network on meta tensors, which takes neither memory nor arithmetic.

    Args:
        model: a model that `unetkit.build` returned, on any device; it is left unchanged.
        size: height and width in pixels, or one number for both. None means the plan's size, else the only size that
            the encoder takes, else 256.
        batch: number of images in the pass.

    Returns:
        The steps of the pass with their shapes and costs; `print` shows them as a table. If a part reads values of
        tensors, such as `x.mean().item()`, the steps are those of a real pass of a smaller input, as a note says.

    Raises:
        OptionError: the batch or a side of the size is below 1.
        InputSizeError: the network does not take this size; says which module failed, and the two nearest sizes that
            work.
        BuildError: a part has a mistake, which no size mends, or what the network returns in training is not what it
            declares; says which part, and where.
    """
    if batch < 1:
        raise OptionError(f"batch={batch} must be at least 1")
    network = find_network(model)
    input_size = resolve_input_size(network, size)
    needs: _NeedsValuesError | None = None
    with torch.inference_mode(False), torch.enable_grad():
        meta_model = to_meta(model)
        search = SizeSearch(meta_model)
        with preserve_mode(meta_model):
            try:
                run, returned, notes = _run_pass(search, input_size, batch)
                minimum = search.smallest
            except _NeedsValuesError as error:
                needs = error
                run, returned, notes = _run_small_pass(model, input_size, batch, error)
                minimum = None if network.valid else 1
            graph = run if run.x.requires_grad else MeteredPass(run.model, size_of(run.x), batch, input_grad=True)
            field = receptive_field(cast(Tensor, graph.record.output), graph.x)
            if needs and field.size:  # a value such as the mean of a map leaves no trace in autograd's graph
                field = ReceptiveField(None, f"at least {field} (because {needs} reads values of tensors)")
    return Trace(
        line=str(network.plan),
        batch=batch,
        rows=tuple(build_rows(run)),
        skips=_list_skips(network),
        weights=getattr(network.encoder, "weights_from", "random"),
        receptive_field=field,
        minimum=minimum,
        maximum=network.size,
        outputs=list_outputs(returned, outputs_of_model(model, network)),
        further=count_further(returned),
        notes=tuple(notes),
    )


def _list_skips(network: Network) -> tuple[str | None, ...]:
    if not isinstance(network, UNet):
        return ()
    return tuple(None if index is None else f"encoder.{index}" for index in network.skips)


class _NeedsValuesError(Exception):
    """A part reads values of tensors; the message says which part."""


#: Sides of the real pass of a small input, tried in turn; networks of valid convolutions need the larger ones.
_SMALL_SIDES = (64, 128, 256, 572)


def _run_small_pass(
    model: nn.Module, size: Size, batch: int, needs: _NeedsValuesError
) -> tuple[MeteredPass, Any, list[str]]:
    """Run a real pass over a copy of the model, of an input that is small and not larger than the given size.

    Raises:
        InputSizeError: the pass fails for all of these sizes.
    """
    network, copied = find_network(model), materialized_copy(model)
    if min(size) <= _SMALL_SIDES[0] or network.size:
        sizes = [size]
    else:
        sides = [round_up(side, network.multiple) for side in _SMALL_SIDES]
        sizes = [*dict.fromkeys((min(side, size[0]), min(side, size[1])) for side in sides)]
    for small in sizes:
        try:
            run, returned, notes = _run_pass(SizeSearch(copied), small, batch)
        except InputSizeError:
            if small == sizes[-1]:
                raise
            continue
        small_text = "" if small == size else f" of {format_size(small)} in place of {format_size(size)}"
        notes = [f"{needs} reads values of tensors, so the figures are those of a real pass{small_text}", *notes]
        return run, returned, notes
    raise AssertionError(sizes)


def _run_pass(search: SizeSearch, size: Size, batch: int) -> tuple[MeteredPass, Any, list[str]]:
    """Run a pass of a model in training mode, or in eval mode where that fails.

    Args:
        search: a search for sizes that the model takes.
        size: height and width of the input.
        batch: number of images.

    Returns:
        The pass, what a pass in training mode returned, and notes for the user.
    """
    meta_model, network, notes = search.meta_model, search.network, []
    input_grad = all(p.requires_grad for p in meta_model.parameters())
    run = MeteredPass(meta_model.train(), size, batch, input_grad=input_grad)
    in_training = run.record
    if run.record.error is not None and explain_norm_error(run.record.error):
        in_training = MeteredPass(meta_model, size, 2, input_grad=input_grad).record
        notes.append("a norm gets one value per channel: training at this size needs a batch of 2 or more")
        run = MeteredPass(meta_model.eval(), size, batch, input_grad=input_grad)
    meta_model.eval()
    output = run.record.output
    if run.record.error is not None:
        raise _explain(run, size) from run.record.error
    if not isinstance(output, Tensor):
        raise InputSizeError(f"a plugin's wrapper returns {format_type(output)}; a trace needs a tensor")
    if in_training.error is None:
        declared, classes = outputs_of_model(meta_model, network), network.resolved_plan.classes
        if error := find_output_error(in_training.returned, declared, classes):
            raise BuildError(f"{describe_output_source(meta_model, network)} {error}")
    if network.valid and (pools := run.record.list_lossy_pools()):
        sizes = " and ".join(format_size(s) for s in search.nearest_sizes(size))
        notes.append(f"{pools[0]}, which drops a row or column; {sizes} drop none")
    if meta_model is not network:
        wrapper = type(meta_model).__name__
        notes.append(f"the network is wrapped in a {wrapper}: the figures are those of a pass in training")
    if (padded := network.padded_size(size)) != size:
        notes.append(f"the input is padded with zeros to {format_size(padded)}, and the output is cropped")
    return run, in_training.returned, notes


def _explain(run: MeteredPass, size: Size) -> Exception:
    """Make the exception for a pass that failed."""
    network, record = run.network, run.record
    if run.x.is_meta and record.reads_values():
        return _NeedsValuesError(failing_part(network, record).removesuffix(": ") or "a part")
    failure = f"{failing_part(network, record)}{record.describe_failure()}{record.describe_location()}"
    if not run.x.is_meta:
        return InputSizeError(f"a real pass of {format_size(size)} fails: {failure}")
    search = SizeSearch(run.model.eval())
    if run.is_training and not is_mistake(record.error) and search.accepts(size):
        return InputSizeError(f"input size {format_size(size)} works in eval mode only; in training {failure}")
    return size_error(search, size, record)


#: The steps of a stage, in order, and the option of a plan that chooses each.
STEPS = {"up": "up", "align": "align", "fusion": "fuse", "block": "block"}


class MeteredPass:
    """A forward pass over a model, usually one on meta, recorded and metered."""

    def __init__(self, meta_model: nn.Module, size: Size, batch: int, *, input_grad: bool) -> None:
        """Run the pass.

        Args:
            meta_model: the model.
            size: height and width of the input.
            batch: number of images.
            input_grad: whether the input requires grad, so that the graph leads back to it even if layers are frozen.
        """
        self.model = meta_model
        self.network = find_network(meta_model)
        self.is_training = meta_model.training
        self.x = make_meta_input(self.network, size, batch).requires_grad_(input_grad)
        device = next(meta_model.parameters()).device
        if device.type != "meta":
            self.x = torch.rand_like(self.x, device=device).detach().requires_grad_(input_grad)
        left_out = [*meta_model.parameters(), *meta_model.buffers()]
        self.meter = CostMeter([self.x], left_out, has_values=not self.x.is_meta)
        self.record = record_forward(meta_model, self.x, self.meter)
        self.parameters = sum(p.numel() for p in meta_model.parameters())


class RowBuilder:
    """Base of the builders that cut a metered pass into rows; each row has the operations since the row before."""

    #: Description of the last row, for the parameters and operations that belong to no other row.
    remainder_label = "operations outside the network's parts"

    def __init__(self, run: MeteredPass) -> None:
        self.run = run
        self.network = run.network
        self.calls = [call for call in run.record.calls if call.end >= 0]
        self.done = -1
        self.owned = self._parameters()

    def _parameters(self) -> list[tuple[int, int]]:
        """Return for each module the time at which it was done, and the number of its own parameters."""
        counted: set[nn.Parameter] = set()
        owned: list[tuple[int, int]] = []
        for call in self.run.record.calls:
            own = [p for p in call.module._parameters.values() if p is not None and p not in counted]
            counted.update(own)
            owned.append((call.end, sum(p.numel() for p in own)))
        # A module of which only methods are called, such as a timm model in another, is done when the one around it is.
        ends = {call.name: call.end for call in self.run.record.calls}
        for name, module in self.run.model.named_modules():
            parents = [name[:i] for i, c in enumerate(name) if c == "." and name[:i] in ends]
            if name not in ends and parents and any(called.startswith(f"{name}.") for called in ends):
                own = [p for p in module._parameters.values() if p is not None and p not in counted]
                counted.update(own)
                owned.append((ends[parents[-1]], sum(p.numel() for p in own)))
        return owned

    def rows(self) -> Iterator[TraceRow]:
        """Yield the rows of the input, of the parts, and of what is left over."""
        yield self.row("input", "", "down", "", self.run.x, 1, 0)
        yield from self.parts()
        last, end = cast(Tensor, self.run.record.output), self.run.meter.operations
        input_size = size_of(self.run.x)
        if self.network.padded_size(input_size) != input_size:
            yield self.row("output", "", "up", f"cropped to {format_size(size_of(last))}", last, 1, end)
        rest = self.run.parameters - sum(n for _, n in self.owned)
        row = self.row("other", "", "up", self.remainder_label, last, 1, end)
        if rest or row.macs or row.activation_bytes or row.parameters:
            yield replace(row, parameters=row.parameters + rest)

    def parts(self) -> Iterator[TraceRow]:
        """Yield the rows of the network's own parts, in order."""
        raise NotImplementedError

    def maps(self, encoder: ModuleCall) -> Iterator[tuple[Tensor, int]]:
        """Yield an encoder's maps, each with the time at which it was done.

        That is the end of a module that returned only this map, else of the operation that made it.
        """
        done, input_storages = self.done, {storage_key(tensor) for tensor in encoder.inputs}
        for tensor in encoder.outputs:
            key = storage_key(tensor)  # an encoder may return a view, such as NHWC as NCHW
            if key in input_storages or not tensor.numel():
                continue  # some encoders return their input as a first map, or a map without channels
            single = [call for call in self.run.record.calls if len(call.outputs) == 1]
            ends = [call.end for call in single if storage_key(call.outputs[0]) == key]
            end = min(ends, default=self.run.meter.creating_operation(tensor) + 1)
            done = max(done, end) if tensor is not encoder.outputs[-1] else encoder.end
            yield tensor, done

    def find_call(self, module: nn.Module | None) -> ModuleCall | None:
        """Return the next call of a part, if there is one; two levels may share a part."""
        for index, call in enumerate(self.calls):
            if call.module is module:
                del self.calls[: index + 1]
                return call
        return None

    def require_call(self, module: nn.Module) -> ModuleCall:
        """Return the next call of a part. Raise InputSizeError where there is none."""
        if call := self.find_call(module):
            return call
        raise InputSizeError(
            f"the forward pass never calls the network's {type(module).__name__}, so it cannot be traced"
        )

    def row(self, level: str, step: str, side: Side, what: str, x: Tensor, stride: float, end: int) -> TraceRow:
        """Make the row of a step.

        Args:
            level: the level of the row.
            step: the step of the row.
            side: the side of the U.
            what: description of the step.
            x: the output of the step.
            stride: stride of the output.
            end: the time at which the step was done; the row has all operations since the row before.
        """
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
            activation_bytes=meter.saved_bytes(start, self.done),
        )


def build_rows(run: MeteredPass) -> Iterator[TraceRow]:
    """Yield the rows of a pass, from input to output."""
    return (UNetRowBuilder if isinstance(run.network, UNet) else WholeModelRowBuilder)(run).rows()


class UNetRowBuilder(RowBuilder):
    """Builder of the rows of a U-Net: its feature maps, and each step of its stages."""

    def parts(self) -> Iterator[TraceRow]:
        encoder = self.require_call(self.network.encoder)
        sources = getattr(self.network.encoder, "source", None) or ("",) * len(encoder.outputs)
        for index, (tensor, end) in enumerate(self.maps(encoder)):
            yield self.row(f"encoder.{index}", "", "down", sources[index], tensor, self.network.strides[index], end)
        for index, stage in enumerate(self.network.stages):
            yield from self._stage(f"stages.{index}", index, cast(Stage, stage))
        stride = cast(Stage, self.network.stages[-1]).stride
        head = self.require_call(self.network.head)
        yield self.row("head", "", "up", str(self.network.resolved_plan.head), head.outputs[0], stride, head.end)
        if logits := self.find_call(self.network.logits):
            what = f"{self.network.resolved_plan.logits} {_format_change(logits.inputs[0], logits.outputs[0])}"
            yield self.row("logits", "", "up", what, logits.outputs[0], 1, logits.end)

    def _stage(self, level: str, index: int, stage: Stage) -> Iterator[TraceRow]:
        plan = self.network.resolved_plan
        specs = {step: part_at_level(getattr(plan, option), index) for step, option in STEPS.items()}
        for step in STEPS:
            if call := self.find_call(getattr(stage, step)):
                what = _describe_step(step, specs[step], stage, call)
                yield self.row(level, step, "up", what, call.outputs[0], stage.stride, call.end)


class WholeModelRowBuilder(RowBuilder):
    """Builder of the rows of a whole model: the maps of the part that gives several, and the steps of the others."""

    remainder_label = "operations outside the steps above"

    def __init__(self, run: MeteredPass) -> None:
        super().__init__(run)
        self.encoder_maps: list[tuple[Tensor, str]] = []

    def parts(self) -> Iterator[TraceRow]:
        rows = [*self._parts()]
        if all(row.side == "up" for row in rows):  # no part gives several maps, so the U turns at the coarsest map
            turn = max(range(len(rows)), key=lambda index: rows[index].stride)
            rows = [replace(row, side="down") if index <= turn else row for index, row in enumerate(rows)]
        yield from rows

    def _parts(self) -> Iterator[TraceRow]:
        model = self.require_call(self.network.model)
        inside = [call for call in self.calls if call.start <= model.end]
        for call in _outermost(inside, model):
            level = call.name.removeprefix(f"{model.name}.")
            tensors = [tensor for tensor in call.outputs if tensor.ndim == 4]
            if len(tensors) > 1:
                yield from self._several(level, call)
            else:
                yield from self._steps(level, call, inside)

    def _several(self, level: str, call: ModuleCall) -> Iterator[TraceRow]:
        maps = [(tensor, end) for tensor, end in self.maps(call) if tensor.ndim == 4]
        sources = getattr(self.network.model, "source", ())
        labels = sources if len(sources) == len(maps) else ("",) * len(maps)
        for index, ((tensor, end), source) in enumerate(zip(maps, labels, strict=True)):
            self.encoder_maps.append((tensor, f"{level}.{index}"))
            yield self.row(f"{level}.{index}", "", "down", source, tensor, self._stride(tensor), end)

    def _steps(self, level: str, call: ModuleCall, inside: list[ModuleCall]) -> Iterator[TraceRow]:
        steps = [step for step in _outermost(inside, call) if _makes_feature_map(step)]
        for step in steps:
            name = step.name.removeprefix(f"{call.name}.")
            yield self._step(level, name, step)
        if not steps or self.done < call.end:
            yield self._step(level, "", call)

    def _step(self, level: str, name: str, call: ModuleCall) -> TraceRow:
        tensor = next((t for t in call.outputs if t.ndim == 4), cast(Tensor, self.run.record.output))
        what = type(call.module).__name__
        row = self.row(level, name, "up", what, tensor, self._stride(tensor), call.end)
        taken = (
            level for encoder_map, level in self.encoder_maps if any(_is_made_of(x, encoder_map) for x in call.inputs)
        )
        return replace(row, takes=tuple(taken))

    def _stride(self, tensor: Tensor) -> float:
        """Return the stride of a map by its height, since a whole model declares no strides."""
        return round(self.network.padded_size(size_of(self.run.x))[0] / tensor.shape[-2], 2)


def _is_made_of(x: Tensor, encoder_map: Tensor) -> bool:
    """Return whether a tensor is an encoder's map, or is concatenated from it and others."""
    if storage_key(x) == storage_key(encoder_map):
        return True
    made_by = x.grad_fn
    if made_by is None or encoder_map.grad_fn is None or "Cat" not in made_by.name():
        return False
    return any(function is encoder_map.grad_fn for function, _ in made_by.next_functions)


def _outermost(calls: list[ModuleCall], within: ModuleCall) -> Iterator[ModuleCall]:
    """Yield the outermost calls of submodules within a call."""
    last = ""
    for call in calls:
        if call.name.startswith(f"{within.name}.") and not (last and call.name.startswith(f"{last}.")):
            last = call.name
            yield call


def _makes_feature_map(call: ModuleCall) -> bool:
    """Return whether a call makes one feature map; one that returns its input, as nn.Identity does, makes none."""
    is_map = len(call.outputs) == 1 and call.outputs[0].ndim == 4 and call.outputs[0].numel() > 0
    return is_map and call.end > call.start


def _format_change(before: Tensor, after: Tensor) -> str:
    return f"{format_size(size_of(before))} to {format_size(size_of(after))}"


def _describe_step(step: str, spec: str, stage: Stage, call: ModuleCall) -> str:
    match step:
        case "up":
            return f"{spec} x{stage.scale:g}"
        case "align":
            return _describe_align(spec, call)
        case "fusion":
            return _describe_fusion(spec, call)
    return spec


def _describe_align(spec: str, call: ModuleCall) -> str:
    (x, skip), (x_after, skip_after) = call.inputs, call.outputs
    changes = [
        f"{name} {_format_change(before, after)}"
        for name, before, after in (("map", x, x_after), ("skip", skip, skip_after))
        if before.shape != after.shape
    ]
    return f"{spec}: {', '.join(changes) or 'sizes agree'}"


def _describe_fusion(spec: str, call: ModuleCall) -> str:
    x, skip = call.inputs
    projections = [
        f"; {name} {m.kernel_size[0]}x{m.kernel_size[1]} conv {m.in_channels} to {m.out_channels}"
        for name, m in call.module.named_modules()
        if isinstance(m, nn.Conv2d)
    ]
    return f"{spec} skip {skip.shape[1]} and map {x.shape[1]}{''.join(projections)}"
