"""Fusions, which join the upsampled map (B, x_channels, H, W) and the skip (B, skip_channels, H, W) into one map."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Concat(nn.Module):
    """Concatenation of the skip's channels and then the map's channels (Ronneberger 2015)."""

    def __init__(self, x_channels: int, skip_channels: int) -> None:
        super().__init__()
        self.out_channels = x_channels + skip_channels

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(B, X, H, W), (B, S, H, W) -> (B, S + X, H, W)."""
        return torch.cat([skip, x], dim=1)


class _Elementwise(nn.Module):
    """Base of the elementwise fusions: where channel counts differ, a 1x1 convolution projects the wider map."""

    def __init__(self, x_channels: int, skip_channels: int) -> None:
        super().__init__()
        self.out_channels = min(x_channels, skip_channels)
        self.project_x = _make_projection(x_channels, self.out_channels)
        self.project_skip = _make_projection(skip_channels, self.out_channels)


def _make_projection(channels: int, out_channels: int) -> nn.Module:
    return nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)


class Add(_Elementwise):
    """Sum of map and skip, as in LinkNet (Chaurasia 2017).

    Where the channel counts differ, a 1x1 convolution first projects the wider map to the smaller count.
    """

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(B, X, H, W), (B, S, H, W) -> (B, min(X, S), H, W)."""
        out: Tensor = self.project_x(x) + self.project_skip(skip)
        return out


class Mean(_Elementwise):
    """Mean of map and skip.

    Where the channel counts differ, a 1x1 convolution first projects the wider map to the smaller count.
    """

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(B, X, H, W), (B, S, H, W) -> (B, min(X, S), H, W)."""
        out: Tensor = (self.project_x(x) + self.project_skip(skip)) / 2
        return out


class Max(_Elementwise):
    """Elementwise maximum of map and skip.

    Where the channel counts differ, a 1x1 convolution first projects the wider map to the smaller count.
    """

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(B, X, H, W), (B, S, H, W) -> (B, min(X, S), H, W)."""
        return torch.maximum(self.project_x(x), self.project_skip(skip))
