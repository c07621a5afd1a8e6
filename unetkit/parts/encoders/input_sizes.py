"""Input sizes that another library's model takes, found by trying them on meta tensors.

Libraries do not say which sizes their models take, so each model is tried once per process.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any

import torch
from torch import nn

from unetkit.utils.integers import round_up
from unetkit.utils.meta_shapes import MetaShapes
from unetkit.utils.modules import meta_copy

#: The number of multiples of the deepest stride to try; the widest known windows are 16 pixels of the deepest map.
MAX_MULTIPLES = 16

#: Results of `probe_sizes` by their key.
_CACHE: dict[Hashable, tuple[int, int]] = {}


def probe_sizes(key: Hashable, model: nn.Module, in_channels: int, stride: int) -> tuple[int, int]:
    """Find the smallest side that a model takes, and what larger sides must be multiples of.

    Args:
        key: identifies the model; the result is kept under it for the rest of the process.
        model: a model on any device, which is left unchanged.
        in_channels: channels of its input.
        stride: stride of its deepest map.

    Returns:
        The smallest side and the multiple, in pixels; the stride for both where no size is accepted.
    """
    if key not in _CACHE:
        meta_model = meta_copy(model).eval()
        limits = search_size_limits(lambda *size: accepts(meta_model, in_channels, *size), stride)
        if limits is None:  # a faulty option may be the cause, which the key need not contain, so nothing is kept
            return stride, stride
        _CACHE[key] = limits
    return _CACHE[key]


def search_size_limits(
    is_accepted: Callable[[int, int], bool], stride: int, native_side: int = 224, *, aligned: bool = False
) -> tuple[int, int] | None:
    """Search for the smallest side that a model takes, and what larger sides must be multiples of.

    Some models add maps whose sizes agree only at multiples of the stride, others cut maps into whole windows. A
    multiple is trusted if two sizes with it are accepted: the next to the smallest, and one beyond twice the model's
    native side. So neither windows that shrink to small maps nor a model that makes one size of every input (such as
    CrossViT) pass for a model that takes any size.

    Args:
        is_accepted: says whether a height and width are accepted.
        stride: stride of the deepest map.
        native_side: side in pixels that the model was designed for.
        aligned: whether sides must be multiples of the stride in any case.

    Returns:
        The smallest side and the multiple, in pixels; None where there is no such rule, as for a model of one size.
    """
    sides = range(stride, (MAX_MULTIPLES + 1) * stride, stride)
    smallest = next((side for side in sides if is_accepted(side, side)), None)
    if smallest is None:
        return None
    # Halving rounds up in some models and down in others: these sides stay odd under repeated halving of either kind.
    half, far = stride // 2 + 1, round_up(2 * native_side, stride)
    if not aligned and is_accepted(smallest + half, far + 1) and is_accepted(smallest + 1, far + half):
        return smallest, 1
    # The smallest side is made of whole windows too, unless it is so small that windows shrink to it.
    for multiple in sides if smallest == stride else [side for side in sides if smallest % side == 0]:
        base = round_up(smallest, multiple)
        if is_accepted(base + multiple, round_up(2 * native_side, multiple) + multiple):
            return base, multiple
    return None


def enclosing_sizes(size: tuple[int, int], multiples: Iterable[int]) -> list[tuple[int, int]]:
    """List sizes that enclose a size, rectangles and squares, smallest area first.

    Args:
        size: height and width to enclose.
        multiples: each listed side is a multiple of one of these.
    """
    rectangles = {(round_up(size[0], multiple), round_up(size[1], multiple)) for multiple in multiples}
    squares = {(max(each), max(each)) for each in rectangles}
    return sorted(rectangles | squares, key=lambda each: (each[0] * each[1], each))


def accepts(meta_model: nn.Module, *shape: int, is_valid_output: Callable[[Any], bool] = lambda output: True) -> bool:
    """Return whether a model on the meta device takes an input and gives a valid output.

    Args:
        meta_model: the model.
        shape: channels, height and width of the input.
        is_valid_output: says whether the output of the model is valid.
    """
    x = torch.empty(1, *shape, dtype=next(meta_model.parameters()).dtype, device="meta")
    try:
        with torch.no_grad(), torch.device("meta"), MetaShapes():
            return is_valid_output(meta_model(x))
    except MemoryError:
        raise
    except Exception:  # a model may raise anything for a size that it does not take
        return False
