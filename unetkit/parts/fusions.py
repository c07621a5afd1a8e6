"""Fusions: (B, x_channels, H, W) and (B, skip_channels, H, W) -> (B, out_channels, H, W)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Concat(nn.Module):
    """The skip's channels, then the map's (Ronneberger 2015)."""

    def __init__(self, x_channels: int, skip_channels: int) -> None:
        super().__init__()
        self.out_channels = x_channels + skip_channels

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(B, X, H, W), (B, S, H, W) -> (B, S + X, H, W)."""
        return torch.cat([skip, x], dim=1)


class _Elementwise(nn.Module):
    """Two maps of as many channels each; where they differ, a 1x1 convolution narrows the wider one."""

    def __init__(self, x_channels: int, skip_channels: int) -> None:
        super().__init__()
        self.out_channels = min(x_channels, skip_channels)
        self.project_x = _projection(x_channels, self.out_channels)
        self.project_skip = _projection(skip_channels, self.out_channels)


def _projection(channels: int, out_channels: int) -> nn.Module:
    return nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)


class Add(_Elementwise):
    """The sum; where channels differ a 1x1 convolution first narrows the wider map (as LinkNet, Chaurasia 2017)."""

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(B, X, H, W), (B, S, H, W) -> (B, min(X, S), H, W)."""
        out: Tensor = self.project_x(x) + self.project_skip(skip)
        return out


class Mean(_Elementwise):
    """The mean; where channels differ a 1x1 convolution first narrows the wider map."""

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(B, X, H, W), (B, S, H, W) -> (B, min(X, S), H, W)."""
        out: Tensor = (self.project_x(x) + self.project_skip(skip)) / 2
        return out


class Max(_Elementwise):
    """The larger of the two; where channels differ a 1x1 convolution first narrows the wider map."""

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(B, X, H, W), (B, S, H, W) -> (B, min(X, S), H, W)."""
        return torch.maximum(self.project_x(x), self.project_skip(skip))
