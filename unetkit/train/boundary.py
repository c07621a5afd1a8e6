"""The boundary F-score: whether outlines lie where they should, whatever the area within.

K classes or labels, H and W height and width. After Csurka, Larlus and Perronnin, "What is a good evaluation measure
for semantic segmentation?" (BMVC 2013), whose tolerance is 0.75% of the image's diagonal.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from unetkit.data.target import IGNORE

#: Of the image's diagonal, where no tolerance is given.
SHARE = 0.0075


def boundary_counts(prediction: Tensor, truth: Tensor, classes: int, tolerance: float | None = None) -> Tensor:
    """How many pixels of each class's outlines are met.

    An outline is the pixels of a class beside a pixel (left, right, above or below) that is of none; the image's edge,
    and what is IGNORE, make no outline. One is met where the other mask's outline has a pixel within the tolerance.

    Args:
        prediction: masks (H, W) of class indices, or (L, H, W) of 0 and 1.
        truth: the same, or IGNORE.
        classes: K, or L.
        tolerance: in pixels, the distance of centres; 0.75% of the diagonal, if None.

    Returns:
        (K, 4) int64: of the prediction's outline how many are met, of how many; the same of the truth's.
    """
    seen, true = prediction.cpu().numpy(), truth.cpu().numpy()
    if tolerance is None:
        tolerance = SHARE * math.hypot(*true.shape[-2:])
    if true.ndim == 3:
        rows = [_counts(seen[one] == 1, true[one] == 1, true[one] == IGNORE, tolerance) for one in range(classes)]
    else:
        rows = [_counts(seen == one, true == one, true == IGNORE, tolerance) for one in range(classes)]
    return torch.tensor(rows)


def boundary_scores(counts: Tensor) -> tuple[float, ...]:
    """F1 of each class from its counts (K, 4): NaN without any outline, 0 where only one mask has one."""
    return tuple(_f1(*row) for row in counts.tolist())


def _f1(met: int, outline: int, found: int, true: int) -> float:
    if not outline and not true:
        return math.nan
    if not met or not found:
        return 0.0
    precision, recall = met / outline, found / true
    return 2 * precision * recall / (precision + recall)


def _counts(seen: np.ndarray, true: np.ndarray, ignored: np.ndarray, tolerance: float) -> list[int]:
    mine, its = _outline(seen, ignored), _outline(true, ignored)
    return [_met(mine, its, tolerance), int(mine.sum()), _met(its, mine, tolerance), int(its.sum())]


def _outline(region: np.ndarray, ignored: np.ndarray) -> np.ndarray:
    inner = ndimage.binary_erosion(region | ignored, border_value=1)
    outline: np.ndarray = region & ~inner & ~ignored
    return outline


def _met(outline: np.ndarray, other: np.ndarray, tolerance: float) -> int:
    if not outline.any() or not other.any():
        return 0
    return int((ndimage.distance_transform_edt(~other)[outline] <= tolerance).sum())
