"""What was taken for what, and the scores that follow from it.

K classes, L labels, H and W height and width. A score without anything to count, such as the IoU of a class that is
neither in the truth nor in the prediction, is NaN, and is left out of every mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unetkit.data.target import IGNORE

#: The scores that each class has.
RATES = ("iou", "dice", "precision", "recall", "boundary")


def confusion(prediction: Tensor, truth: Tensor, classes: int) -> Tensor:
    """How many pixels of each class were taken for which: rows truth, columns prediction.

    Args:
        prediction: masks (H, W) of class indices, or (L, H, W) of 0 and 1.
        truth: the same; IGNORE counts nowhere.
        classes: K, or L.

    Returns:
        (K, K) int64; of labels one such table each, (L, 2, 2).
    """
    if truth.ndim == 3:
        return torch.stack([confusion(*label, 2) for label in zip(prediction, truth, strict=True)])
    counts = truth != IGNORE
    pairs = truth[counts] * classes + prediction[counts]
    return torch.bincount(pairs, minlength=classes**2).reshape(classes, classes)


@dataclass(frozen=True)
class Scores:
    """Shares of 1, one a class in the order of the names.

    Attributes:
        names: of the classes, or labels.
        accuracy: the share of pixels that are right; of labels, of all pixels of all labels.
        iou: right / (truth + prediction - right), which is Jaccard's index.
        dice: 2 right / (truth + prediction), which is F1.
        precision: right / prediction.
        recall: right / truth.
        boundary: the boundary F-score; empty where it was not asked for.
    """

    names: tuple[str, ...]
    accuracy: float
    iou: tuple[float, ...]
    dice: tuple[float, ...]
    precision: tuple[float, ...]
    recall: tuple[float, ...]
    boundary: tuple[float, ...] = ()

    @property
    def miou(self) -> float:
        """The mean IoU over the classes that occur, in the truth or in the prediction."""
        return known_mean(self.iou)

    @property
    def mdice(self) -> float:
        """The mean Dice over the same."""
        return known_mean(self.dice)

    def as_dict(self) -> dict[str, Any]:
        """As JSON can hold it: means, and each rate by class; None where there is nothing to count."""
        means = {"miou": self.miou, "mdice": self.mdice, "accuracy": self.accuracy}
        if self.boundary:
            means["mboundary"] = known_mean(self.boundary)
        rates = {rate: _told(self.names, getattr(self, rate)) for rate in RATES if getattr(self, rate)}
        return {name: known(value) for name, value in means.items()} | rates


def scores(matrix: Tensor, names: Sequence[str], boundary: Sequence[float] = ()) -> Scores:
    """The scores that a table of `confusion` says."""
    if matrix.ndim == 3:
        truth, prediction, right = matrix[:, 1].sum(1), matrix[:, :, 1].sum(1), matrix[:, 1, 1]
    else:
        truth, prediction, right = matrix.sum(1), matrix.sum(0), matrix.diagonal()
    hits = matrix.diagonal(dim1=-2, dim2=-1).sum()
    return Scores(
        tuple(names),
        _shares(hits[None], matrix.sum()[None])[0],
        _shares(right, truth + prediction - right),
        _shares(2 * right, truth + prediction),
        _shares(right, prediction),
        _shares(right, truth),
        tuple(boundary),
    )


def mean_scores(each: Sequence[Scores], names: Sequence[str]) -> Scores:
    """The mean over images of each score, over those images in which there is something to count."""

    def mean(rate: str) -> tuple[float, ...]:
        return tuple(map(known_mean, zip(*(getattr(one, rate) for one in each), strict=True)))

    return Scores(tuple(names), known_mean(one.accuracy for one in each), *map(mean, RATES))


def known_mean(values: Iterable[float]) -> float:
    """The mean of what is not NaN, whatever its order; NaN where nothing is left."""
    left = [value for value in values if not math.isnan(value)]
    return math.fsum(left) / len(left) if left else math.nan


def known(value: float) -> float | None:
    """None for NaN, which JSON has not."""
    return None if math.isnan(value) else value


def _told(names: Sequence[str], values: Sequence[float]) -> dict[str, float | None]:
    return {name: known(value) for name, value in zip(names, values, strict=True)}


def _shares(part: Tensor, whole: Tensor) -> tuple[float, ...]:
    # Integers up to 2**53 are exact in float64; 0 / 0 is NaN.
    return tuple((part.double() / whole.double()).tolist())
