"""Blocks, the convolutions after a fusion, which map (B, in_channels, H, W) to (B, out_channels, H', W')."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from torch import Tensor, nn

from unetkit.parts.conv_unit import ConvUnit, make_act
from unetkit.utils.spatial import crop_center, size_of


class DoubleConv(nn.Sequential):
    """Two 3x3 convolutions, both with the block's number of output channels (Ronneberger 2015).

    Args:
        order: order of the layers in each convolution unit; norm-act-conv is the pre-activation order of ResNet v2.
        norm: normalization of each unit; group uses at most 32 groups, layer normalizes over channels.
        act: activation of each unit, by its name in timm, such as relu, gelu or silu.
        dropout: probability of dropping a channel after each unit in training, from 0 to below 1.
        padding: 1 keeps height and width, 0 (valid convolutions) makes both smaller by 2 per 3x3 convolution.
        bias: whether convolutions have a bias; none gives them one only where no norm makes it redundant.
        padding_mode: what 3x3 convolutions see beyond the border, as in torch.
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
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
    ) -> None:
        unit = ConvUnit(order, norm, act, dropout, padding, bias, padding_mode)
        super().__init__(unit.make(in_channels, out_channels), unit.make(out_channels, out_channels))
        self.valid = padding == 0


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a residual shortcut, as in ResNet-18 and ResNet-34 (He 2015).

    Where the channel counts differ, the shortcut is a 1x1 convolution. With the order conv-norm-act the last activation
    comes after the sum; with the other orders each unit keeps its activation and nothing follows the sum.

    Args:
        order: order of the layers in each convolution unit; norm-act-conv is the pre-activation order of ResNet v2.
        norm: normalization of each unit; group uses at most 32 groups, layer normalizes over channels.
        act: activation of each unit, by its name in timm, such as relu, gelu or silu.
        dropout: probability of dropping a channel after each unit in training, from 0 to below 1.
        padding: 1 keeps height and width, 0 (valid convolutions) makes both smaller by 2 per 3x3 convolution.
        bias: whether convolutions have a bias; none gives them one only where no norm makes it redundant.
        padding_mode: what 3x3 convolutions see beyond the border, as in torch.
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
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
    ) -> None:
        super().__init__()
        unit = ConvUnit(order, norm, act, dropout, padding, bias, padding_mode)
        has_final_act = order == "conv-norm-act"
        self.units = self.make_units(unit, in_channels, out_channels, last_act=not has_final_act)
        self.shortcut = _make_shortcut(unit, in_channels, out_channels)
        self.act = make_act(act) if has_final_act else nn.Identity()
        self.valid = padding == 0

    @staticmethod
    def make_units(unit: ConvUnit, in_channels: int, out_channels: int, *, last_act: bool) -> nn.Sequential:
        """Make the residual path; `last_act` says whether its last unit has an activation."""
        return nn.Sequential(
            unit.make(in_channels, out_channels),
            unit.make(out_channels, out_channels, act=last_act),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H', W')."""
        residual = self.units(x)
        shortcut = self.shortcut(x)
        if self.valid:
            shortcut = crop_center(shortcut, size_of(residual))
        out: Tensor = self.act(residual + shortcut)
        return out


class Bottleneck(BasicBlock):
    """1x1, 3x3 and 1x1 convolutions with a residual shortcut, as in ResNet-50 and deeper (He 2015).

    The inner convolutions have a quarter of the output channels, and at least 1.

    Args:
        order: order of the layers in each convolution unit; norm-act-conv is the pre-activation order of ResNet v2.
        norm: normalization of each unit; group uses at most 32 groups, layer normalizes over channels.
        act: activation of each unit, by its name in timm, such as relu, gelu or silu.
        dropout: probability of dropping a channel after each unit in training, from 0 to below 1.
        padding: 1 keeps height and width, 0 (valid convolutions) makes both smaller by 2 per 3x3 convolution.
        bias: whether convolutions have a bias; none gives them one only where no norm makes it redundant.
        padding_mode: what 3x3 convolutions see beyond the border, as in torch.
    """

    @staticmethod
    def make_units(unit: ConvUnit, in_channels: int, out_channels: int, *, last_act: bool) -> nn.Sequential:
        """Make the residual path; `last_act` says whether its last unit has an activation."""
        inner_channels = max(1, out_channels // 4)
        return nn.Sequential(
            unit.make(in_channels, inner_channels, kernel=1),
            unit.make(inner_channels, inner_channels),
            unit.make(inner_channels, out_channels, kernel=1, act=last_act),
        )


class PreActBlock(BasicBlock):
    """Two 3x3 convolutions with a residual shortcut, norm and activation before each, as in ResNet v2 (He 2016).

    Args:
        order: order of the layers in each convolution unit; norm-act-conv is the pre-activation order of ResNet v2.
        norm: normalization of each unit; group uses at most 32 groups, layer normalizes over channels.
        act: activation of each unit, by its name in timm, such as relu, gelu or silu.
        dropout: probability of dropping a channel after each unit in training, from 0 to below 1.
        padding: 1 keeps height and width, 0 (valid convolutions) makes both smaller by 2 per 3x3 convolution.
        bias: whether convolutions have a bias; none gives them one only where no norm makes it redundant.
        padding_mode: what 3x3 convolutions see beyond the border, as in torch.
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
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
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
            padding_mode=padding_mode,
        )


def _make_shortcut(unit: ConvUnit, in_channels: int, out_channels: int) -> nn.Module:
    if in_channels == out_channels:
        return nn.Identity()
    if unit.order == "conv-norm-act":
        return replace(unit, dropout=0.0).make(in_channels, out_channels, kernel=1, act=False)
    return nn.Conv2d(in_channels, out_channels, 1, bias=unit.norm == "none" if unit.bias is None else unit.bias)
