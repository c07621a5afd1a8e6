"""Heads: (B, in_channels, H, W) -> logits (B, classes, H, W)."""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

from torch import nn

from unetkit.errors import OptionError
from unetkit.parts.conv_unit import make_act, make_norm


class Conv(nn.Sequential):
    """One convolution to the classes, 1x1 as in 2015.

    Args:
        kernel: odd; the map is padded, so that its size stays.
    """

    def __init__(self, in_channels: int, classes: int, *, kernel: int = 1) -> None:
        super().__init__(OrderedDict(conv=_conv(in_channels, classes, kernel)))


class ConvActNorm(nn.Sequential):
    """A convolution to the classes, then an activation and a norm.

    Args:
        kernel: odd; the map is padded, so that its size stays.
        act: any activation that timm names.
        norm: of the logits.
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
        conv = _conv(in_channels, classes, kernel)
        super().__init__(OrderedDict(conv=conv, act=make_act(act), norm=make_norm(norm, classes)))


def _conv(in_channels: int, classes: int, kernel: int) -> nn.Conv2d:
    if kernel < 1 or kernel % 2 == 0:
        raise OptionError(f"kernel={kernel}: takes an odd number, so that the size stays")
    return nn.Conv2d(in_channels, classes, kernel, padding=kernel // 2)
