"""Heads, which turn the last feature map (B, in_channels, H, W) into logits (B, classes, H, W)."""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

from torch import nn

from unetkit.errors import OptionError
from unetkit.parts.conv_unit import make_act, make_norm


class ConvHead(nn.Sequential):
    """One convolution to the classes, by default 1x1 (Ronneberger 2015).

    Args:
        kernel: kernel size of the convolution, an odd number; the map is padded so that its size stays the same.
    """

    def __init__(self, in_channels: int, classes: int, *, kernel: int = 1) -> None:
        super().__init__(OrderedDict(conv=_make_conv(in_channels, classes, kernel)))


class ConvActNormHead(nn.Sequential):
    """Convolution to the classes, then an activation and a norm.

    Args:
        kernel: kernel size of the convolution, an odd number; the map is padded so that its size stays the same.
        act: activation of the logits, by its name in timm, such as relu, gelu or silu.
        norm: normalization of the logits; group uses at most 32 groups, layer normalizes over channels.
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        *,
        kernel: int = 1,
        act: str = "relu",
        norm: Literal["batch", "group", "instance", "layer", "none"] = "batch",
    ) -> None:
        conv = _make_conv(in_channels, classes, kernel)
        super().__init__(OrderedDict(conv=conv, act=make_act(act), norm=make_norm(norm, classes)))


def _make_conv(in_channels: int, classes: int, kernel: int) -> nn.Conv2d:
    if kernel < 1 or kernel % 2 == 0:
        raise OptionError(f"kernel={kernel} must be a positive odd number, so that the size stays the same")
    return nn.Conv2d(in_channels, classes, kernel, padding=kernel // 2)
