"""The convolutional block attention module: (B, C, H, W) -> (B, C, H, W)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unetkit.errors import OptionError
from unetkit_block_attention.squeeze import same_channels, squeeze


class CBAM(nn.Module):
    """Convolutional block attention: the map weighed by channel, and what comes out by pixel (Woo 2018).

        channels: y = x * sigmoid(MLP(mean of x) + MLP(maximum of x)), both over height and width, one MLP for both
        pixels:   y * sigmoid(conv([mean of y; maximum of y])), both over the channels

    Woo et al., "CBAM: Convolutional Block Attention Module", ECCV 2018, arXiv 1807.06521. It keeps the channels:
    use it after a block that sets them, double+cbam.

    Args:
        reduction: how many times fewer channels there are inside the MLP; at least 4, where the map has as many.
        kernel: odd, of the convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, *, reduction: int = 16, kernel: int = 7) -> None:
        if kernel < 1 or kernel % 2 == 0:
            raise OptionError(f"kernel={kernel}: takes an odd number, so that the size stays")
        super().__init__()
        # A ReLU of one or two units is often dead from the start, and then never learns.
        self.channels = squeeze(same_channels("cbam", in_channels, out_channels), reduction, least=4)
        self.pixels = nn.Conv2d(2, 1, kernel, padding=kernel // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        mean, maximum = x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
        x = x * (self.channels(mean) + self.channels(maximum)).sigmoid()
        pooled = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1)
        out: Tensor = x * self.pixels(pooled).sigmoid()
        return out
