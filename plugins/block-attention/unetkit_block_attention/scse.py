"""Concurrent spatial and channel squeeze and excitation (scSE): (B, C, H, W) -> (B, C, H, W)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from unetkit_block_attention.squeeze_excitation import check_same_channels, make_excitation


class SCSE(nn.Module):
    """Concurrent squeeze and excitation: the map weighted by channel and by pixel, then combined (scSE, Roy 2018).

        channels: x * sigmoid(W_1 relu(W_2 z)), where z is the mean of x over height and width
        pixels:   x * sigmoid(W_sq x), where W_sq has one output channel

    Roy, Navab, Wachinger, "Concurrent Spatial and Channel 'Squeeze & Excitation' in Fully Convolutional Networks",
    MICCAI 2018, arXiv 1803.02579. It keeps the number of channels, so it follows a block that
    sets it, as in double+scse.

    Args:
        reduction: factor by which the number of channels is reduced between W_2 and W_1.
        join: how the two weighted maps are combined, by their sum (add) or their elementwise maximum (max).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        reduction: int = 2,
        join: Literal["add", "max"] = "add",
    ) -> None:
        check_same_channels("scse", in_channels, out_channels)
        super().__init__()
        self.join = join
        self.channels = make_excitation(in_channels, reduction)
        self.pixels = nn.Conv2d(in_channels, 1, 1, bias=False)

    def extra_repr(self) -> str:
        return f"join={self.join}"

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        by_channel: Tensor = x * self.channels(x.mean((2, 3), keepdim=True)).sigmoid()
        by_pixel: Tensor = x * self.pixels(x).sigmoid()
        if self.join == "add":
            return by_channel + by_pixel
        return torch.maximum(by_channel, by_pixel)
