"""Augmentation that changes brightness and leaves every pixel in its place: light, noise, blur.

Strengths are shares of the image's range: 0 to 1, or its lowest to its highest value where it goes beyond those.
"""

from __future__ import annotations

from math import ceil, exp

import torch
from torch import Generator, Tensor
from torchvision.transforms import v2

from unetkit.data.pixels import Pixels, means
from unetkit.data.warps import check_range, uniform


def span_of(image: Tensor) -> tuple[float, float]:
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

    def __call__(self, pixels: Pixels, draw: Generator) -> Pixels:
        low, span = span_of(pixels.image)
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

    def __call__(self, pixels: Pixels, draw: Generator) -> Pixels:
        strength = uniform(0, self.std, draw) * span_of(pixels.image)[1]
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

    def __call__(self, pixels: Pixels, draw: Generator) -> Pixels:
        sigma = uniform(0.1, self.sigma, draw)
        # The image is mirrored at its border, which takes that many pixels of it and one more.
        reach = min(ceil(3 * sigma), min(pixels.size) - 1)
        return pixels._replace(image=v2.functional.gaussian_blur(pixels.image, [2 * reach + 1] * 2, [sigma] * 2))
