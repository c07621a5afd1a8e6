"""Samples, the meaning of their masks, and the interface of data sets.

This imports no torch, so that exported networks can be run without it.
Shapes: B batch, K outputs of a network, C channels, L labels, H and W height and width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from unetkit.errors import FileError, OptionError

if TYPE_CHECKING:
    from torch import Tensor

#: The value in a mask of pixels that losses and metrics ignore.
IGNORE = -1

Colour = tuple[int, int, int]
Activation = Literal["sigmoid", "softmax", "identity"]


@dataclass(frozen=True)
class Target:
    """The meaning of a data set's masks, or of the maps on which another output of a network is trained.

    Attributes:
        kind: "binary" (a mask (H, W) of 0 and 1), "multiclass" (a mask (H, W) of class indices) or "multilabel" (a mask
            (L, H, W) of 0 and 1 for each label, any number of which may apply to a pixel). Every mask is int64 and may
            contain IGNORE. Maps may also be of the kind "regression": (C, H, W) float32, with NaN for ignored pixels.
        names: the names of the classes, with the background first, of the labels, which have no background, or of the
            numbers that are predicted by regression.
        colours: the red, green and blue of each class, 0 to 255.
    """

    kind: Literal["binary", "multiclass", "multilabel", "regression"]
    names: tuple[str, ...]
    colours: tuple[Colour, ...] = ()

    def __post_init__(self) -> None:
        if not self.colours:
            object.__setattr__(self, "colours", palette(len(self.names), self.kind == "multilabel"))

    @property
    def outputs(self) -> int:
        """The default number of output channels of a network: one for two classes."""
        return self.output_choices[0]

    @property
    def output_choices(self) -> tuple[int, ...]:
        """The numbers of output channels that a network may have."""
        return (1, 2) if self.kind == "binary" else (len(self.names),)

    def activation(self, outputs: int) -> Activation:
        """Return the function that makes probabilities of this number of logit channels; "identity" for regression.

        Raises:
            OptionError: This number does not fit the masks.
        """
        if self.kind == "regression" and outputs == len(self.names):
            return "identity"
        if self.kind == "multilabel" and outputs == len(self.names):
            return "sigmoid"
        if self.kind == "binary" and outputs == 1:
            return "sigmoid"
        if self.kind in ("binary", "multiclass") and outputs == len(self.names):
            return "softmax"
        fit = "1 (sigmoid) or 2 (softmax)" if self.kind == "binary" else str(len(self.names))
        raise OptionError(
            f"--classes {outputs}: the masks are {self.kind} ({_list_names(self.names)}); leave it out, or give {fit}"
        )

    def probabilities(self, logits: Tensor) -> Tensor:
        """Convert logits (B, K, H, W) to probabilities (B, L, H, W) by class or label; those of classes sum to 1."""
        if self.activation(logits.shape[1]) == "softmax":
            return logits.softmax(1)
        chances = logits.sigmoid()
        if self.kind != "binary":
            return chances
        both = chances.repeat(1, 2, 1, 1)
        both[:, 0] = 1 - both[:, 0]
        return both

    def to_mask(self, probabilities: Tensor) -> Tensor:
        """Convert probabilities (B, L, H, W) to masks: classes (B, H, W), or labels above 0.5 (B, L, H, W).

        The class with the highest probability is chosen, or the first of several equal ones.
        """
        if self.kind == "multilabel":
            return (probabilities > 0.5).long()
        return probabilities.max(1).indices  # what argmax gives, several times as fast on a CPU


def palette(count: int, labels: bool = False) -> tuple[Colour, ...]:
    """Return distinct colors, with black first for the background unless they are for labels (Pascal VOC's palette)."""
    first = 1 if labels else 0
    return tuple(_voc_colour(index) for index in range(first, first + count))


def _voc_colour(index: int) -> Colour:
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


def _list_names(names: tuple[str, ...]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


class Sample(NamedTuple):
    """An image with its mask.

    Attributes:
        name: the name of its file without the suffix, or another unique name.
        image: (C, H, W) float32; 8-bit values / 255, 16-bit values / 65535, others unchanged. Pixels without data are
            NaN in all channels, and IGNORE in the mask.
        mask: int64 as described by `Target.kind`, with IGNORE for ignored pixels.
        instances: (H, W) int64, with 0 for the background and a number for each object; None if unknown.
    """

    name: str
    image: Tensor
    mask: Tensor
    instances: Tensor | None = None


#: What is wrong with an image whose values would spread to all weights of a network.
NOT_FINITE = (
    "its image contains NaN or infinity; replace these values, leave the image out, or mark pixels without data by NaN "
    "in all channels and -1 in the mask"
)


def has_finite_values(sample: Sample) -> bool:
    """Return whether the image can enter a network: it is finite, or NaN in all channels where the mask is IGNORE."""
    finite = sample.image.isfinite().all(0)
    return bool(finite.all() or (finite | (sample.image.isnan().all(0) & (sample.mask == IGNORE))).all())


def check_values(sample: Sample) -> Sample:
    """Return the sample, whose image then can enter a network. Raise FileError if it cannot."""
    if has_finite_values(sample):
        return sample
    raise FileError(f"{sample.name}: {NOT_FINITE}")


def without_missing(sample: Sample) -> Sample:
    """Return the sample with the pixels without data (NaN) as IGNORE in the mask, and in no object."""
    missing = sample.image.isnan().any(0)
    if not missing.any():
        return sample
    instances = None if sample.instances is None else sample.instances.masked_fill(missing, 0)
    return sample._replace(mask=sample.mask.masked_fill(missing, IGNORE), instances=instances)


class Dataset(Protocol):
    """Samples by index, which are the same each time. Raises FileError if a file cannot be read."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


def fingerprint(images: Dataset) -> str:
    """Identify images by their number and, if they have them, by digests of their names and of their files.

    These are `sample_names`, a list, and `content_digest`, a text.
    """
    sample_names = getattr(images, "sample_names", None)
    names = "" if sample_names is None else hashlib.sha256("\0".join(sample_names).encode()).hexdigest()[:12]
    return " ".join(filter(None, (str(len(images)), names, getattr(images, "content_digest", ""))))


@dataclass(frozen=True)
class DatasetSplits:
    """An opened data set.

    Attributes:
        source: the text for `--data`.
        target: what the masks mean.
        channels: the number of image channels.
        splits: the splits by name: at least "train" and "val", and possibly "test". They are disjoint.
        augment: the default of `--augment`.
        is_split: whether the data define which images are for validation; otherwise a seed does.
        notes: what a user should know about the data, a line each.
    """

    source: str
    target: Target
    channels: int
    splits: Mapping[str, Dataset]
    augment: str
    notes: tuple[str, ...] = ()
    is_split: bool = True
