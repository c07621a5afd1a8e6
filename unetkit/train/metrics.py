"""The scores of a network on many images: of all their pixels together (micro), and as means over images (macro).

L classes or labels, H and W height and width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from unetkit.data.sample import Sample
from unetkit.data.target import Target
from unetkit.train.apart import told_apart
from unetkit.train.boundary import boundary_counts, boundary_scores
from unetkit.train.confusion import Scores, confusion, mean_scores, scores


@dataclass(frozen=True)
class Seen:
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

    def as_dict(self) -> dict[str, Any]:
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
        self.images: list[Seen] = []

    def add(self, name: str, probabilities: Tensor, sample: Sample) -> None:
        """Take an image.

        Args:
            name: of it.
            probabilities: (L, H, W), as `Target.probabilities` gives them.
            sample: the truth.
        """
        decided, truth = self.target.decided(probabilities[None])[0].cpu(), sample.mask.cpu()
        classes, names = len(self.target.names), self.target.names
        outlines = boundary_counts(decided, truth, classes, self.tolerance) if self.outlines else None
        apart = _apart(decided, sample) if self.apart else None
        self.images.append(Seen(name, names, confusion(decided, truth, classes), outlines, apart))

    def merge(self, said: dict[str, Any]) -> None:
        """Take the images of another by what its `as_dict` says."""
        for image in said["images"]:
            outlines = None if image["outlines"] is None else torch.tensor(image["outlines"])
            apart = image["apart"] and tuple(image["apart"])
            self.images.append(
                Seen(image["name"], self.target.names, torch.tensor(image["confusion"]), outlines, apart)
            )

    def as_dict(self) -> dict[str, Any]:
        """All that is kept, in plain lists."""
        return {"images": [image.as_dict() for image in self.images]}

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

    def worst(self) -> list[Seen]:
        """The images by their mean IoU, worst first; those in which nothing counts last."""
        return sorted(self.images, key=lambda image: (math.isnan(image.scores.miou), image.scores.miou))

    def summary(self) -> dict[str, Any]:
        """How many images, the micro scores, the macro ones by "macro", and the touching objects where known."""
        told = {"touching": touching_said(found)} if (found := self.touching()) else {}
        return {"images": len(self.images), **self.micro().as_dict(), "macro": self.macro().as_dict(), **told}


def touching_said(apart: tuple[int, int]) -> dict[str, int]:
    """The two numbers of `told_apart` by name."""
    return {"told_apart": apart[0], "of": apart[1]}


def _apart(decided: Tensor, sample: Sample) -> tuple[int, int] | None:
    if sample.instances is None or decided.ndim == 3:
        return None
    return told_apart(decided.numpy(), sample.instances.cpu().numpy())
