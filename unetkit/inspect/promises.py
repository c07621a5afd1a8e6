"""Whether the parts of a network give what they promise, on one observed pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from unetkit.inspect.figures import format_size
from unetkit.inspect.observe import Call, Observation
from unetkit.inspect.rows import spec_at
from unetkit.network import Network
from unetkit.sizes import size_of
from unetkit.unet import Stage, UNet


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


def misdeclared(network: Network, seen: Observation) -> str:
    """Which part gave something else than it promises, in words; "" where none did."""
    if not isinstance(network, UNet):
        return _shrunk(network, seen)
    promises = _promises(network)
    for call in seen.calls:
        if call.end < 0:
            continue
        if call.module is network.encoder and (fault := _encoder(network, call, seen)):
            return f"the encoder (--encoder {network.whole.encoder}) {fault}"
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
    return f"--model {network.whole.model} gives {sizes}; logits have the size of the input"


def culprit(network: Network, seen: Observation) -> str:
    """The word and spec of the part in which a pass ended: "--fuse gate: "; "" where it ended in none."""
    if not isinstance(network, UNet):
        return f"--model {network.whole.model}: "
    said = {module: promise.said for module, promise in _promises(network).items()}
    said[network.encoder] = f"--encoder {network.whole.encoder}"
    inside = [said[call.module] for call in seen.calls if call.end < 0 and call.module in said]
    return f"{inside[-1]}: " if inside else ""


def _promises(network: UNet) -> dict[nn.Module, _Promise]:
    whole = network.whole
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


def _fault(promise: _Promise, call: Call) -> str:
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


def _encoder(network: UNet, call: Call, seen: Observation) -> str:
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
