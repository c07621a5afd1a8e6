"""The convolutional block attention module (CBAM): (B, C, H, W) -> (B, C, H, W)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unetkit.errors import OptionError
from unetkit_block_attention.squeeze_excitation import check_same_channels, make_excitation


class CBAM(nn.Module):
    """Convolutional block attention: the map is weighted by channel, then the result by pixel (CBAM, Woo 2018).

        channels: y = x * sigmoid(MLP(mean of x) + MLP(maximum of x)), both over height and width, one MLP for both
        pixels:   y * sigmoid(conv([mean of y; maximum of y])), both over the channels

    Woo et al., "CBAM: Convolutional Block Attention Module", ECCV 2018, arXiv 1807.06521. It keeps the
    number of channels, so it follows a block that sets it, as in double+cbam.

    Args:
        reduction: factor by which the MLP reduces the number of channels; it keeps at least 4, if the map has as many.
        kernel: kernel size of the convolution over pixels, an odd number.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        reduction: int = 16,
        kernel: int = 7,
    ) -> None:
        if kernel < 1 or kernel % 2 == 0:
            raise OptionError(f"kernel={kernel} must be a positive odd number, so that the size stays the same")
        check_same_channels("cbam", in_channels, out_channels)
        super().__init__()
        # With only one or two units, all ReLUs are often dead from the start, and then never learn.
        self.channels = make_excitation(in_channels, reduction, min_channels=4)
        self.pixels = nn.Conv2d(2, 1, kernel, padding=kernel // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        mean = x.mean((2, 3), keepdim=True)
        maximum = x.amax((2, 3), keepdim=True)
        x = x * (self.channels(mean) + self.channels(maximum)).sigmoid()
        pooled = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1)
        out: Tensor = x * self.pixels(pooled).sigmoid()
        return out
