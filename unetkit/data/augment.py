"""Augmentation from text, such as `hflip,rotate90,elastic:std=8,light`; see docs/augmentation.md.

The steps move pixels (flips, rotations, scaling, elastic deformation) or change their values (light, noise, blur).
Within the steps, values are scaled such that the range of the training images is 0 to 1, whatever the files contain.
Shapes: C channels, L labels, H and W height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, exp, inf, log
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from unetkit.data.sample_checks import describe_tensor
from unetkit.data.statistics import ValueRange
from unetkit.data.types import IGNORE, Sample
from unetkit.errors import OptionError, PluginError
from unetkit.options import split_items
from unetkit.plan import PartSpec
from unetkit.plugins import default_parts
from unetkit.registry import Parts
from unetkit.resolve import canonical_spec, create
from unetkit.utils.formatting import format_type
from unetkit.utils.integers import mirror_indices
from unetkit.utils.isolation import wrap_errors

if TYPE_CHECKING:
    from torchvision.transforms.v2 import InterpolationMode

# Torchvision imports torch's compiler, which takes as long as torch, so only what augments images imports it.

#: A function from a map (a tv_tensor) and an interpolation mode to the warped map, with 0 outside of the original.
Warp = Callable[[Tensor, "InterpolationMode"], Tensor]


class SampleTensors(NamedTuple):
    """An image (C, H, W) float32, its mask (H, W) or (L, H, W) int64, and a weight map (H, W) float32 or None.

    Most values of the image are from 0 to 1, the 0.5th and the 99.5th percentile of its channel in the training images.
    """

    image: Tensor
    mask: Tensor
    weight: Tensor | None

    @property
    def size(self) -> tuple[int, int]:
        return self.image.shape[-2], self.image.shape[-1]


def warp_sample(pixels: SampleTensors, warp: Warp) -> SampleTensors:
    """Apply a spatial transform to all maps: the image with interpolation, the others with the nearest pixel.

    Pixels from outside the image become the image's mean, IGNORE in the mask, and 0 in the weight map.
    """
    from torchvision import tv_tensors
    from torchvision.transforms.v2 import InterpolationMode

    # A warp fills with zeros outside of the image, so each map is first shifted such that its fill value is 0.
    # Torchvision's own `fill` would leave a dark line along the image's edge.
    nearest, mean = InterpolationMode.NEAREST, channel_means(pixels.image)[:, None, None]
    image = _plain(warp(tv_tensors.Image(pixels.image - mean), InterpolationMode.BILINEAR)) + mean
    mask = _plain(warp(tv_tensors.Mask(pixels.mask - IGNORE), nearest)) + IGNORE
    weight = pixels.weight
    return SampleTensors(image, mask, None if weight is None else _plain(warp(tv_tensors.Mask(weight), nearest)))


def channel_means(image: Tensor) -> Tensor:
    """Compute the mean of each channel of an image (C, H, W), (C,) float32, identical for any number of threads.

    Torch's mean sums in an order that depends on the number of threads, which differs in the workers of a loader.
    """
    return torch.from_numpy(image.numpy().mean((1, 2), dtype=np.float64)).float()


def fill_missing(image: Tensor) -> Tensor:
    """Set the pixels without data (NaN) of an image (C, H, W) to the mean of the others; 0 if there are no others."""
    missing = image[0].isnan()
    if not missing.any():
        return image
    mean = channel_means(image[:, None, ~missing]) if not missing.all() else torch.zeros(len(image))
    return torch.where(missing, mean[:, None, None], image)


def _plain(tensor: Tensor) -> Tensor:
    return tensor.as_subclass(Tensor)


def crop_sample(pixels: SampleTensors, crop: tuple[int, int], draw: Generator) -> SampleTensors:
    """Cut a window of a height and width at a random position of the image.

    A smaller image is placed at a random position in the window and surrounded by its mirror image, where the mask is
    IGNORE and the weight 0.
    """
    rows, columns = (_window(length, crop_length, draw) for length, crop_length in zip(pixels.size, crop, strict=True))
    height, width = pixels.size
    beyond = ((rows < 0) | (rows >= height))[:, None] | ((columns < 0) | (columns >= width))
    rows, columns = mirror_indices(rows, height)[:, None], mirror_indices(columns, width)
    image, mask = (each[..., rows, columns] for each in pixels[:2])
    weight = None if pixels.weight is None else pixels.weight[rows, columns].masked_fill(beyond, 0)
    return SampleTensors(image, mask.masked_fill(beyond, IGNORE), weight)


def _window(length: int, crop_length: int, draw: Generator) -> Tensor:
    """Return positions along an axis; they are below 0, or at least `length`, where the window exceeds the image."""
    low, high = sorted((0, length - crop_length))
    start = int(torch.randint(low, high + 1, (), generator=draw))
    return torch.arange(start, start + crop_length)


def uniform(low: float, high: float, draw: Generator) -> float:
    """Draw a number between `low` and `high`."""
    return low + (high - low) * float(torch.rand((), generator=draw))


def check_range(name: str, value: float, low: float, high: float = inf) -> None:
    """Raise OptionError unless `low` <= value <= `high` and the value is finite."""
    if not (low <= value <= high and value < inf):
        upto = "" if high == inf else f", up to {high:g}"
        raise OptionError(f"{name} takes numbers from {low:g}{upto}; got {value:g}")


class HFlip:
    """Horizontal flip with a probability of 0.5."""

    def __call__(self, pixels: SampleTensors, draw: Generator) -> SampleTensors:
        return _flip_and_rotate(pixels, [-1], 0) if uniform(0, 1, draw) < 0.5 else pixels


class VFlip:
    """Vertical flip with a probability of 0.5."""

    def __call__(self, pixels: SampleTensors, draw: Generator) -> SampleTensors:
        return _flip_and_rotate(pixels, [-2], 0) if uniform(0, 1, draw) < 0.5 else pixels


class Rotate90:
    """Rotation by 0, 90, 180 or 270 degrees."""

    def __call__(self, pixels: SampleTensors, draw: Generator) -> SampleTensors:
        return _flip_and_rotate(pixels, [], int(torch.randint(4, (), generator=draw)))


def _flip_and_rotate(pixels: SampleTensors, flips: list[int], quarters: int) -> SampleTensors:
    # Exact: there is no interpolation, and no fill.
    image, mask = (each.flip(flips).rot90(quarters, (-2, -1)) for each in pixels[:2])
    weight = pixels.weight
    return SampleTensors(image, mask, None if weight is None else weight.flip(flips).rot90(quarters, (-2, -1)))


class Rotate:
    """Rotation about the center by a random angle.

    Args:
        degrees: largest angle in either direction.
    """

    def __init__(self, *, degrees: float = 15) -> None:
        check_range("degrees", degrees, 0, 180)
        self.degrees = degrees

    def __call__(self, pixels: SampleTensors, draw: Generator) -> SampleTensors:
        return _affine(pixels, uniform(-self.degrees, self.degrees, draw), 1)


class Scale:
    """Scaling about the center by a random factor with a uniform logarithm.

    Args:
        low: smallest factor.
        high: largest factor.
    """

    def __init__(self, *, low: float = 0.75, high: float = 1.33) -> None:
        check_range("low", low, 0.05, 20)
        check_range("high", high, low, 20)
        self.low, self.high = log(low), log(high)

    def __call__(self, pixels: SampleTensors, draw: Generator) -> SampleTensors:
        return _affine(pixels, 0, exp(uniform(self.low, self.high, draw)))


def _affine(pixels: SampleTensors, angle: float, scale: float) -> SampleTensors:
    from torchvision.transforms.v2 import functional

    def warp(tensor: Tensor, mode: InterpolationMode) -> Tensor:
        moved: Tensor = functional.affine(tensor, angle, [0, 0], scale, [0, 0], interpolation=mode)
        return moved

    return warp_sample(pixels, warp)


class Elastic:
    """Elastic deformation (Ronneberger 2015): random displacements on a coarse grid with bicubic interpolation.

    Args:
        grid: number of grid points along each side.
        std: standard deviation of the displacements in pixels.
    """

    def __init__(self, *, grid: int = 3, std: float = 10) -> None:
        check_range("grid", grid, 2, 64)
        check_range("std", std, 0)
        self.grid, self.std = grid, std

    def __call__(self, pixels: SampleTensors, draw: Generator) -> SampleTensors:
        from torchvision.transforms.v2 import functional

        height, width = pixels.size
        field = self.field(height, width, draw)[None] * 2 / torch.tensor([width, height])

        def warp(tensor: Tensor, mode: InterpolationMode) -> Tensor:
            moved: Tensor = functional.elastic(tensor, field, interpolation=mode)
            return moved

        return warp_sample(pixels, warp)

    def field(self, height: int, width: int, draw: Generator) -> Tensor:
        """Return the displacement to the right and down at which each pixel is read: (H, W, 2) in pixels."""
        coarse = self.std * torch.randn(1, 2, self.grid, self.grid, generator=draw)
        return F.interpolate(coarse, (height, width), mode="bicubic", align_corners=True)[0].permute(1, 2, 0)


class Light:
    """Random gamma, contrast and brightness, equal for all channels.

    Values that leave the range are clipped, or if the image does so itself, those that leave the image's range.

    Args:
        brightness: largest brightness change in either direction, as a share of the range.
        contrast: with 0.3, differences from the mean are multiplied by a factor between exp(-0.3) and exp(0.3).
        gamma: with 0.3, values are raised to a power between exp(-0.3) and exp(0.3).
    """

    def __init__(self, *, brightness: float = 0.1, contrast: float = 0.3, gamma: float = 0.3) -> None:
        check_range("brightness", brightness, 0, 1)
        check_range("contrast", contrast, 0, 3)
        check_range("gamma", gamma, 0, 3)
        self.brightness, self.contrast, self.gamma = brightness, contrast, gamma

    def __call__(self, pixels: SampleTensors, draw: Generator) -> SampleTensors:
        low, high = min(0.0, float(pixels.image.min())), max(1.0, float(pixels.image.max()))
        power = exp(uniform(-self.gamma, self.gamma, draw))
        image = pixels.image.clamp(min=0) ** power + pixels.image.clamp(max=0)
        mean = channel_means(image).mean()
        image = (image - mean) * exp(uniform(-self.contrast, self.contrast, draw)) + mean
        image = image + uniform(-self.brightness, self.brightness, draw)
        return pixels._replace(image=image.clamp(low, high))


class Noise:
    """Normal noise, independent for each channel; values may leave the range.

    Args:
        std: largest standard deviation, as a share of the range.
    """

    def __init__(self, *, std: float = 0.05) -> None:
        check_range("std", std, 0)
        self.std = std

    def __call__(self, pixels: SampleTensors, draw: Generator) -> SampleTensors:
        strength = uniform(0, self.std, draw)
        return pixels._replace(image=pixels.image + strength * torch.randn(pixels.image.shape, generator=draw))


class Blur:
    """Gaussian blur.

    Args:
        sigma: largest standard deviation in pixels.
    """

    def __init__(self, *, sigma: float = 1.5) -> None:
        check_range("sigma", sigma, 0.1, 20)
        self.sigma = sigma

    def __call__(self, pixels: SampleTensors, draw: Generator) -> SampleTensors:
        from torchvision.transforms.v2 import functional

        sigma = uniform(0.1, self.sigma, draw)
        # Reflecting the image at its border needs one pixel more than the padding.
        reach = min(ceil(3 * sigma), min(pixels.size) - 1)
        return pixels._replace(image=functional.gaussian_blur(pixels.image, [2 * reach + 1] * 2, [sigma] * 2))


Step = Callable[[SampleTensors, Generator], SampleTensors]

NONE = "none"


@dataclass(frozen=True)
class Augment:
    """The augmentation of a training image together with its mask and its weight map.

    Attributes:
        text: the shortest text that describes the augmentation.
        steps: the steps before the crop, in order.
        crop: the height and width of the result.
        value_range: the range of the training images, which is 0 to 1 within the steps; None if it is so already.
    """

    text: str
    steps: tuple[Step, ...]
    crop: tuple[int, int]
    value_range: ValueRange | None = None

    def __call__(self, sample: Sample, weight: Tensor | None, seed: int) -> tuple[Sample, Tensor | None]:
        """Augment a sample and its weight map (H, W) or None, and crop both; instances are dropped.

        All random numbers follow from the seed; no global random state is read or changed.
        """
        draw = torch.Generator().manual_seed(seed)
        pixels = SampleTensors(fill_missing(sample.image), sample.mask, weight)
        height, width = (min(length, 2 * crop) for length, crop in zip(pixels.size, self.crop, strict=True))
        # Of a large image, only the region that can reach the crop is warped.
        pixels = crop_sample(pixels, (height, width), draw)
        if self.value_range and self.steps:
            low, high = (torch.tensor(end)[:, None, None] for end in self.value_range)
            pixels = pixels._replace(image=(pixels.image - low) / (high - low))
        for step in self.steps:
            pixels = step(pixels, draw)
        if self.value_range and self.steps:
            pixels = pixels._replace(image=pixels.image * (high - low) + low)
        image, mask, weight = crop_sample(pixels, self.crop, draw)
        return Sample(sample.name, image, mask), weight


def find_step_error(found: Any, given: SampleTensors) -> str:
    """Say in words what is wrong with the types and shapes of what a step returned for given maps; "" if nothing is."""
    if not isinstance(found, tuple) or len(found) != 3:
        return f"returns {format_type(found)}; expected SampleTensors(image, mask, weight)"
    image, mask, weight = found
    if not isinstance(image, Tensor) or image.dtype != torch.float32 or image.shape[:-2] != given.image.shape[:-2]:
        return f"the image is {describe_tensor(image)}; expected {describe_tensor(given.image)}, of any H and W"
    if not isinstance(mask, Tensor) or mask.dtype != torch.int64 or mask.shape[:-2] != given.mask.shape[:-2]:
        return f"the mask is {describe_tensor(mask)}; expected {describe_tensor(given.mask)}, of any H and W"
    if (weight is None) != (given.weight is None):
        return f"the weight map is {describe_tensor(weight)}; expected {describe_tensor(given.weight)}"
    for name, tensor in (("mask", mask), *((("weight map", weight),) if weight is not None else ())):
        if tensor.shape[-2:] != image.shape[-2:]:
            return f"the {name} is {describe_tensor(tensor)}, but the image is {describe_tensor(image)}"
    return ""


@dataclass(frozen=True)
class PluginStep:
    """A step of a plugin; errors name it, and what it returns is checked."""

    name: str
    step: Step

    def __call__(self, pixels: SampleTensors, draw: Generator) -> SampleTensors:
        with wrap_errors(f"--augment {self.name} failed"):
            found = self.step(pixels, draw)
        if why := find_step_error(found, pixels):
            raise PluginError(f"--augment {self.name}: {why}")
        if not found[0].isfinite().all():
            raise PluginError(
                f"--augment {self.name}: the image has values that are not finite; a step must also take some values "
                "below 0 and above 1"
            )
        return SampleTensors(*found)


def make_augment(
    text: str, crop: tuple[int, int], parts: Parts | None = None, value_range: ValueRange | None = None
) -> Augment:
    """Create an augmentation from text.

    Args:
        text: steps separated by commas, each a name with options; "none" or "" only crops.
        crop: the height and width of the result: a window at a random position of the image. A smaller image is padded
            with its mirror image, where the mask is IGNORE.
        parts: the registered parts; None for all that are installed.
        value_range: the range of the training images (see `unetkit.data.statistics`); None for 0 to 1.

    Raises:
        UnknownNameError: A step does not exist.
        OptionError: An option is wrong.
    """
    if min(crop) < 1:
        raise OptionError(f"--crop {crop[0]}x{crop[1]}: must be at least 1x1")
    parts = parts or default_parts()
    texts = [] if text in ("", NONE) else split_steps(text)
    if NONE in texts:
        raise OptionError(f"--augment {text}: none cannot be combined with other steps")
    specs = [_parse_step(step) for step in texts]
    steps = tuple(_create_step(spec, parts) for spec in specs)
    if steps:  # before processes that load data are forked, or each would import it
        import torchvision.transforms.v2  # noqa: F401
    return Augment(
        ",".join(str(canonical_spec("augment", spec, parts)) for spec in specs) or NONE, steps, crop, value_range
    )


def _create_step(spec: PartSpec, parts: Parts) -> Step:
    step: Step = create("augment", spec, parts)
    owner = parts.augmentations.get(spec.name).owner
    return step if owner == "unetkit" else PluginStep(f"{spec} (of {owner})", step)


def split_steps(text: str) -> Sequence[str]:
    """Split a text into steps.

    `elastic:grid=3,std=10,light` has two, since an item with `=` is an option of the step before.
    """
    try:
        return split_items(text)
    except ValueError as error:
        raise OptionError(f"--augment {text}: {error}") from error


def _parse_step(text: str) -> PartSpec:
    spec = PartSpec.parse(text)
    if spec.chained:
        raise OptionError(f"--augment {text}: separate steps with commas, not with +")
    return spec
