"""The attention gate as a fusion: (B, X, H, W) and (B, S, H, W) -> (B, S + X, H, W)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from unetkit.errors import OptionError

#: Initial value of the last bias: sigmoid(3) is 0.95, so that a new gate is open and still has a gradient.
_INITIAL_BIAS = 3.0


class AttentionGate(nn.Module):
    """Concatenation of skip and map, with an attention gate on the skip that the map controls (Oktay 2018).

    With g the upsampled map and s the skip, at each pixel

        alpha = sigmoid(psi^T relu(W_x^T s + W_g^T g + b_g) + b_psi)

    and the result has the channels of alpha * s and then those of g. The paper computes alpha at the size of the map
    before it is upsampled, from a downsampled skip, and resamples alpha; here both have the skip's size.

    Oktay et al., "Attention U-Net: Learning Where to Look for the Pancreas", MIDL 2018, arXiv 1804.03999.

    Args:
        inner: number of channels in which skip and map are compared; none means half of those of the skip, at least 1.
        norm: norm after each 1x1 convolution of the gate; the paper has none, many implementations have batch.
    """

    def __init__(
        self,
        x_channels: int,
        skip_channels: int,
        *,
        inner: int | None = None,
        norm: Literal["none", "batch"] = "none",
    ) -> None:
        width = max(1, skip_channels // 2) if inner is None else inner
        if width < 1:
            raise OptionError(f"inner={inner} must be at least 1")
        super().__init__()
        self.out_channels = skip_channels + x_channels
        self.from_skip = _make_projection(skip_channels, width, norm, bias=False)
        self.from_x = _make_projection(x_channels, width, norm)
        self.psi = _make_projection(width, 1, norm)
        nn.init.constant_(self.psi[-1].get_parameter("bias"), _INITIAL_BIAS)

    def attention(self, x: Tensor, skip: Tensor) -> Tensor:
        """Compute alpha (B, 1, H, W), from 0 to 1, for a map (B, X, H, W) and a skip (B, S, H, W)."""
        compared = torch.relu(self.from_skip(skip) + self.from_x(x))
        alpha: Tensor = self.psi(compared).sigmoid()
        return alpha

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(B, X, H, W), (B, S, H, W) -> (B, S + X, H, W)."""
        return torch.cat([self.attention(x, skip) * skip, x], dim=1)


def _make_projection(
    in_channels: int,
    out_channels: int,
    norm: str,
    *,
    bias: bool = True,
) -> nn.Sequential:
    """Make a 1x1 convolution; with a norm, the norm has the bias."""
    if norm == "none":
        return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, bias=bias))
    conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))
