"""Augmentation from text: `hflip,turn,elastic:std=8,light`; see docs/augmentation.md.

C channels, L labels, H and W height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from unetkit.chosen import Menu
from unetkit.data.pixels import Pixels, cropped
from unetkit.data.sample import Sample
from unetkit.data.tones import Blur, Light, Noise
from unetkit.data.warps import Elastic, HFlip, Rotate, Scale, Turn, VFlip
from unetkit.errors import BadOption
from unetkit.plan import PartSpec
from unetkit.values import split_items

Step = Callable[[Pixels, Generator], Pixels]

_MOVES = {"hflip": HFlip, "vflip": VFlip, "turn": Turn, "rotate": Rotate, "scale": Scale, "elastic": Elastic}
STEPS = Menu(
    "augment", "augmentation", "docs/augmentation.md", {**_MOVES, "light": Light, "noise": Noise, "blur": Blur}
)
NONE = "none"


@dataclass(frozen=True)
class Augment:
    """What is done to a training image, its mask and its weight map.

    Attributes:
        said: the shortest text that means it.
        steps: in order, before the crop.
        crop: height and width of what comes out.
    """

    said: str
    steps: tuple[Step, ...]
    crop: tuple[int, int]

    def __call__(self, sample: Sample, weight: Tensor | None, seed: int) -> tuple[Sample, Tensor | None]:
        """A sample and its weight map (H, W), or None, both of the size of the crop; the instances are dropped.

        All that is random comes from the seed: neither torch's random state nor any other is read or changed.
        """
        draw = torch.Generator().manual_seed(seed)
        pixels = Pixels(sample.image, sample.mask, weight)
        height, width = (min(length, 2 * wanted) for length, wanted in zip(pixels.size, self.crop, strict=True))
        # Of a large image no more is moved than the crop can come from.
        pixels = cropped(pixels, (height, width), draw)
        for step in self.steps:
            pixels = step(pixels, draw)
        image, mask, weight = cropped(pixels, self.crop, draw)
        return Sample(sample.name, image, mask), weight


def make_augment(text: str, crop: tuple[int, int]) -> Augment:
    """The augmentation that a text means.

    Args:
        text: steps with commas between them, each a name with options; "none" or "" crops alone.
        crop: height and width of what comes out: a window anywhere in the image, which is padded with its mirror
            image where it is smaller, with IGNORE in the mask.

    Raises:
        UnknownName: there is no such step.
        BadOption: an option is wrong.
    """
    if min(crop) < 1:
        raise BadOption(f"--crop {crop[0]}x{crop[1]}: must be at least 1x1")
    texts = [] if text in ("", NONE) else items(text)
    if NONE in texts:
        raise BadOption(f"--augment {text}: none stands alone")
    steps = tuple(map(_step, texts))
    return Augment(",".join(map(STEPS.said, texts)) or NONE, steps, crop)


def items(text: str) -> Sequence[str]:
    """The steps of a text, apart: `elastic:grid=3,std=10,light` are two, since what has no name is an option."""
    try:
        return split_items(text)
    except ValueError as error:
        raise BadOption(f"--augment {text}: {error}") from error


def _step(text: str) -> Step:
    if PartSpec.parse(text).then:
        raise BadOption(f"--augment {text}: commas stand between steps, not +")
    try:
        step: Step = STEPS.make(text)
    except BadOption as error:
        said = str(error)
        raise BadOption(said if said.startswith("--") else f"--augment {text}: {said}") from error
    return step
