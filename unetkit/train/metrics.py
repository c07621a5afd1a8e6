"""Scores over many images: over all pixels (micro), and as means over images (macro).

They follow from a confusion matrix for each image, the boundary F-score of Csurka, Larlus and Perronnin (BMVC 2013),
and the number of touching objects that are separated. Shapes: K classes, L labels, H and W height and width.
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
from unetkit.utils.formatting import format_plural

#: The scores that each class has.
RATES = ("iou", "dice", "precision", "recall", "boundary")


def confusion_matrix(prediction: Tensor, truth: Tensor, classes: int) -> Tensor:
    """Count the pixels by true class (rows) and predicted class (columns).

    Args:
        prediction: a mask (H, W) of class indices, or (L, H, W) of 0 and 1.
        truth: a mask of the same shape, with IGNORE for ignored pixels.
        classes: K, or L.

    Returns:
        (K, K) int64; for labels a matrix each, (L, 2, 2).
    """
    if truth.ndim == 3:
        return torch.stack([confusion_matrix(*label, 2) for label in zip(prediction, truth, strict=True)])
    counts = truth != IGNORE
    pairs = truth[counts] * classes + prediction[counts]
    return torch.bincount(pairs, minlength=classes**2).reshape(classes, classes)


@dataclass(frozen=True)
class Scores:
    """Scores from 0 to 1 for each class, in the order of the names; NaN where a score is undefined.

    Attributes:
        names: the names of the classes or labels.
        accuracy: the share of correct pixels; for labels over all pixels of all labels.
        iou: correct / (true + predicted - correct), the Jaccard index.
        dice: 2 correct / (true + predicted), which equals F1.
        precision: correct / predicted.
        recall: correct / true.
        boundary: the boundary F-score; empty if it was not computed.
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
        """The mean IoU over the classes that occur in the true or the predicted mask."""
        return mean_of_defined(self.iou)

    @property
    def mdice(self) -> float:
        """The mean Dice over the classes that occur in the true or the predicted mask."""
        return mean_of_defined(self.dice)

    def to_dict(self) -> dict[str, Any]:
        """Return means and the scores of each class as JSON can hold them, with None where a score is undefined."""
        means = {"miou": self.miou, "mdice": self.mdice, "accuracy": self.accuracy}
        if self.boundary:
            means["mboundary"] = mean_of_defined(self.boundary)
        rates = {rate: _names_and_values(self.names, getattr(self, rate)) for rate in RATES if getattr(self, rate)}
        return {name: none_if_undefined(value) for name, value in means.items()} | rates


def scores(matrix: Tensor, names: Sequence[str], boundary: Sequence[float] = ()) -> Scores:
    """Compute scores from a confusion matrix."""
    if matrix.ndim == 3:
        truth, prediction, right = matrix[:, 1].sum(1), matrix[:, :, 1].sum(1), matrix[:, 1, 1]
    else:
        truth, prediction, right = matrix.sum(1), matrix.sum(0), matrix.diagonal()
    hits = matrix.diagonal(dim1=-2, dim2=-1).sum()
    return Scores(
        tuple(names),
        _divide(hits[None], matrix.sum()[None])[0],
        _divide(right, truth + prediction - right),
        _divide(2 * right, truth + prediction),
        _divide(right, prediction),
        _divide(right, truth),
        tuple(boundary),
    )


def mean_scores(each: Sequence[Scores], names: Sequence[str]) -> Scores:
    """Compute the mean of each score over the images in which it is defined."""

    def mean(rate: str) -> tuple[float, ...]:
        return tuple(map(mean_of_defined, zip(*(getattr(one, rate) for one in each), strict=True)))

    return Scores(tuple(names), mean_of_defined(one.accuracy for one in each), *map(mean, RATES))


def mean_of_defined(values: Iterable[float]) -> float:
    """Compute the mean of the values that are not NaN, independent of their order; NaN if there are none."""
    left = [value for value in values if not math.isnan(value)]
    return math.fsum(left) / len(left) if left else math.nan


def none_if_undefined(value: float) -> float | None:
    """Return None for NaN, which JSON does not have."""
    return None if math.isnan(value) else value


def _names_and_values(names: Sequence[str], values: Sequence[float]) -> dict[str, float | None]:
    return {name: none_if_undefined(value) for name, value in zip(names, values, strict=True)}


def _divide(part: Tensor, whole: Tensor) -> tuple[float, ...]:
    # Integers up to 2**53 are exact in float64; 0 / 0 is NaN.
    return tuple((part.double() / whole.double()).tolist())


#: The default tolerance as a fraction of the image's diagonal.
BOUNDARY_SHARE = 0.0075


def boundary_counts(prediction: Tensor, truth: Tensor, classes: int, tolerance: float | None = None) -> Tensor:
    """Count the outline pixels of each class that lie near the other mask's outline.

    The outline of a class consists of its pixels that have a neighbor (left, right, above or below) of another class.
    The image border and ignored pixels make no outline.

    Args:
        prediction: a mask (H, W) of class indices, or (L, H, W) of 0 and 1.
        truth: a mask of the same shape, with IGNORE for ignored pixels.
        classes: K, or L.
        tolerance: the largest distance of pixel centers; None for 0.75% of the diagonal.

    Returns:
        (K, 4) int64: the predicted outline's pixels within the tolerance and in total, then those of the true outline.
    """
    seen, true = prediction.cpu().numpy(), truth.cpu().numpy()
    if tolerance is None:
        tolerance = BOUNDARY_SHARE * math.hypot(*true.shape[-2:])
    if true.ndim == 3:
        rows = [_counts(seen[one] == 1, true[one] == 1, true[one] == IGNORE, tolerance) for one in range(classes)]
    else:
        rows = [_counts(seen == one, true == one, true == IGNORE, tolerance) for one in range(classes)]
    return torch.tensor(rows)


def boundary_scores(counts: Tensor) -> tuple[float, ...]:
    """Compute F1 of each class from its counts (K, 4): NaN without any outline, 0 if only one mask has one."""
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
    return [_count_within(mine, its, tolerance), int(mine.sum()), _count_within(its, mine, tolerance), int(its.sum())]


def _outline(region: np.ndarray, ignored: np.ndarray) -> np.ndarray:
    inner = ndimage.binary_erosion(region | ignored, border_value=1)
    outline: np.ndarray = region & ~inner & ~ignored
    return outline


def _count_within(outline: np.ndarray, other: np.ndarray, tolerance: float) -> int:
    if not outline.any() or not other.any():
        return 0
    return int((ndimage.distance_transform_edt(~other)[outline] <= tolerance).sum())


#: Objects touch if they meet when each is dilated by this number of pixels.
DILATION = 2


def separated_instances(predicted: Tensor | NDArray[Any], instances: Tensor | NDArray[Any]) -> tuple[int, int]:
    """Count the cells that touch others, and those of them that the prediction separates.

    Two cells touch if they would meet after each is dilated by DILATION pixels (with a square). A cell is separated
    if a connected component of the predicted foreground overlaps it with an IoU above 0.5, which is possible for one
    cell only.
    The counts of several images can be added.

    Args:
        predicted: (H, W), where values above 0 are foreground; see `connected_components`.
        instances: (H, W) integers, with 0 for the background and a number for each cell.

    Returns:
        The number of separated touching cells, and the number of touching cells.
    """
    cells, found = relabel(_array(instances)), connected_components(_array(predicted))
    shape = int(cells.max(initial=0)) + 1, int(found.max(initial=0)) + 1
    shared = np.bincount((cells * shape[1] + found).ravel(), minlength=shape[0] * shape[1]).reshape(shape)
    union = shared.sum(1, keepdims=True) + shared.sum(0, keepdims=True) - shared
    alone = (2 * shared > union)[1:, 1:].any(1)
    touching = find_touching(cells)
    return int((alone & touching).sum()), int(touching.sum())


def find_touching(cells: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return for each of the cells (H, W), numbered from 1 to N, whether it touches another one (N,)."""
    found = np.zeros(int(cells.max(initial=0)) + 1, bool)
    reach = 2 * DILATION
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
    """The counts of one image, from which its scores follow.

    Attributes:
        name: the name of the sample.
        classes: the names of the classes or labels.
        matrix: the confusion matrix.
        outlines: the result of `boundary_counts`, if it was computed.
        separated: the result of `separated_instances`, if it was computed and the instances are known.
    """

    name: str
    classes: tuple[str, ...]
    matrix: Tensor
    outlines: Tensor | None = None
    separated: tuple[int, int] | None = None

    @cached_property
    def scores(self) -> Scores:
        """Compute the scores of this image."""
        return scores(self.matrix, self.classes, () if self.outlines is None else boundary_scores(self.outlines))

    def to_dict(self) -> dict[str, Any]:
        """Return the data that `Evaluation.merge` takes."""
        outlines = None if self.outlines is None else self.outlines.tolist()
        return {"name": self.name, "confusion": self.matrix.tolist(), "outlines": outlines, "apart": self.separated}


class Evaluation:
    """The scores of many images, which are added one by one.

    Attributes:
        target: what the masks mean.
        images: the counts of each image.
        data, split: the data set and the split of the images, as `unetkit.evaluate` sets them; "" otherwise.
    """

    def __init__(self, target: Target, *, outlines: bool = False, tolerance: float | None = None, apart: bool = False):
        """Create an evaluation without images.

        Args:
            target: what the masks mean.
            outlines: whether to compute the boundary F-score, which takes longer than everything else.
            tolerance: its tolerance in pixels; None for 0.75% of each image's diagonal.
            apart: whether to count separated touching objects in samples with instances.
        """
        self.target, self.outlines, self.tolerance, self.apart = target, outlines, tolerance, apart
        self.images: list[ImageScores] = []
        self.data = self.split = ""

    def __repr__(self) -> str:
        """Return the mean IoU and, for each class, the scores over all pixels, as a table."""
        found, where = self.micro(), f"{self.data} ({self.split}), " if self.data else ""
        rates = [rate for rate in RATES if getattr(found, rate)]
        rows = [["class", *rates]]
        for at, name in enumerate(found.names):
            values = (none_if_undefined(getattr(found, rate)[at]) for rate in rates)
            rows.append([name, *("" if value is None else f"{value:.3f}" for value in values)])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        cells = ([name.ljust(widths[0]), *map(str.rjust, values, widths[1:])] for name, *values in rows)
        head = f"Evaluation: {where}{format_plural(len(self.images), 'image')}, mIoU {found.miou:.3f}"
        return "\n".join([head, *("  ".join(row).rstrip() for row in cells)])

    def add(self, name: str, probabilities: Tensor, sample: Sample) -> None:
        """Add an image.

        Args:
            name: the name of the image.
            probabilities: (L, H, W), as `Target.probabilities` returns them.
            sample: the true mask.
        """
        decided, truth = self.target.to_mask(probabilities[None])[0].cpu(), sample.mask.cpu()
        classes, names = len(self.target.names), self.target.names
        outlines = boundary_counts(decided, truth, classes, self.tolerance) if self.outlines else None
        apart = _count_separated(decided, sample) if self.apart else None
        self.images.append(ImageScores(name, names, confusion_matrix(decided, truth, classes), outlines, apart))

    def merge(self, values: dict[str, Any]) -> None:
        """Add the images of another evaluation from the result of its `to_dict`."""
        for image in values["images"]:
            outlines = None if image["outlines"] is None else torch.tensor(image["outlines"])
            apart = image["apart"] and tuple(image["apart"])
            self.images.append(
                ImageScores(image["name"], self.target.names, torch.tensor(image["confusion"]), outlines, apart)
            )

    def to_dict(self) -> dict[str, Any]:
        """Return all counts as plain lists."""
        return {"images": [image.to_dict() for image in self.images]}

    @property
    def matrix(self) -> Tensor:
        """The sum of all confusion matrices."""
        classes = len(self.target.names)
        none = torch.zeros((classes, 2, 2) if self.target.kind == "multilabel" else (classes, classes)).long()
        return sum((image.matrix for image in self.images), none)

    def micro(self) -> Scores:
        """Compute scores over all pixels of all images; large images and objects have more weight."""
        outlines = [image.outlines for image in self.images if image.outlines is not None]
        boundary = boundary_scores(torch.stack(outlines).sum(0)) if outlines else ()
        return scores(self.matrix, self.target.names, boundary)

    def macro(self) -> Scores:
        """Compute for each class the mean over the images in which it occurs; all images have the same weight."""
        return mean_scores([image.scores for image in self.images], self.target.names)

    def count_separated(self) -> tuple[int, int] | None:
        """Return the numbers of separated and of all touching objects; None if no image has instances."""
        found = [image.separated for image in self.images if image.separated is not None]
        return (sum(separated for separated, _ in found), sum(count for _, count in found)) if found else None

    def lowest_first(self) -> list[ImageScores]:
        """Return the images by mean IoU, lowest first; images without valid pixels come last."""
        return sorted(self.images, key=lambda image: (math.isnan(image.scores.miou), image.scores.miou))

    def summary(self) -> dict[str, Any]:
        """Return the number of images, the micro scores, the macro scores under "macro", and the touching objects."""
        separation = {"touching": describe_separation(found)} if (found := self.count_separated()) else {}
        return {"images": len(self.images), **self.micro().to_dict(), "macro": self.macro().to_dict(), **separation}


def describe_separation(apart: tuple[int, int]) -> dict[str, int]:
    """Name the two numbers of `separated_instances`."""
    return {"separated_instances": apart[0], "of": apart[1]}


def _count_separated(decided: Tensor, sample: Sample) -> tuple[int, int] | None:
    if sample.instances is None or decided.ndim == 3:
        return None
    return separated_instances(decided.numpy(), sample.instances.cpu().numpy())
