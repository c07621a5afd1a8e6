"""Facts about the sizes of a network's maps, which let its source omit code for cases that never occur."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unetkit.parts.encoders.plain import PlainEncoder
from unetkit.unet import Stage, UNet
from unetkit.utils.formatting import Size
from unetkit.utils.integers import round_up
from unetkit.utils.meta_shapes import MetaShapes
from unetkit.utils.spatial import size_of, strided_size


@dataclass(frozen=True)
class SizeFacts:
    """Facts that hold for every input that a network takes.

    Attributes:
        exact: whether every map is upsampled to just the size of its level, so that nothing is to be aligned.
        rounds_up: whether the encoder's first map has the size of the input divided by its stride, rounded up.
        floors: whether sizes are rounded down, so that a map that is upsampled is never larger than its skip.
    """

    exact: bool = False
    rounds_up: bool = False
    floors: bool = False


def find_size_facts(network: UNet) -> SizeFacts:
    """Find the facts by passes over meta tensors. The network is on the meta device and in eval mode.

    Sizes are exact only if the network pads every input to multiples of its deepest stride, or to one size.
    """
    floors = isinstance(network.encoder, PlainEncoder)
    if network.valid:
        return SizeFacts(floors=floors)
    if network.size:
        sizes, is_padded = [network.size], True
    else:
        multiple = network.multiple
        is_padded = multiple % max(network.strides) == 0
        base = round_up(network.min_size, multiple)
        steps = ((1, 3), (2, 5)) if is_padded else ((1, 3), (16, 31), (30, 9))
        sizes = [(base + multiple * rows, base + multiple * columns) for rows, columns in steps]
    try:
        passes = [_observe(network, size) for size in sizes]
    except Exception:  # a part that reads values of tensors may raise anything for a meta tensor
        return SizeFacts(floors=floors)
    agree, rounded = zip(*passes, strict=True)
    return SizeFacts(exact=is_padded and all(agree), rounds_up=all(rounded), floors=floors)


def _observe(network: UNet, size: Size) -> tuple[bool, bool]:
    """Return whether every upsampled map has the size of its level, and whether the first map is rounded up."""
    agree: list[bool] = []
    rounded: list[bool] = []

    def note_stage(stage: Stage, args: Any, output: Any) -> None:
        skip, input_size = (*args[1:], None, None)[:2]
        wanted = strided_size(input_size, stage.stride) if skip is None else size_of(skip)
        agree.append(upsampled.pop() == wanted)

    def note_encoder(module: nn.Module, args: Any, maps: list[Tensor]) -> None:
        rounded.append(size_of(maps[0]) == strided_size(size, network.strides[0]))

    upsampled: list[Size] = []
    stages = [module for module in network.modules() if isinstance(module, Stage)]
    x = torch.empty(1, network.resolved_plan.in_channels, *size, device="meta")
    with _hooks() as hooks:
        for stage in stages:
            up: Any = stage.up
            hooks.append(up.register_forward_hook(lambda module, args, output: upsampled.append(size_of(output))))
            hooks.append(stage.register_forward_hook(note_stage))
        hooks.append(network.encoder.register_forward_hook(note_encoder))
        with torch.no_grad(), torch.device("meta"), MetaShapes():
            network(x)
    return all(agree), rounded[0]


@contextmanager
def _hooks() -> Iterator[list[Any]]:
    handles: list[Any] = []
    try:
        yield handles
    finally:
        for handle in handles:
            handle.remove()
