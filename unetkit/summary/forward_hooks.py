"""A record of one forward pass on meta tensors: which modules were called, with which shapes, and where it failed.

Also here is what every summary starts with: the network in a model, and an input for it.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from unetkit.errors import UnetkitError
from unetkit.network import Network, prediction_name
from unetkit.plan import Plan
from unetkit.plugin_files import package_of
from unetkit.utils.flops import CostMeter
from unetkit.utils.formatting import Size, format_type
from unetkit.utils.isolation import INTERRUPTS
from unetkit.utils.meta_shapes import MetaShapes


@dataclass(eq=False)
class ModuleCall:
    """One call of a module.

    Attributes:
        name: the module's name in the state_dict.
        module: the module.
        inputs: the tensors among its arguments, the positional ones first.
        start: the clock when the call began.
        outputs: the tensors that it returned.
        names: their names, if it returned a dict.
        end: the clock when the call ended; -1 where it did not.
    """

    name: str
    module: nn.Module
    inputs: list[Tensor]
    start: int
    outputs: list[Tensor] = field(default_factory=list)
    names: tuple[str, ...] = ()
    end: int = -1

    @property
    def shapes(self) -> str:
        """The shapes of the inputs in words, without the batch."""
        return " and ".join("x".join(map(str, tensor.shape[1:])) for tensor in self.inputs) or "nothing"


@dataclass
class ForwardRecord:
    """Everything recorded in one forward pass.

    Attributes:
        calls: every call of a module, in the order in which they began.
        output: the output of the pass, the prediction if there are several; None where it failed.
        returned: all that the pass returned.
        error: the error that ended the pass; None where there was none.
    """

    calls: list[ModuleCall] = field(default_factory=list)
    output: Tensor | None = None
    returned: Any = None
    error: Exception | None = None

    def describe_failure(self) -> str:
        """Say in words which module failed, and with which shapes."""
        unfinished = [call for call in self.calls if call.end < 0]
        if not unfinished:
            return first_line(self.error)
        last = unfinished[-1]
        if mistake := _describe_layer_mistake(last):
            return mistake
        if "Kernel size can't be greater" in str(self.error) or "Output size is too small" in str(self.error):
            # torch's own message does not name the layer, nor the shape of the map without its batch.
            kernel = getattr(last.module, "kernel_size", "?")
            return f"{last.name}, {format_type(last.module)} of kernel {kernel}, gets {last.shapes}"
        return f"{last.name or 'the network'} gets {last.shapes} ({first_line(self.error)})"

    def describe_channel_mistake(self) -> str:
        """Say in words which channels do not fit in a failed pass; "" where channels are not the mistake.

        A second axis in which two maps differ says so only if no size of the input mends it: in NHWC it is a side.
        """
        unfinished = [call for call in self.calls if call.end < 0]
        if not unfinished:
            return ""
        last = unfinished[-1]
        if pair := _BROADCAST_CHANNELS.search(str(self.error)):
            channels = " and ".join(filter(None, pair.groups()))
            return f"{last.name or 'the network'}, which gets {last.shapes}, combines maps of {channels} channels"
        return _describe_layer_mistake(last)

    def reads_values(self) -> bool:
        """Return whether the pass failed because a part reads values of tensors, which meta tensors do not have."""
        error: BaseException | None = self.error
        while error is not None and not _NEEDS_VALUES.search(str(error)):
            error = error.__cause__ or error.__context__
        return error is not None

    def describe_location(self) -> str:
        """Return " in FILE:LINE" for the line at which the pass failed in a part that others wrote; "" otherwise."""
        if self.error is None:
            return ""
        packages = [package_of(type(call.module).__module__) for call in self.calls if call.end < 0]
        frames = [*traceback.walk_tb(self.error.__traceback__)]
        for frame, line in reversed(frames):
            package = package_of(frame.f_globals.get("__name__", ""))
            if package in packages and package not in _LIBRARIES:
                return f" in {frame.f_code.co_filename}:{line}"
        return ""

    def list_lossy_pools(self) -> list[str]:
        """Describe each max pool that drops the last row or column of a map with an odd side."""
        return [
            f"{call.name} halves {call.inputs[0].shape[-2]}x{call.inputs[0].shape[-1]}"
            for call in self.calls
            if isinstance(call.module, nn.MaxPool2d) and call.inputs and _drops_pixels(call.module, call.inputs[0])
        ]


def _describe_layer_mistake(call: ModuleCall) -> str:
    """Say which channels a layer of torch expects and which it gets; "" where they agree."""
    expected, axis = _expected_channels(call.module)
    if not expected or len(call.inputs) != 1 or call.inputs[0].ndim < (4 if axis == 1 else 3):
        return ""
    found = call.inputs[0].shape[axis]
    layer = f"{call.name}, {format_type(call.module)},"
    return f"{layer} expects {expected} channels, gets {found} ({call.shapes})" if found != expected else ""


def _expected_channels(module: nn.Module) -> tuple[int, int]:
    """Return the channels that a layer of torch expects, and their axis; 0 channels for a module that does not say."""
    match module:
        case nn.Conv2d() | nn.ConvTranspose2d():
            return module.in_channels, 1
        case nn.BatchNorm2d() | nn.SyncBatchNorm() | nn.InstanceNorm2d():
            return module.num_features, 1
        case nn.GroupNorm():
            return module.num_channels, 1
        case nn.Linear():
            return module.in_features, -1
    if type(module) is nn.LayerNorm and len(module.normalized_shape) == 1:  # those derived from it may take NCHW
        return module.normalized_shape[0], -1
    return 0, 1


#: Messages of torch about maps of different channels that are added or multiplied, on the meta device and elsewhere.
_BROADCAST_CHANNELS = re.compile(
    r"dimension of length (\d+) at -3!.*broadcastable to \[\d+, (\d+), \d+, \d+\]"
    r"|tensor a \((\d+)\) must match the size of tensor b \((\d+)\) at non-singleton dimension 1\b"
)

#: Messages of torch about operations that need values.
_NEEDS_VALUES = re.compile(
    r"\bmeta tensor|\bon meta\b|'Meta' backend|\bmeta device|register_meta|data-(in)?dependent", re.IGNORECASE
)

#: Packages in which a part's mistake shows, but is not made.
_LIBRARIES = ("torch", "torchvision", "timm", "segmentation_models_pytorch", "unetkit")


def first_line(error: Exception | None) -> str:
    """Return an error's first line, with the type of the error unless it is unetkit's own."""
    text = str(error).strip().split("\n")[0]
    return text if isinstance(error, UnetkitError) else f"{type(error).__name__}: {text[:200]}"


def record_forward(model: nn.Module, x: Tensor, meter: CostMeter | None = None) -> ForwardRecord:
    """Record one forward pass. An error of the pass is recorded too, not raised.

    Args:
        model: a model, usually on the meta device.
        x: its input, on the same device.
        meter: counts the operations; the time of each event is then the number of operations so far, otherwise 0.
    """
    record = ForwardRecord()
    clock = (lambda: meter.operations) if meter else (lambda: 0)
    try:
        with meter or MetaShapes(), _record_calls(model, record, clock):
            record.returned = model(x)
            record.output = (collect_tensors(record.returned) or [record.returned])[0]
    except INTERRUPTS:
        raise
    except Exception as error:  # a part may raise anything
        record.error = error
    return record


@contextmanager
def _record_calls(model: nn.Module, record: ForwardRecord, clock: Callable[[], int]) -> Iterator[None]:
    names = {module: name for name, module in model.named_modules()}
    unfinished: list[ModuleCall] = []

    def before(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        call = ModuleCall(names[module], module, collect_tensors([*args, *kwargs.values()]), clock())
        unfinished.append(call)
        record.calls.append(call)

    def after(_module: nn.Module, _args: Any, output: Any) -> None:
        call = unfinished.pop()
        call.outputs, call.end = collect_tensors(output), clock()
        call.names = tuple(map(str, output)) if isinstance(output, Mapping) else ()

    # Hooks on each module, because torch's global hooks would also record what other threads run.
    handles = [
        handle
        for module in names
        for handle in (
            module.register_forward_pre_hook(before, with_kwargs=True),
            module.register_forward_hook(after),
        )
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def collect_tensors(value: Any) -> list[Tensor]:
    """Return the tensors in a module's arguments or output: one tensor, or nested tuples, lists and dicts of them.

    The prediction is the first of those in a dict.
    """
    if isinstance(value, Mapping):
        first = prediction_name(value)
        value = [value[name] for name in sorted(value, key=lambda name: name != first)]
    if isinstance(value, tuple | list):
        return [tensor for item in value for tensor in collect_tensors(item)]
    return [value] if isinstance(value, Tensor) else []


def _drops_pixels(pool: nn.MaxPool2d, x: Tensor) -> bool:
    kernel, stride, padding = (_first_int(v) for v in (pool.kernel_size, pool.stride, pool.padding))
    if pool.ceil_mode:
        return False
    # What the last step of the kernel does not reach may be padding alone.
    return any((size + 2 * padding - kernel) % stride > padding for size in x.shape[-2:])


def _first_int(value: Any) -> int:
    return int(value[0] if isinstance(value, tuple) else value)


def find_network(model: nn.Module) -> Network:
    """Return the network in a model, which a plugin may have wrapped.

    Raises:
        UnetkitError: the model contains no network.
    """
    for module in model.modules():
        if isinstance(module, Network):
            return module
    raise UnetkitError(f"{format_type(model)} contains no network that unetkit built; give what unetkit.build returns")


def make_meta_input(network: Network, size: Size, batch: int = 1) -> Tensor:
    """Make an input (batch, in_channels, *size) for a network, on the meta device and with grad."""
    dtype = next(network.parameters()).dtype
    return torch.empty(batch, network.resolved_plan.in_channels, *size, dtype=dtype, device="meta", requires_grad=True)


def resolve_input_size(network: Network, size: int | Size | None) -> Size:
    """Return the given size, else the size of the plan, else the only size that the encoder takes, else 256x256."""
    return Plan.of(size=size).size or network.resolved_plan.size or network.size or (256, 256)
