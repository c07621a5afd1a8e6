"""Dynamic point sampling: (B, C, h, w) -> (B, C, h * scale, w * scale)."""

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
    """Bilinear interpolation at points that the map itself moves, group by group of its channels (Liu 2023).

    Without offsets it is `bilinear` (align_corners=false), and so it nearly is at the start. In pixels of the input,
    the offsets of each output pixel are

        0.25 * linear(x), or with dynamic 0.5 * sigmoid(linear_1(x)) * linear_2(x)

    The points stop at the border.

    Liu et al., "Learning to Upsample by Learning to Sample", ICCV 2023, arXiv 2308.15085.

    Args:
        style: lp makes the offsets and shuffles them into pixels; pl shuffles the map first, which takes fewer
            parameters, and channels that divide by scale * scale.
        groups: of channels, each with offsets of its own; where the number does not divide the channels, the greatest
            common divisor of both.
        dynamic: whether the scope of the offsets follows the map too (DySample+, dyscope in the authors' code).
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
        n = check_integer_scale(scale, "dysample")
        if groups < 1:
            raise OptionError(f"groups={groups}: takes at least 1")
        if style == "pl" and in_channels % n**2:
            raise BuildError(f"style=pl makes {n}x{n} pixels of channels, and cannot of {in_channels}; take style=lp")
        super().__init__()
        self.out_channels = in_channels
        self.scale, self.style, self.groups = n, style, gcd(groups, in_channels)
        inside, outside = (in_channels // n**2, 1) if style == "pl" else (in_channels, n**2)
        self.offset = nn.Conv2d(inside, 2 * self.groups * outside, 1)
        nn.init.normal_(self.offset.weight, std=0.001)
        nn.init.zeros_(self.offset.get_parameter("bias"))
        self.scope = nn.Conv2d(inside, 2 * self.groups * outside, 1, bias=False) if dynamic else None
        if self.scope is not None:
            nn.init.zeros_(self.scope.weight)

    def offsets(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, 2, groups, h * scale, w * scale): right and down, in pixels of the input."""
        if self.style == "pl":
            x = F.pixel_shuffle(x, self.scale)
        scope = 0.25 if self.scope is None else 0.5 * self.scope(x).sigmoid()
        offsets: Tensor = self.offset(x) * scope
        if self.style == "lp":
            offsets = F.pixel_shuffle(offsets, self.scale)
        return torch.unflatten(offsets, 1, (2, self.groups))

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """(B, C, h, w) -> (B, C, h * scale, w * scale), whatever the wanted size."""
        exact = torch.promote_types(x.dtype, torch.float32)  # half precision cannot tell the pixels of a large map
        right, down = self.offsets(x).to(exact).unbind(1)
        columns, rows = _centres(right, -1), _centres(down, -2)[:, None]
        points = torch.stack([columns + 2 * right / x.shape[-1], rows + 2 * down / x.shape[-2]], dim=-1)
        groups = torch.unflatten(x.to(exact), 1, (self.groups, -1)).flatten(0, 1)
        out = F.grid_sample(groups, points.flatten(0, 1), padding_mode="border", align_corners=False)
        return torch.unflatten(out, 0, (-1, self.groups)).flatten(1, 2).to(x.dtype)


def _centres(like: Tensor, dim: int) -> Tensor:
    """The centres of a dimension's pixels, where its edges are -1 and 1."""
    count = like.shape[dim]
    return (2 * torch.arange(count, dtype=like.dtype, device=like.device) + 1) / count - 1
