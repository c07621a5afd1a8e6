"""The scores of a network on many images: of all their pixels together (micro), and as means over images (macro).

L classes or labels, H and W height and width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from unetkit.data.border_weights import connected_components, relabel
from unetkit.data.types import IGNORE, Sample, Target

#: The scores that each class has.
RATES = ("iou", "dice", "precision", "recall", "boundary")


def confusion_matrix(prediction: Tensor, truth: Tensor, classes: int) -> Tensor:
    """How many pixels of each class were taken for which: rows truth, columns prediction.

    Args:
        prediction: masks (H, W) of class indices, or (L, H, W) of 0 and 1.
        truth: the same; IGNORE counts nowhere.
        classes: K, or L.

    Returns:
        (K, K) int64; of labels one such table each, (L, 2, 2).
    """
    if truth.ndim == 3:
        return torch.stack([confusion_matrix(*label, 2) for label in zip(prediction, truth, strict=True)])
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

    def to_dict(self) -> dict[str, Any]:
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


#: How far each of two cells is grown, in pixels, to see whether they touch.
GROWN = 2


def separated_instances(predicted: Tensor | NDArray[Any], instances: Tensor | NDArray[Any]) -> tuple[int, int]:
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
    cells, found = relabel(_array(instances)), connected_components(_array(predicted))
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


@dataclass(frozen=True)
class ImageScores:
    """What is kept of an image.

    Attributes:
        name: of its sample.
        classes: the names of the classes, or labels.
        matrix: its table of `confusion`.
        outlines: its `boundary_counts`, where they were asked for.
        apart: of its touching objects how many were told apart, of how many, where that was asked for and is known.
    """

    name: str
    classes: tuple[str, ...]
    matrix: Tensor
    outlines: Tensor | None = None
    apart: tuple[int, int] | None = None

    @cached_property
    def scores(self) -> Scores:
        """Of this image alone."""
        return scores(self.matrix, self.classes, () if self.outlines is None else boundary_scores(self.outlines))

    def to_dict(self) -> dict[str, Any]:
        """What `Evaluation.merge` takes."""
        outlines = None if self.outlines is None else self.outlines.tolist()
        return {"name": self.name, "confusion": self.matrix.tolist(), "outlines": outlines, "apart": self.apart}


class Evaluation:
    """Takes images one by one.

    Attributes:
        target: what the masks mean.
        images: what is kept of each.
    """

    def __init__(self, target: Target, *, outlines: bool = False, tolerance: float | None = None, apart: bool = False):
        """Begin with no image.

        Args:
            target: what the masks mean.
            outlines: whether the boundary F-score is asked for, which takes longer than all else.
            tolerance: of it in pixels; 0.75% of each image's diagonal, if None.
            apart: whether touching objects are to be told apart, in samples that know their instances.
        """
        self.target, self.outlines, self.tolerance, self.apart = target, outlines, tolerance, apart
        self.images: list[ImageScores] = []

    def add(self, name: str, probabilities: Tensor, sample: Sample) -> None:
        """Take an image.

        Args:
            name: of it.
            probabilities: (L, H, W), as `Target.probabilities` gives them.
            sample: the truth.
        """
        decided, truth = self.target.to_mask(probabilities[None])[0].cpu(), sample.mask.cpu()
        classes, names = len(self.target.names), self.target.names
        outlines = boundary_counts(decided, truth, classes, self.tolerance) if self.outlines else None
        apart = _apart(decided, sample) if self.apart else None
        self.images.append(ImageScores(name, names, confusion_matrix(decided, truth, classes), outlines, apart))

    def merge(self, said: dict[str, Any]) -> None:
        """Take the images of another by what its `to_dict` says."""
        for image in said["images"]:
            outlines = None if image["outlines"] is None else torch.tensor(image["outlines"])
            apart = image["apart"] and tuple(image["apart"])
            self.images.append(
                ImageScores(image["name"], self.target.names, torch.tensor(image["confusion"]), outlines, apart)
            )

    def to_dict(self) -> dict[str, Any]:
        """All that is kept, in plain lists."""
        return {"images": [image.to_dict() for image in self.images]}

    @property
    def matrix(self) -> Tensor:
        """The sum of all tables."""
        classes = len(self.target.names)
        none = torch.zeros((classes, 2, 2) if self.target.kind == "multilabel" else (classes, classes)).long()
        return sum((image.matrix for image in self.images), none)

    def micro(self) -> Scores:
        """Of all pixels of all images together: a large image or object counts for more."""
        outlines = [image.outlines for image in self.images if image.outlines is not None]
        boundary = boundary_scores(torch.stack(outlines).sum(0)) if outlines else ()
        return scores(self.matrix, self.target.names, boundary)

    def macro(self) -> Scores:
        """Of each class the mean over the images in which it occurs, so that every image counts alike."""
        return mean_scores([image.scores for image in self.images], self.target.names)

    def touching(self) -> tuple[int, int] | None:
        """Of all touching objects how many were told apart, of how many; None where none are known."""
        found = [image.apart for image in self.images if image.apart is not None]
        return (sum(told for told, _ in found), sum(count for _, count in found)) if found else None

    def worst(self) -> list[ImageScores]:
        """The images by their mean IoU, worst first; those in which nothing counts last."""
        return sorted(self.images, key=lambda image: (math.isnan(image.scores.miou), image.scores.miou))

    def summary(self) -> dict[str, Any]:
        """How many images, the micro scores, the macro ones by "macro", and the touching objects where known."""
        told = {"touching": describe_separation(found)} if (found := self.touching()) else {}
        return {"images": len(self.images), **self.micro().to_dict(), "macro": self.macro().to_dict(), **told}


def describe_separation(apart: tuple[int, int]) -> dict[str, int]:
    """The two numbers of `separated_instances` by name."""
    return {"separated_instances": apart[0], "of": apart[1]}


def _apart(decided: Tensor, sample: Sample) -> tuple[int, int] | None:
    if sample.instances is None or decided.ndim == 3:
        return None
    return separated_instances(decided.numpy(), sample.instances.cpu().numpy())
