"""Blocks: the convolutions after a fusion, (B, in_channels, H, W) -> (B, out_channels, H', W')."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from torch import Tensor, nn

from unetkit.parts.conv_unit import ConvUnit, make_act
from unetkit.utils.spatial import crop_center, size_of


class Double(nn.Sequential):
    """Two 3x3 convolutions, both to the block's width (Ronneberger 2015).

    Args:
        order: of the layers in a unit; conv-norm-act is the usual one, norm-act-conv that of ResNet v2.
        norm: after or before the convolution, as the order says.
        act: any activation that timm names.
        dropout: share of channels dropped after each unit in training.
        padding: 1 keeps the size, 0 ("valid") takes 2 pixels off height and width a convolution.
        bias: of the convolutions; none gives them one only where no norm makes it redundant.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        order: Literal["conv-norm-act", "conv-act-norm", "norm-act-conv"] = "conv-norm-act",
        norm: Literal["batch", "group", "instance", "layer", "none"] = "batch",
        act: str = "relu",
        dropout: float = 0.0,
        padding: Literal[0, 1] = 1,
        bias: bool | None = None,
    ) -> None:
        style = ConvUnit(order, norm, act, dropout, padding, bias)
        super().__init__(style.unit(in_channels, out_channels), style.unit(out_channels, out_channels))
        self.valid = padding == 0


class Basic(nn.Module):
    """Two 3x3 convolutions beside a shortcut, as ResNet-18 and 34 have them (He 2015).

    The shortcut is a 1x1 convolution where the widths differ. In the order conv-norm-act the last activation comes
    after the sum; in the other orders the units are whole and nothing follows the sum.

    Args:
        order: of the layers in a unit.
        norm: after or before the convolution, as the order says.
        act: any activation that timm names.
        dropout: share of channels dropped after each unit in training.
        padding: 1 keeps the size, 0 ("valid") takes 2 pixels off height and width a 3x3 convolution.
        bias: of the convolutions; none gives them one only where no norm makes it redundant.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        order: Literal["conv-norm-act", "conv-act-norm", "norm-act-conv"] = "conv-norm-act",
        norm: Literal["batch", "group", "instance", "layer", "none"] = "batch",
        act: str = "relu",
        dropout: float = 0.0,
        padding: Literal[0, 1] = 1,
        bias: bool | None = None,
    ) -> None:
        super().__init__()
        style = ConvUnit(order, norm, act, dropout, padding, bias)
        after = order == "conv-norm-act"
        self.units = self.make_units(style, in_channels, out_channels, last_act=not after)
        self.shortcut = _shortcut(style, in_channels, out_channels)
        self.act = make_act(act) if after else nn.Identity()
        self.valid = padding == 0

    @staticmethod
    def make_units(style: ConvUnit, in_channels: int, out_channels: int, *, last_act: bool) -> nn.Sequential:
        """The residual path; the last unit has an activation of its own only where none follows the sum."""
        return nn.Sequential(
            style.unit(in_channels, out_channels),
            style.unit(out_channels, out_channels, act=last_act),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H', W')."""
        residual = self.units(x)
        shortcut = self.shortcut(x)
        if self.valid:
            shortcut = crop_center(shortcut, size_of(residual))
        out: Tensor = self.act(residual + shortcut)
        return out


class Bottleneck(Basic):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut, a quarter as wide inside, as ResNet-50 and up (He 2015).

    Args:
        order: of the layers in a unit.
        norm: after or before the convolution, as the order says.
        act: any activation that timm names.
        dropout: share of channels dropped after each unit in training.
        padding: 1 keeps the size, 0 ("valid") takes 2 pixels off height and width.
        bias: of the convolutions; none gives them one only where no norm makes it redundant.
    """

    @staticmethod
    def make_units(style: ConvUnit, in_channels: int, out_channels: int, *, last_act: bool) -> nn.Sequential:
        """The residual path, as wide inside as a quarter of the output (at least 1)."""
        inside = max(1, out_channels // 4)
        return nn.Sequential(
            style.unit(in_channels, inside, kernel=1),
            style.unit(inside, inside),
            style.unit(inside, out_channels, kernel=1, act=last_act),
        )


class PreActivation(Basic):
    """Two 3x3 convolutions beside a shortcut that nothing touches: norm and activation come first (He 2016, v2).

    Args:
        order: of the layers in a unit.
        norm: after or before the convolution, as the order says.
        act: any activation that timm names.
        dropout: share of channels dropped after each unit in training.
        padding: 1 keeps the size, 0 ("valid") takes 2 pixels off height and width a 3x3 convolution.
        bias: of the convolutions; none gives them one only where no norm makes it redundant.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        order: Literal["conv-norm-act", "conv-act-norm", "norm-act-conv"] = "norm-act-conv",
        norm: Literal["batch", "group", "instance", "layer", "none"] = "batch",
        act: str = "relu",
        dropout: float = 0.0,
        padding: Literal[0, 1] = 1,
        bias: bool | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            order=order,
            norm=norm,
            act=act,
            dropout=dropout,
            padding=padding,
            bias=bias,
        )


def _shortcut(style: ConvUnit, in_channels: int, out_channels: int) -> nn.Module:
    if in_channels == out_channels:
        return nn.Identity()
    if style.order == "conv-norm-act":
        return replace(style, dropout=0.0).unit(in_channels, out_channels, kernel=1, act=False)
    return nn.Conv2d(in_channels, out_channels, 1, bias=style.norm == "none" if style.bias is None else style.bias)
