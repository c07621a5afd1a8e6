"""DySample, which upsamples by sampling at learned points: (B, C, h, w) -> (B, C, h * scale, w * scale)."""

from __future__ import annotations

from math import gcd
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unetkit.errors import BuildError, OptionError
from unetkit.parts.upsamplers import check_integer_scale
from unetkit.utils.formatting import Size


class DySample(nn.Module):
    """Bilinear interpolation at points that the map itself shifts, for each group of channels (DySample, Liu 2023).

    Without offsets it equals `bilinear` (align_corners=false), and it starts close to that. In pixels of the input, the
    offsets of each output pixel are

        0.25 * linear(x), or with dynamic 0.5 * sigmoid(linear_1(x)) * linear_2(x)

    Points beyond the border are moved to it.

    Liu et al., "Learning to Upsample by Learning to Sample", ICCV 2023, arXiv 2308.15085.

    Args:
        style: lp computes offsets and shuffles them into pixels; pl shuffles the map first, which takes fewer
            parameters, and needs a number of channels that is divisible by scale * scale.
        groups: number of groups of channels, each with its own offsets; if it does not divide the number of channels,
            the greatest common divisor of both is used.
        dynamic: whether the range of the offsets depends on the map too (DySample+, dyscope in the authors' code).
    """

    def __init__(
        self,
        in_channels: int,
        scale: float,
        *,
        style: Literal["lp", "pl"] = "lp",
        groups: int = 4,
        dynamic: bool = False,
    ) -> None:
        check_integer_scale(scale, "dysample")
        n = int(scale)
        if groups < 1:
            raise OptionError(f"groups={groups} must be at least 1")
        if style == "pl" and in_channels % n**2:
            raise BuildError(
                f"style=pl needs a number of channels divisible by {n * n}, not {in_channels}; use style=lp"
            )
        super().__init__()
        self.out_channels = in_channels
        self.scale, self.style, self.groups = n, style, gcd(groups, in_channels)
        inside = in_channels // n**2 if style == "pl" else in_channels
        offsets = 2 * self.groups * (1 if style == "pl" else n**2)
        self.offset = nn.Conv2d(inside, offsets, 1)
        nn.init.normal_(self.offset.weight, std=0.001)
        nn.init.zeros_(self.offset.get_parameter("bias"))
        self.scope: nn.Conv2d | None = None
        if dynamic:
            self.scope = nn.Conv2d(inside, offsets, 1, bias=False)
            nn.init.zeros_(self.scope.weight)

    def extra_repr(self) -> str:
        return f"scale={self.scale}, style={self.style}, groups={self.groups}"

    def offsets(self, x: Tensor) -> Tensor:
        """Compute offsets to the right and down in pixels of the input: (B, 2, groups, h * scale, w * scale)."""
        if self.style == "pl":
            x = F.pixel_shuffle(x, self.scale)
        scope = 0.25 if self.scope is None else 0.5 * self.scope(x).sigmoid()
        offsets: Tensor = self.offset(x) * scope
        if self.style == "lp":
            offsets = F.pixel_shuffle(offsets, self.scale)
        return torch.unflatten(offsets, 1, (2, self.groups))

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """(B, C, h, w) -> (B, C, h * scale, w * scale); the target size is ignored."""
        # Half precision cannot distinguish the pixels of a large map.
        exact = torch.promote_types(x.dtype, torch.float32)
        right, down = self.offsets(x).to(exact).unbind(1)
        columns = _pixel_centers(right, -1) + 2 * right / x.shape[-1]
        rows = _pixel_centers(down, -2)[:, None] + 2 * down / x.shape[-2]
        points = torch.stack([columns, rows], dim=-1).flatten(0, 1)
        groups = torch.unflatten(x.to(exact), 1, (self.groups, -1)).flatten(0, 1)
        out = F.grid_sample(groups, points, padding_mode="border", align_corners=False)
        return torch.unflatten(out, 0, (-1, self.groups)).flatten(1, 2).to(x.dtype)


def _pixel_centers(like: Tensor, dim: int) -> Tensor:
    """Return the centers of the pixels along a dimension whose edges are -1 and 1."""
    count = like.shape[dim]
    pixels = torch.arange(count, dtype=like.dtype, device=like.device)
    return (2 * pixels + 1) / count - 1
