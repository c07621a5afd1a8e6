"""Augmentation that moves pixels: flips, turns, rotation, scale, and the elastic deformation of 2015."""

from __future__ import annotations

from math import exp, inf, log

import torch
from torch import Generator, Tensor
from torch.nn import functional as F
from torchvision.transforms import v2

from unetkit.data.pixels import Pixels, warped
from unetkit.errors import BadOption


def uniform(low: float, high: float, draw: Generator) -> float:
    """A number from `low` to `high`."""
    return low + (high - low) * float(torch.rand((), generator=draw))


def check_range(name: str, value: float, low: float, high: float = inf) -> None:
    """Raise BadOption unless `low` <= value <= `high`, and it is a finite number."""
    if not (low <= value <= high and value < inf):
        upto = "" if high == inf else f", up to {high:g}"
        raise BadOption(f"{name} takes numbers from {low:g}{upto}; got {value:g}")


class HFlip:
    """Left and right exchanged, every second time."""

    def __call__(self, pixels: Pixels, draw: Generator) -> Pixels:
        return _turned(pixels, [-1], 0) if uniform(0, 1, draw) < 0.5 else pixels


class VFlip:
    """Top and bottom exchanged, every second time."""

    def __call__(self, pixels: Pixels, draw: Generator) -> Pixels:
        return _turned(pixels, [-2], 0) if uniform(0, 1, draw) < 0.5 else pixels


class Turn:
    """Turned by 0, 90, 180 or 270 degrees."""

    def __call__(self, pixels: Pixels, draw: Generator) -> Pixels:
        return _turned(pixels, [], int(torch.randint(4, (), generator=draw)))


def _turned(pixels: Pixels, flips: list[int], quarters: int) -> Pixels:
    # Exact: nothing is read between pixels, and nothing comes from beyond the image.
    image, mask = (each.flip(flips).rot90(quarters, (-2, -1)) for each in pixels[:2])
    weight = pixels.weight
    return Pixels(image, mask, None if weight is None else weight.flip(flips).rot90(quarters, (-2, -1)))


class Rotate:
    """Turned by any angle, about the centre."""

    def __init__(self, *, degrees: float = 15) -> None:
        """Choose how far.

        Args:
            degrees: the largest angle, either way.
        """
        check_range("degrees", degrees, 0, 180)
        self.degrees = degrees

    def __call__(self, pixels: Pixels, draw: Generator) -> Pixels:
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

    def __call__(self, pixels: Pixels, draw: Generator) -> Pixels:
        return _affine(pixels, 0, exp(uniform(self.low, self.high, draw)))


def _affine(pixels: Pixels, angle: float, scale: float) -> Pixels:
    def warp(tensor: Tensor, mode: v2.InterpolationMode) -> Tensor:
        moved: Tensor = v2.functional.affine(tensor, angle, [0, 0], scale, [0, 0], interpolation=mode)
        return moved

    return warped(pixels, warp)


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

    def __call__(self, pixels: Pixels, draw: Generator) -> Pixels:
        height, width = pixels.size
        field = self.field(height, width, draw)[None] * 2 / torch.tensor([width, height])

        def warp(tensor: Tensor, mode: v2.InterpolationMode) -> Tensor:
            moved: Tensor = v2.functional.elastic(tensor, field, interpolation=mode)
            return moved

        return warped(pixels, warp)

    def field(self, height: int, width: int, draw: Generator) -> Tensor:
        """How far, to the right and down, each pixel looks for its value: (H, W, 2) pixels."""
        coarse = self.std * torch.randn(1, 2, self.grid, self.grid, generator=draw)
        return F.interpolate(coarse, (height, width), mode="bicubic", align_corners=True)[0].permute(1, 2, 0)
