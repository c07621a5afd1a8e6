"""Aligns: bring the upsampled map (B, C, h, w) and the skip (B, D, H, W) to one size."""

from __future__ import annotations

from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unetkit.utils.formatting import Size
from unetkit.utils.spatial import crop_center, is_same_size, pad_center, size_of


class Crop(nn.Module):
    """Cut the skip to the map, from the centre (Ronneberger 2015)."""

    def target_size(self, scaled: Size, skip: Size) -> Size:
        """The map is brought to its size times the scale."""
        return scaled

    def forward(self, x: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        """The map as it is, and the skip cut to it."""
        have, given = size_of(x), size_of(skip)
        # Where upsampling made the map larger than an odd skip, it is the map that loses the surplus.
        size = cast(Size, (torch.sym_min(have[0], given[0]), torch.sym_min(have[1], given[1])))
        return crop_center(x, size), crop_center(skip, size)


class Pad(nn.Module):
    """Surround the map with zeros up to the skip's size: floor half before, the rest after."""

    def target_size(self, scaled: Size, skip: Size) -> Size:
        """The map is brought to its size times the scale."""
        return scaled

    def forward(self, x: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        """The map padded (or, where it is the larger, cut) to the skip's size, and the skip as it is."""
        return pad_center(x, size_of(skip)), skip


class Resize(nn.Module):
    """Bring the map to the skip's size; an upsampler that resamples goes there at once.

    Args:
        mode: how a map is resampled where the upsampler could not reach the size itself.
    """

    def __init__(self, *, mode: Literal["nearest", "bilinear"] = "nearest") -> None:
        super().__init__()
        self.mode = mode

    def target_size(self, scaled: Size, skip: Size) -> Size:
        """The map is brought to the skip's size."""
        return skip

    def forward(self, x: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        """The map resampled to the skip's size where it is not there yet, and the skip as it is."""
        size = size_of(skip)
        return (x if is_same_size(size_of(x), size) else F.interpolate(x, size, mode=self.mode)), skip
