"""Which sizes a library's model takes, where nothing that it says tells: it is tried, on meta tensors."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import nn

from unetkit.meta import meta_copy
from unetkit.meter import Meter

#: What was found, by what it depends on.
_BORNE: dict[Hashable, tuple[int, int]] = {}


def bears(key: Hashable, model: nn.Module, in_channels: int, stride: int) -> tuple[int, int]:
    """The smallest multiple of the deepest stride that a model takes, and what larger sizes must be multiples of.

    Some models add maps whose sizes agree only at multiples of the stride: so each is tried once a process at its
    smallest size and at an odd one that leaves every remainder.

    Args:
        key: says which model it is; the same key gives the same answer.
        model: on any device; it is left as it was.
        in_channels: of its input.
        stride: of its deepest map.
    """
    if key not in _BORNE:
        ghost = meta_copy(model).eval()
        sides = range(stride, 16 * stride, stride)
        least = next((side for side in sides if takes(ghost, in_channels, side, side)), stride)
        _BORNE[key] = least, 1 if takes(ghost, in_channels, least + 1, least + stride // 2 + 1) else stride
    return _BORNE[key]


def takes(ghost: nn.Module, *shape: int) -> bool:
    """Whether a model on meta passes an input of (channels, height, width)."""
    x = torch.empty(1, *shape, dtype=next(ghost.parameters()).dtype, device="meta")
    try:
        with torch.no_grad(), torch.device("meta"), Meter([], []):
            ghost(x)
    except Exception:  # whatever a model says to a size that it does not take
        return False
    return True
