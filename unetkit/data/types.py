"""An image with its mask, and what every set of them promises.

C channels, L labels, H and W height and width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from unetkit.errors import OptionError

#: In a mask: this pixel counts neither in a loss nor in a metric.
IGNORE = -1

Colour = tuple[int, int, int]
Activation = Literal["sigmoid", "softmax"]


@dataclass(frozen=True)
class Target:
    """What the masks of a data set mean.

    Attributes:
        kind: "binary" (a mask (H, W) of 0 and 1), "multiclass" (a mask (H, W) of class indices) or "multilabel" (a
            mask (L, H, W) of 0 and 1, a plane a label, any number of which may hold at a pixel). Every mask is int64,
            and may hold IGNORE.
        names: of the classes, background first, or of the labels, which have no background.
        colours: red, green and blue of each, 0 to 255.
    """

    kind: Literal["binary", "multiclass", "multilabel"]
    names: tuple[str, ...]
    colours: tuple[Colour, ...] = ()

    def __post_init__(self) -> None:
        if not self.colours:
            object.__setattr__(self, "colours", palette(len(self.names), self.kind == "multilabel"))

    @property
    def outputs(self) -> int:
        """How many channels of logits a network has for it, unless told otherwise: one where there are two classes."""
        return 1 if self.kind == "binary" else len(self.names)

    def activation(self, outputs: int) -> Activation:
        """What makes probabilities of that many channels of logits.

        Raises:
            OptionError: as many do not fit these masks.
        """
        if self.kind == "multilabel" and outputs == len(self.names):
            return "sigmoid"
        if self.kind == "binary" and outputs == 1:
            return "sigmoid"
        if self.kind != "multilabel" and outputs == len(self.names):
            return "softmax"
        fit = "1 (sigmoid) or 2 (softmax)" if self.kind == "binary" else str(len(self.names))
        raise OptionError(
            f"--classes {outputs}: the masks are {self.kind} ({_listed(self.names)}); leave it out, or give {fit}"
        )

    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits (B, K, H, W) -> (B, L, H, W), a plane a class or label; planes of classes sum to 1."""
        if self.activation(logits.shape[1]) == "softmax":
            return logits.softmax(1)
        chances = logits.sigmoid()
        return torch.cat([1 - chances, chances], 1) if self.kind == "binary" else chances

    def to_mask(self, probabilities: Tensor) -> Tensor:
        """Probabilities (B, L, H, W) -> masks: classes (B, H, W), or labels above a half (B, L, H, W).

        A class is the likeliest, of several alike the first.
        """
        if self.kind == "multilabel":
            return (probabilities > 0.5).long()
        return probabilities.max(1).indices  # what argmax gives, several times as fast on a CPU


def palette(count: int, labels: bool = False) -> tuple[Colour, ...]:
    """Colours that differ, the first black for the background unless they are for labels (Pascal VOC's palette)."""
    first = 1 if labels else 0
    return tuple(_voc(index) for index in range(first, first + count))


def _voc(index: int) -> Colour:
    red = green = blue = 0
    for bit in range(8):
        for channel in range(3):
            value = (index >> channel & 1) << 7 - bit
            red, green, blue = (
                red | value * (channel == 0),
                green | value * (channel == 1),
                blue | value * (channel == 2),
            )
        index >>= 3
    return red, green, blue


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


class Sample(NamedTuple):
    """An image and what is known of it.

    Attributes:
        name: of its file without the ending, or what else tells it from the others.
        image: (C, H, W) float32; of 8-bit files their values / 255, of 16-bit ones / 65535, others as they are.
        mask: int64, as `Target.kind` says, with IGNORE where nothing counts.
        instances: (H, W) int64, 0 the background and each object a number of its own; None where unknown.
    """

    name: str
    image: Tensor
    mask: Tensor
    instances: Tensor | None = None


class Dataset(Protocol):
    """Samples by number, the same each time they are asked for. Raises FileError where a file cannot be read."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


def fingerprint(images: Dataset) -> str:
    """What tells these images from others: how many, and a digest of their names where they have names (`held`)."""
    held = getattr(images, "held", None)
    names = "" if held is None else hashlib.sha256("\0".join(held).encode()).hexdigest()[:12]
    return f"{len(images)} {names}".rstrip()


@dataclass(frozen=True)
class DatasetSplits:
    """A data set, opened.

    Attributes:
        said: the text that `--data` takes.
        target: what its masks mean.
        channels: of its images.
        splits: by name; "train" and "val" at least, and "test" where there is one. Disjoint.
        augment: what `--augment` is unless it is given.
    """

    said: str
    target: Target
    channels: int
    splits: Mapping[str, Dataset]
    augment: str
