"""Aligns, which bring the upsampled map (B, C, h, w) and the skip (B, D, H, W) to one height and width."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from unetkit.utils.formatting import Size
from unetkit.utils.spatial import crop_center, is_same_size, pad_center, size_of, sym_min


class Crop(nn.Module):
    """Center crop of the skip to the size of the upsampled map (Ronneberger 2015)."""

    def target_size(self, scaled: Size, skip: Size) -> Size:
        """Return `scaled`: the upsampler enlarges the map by the scale, whatever the size of the skip."""
        return scaled

    def forward(self, x: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        """Return the map unchanged, and the skip cropped to its size."""
        x_size, skip_size = size_of(x), size_of(skip)
        # Where upsampling makes the map larger than an odd skip, the map is cropped instead.
        size = sym_min(x_size[0], skip_size[0]), sym_min(x_size[1], skip_size[1])
        return crop_center(x, size), crop_center(skip, size)


class Pad(nn.Module):
    """Zero padding of the upsampled map to the size of the skip, half on each side, an odd pixel at the end."""

    def target_size(self, scaled: Size, skip: Size) -> Size:
        """Return `scaled`: the upsampler enlarges the map by the scale, whatever the size of the skip."""
        return scaled

    def forward(self, x: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        """Return the map padded to the size of the skip (cropped where it is larger), and the skip unchanged."""
        return pad_center(x, size_of(skip)), skip


class Resize(nn.Module):
    """Upsampling straight to the size of the skip; a map of another size is interpolated to it.

    Args:
        mode: interpolation used where the upsampler does not reach the size of the skip.
    """

    def __init__(self, *, mode: Literal["nearest", "bilinear"] = "nearest") -> None:
        super().__init__()
        self.mode = mode

    def target_size(self, scaled: Size, skip: Size) -> Size:
        """Return `skip`: the upsampler is asked for the size of the skip."""
        return skip

    def forward(self, x: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        """Return the map, interpolated to the size of the skip unless it has it already, and the skip unchanged."""
        size = size_of(skip)
        return (x if is_same_size(size_of(x), size) else F.interpolate(x, size, mode=self.mode)), skip
