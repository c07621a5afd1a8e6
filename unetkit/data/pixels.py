"""A sample's maps moved together: what one pixel of the image goes to, its mask and its weight go to.

C channels, L labels, H and W height and width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import InterpolationMode

from unetkit.data.target import IGNORE
from unetkit.sizes import mirrored

#: A map as a tv_tensor, and how to read between its pixels -> the map, moved, with 0 where it has none.
Warp = Callable[[Tensor, InterpolationMode], Tensor]


class Pixels(NamedTuple):
    """An image (C, H, W) float32, its mask (H, W) or (L, H, W) int64, and a weight map (H, W) float32 or None."""

    image: Tensor
    mask: Tensor
    weight: Tensor | None

    @property
    def size(self) -> tuple[int, int]:
        return self.image.shape[-2], self.image.shape[-1]


def warped(pixels: Pixels, warp: Warp) -> Pixels:
    """All maps moved alike, the image read between pixels, the others at the nearest.

    What comes from beyond the image is the image's mean, IGNORE in the mask, and 0 in the weight map.
    """
    # A warp has zeros beyond the image, so each map is moved with what should be there made zero. Torchvision's own
    # `fill` would leave a dark line along the image's edge.
    nearest, mean = InterpolationMode.NEAREST, means(pixels.image)[:, None, None]
    image = _plain(warp(tv_tensors.Image(pixels.image - mean), InterpolationMode.BILINEAR)) + mean
    mask = _plain(warp(tv_tensors.Mask(pixels.mask - IGNORE), nearest)) + IGNORE
    weight = pixels.weight
    return Pixels(image, mask, None if weight is None else _plain(warp(tv_tensors.Mask(weight), nearest)))


def means(image: Tensor) -> Tensor:
    """The mean of each channel of an image (C, H, W), (C,) float32: the same to the last bit on any number of threads.

    Torch's own is summed in another order where there are more of them, as a loader's worker has fewer.
    """
    return torch.from_numpy(image.numpy().mean((1, 2), dtype=np.float64)).float()


def _plain(tensor: Tensor) -> Tensor:
    return tensor.as_subclass(Tensor)


def cropped(pixels: Pixels, crop: tuple[int, int], draw: Generator) -> Pixels:
    """A window of that height and width, anywhere in the image.

    Where the image is smaller, it lies anywhere in the window, with its mirror image about it; there the mask is
    IGNORE and the weight 0.
    """
    rows, columns = (_window(length, wanted, draw) for length, wanted in zip(pixels.size, crop, strict=True))
    height, width = pixels.size
    beyond = ((rows < 0) | (rows >= height))[:, None] | ((columns < 0) | (columns >= width))
    rows, columns = mirrored(rows, height)[:, None], mirrored(columns, width)
    image, mask = (each[..., rows, columns] for each in pixels[:2])
    weight = None if pixels.weight is None else pixels.weight[rows, columns].masked_fill(beyond, 0)
    return Pixels(image, mask.masked_fill(beyond, IGNORE), weight)


def _window(length: int, wanted: int, draw: Generator) -> Tensor:
    """Places along an axis, below 0 and from `length` on where they are beyond it."""
    low, high = sorted((0, length - wanted))
    start = int(torch.randint(low, high + 1, (), generator=draw))
    return torch.arange(start, start + wanted)
