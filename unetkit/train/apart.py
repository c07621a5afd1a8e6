"""Whether cells that touch are told apart: what border weights are for, and what a share of pixels hides."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from unetkit.data.objects import numbered, pieces

#: How far each of two cells is grown, in pixels, to see whether they touch.
GROWN = 2


def told_apart(predicted: Tensor | NDArray[Any], instances: Tensor | NDArray[Any]) -> tuple[int, int]:
    """How many of the cells that touch others are found as pieces of their own, and how many touch.

    A cell touches another where the two, grown by GROWN pixels (a square about each), would meet. It is told apart if
    a connected piece of the predicted foreground overlaps it with an IoU above 0.5; such a piece can be that of one
    cell only. Counts of several images may be added.

    Args:
        predicted: (H, W), foreground where above 0; `pieces` says what is connected.
        instances: (H, W) of integers, 0 the background and each cell a number of its own.

    Returns:
        cells told apart, and cells that touch, those told apart among them.
    """
    cells, found = numbered(_array(instances)), pieces(_array(predicted))
    shape = int(cells.max(initial=0)) + 1, int(found.max(initial=0)) + 1
    shared = np.bincount((cells * shape[1] + found).ravel(), minlength=shape[0] * shape[1]).reshape(shape)
    union = shared.sum(1, keepdims=True) + shared.sum(0, keepdims=True) - shared
    alone = (2 * shared > union)[1:, 1:].any(1)
    touching = touches(cells)
    return int((alone & touching).sum()), int(touching.sum())


def touches(cells: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether each of the cells (H, W), numbered from 1 to N, touches another (N,)."""
    found = np.zeros(int(cells.max(initial=0)) + 1, bool)
    reach = 2 * GROWN
    wide = np.pad(cells, ((0, reach), (reach, reach)))
    height, width = cells.shape
    for down, right in product(range(reach + 1), range(2 * reach + 1)):
        other = wide[down : down + height, right : right + width]
        meet = (cells > 0) & (other > 0) & (cells != other)
        found[cells[meet]] = found[other[meet]] = True
    return found[1:]


def _array(values: Tensor | NDArray[Any]) -> NDArray[Any]:
    return values.cpu().numpy() if isinstance(values, Tensor) else values
