"""Augmentation from text: `hflip,turn,elastic:std=8,light`; see docs/augmentation.md.

C channels, L labels, H and W height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, exp, inf, log
from typing import NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional as F
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import InterpolationMode

from unetkit.data.types import IGNORE, Sample
from unetkit.errors import OptionError
from unetkit.options import split_items
from unetkit.plan import PartSpec
from unetkit.resolve import Menu
from unetkit.utils.spatial import mirror_indices

#: A map as a tv_tensor, and how to read between its pixels -> the map, moved, with 0 where it has none.
Warp = Callable[[Tensor, InterpolationMode], Tensor]


class SampleTensors(NamedTuple):
    """An image (C, H, W) float32, its mask (H, W) or (L, H, W) int64, and a weight map (H, W) float32 or None."""

    image: Tensor
    mask: Tensor
    weight: Tensor | None

    @property
    def size(self) -> tuple[int, int]:
        return self.image.shape[-2], self.image.shape[-1]


def warp_sample(pixels: SampleTensors, warp: Warp) -> SampleTensors:
    """All maps moved alike, the image read between pixels, the others at the nearest.

    What comes from beyond the image is the image's mean, IGNORE in the mask, and 0 in the weight map.
    """
    # A warp has zeros beyond the image, so each map is moved with what should be there made zero. Torchvision's own
    # `fill` would leave a dark line along the image's edge.
    nearest, mean = InterpolationMode.NEAREST, means(pixels.image)[:, None, None]
    image = _plain(warp(tv_tensors.Image(pixels.image - mean), InterpolationMode.BILINEAR)) + mean
    mask = _plain(warp(tv_tensors.Mask(pixels.mask - IGNORE), nearest)) + IGNORE
    weight = pixels.weight
    return SampleTensors(image, mask, None if weight is None else _plain(warp(tv_tensors.Mask(weight), nearest)))


def means(image: Tensor) -> Tensor:
    """The mean of each channel of an image (C, H, W), (C,) float32: the same to the last bit on any number of threads.

    Torch's own is summed in another order where there are more of them, as a loader's worker has fewer.
    """
    return torch.from_numpy(image.numpy().mean((1, 2), dtype=np.float64)).float()


def _plain(tensor: Tensor) -> Tensor:
    return tensor.as_subclass(Tensor)


def crop_sample(pixels: SampleTensors, crop: tuple[int, int], draw: Generator) -> SampleTensors:
    """A window of that height and width, anywhere in the image.

    Where the image is smaller, it lies anywhere in the window, with its mirror image about it; there the mask is
    IGNORE and the weight 0.
    """
    rows, columns = (_window(length, wanted, draw) for length, wanted in zip(pixels.size, crop, strict=True))
    height, width = pixels.size
    beyond = ((rows < 0) | (rows >= height))[:, None] | ((columns < 0) | (columns >= width))
    rows, columns = mirror_indices(rows, height)[:, None], mirror_indices(columns, width)
    image, mask = (each[..., rows, columns] for each in pixels[:2])
    weight = None if pixels.weight is None else pixels.weight[rows, columns].masked_fill(beyond, 0)
    return SampleTensors(image, mask.masked_fill(beyond, IGNORE), weight)


def _window(length: int, wanted: int, draw: Generator) -> Tensor:
    """Places along an axis, below 0 and from `length` on where they are beyond it."""
    low, high = sorted((0, length - wanted))
    start = int(torch.randint(low, high + 1, (), generator=draw))
    return torch.arange(start, start + wanted)


def uniform(low: float, high: float, draw: Generator) -> float:
    """A number from `low` to `high`."""
    return low + (high - low) * float(torch.rand((), generator=draw))


def check_range(name: str, value: float, low: float, high: float = inf) -> None:
    """Raise OptionError unless `low` <= value <= `high`, and it is a finite number."""
    if not (low <= value <= high and value < inf):
        upto = "" if high == inf else f", up to {high:g}"
        raise OptionError(f"{name} takes numbers from {low:g}{upto}; got {value:g}")


class HFlip:
    """Left and right exchanged, every second time."""

    def __call__(self, pixels: SampleTensors, draw: Generator) -> SampleTensors:
        return _turned(pixels, [-1], 0) if uniform(0, 1, draw) < 0.5 else pixels


class VFlip:
    """Top and bottom exchanged, every second time."""

    def __call__(self, pixels: SampleTensors, draw: Generator) -> SampleTensors:
        return _turned(pixels, [-2], 0) if uniform(0, 1, draw) < 0.5 else pixels


class Rotate90:
    """Turned by 0, 90, 180 or 270 degrees."""

    def __call__(self, pixels: SampleTensors, draw: Generator) -> SampleTensors:
        return _turned(pixels, [], int(torch.randint(4, (), generator=draw)))


def _turned(pixels: SampleTensors, flips: list[int], quarters: int) -> SampleTensors:
    # Exact: nothing is read between pixels, and nothing comes from beyond the image.
    image, mask = (each.flip(flips).rot90(quarters, (-2, -1)) for each in pixels[:2])
    weight = pixels.weight
    return SampleTensors(image, mask, None if weight is None else weight.flip(flips).rot90(quarters, (-2, -1)))


class Rotate:
    """Turned by any angle, about the centre."""

    def __init__(self, *, degrees: float = 15) -> None:
        """Choose how far.

        Args:
            degrees: the largest angle, either way.
        """
        check_range("degrees", degrees, 0, 180)
        self.degrees = degrees

    def __call__(self, pixels: SampleTensors, draw: Generator) -> SampleTensors:
        return _affine(pixels, uniform(-self.degrees, self.degrees, draw), 1)


class Scale:
    """Made smaller or larger, about the centre, by a factor whose logarithm is uniform."""

    def __init__(self, *, low: float = 0.75, high: float = 1.33) -> None:
        """Choose how much.

        Args:
            low: the smallest factor.
            high: the largest factor.
        """
        check_range("low", low, 0.05, 20)
        check_range("high", high, low, 20)
        self.low, self.high = log(low), log(high)

    def __call__(self, pixels: SampleTensors, draw: Generator) -> SampleTensors:
        return _affine(pixels, 0, exp(uniform(self.low, self.high, draw)))


def _affine(pixels: SampleTensors, angle: float, scale: float) -> SampleTensors:
    def warp(tensor: Tensor, mode: v2.InterpolationMode) -> Tensor:
        moved: Tensor = v2.functional.affine(tensor, angle, [0, 0], scale, [0, 0], interpolation=mode)
        return moved

    return warp_sample(pixels, warp)


class Elastic:
    """Deformed smoothly, as in Ronneberger 2015: random displacements on a coarse grid, bicubic in between."""

    def __init__(self, *, grid: int = 3, std: float = 10) -> None:
        """Choose how much.

        Args:
            grid: points of the grid along each side.
            std: of the normal numbers that are the displacements, in pixels.
        """
        check_range("grid", grid, 2, 64)
        check_range("std", std, 0)
        self.grid, self.std = grid, std

    def __call__(self, pixels: SampleTensors, draw: Generator) -> SampleTensors:
        height, width = pixels.size
        field = self.field(height, width, draw)[None] * 2 / torch.tensor([width, height])

        def warp(tensor: Tensor, mode: v2.InterpolationMode) -> Tensor:
            moved: Tensor = v2.functional.elastic(tensor, field, interpolation=mode)
            return moved

        return warp_sample(pixels, warp)

    def field(self, height: int, width: int, draw: Generator) -> Tensor:
        """How far, to the right and down, each pixel looks for its value: (H, W, 2) pixels."""
        coarse = self.std * torch.randn(1, 2, self.grid, self.grid, generator=draw)
        return F.interpolate(coarse, (height, width), mode="bicubic", align_corners=True)[0].permute(1, 2, 0)


def value_range(image: Tensor) -> tuple[float, float]:
    """The lowest value of the image's range, and its width."""
    low, high = float(image.min()), float(image.max())
    return (0.0, 1.0) if low >= 0 and high <= 1 else (low, high - low or 1.0)


class Light:
    """Gamma, contrast and brightness changed, of all channels alike; what leaves the range is clipped."""

    def __init__(self, *, brightness: float = 0.1, contrast: float = 0.3, gamma: float = 0.3) -> None:
        """Choose how much.

        Args:
            brightness: the most that is added or taken away, as a share of the range.
            contrast: 0.3 multiplies distances from the mean by exp(-0.3) to exp(0.3).
            gamma: 0.3 raises values to a power from exp(-0.3) to exp(0.3).
        """
        check_range("brightness", brightness, 0, 1)
        check_range("contrast", contrast, 0, 3)
        check_range("gamma", gamma, 0, 3)
        self.brightness, self.contrast, self.gamma = brightness, contrast, gamma

    def __call__(self, pixels: SampleTensors, draw: Generator) -> SampleTensors:
        low, span = value_range(pixels.image)
        image = ((pixels.image - low) / span) ** exp(uniform(-self.gamma, self.gamma, draw))
        mean = means(image).mean()
        image = (image - mean) * exp(uniform(-self.contrast, self.contrast, draw)) + mean
        image = (image + uniform(-self.brightness, self.brightness, draw)).clamp(0, 1)
        return pixels._replace(image=image * span + low)


class Noise:
    """Normal noise added, in each channel its own; what leaves the range stays."""

    def __init__(self, *, std: float = 0.05) -> None:
        """Choose how much.

        Args:
            std: the largest standard deviation, as a share of the range.
        """
        check_range("std", std, 0)
        self.std = std

    def __call__(self, pixels: SampleTensors, draw: Generator) -> SampleTensors:
        strength = uniform(0, self.std, draw) * value_range(pixels.image)[1]
        return pixels._replace(image=pixels.image + strength * torch.randn(pixels.image.shape, generator=draw))


class Blur:
    """Blurred by a Gaussian."""

    def __init__(self, *, sigma: float = 1.5) -> None:
        """Choose how much.

        Args:
            sigma: the largest standard deviation, in pixels.
        """
        check_range("sigma", sigma, 0.1, 20)
        self.sigma = sigma

    def __call__(self, pixels: SampleTensors, draw: Generator) -> SampleTensors:
        sigma = uniform(0.1, self.sigma, draw)
        # The image is mirrored at its border, which takes that many pixels of it and one more.
        reach = min(ceil(3 * sigma), min(pixels.size) - 1)
        return pixels._replace(image=v2.functional.gaussian_blur(pixels.image, [2 * reach + 1] * 2, [sigma] * 2))


Step = Callable[[SampleTensors, Generator], SampleTensors]

_MOVES = {"hflip": HFlip, "vflip": VFlip, "turn": Rotate90, "rotate": Rotate, "scale": Scale, "elastic": Elastic}
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
        pixels = SampleTensors(sample.image, sample.mask, weight)
        height, width = (min(length, 2 * wanted) for length, wanted in zip(pixels.size, self.crop, strict=True))
        # Of a large image no more is moved than the crop can come from.
        pixels = crop_sample(pixels, (height, width), draw)
        for step in self.steps:
            pixels = step(pixels, draw)
        image, mask, weight = crop_sample(pixels, self.crop, draw)
        return Sample(sample.name, image, mask), weight


def make_augment(text: str, crop: tuple[int, int]) -> Augment:
    """The augmentation that a text means.

    Args:
        text: steps with commas between them, each a name with options; "none" or "" crops alone.
        crop: height and width of what comes out: a window anywhere in the image, which is padded with its mirror
            image where it is smaller, with IGNORE in the mask.

    Raises:
        UnknownNameError: there is no such step.
        OptionError: an option is wrong.
    """
    if min(crop) < 1:
        raise OptionError(f"--crop {crop[0]}x{crop[1]}: must be at least 1x1")
    texts = [] if text in ("", NONE) else split_steps(text)
    if NONE in texts:
        raise OptionError(f"--augment {text}: none stands alone")
    steps = tuple(map(_step, texts))
    return Augment(",".join(map(STEPS.said, texts)) or NONE, steps, crop)


def split_steps(text: str) -> Sequence[str]:
    """The steps of a text, apart: `elastic:grid=3,std=10,light` are two, since what has no name is an option."""
    try:
        return split_items(text)
    except ValueError as error:
        raise OptionError(f"--augment {text}: {error}") from error


def _step(text: str) -> Step:
    if PartSpec.parse(text).then:
        raise OptionError(f"--augment {text}: commas stand between steps, not +")
    try:
        step: Step = STEPS.make(text)
    except OptionError as error:
        said = str(error)
        raise OptionError(said if said.startswith("--") else f"--augment {text}: {said}") from error
    return step
