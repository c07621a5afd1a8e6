"""Which sizes a library's model takes, where nothing that it says tells: it is tried, on meta tensors."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any

import torch
from torch import nn

from unetkit.utils.flops import CostMeter
from unetkit.utils.modules import meta_copy

#: How many multiples of the deepest stride are tried; windows of 16 pixels there are the widest known.
TRIES = 16

#: What was found, by what it depends on.
_BORNE: dict[Hashable, tuple[int, int]] = {}


def probe_sizes(key: Hashable, model: nn.Module, in_channels: int, stride: int) -> tuple[int, int]:
    """The smallest side that a model takes, and what larger sides must be multiples of; tried once a process.

    Args:
        key: says which model it is; the same key gives the same answer.
        model: on any device; it is left as it was.
        in_channels: of its input.
        stride: of its deepest map.
    """
    if key not in _BORNE:
        ghost = meta_copy(model).eval()
        found = search(lambda *size: accepts(ghost, in_channels, *size), stride)
        if found is None:  # as a broken option makes it, which the key need not tell
            return stride, stride
        _BORNE[key] = found
    return _BORNE[key]


def search(
    passes: Callable[[int, int], bool], stride: int, own: int = 224, *, aligned: bool = False
) -> tuple[int, int] | None:
    """The smallest side that passes, and what larger sides must be multiples of; None where it is one size only.

    Some models add maps whose sizes agree only at multiples of the stride, others cut maps into whole windows. A
    multiple is believed where two sizes pass that have it: the next to the smallest, and one beyond twice the model's
    own, so that neither small maps nor a map of one size for every input (as CrossViT's) pass for any size.

    Args:
        passes: whether a height and width pass.
        stride: of the deepest map.
        own: a side that the model is meant for.
        aligned: whether sides must be multiples of the stride in any case.
    """
    sides = range(stride, (TRIES + 1) * stride, stride)
    least = next((side for side in sides if passes(side, side)), None)
    if least is None:
        return None
    # Halving rounds up in one model and down in another: these are odd however often they are halved, one way or other.
    half, far = stride // 2 + 1, round_up(2 * own, stride)
    if not aligned and passes(least + half, far + 1) and passes(least + 1, far + half):
        return least, 1
    # What fits the smallest is made of whole windows too, unless it is so small that windows shrink to it.
    for multiple in sides if least == stride else [side for side in sides if least % side == 0]:
        base = round_up(least, multiple)
        if passes(base + multiple, round_up(2 * own, multiple) + multiple):
            return base, multiple
    return None


def enclosing_sizes(size: tuple[int, int], steps: Iterable[int]) -> list[tuple[int, int]]:
    """Sizes that hold one, and squares that do, each a multiple of one of the steps; the smallest first."""
    rounded = {(round_up(size[0], step), round_up(size[1], step)) for step in steps}
    squares = {(max(each), max(each)) for each in rounded}
    return sorted(rounded | squares, key=lambda each: (each[0] * each[1], each))


def round_up(side: int, multiple: int) -> int:
    """The smallest multiple that holds a side."""
    return -(-side // multiple) * multiple


def accepts(ghost: nn.Module, *shape: int, fit: Callable[[Any], bool] = lambda _: True) -> bool:
    """Whether a model on meta passes an input of (channels, height, width), with an output that fits."""
    x = torch.empty(1, *shape, dtype=next(ghost.parameters()).dtype, device="meta")
    try:
        with torch.no_grad(), torch.device("meta"), CostMeter([], []):
            return fit(ghost(x))
    except MemoryError:
        raise
    except Exception:  # whatever a model says to a size that it does not take
        return False
