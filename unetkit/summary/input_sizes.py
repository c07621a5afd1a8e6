"""Checks of a network on meta tensors: whether its parts keep their contracts, and which input sizes it takes."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unetkit.errors import BuildError, InputSizeError, UnetkitError
from unetkit.network import Network
from unetkit.plan import part_at_level
from unetkit.summary.forward_hooks import (
    ForwardRecord,
    ModuleCall,
    find_network,
    make_meta_input,
    record_forward,
    resolve_input_size,
)
from unetkit.summary.outputs import find_names_error
from unetkit.unet import Stage, UNet
from unetkit.utils.formatting import Size, format_size
from unetkit.utils.modules import preserve_mode, to_meta
from unetkit.utils.spatial import size_of


def verify(model: nn.Module, *, any_size: bool) -> None:
    """Check that a network takes the input size that it is meant for, and that its parts return what they declare.

    Args:
        model: the model as it was built.
        any_size: whether it is enough that the network takes some size.

    Raises:
        InputSizeError: the network does not take the size; says which module failed and with which shapes.
        BuildError: a part violates its contract, or fails for a reason other than the size.
    """
    meta_model = to_meta(model)
    with preserve_mode(meta_model):
        _verify(meta_model.eval(), any_size=any_size)


def _verify(meta_model: nn.Module, *, any_size: bool) -> None:
    network = find_network(meta_model)
    size = resolve_input_size(network, None)
    with torch.no_grad():
        record = record_forward(meta_model, make_meta_input(network, size))
    if re.search(r"\bmeta tensor|\bon meta\b|'Meta' backend|meta device", str(record.error)):
        return  # a part that reads values of tensors cannot be checked on meta
    if violation := contract_violation(network, record):
        raise BuildError(violation) from record.error
    if isinstance(record.error, NotImplementedError):  # at every size
        raise BuildError(f"{failing_part(network, record)}{record.describe_failure()}") from record.error
    if record.error is not None and not (any_size and find_nearest_sizes(meta_model, size)):
        if not isinstance(record.error, RuntimeError | ValueError | UnetkitError):  # a mistake in the code of a part
            raise BuildError(f"{failing_part(network, record)}{record.describe_failure()}") from record.error
        raise size_error(meta_model, size, record) from record.error
    if record.error is None and not isinstance(record.output, Tensor):
        return  # a plugin's wrapper may return several outputs
    classes = network.resolved_plan.classes
    if record.output is not None and record.output.shape[1] != classes:
        raise BuildError(f"the logits have {record.output.shape[1]} channels for {classes} classes")


# Contracts of parts


@dataclass(frozen=True)
class _Contract:
    """The output that a part must give, if it is to give one tensor.

    Attributes:
        flag: the option of the command line that chose the part, with its value.
        channels: the channels of its output.
        reason: why it must have these channels, in words.
        kind: what to call the part if it must keep height and width; "" if it may change them.
        has_names: whether the part may give several tensors by name, of which the first is checked.
    """

    flag: str
    channels: int
    reason: str
    kind: str = ""
    has_names: bool = False


def contract_violation(network: Network, record: ForwardRecord) -> str:
    """Say in words which part violated its contract in a recorded pass; "" where none did."""
    if not isinstance(network, UNet):
        return _find_names_violation(network, record) or _find_size_violation(network, record)
    contracts = _read_contracts(network)
    for call in record.calls:
        if call.end < 0:
            continue
        if call.module is network.encoder and (violation := _find_encoder_violation(network, call)):
            return f"the encoder (--encoder {network.resolved_plan.encoder}) {violation}"
        contract = contracts.get(call.module)
        if contract and (violation := _find_violation(contract, call)):
            return f"{call.name} ({contract.flag}) {violation}"
    return _find_names_violation(network, record)


def _find_names_violation(network: Network, record: ForwardRecord) -> str:
    """Say in words how the named outputs of a head or a whole model contradict what it declares."""
    call = next((call for call in record.calls if call.module is network.output_part and call.end >= 0), None)
    error = call and call.names and find_names_error(call.names, network.outputs)
    return f"{network.output_source} {error}" if error else ""


def failing_part(network: Network, record: ForwardRecord) -> str:
    """Return the option that chose the part in which a pass failed, as in "--fuse gate: "; "" where none did."""
    if not isinstance(network, UNet):
        return f"--model {network.resolved_plan.model}: "
    flags = {module: contract.flag for module, contract in _read_contracts(network).items()}
    flags[network.encoder] = f"--encoder {network.resolved_plan.encoder}"
    unfinished = [flags[call.module] for call in record.calls if call.end < 0 and call.module in flags]
    return f"{unfinished[-1]}: " if unfinished else ""


def _find_size_violation(network: Network, record: ForwardRecord) -> str:
    """Say in words what is wrong with the size of the logits of a whole model."""
    call = next((call for call in record.calls if call.module is network.encoder and call.end >= 0), None)
    if call is None or not call.outputs or call.outputs[0].ndim != 4:
        return ""
    input_size, output_size = size_of(call.inputs[0]), size_of(call.outputs[0])
    if input_size == output_size:
        return ""
    sizes = f"{format_size(output_size)} for an input of {format_size(input_size)}"
    return f"--model {network.resolved_plan.model} gives logits of {sizes}; they must have the size of the input"


def _read_contracts(network: UNet) -> dict[Any, _Contract]:
    plan = network.resolved_plan
    contracts: dict[Any, _Contract] = {}
    for index, stage in enumerate(network.stages):
        assert isinstance(stage, Stage)  # noqa: S101
        width = (plan.widths or ())[min(index, len(plan.widths or ()) - 1)]
        contracts[stage.up] = _declared_contract("up", part_at_level(plan.up, index), stage.up)
        if stage.fusion is not None:
            contracts[stage.fusion] = _declared_contract(
                "fuse", part_at_level(plan.fuse, index), stage.fusion, "fusion"
            )
        flag, kind = f"--block {part_at_level(plan.block, index)}", "" if network.valid else "block"
        contracts[stage.block] = _Contract(flag, width, f"must give {width} channels", kind)
    head = f"must give {plan.classes} channels, one per class"
    contracts[network.head] = _Contract(f"--head {plan.head}", plan.classes, head, has_names=True)
    return contracts


def _declared_contract(word: str, spec: str, part: Any, kind: str = "") -> _Contract:
    return _Contract(f"--{word} {spec}", part.out_channels, f"declares out_channels={part.out_channels}", kind)


def _find_violation(contract: _Contract, call: ModuleCall) -> str:
    if call.names and contract.has_names:
        if len(call.outputs) != len(call.names) or any(tensor.ndim != 4 for tensor in call.outputs):
            return f"gives a dict of {', '.join(call.names)}, not all of which are tensors of shape (B, C, H, W)"
    elif call.names or len(call.outputs) != 1 or call.outputs[0].ndim != 4:
        result = (
            "a tensor of shape " + "x".join(map(str, call.outputs[0].shape))
            if len(call.outputs) == 1 and not call.names
            else f"{len(call.outputs)} tensors"
        )
        return f"gives {result if call.outputs else 'no tensor'} instead of one of shape (B, C, H, W)"
    output = call.outputs[0]
    if output.shape[1] != contract.channels:
        return f"{contract.reason}, but gives {output.shape[1]}{_nhwc_hint(call.outputs, (contract.channels,))}"
    if contract.kind and call.inputs and size_of(output) != size_of(call.inputs[0]):
        sizes = f"{format_size(size_of(output))} for an input of {format_size(size_of(call.inputs[0]))}"
        return f"gives {sizes}; a {contract.kind} must keep height and width"
    return ""


def _nhwc_hint(outputs: list[Tensor], channels: tuple[int, ...]) -> str:
    last_sides = tuple(tensor.shape[-1] for tensor in outputs)
    return "; its maps look NHWC: permute them to NCHW" if last_sides == channels else ""


def _find_encoder_violation(network: UNet, call: ModuleCall) -> str:
    if call.names or not call.outputs or any(tensor.ndim != 4 for tensor in call.outputs):
        return "does not give a list of maps of shape (B, C, H, W)"
    channels = tuple(tensor.shape[1] for tensor in call.outputs)
    if channels != network.channels:
        return f"declares channels {network.channels}, but gives {channels}{_nhwc_hint(call.outputs, network.channels)}"
    input_size = size_of(call.inputs[0])
    for stride, tensor in zip(network.strides, call.outputs, strict=True):
        # Models round up or down, and stems without padding lose some pixels, so sizes need to fit only roughly.
        pairs = zip(input_size, size_of(tensor), strict=True)
        fits = all(abs(n / stride - side) <= max(1, n / stride / 4) for n, side in pairs)
        if not fits and not network.valid:
            sizes = f"{format_size(size_of(tensor))} from an input of {format_size(input_size)}"
            return f"declares stride {stride} for a map of {sizes}"
    return ""


# Input sizes

#: The largest side that is tried: no known network refuses a side of this length for being too small.
_MAX_SIDE = 2048


def find_smallest_input(meta_model: nn.Module) -> int | None:
    """Find the smallest height and width that a model on meta takes; None where it takes none up to 2048."""
    sides = range(1, _MAX_SIDE + 1)
    smallest = 1 + bisect_left(sides, x=True, key=lambda side: accepts_size(meta_model, (side, side)))
    return smallest if smallest <= _MAX_SIDE else None


def accepts_size(meta_model: nn.Module, size: Size, *, lossless: bool = False) -> bool:
    """Return whether a model on meta takes an input size.

    Args:
        meta_model: the model.
        size: height and width.
        lossless: whether no pool may drop a row or column either.
    """
    with torch.no_grad():
        record = record_forward(meta_model, make_meta_input(find_network(meta_model), size))
    return record.error is None and not (lossless and record.list_lossy_pools())


def find_nearest_sizes(meta_model: nn.Module, size: Size) -> tuple[Size, ...]:
    """Find the two sizes nearest to a size that a model on meta takes and at which no pool drops a row or column.

    Returns:
        The smaller size, then the larger; fewer where there are not two.
    """
    smallest = find_smallest_input(meta_model) if find_network(meta_model).valid else 1
    if smallest is None:
        return ()
    heights, widths = (_find_nearest_sides(meta_model, side, smallest) for side in size)
    return tuple(dict.fromkeys(zip(heights, widths, strict=False)))


def _find_nearest_sides(meta_model: nn.Module, side: int, smallest: int) -> list[int]:
    # The phases of the strides repeat, so twice the deepest stride has a side of every kind.
    reach = 2 * find_network(meta_model).period + 2
    if side >= smallest and _first_accepted(meta_model, [side]):
        return [side, side]
    start = max(side + 1, smallest)
    below = _first_accepted(meta_model, range(side - 1, max(smallest, side - reach) - 1, -1))
    above = _first_accepted(meta_model, range(start, start + reach))
    if below or not above:
        return below + above
    return above + _first_accepted(meta_model, range(above[0] + 1, above[0] + reach))


def _first_accepted(meta_model: nn.Module, sides: Iterable[int]) -> list[int]:
    return next(([side] for side in sides if accepts_size(meta_model, (side, side), lossless=True)), [])


def size_error(meta_model: nn.Module, size: Size, record: ForwardRecord) -> InputSizeError:
    """Make the error for a pass that failed: which module failed, with which shapes, and which sizes work.

    Args:
        meta_model: the model on meta.
        size: the size of the input.
        record: the failed pass.
    """
    if isinstance(record.error, InputSizeError) and find_network(meta_model).size:
        return record.error  # its message names the layer that is too large for the encoder
    failure = record.describe_failure()
    if sizes := find_nearest_sizes(meta_model, size):
        nearest = " and ".join(map(format_size, sizes))
        return InputSizeError(
            f"input size {format_size(size)} does not work: {failure}; the nearest sizes that work are {nearest}"
        )
    return InputSizeError(f"no input size works: at {format_size(size)}, {failure}")
