"""Which sizes a network takes: the smallest, the nearest to one that it does not, and whether its own passes."""

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
from unetkit.plan import spec_at
from unetkit.summary.forward_hooks import (
    ModuleCall,
    Observation,
    input_size_for,
    meta_input,
    network_of,
    record_forward,
)
from unetkit.unet import Stage, UNet
from unetkit.utils.formatting import Size, format_size
from unetkit.utils.modules import meta_copy
from unetkit.utils.spatial import size_of


@dataclass(frozen=True)
class _Promise:
    """What a part that gives one tensor is to give.

    Attributes:
        said: the word and spec that ask for it.
        channels: of its output.
        because: why so many.
        kind: where it keeps height and width, what calls it so; else "".
    """

    said: str
    channels: int
    because: str
    kind: str = ""


def contract_violation(network: Network, seen: Observation) -> str:
    """Which part gave something else than it promises, in words; "" where none did."""
    if not isinstance(network, UNet):
        return _shrunk(network, seen)
    promises = _promises(network)
    for call in seen.calls:
        if call.end < 0:
            continue
        if call.module is network.encoder and (fault := _encoder(network, call, seen)):
            return f"the encoder (--encoder {network.resolved_plan.encoder}) {fault}"
        promise = promises.get(call.module)
        if promise and (fault := _fault(promise, call)):
            return f"{call.name} ({promise.said}) {fault}"
    return ""


def _shrunk(network: Network, seen: Observation) -> str:
    """What is wrong with the size of what a whole model gives."""
    call = next((call for call in seen.calls if call.module is network.encoder and call.end >= 0), None)
    if call is None or not call.gave or call.gave[0].ndim != 4:
        return ""
    given, gave = size_of(call.given[0]), size_of(call.gave[0])
    if given == gave:
        return ""
    sizes = f"{format_size(gave)} for {format_size(given)}"
    return f"--model {network.resolved_plan.model} gives {sizes}; logits have the size of the input"


def failing_part(network: Network, seen: Observation) -> str:
    """The word and spec of the part in which a pass ended: "--fuse gate: "; "" where it ended in none."""
    if not isinstance(network, UNet):
        return f"--model {network.resolved_plan.model}: "
    said = {module: promise.said for module, promise in _promises(network).items()}
    said[network.encoder] = f"--encoder {network.resolved_plan.encoder}"
    inside = [said[call.module] for call in seen.calls if call.end < 0 and call.module in said]
    return f"{inside[-1]}: " if inside else ""


def _promises(network: UNet) -> dict[nn.Module, _Promise]:
    whole = network.resolved_plan
    found: dict[nn.Module, _Promise] = {}
    for index, stage in enumerate(network.stages):
        assert isinstance(stage, Stage)  # noqa: S101
        width = (whole.widths or ())[min(index, len(whole.widths or ()) - 1)]
        found[stage.up] = _declared("up", spec_at(whole.up, index), stage.up)
        if stage.fuse is not None:
            found[stage.fuse] = _declared("fuse", spec_at(whole.fuse, index), stage.fuse, "a fusion")
        said = f"--block {spec_at(whole.block, index)}"
        found[stage.block] = _Promise(said, width, f"is to give {width} channels", "" if network.valid else "a block")
    classes = whole.classes or 0
    found[network.head] = _Promise(f"--head {whole.head}", classes, f"is to give {classes} channels, the classes")
    return found


def _declared(word: str, spec: str, part: Any, kind: str = "") -> _Promise:
    return _Promise(f"--{word} {spec}", part.out_channels, f"declares out_channels={part.out_channels}", kind)


def _fault(promise: _Promise, call: ModuleCall) -> str:
    if len(call.gave) != 1 or call.gave[0].ndim != 4:
        shape = (
            "a tensor of shape " + "x".join(map(str, call.gave[0].shape))
            if len(call.gave) == 1
            else f"{len(call.gave)} tensors"
        )
        return f"gives {shape if call.gave else 'no tensor'}; promised is one of (B, C, H, W)"
    (gave,) = call.gave
    if gave.shape[1] != promise.channels:
        return f"{promise.because}, but gives {gave.shape[1]}{_nhwc(call.gave, (promise.channels,))}"
    if promise.kind and call.given and size_of(gave) != size_of(call.given[0]):
        sizes = f"{format_size(size_of(gave))} for {format_size(size_of(call.given[0]))}"
        return f"gives {sizes}; {promise.kind} keeps height and width"
    return ""


def _nhwc(gave: list[Tensor], channels: tuple[int, ...]) -> str:
    last = tuple(tensor.shape[-1] for tensor in gave)
    return "; its maps look NHWC: permute them to NCHW" if last == channels else ""


def _encoder(network: UNet, call: ModuleCall, seen: Observation) -> str:
    if not call.gave or any(tensor.ndim != 4 for tensor in call.gave):
        return "gives no maps of (B, C, H, W) in a list"
    gave = tuple(tensor.shape[1] for tensor in call.gave)
    if gave != network.channels:
        return f"declares channels {network.channels}, but gives {gave}{_nhwc(call.gave, network.channels)}"
    whole = size_of(call.given[0])
    for stride, tensor in zip(network.strides, call.gave, strict=True):
        # Models round up or down, and unpadded stems lose some: about.
        pairs = zip(whole, size_of(tensor), strict=True)
        near = all(abs(n / stride - side) <= max(1, n / stride / 4) for n, side in pairs)
        if not near and not network.valid:
            return f"declares stride {stride} for a map that is {format_size(size_of(tensor))} of {format_size(whole)}"
    return ""


#: No known network refuses a size for being too small from here on.
_LARGEST = 2048


def smallest_input(ghost: nn.Module) -> int | None:
    """The smallest height and width that a model on meta takes; None where it takes none up to 2048."""
    least = 1 + bisect_left(range(1, _LARGEST + 1), x=True, key=lambda side: accepts_size(ghost, (side, side)))
    return least if least <= _LARGEST else None


def accepts_size(ghost: nn.Module, size: Size, *, whole: bool = False) -> bool:
    """Whether a model on meta takes a size; `whole` also asks that no pool leaves out a row or column."""
    with torch.no_grad():
        seen = record_forward(ghost, meta_input(network_of(ghost), size))
    return seen.error is None and not (whole and seen.dropped())


def nearest_sizes(ghost: nn.Module, size: Size) -> tuple[Size, ...]:
    """The two sizes nearest to one that pass and leave nothing out, smaller first; fewer where there are not two."""
    least = smallest_input(ghost) if network_of(ghost).valid else 1
    if least is None:
        return ()
    heights, widths = (_nearest(ghost, side, least) for side in size)
    return tuple(dict.fromkeys(zip(heights, widths, strict=False)))


def _nearest(ghost: nn.Module, side: int, least: int) -> list[int]:
    # The strides' phases repeat, so among twice the deepest there is a size of every kind.
    reach = 2 * network_of(ghost).period + 2
    if side >= least and _first(ghost, [side]):
        return [side, side]
    below = _first(ghost, range(side - 1, max(least, side - reach) - 1, -1))
    above = _first(ghost, range(max(side + 1, least), max(side + 1, least) + reach))
    return below + above if below or not above else above + _first(ghost, range(above[0] + 1, above[0] + reach))


def _first(ghost: nn.Module, sides: Iterable[int]) -> list[int]:
    return next(([side] for side in sides if accepts_size(ghost, (side, side), whole=True)), [])


def size_error(ghost: nn.Module, size: Size, seen: Observation) -> InputSizeError:
    """What to raise for a pass that failed: where it broke, on what, and the sizes that pass."""
    failure = seen.failure()
    if isinstance(seen.error, InputSizeError) and network_of(ghost).size:
        return seen.error  # says what is too large for the encoder
    if sizes := nearest_sizes(ghost, size):
        nearest = " and ".join(map(format_size, sizes))
        return InputSizeError(
            f"size {format_size(size)} does not pass: {failure}; the nearest sizes that pass are {nearest}"
        )
    return InputSizeError(f"no size passes: at {format_size(size)}, {failure}")


def verify(model: nn.Module, *, any_size: bool) -> None:
    """Pass the size that a network is meant for through it, on meta.

    Args:
        model: as it was built.
        any_size: whether it is enough that some size passes.

    Raises:
        InputSizeError: it breaks; says where and on what shapes.
        BuildError: a part gives something else than it promises, or fails in a way that no size mends.
    """
    ghost = meta_copy(model).eval()
    network = network_of(ghost)
    size = input_size_for(network, None)
    with torch.no_grad():
        seen = record_forward(ghost, meta_input(network, size))
    if re.search(r"\bmeta tensor|\bon meta\b|'Meta' backend|meta device", str(seen.error)):
        return  # a part that looks at values cannot be followed without them
    if wrong := contract_violation(network, seen):
        raise BuildError(wrong) from seen.error
    if isinstance(seen.error, NotImplementedError):  # no size mends that
        raise BuildError(f"{failing_part(network, seen)}{seen.failure()}") from seen.error
    if seen.error is not None and not (any_size and nearest_sizes(ghost, size)):
        if not isinstance(seen.error, RuntimeError | ValueError | UnetkitError):  # a mistake in the code of a part
            raise BuildError(f"{failing_part(network, seen)}{seen.failure()}") from seen.error
        raise size_error(ghost, size, seen) from seen.error
    if seen.error is None and not isinstance(seen.output, Tensor):
        return  # a plugin's wrapper may give several outputs
    if seen.output is not None and seen.output.shape[1] != network.resolved_plan.classes:
        raise BuildError(f"the logits have {seen.output.shape[1]} channels for {network.resolved_plan.classes} classes")
