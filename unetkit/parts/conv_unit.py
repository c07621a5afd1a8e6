"""The convolution unit that blocks, heads and the plain encoder are made of: a convolution, a norm, an activation."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from math import gcd
from typing import Literal, cast

import torch.nn.functional as F
from torch import Tensor, nn

from unetkit.errors import OptionError, did_you_mean

Order = Literal["conv-norm-act", "conv-act-norm", "norm-act-conv"]
Norm = Literal["batch", "group", "instance", "layer", "none"]
PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]

#: Activations that timm takes from torch as they are; they need no import of timm, which takes as long as torch's.
_ACTS: dict[str, Callable[..., nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
}


def make_norm(norm: Norm, channels: int) -> nn.Module:
    """Make a normalization layer for maps (B, channels, H, W).

    Args:
        norm: "group" has 32 groups (Wu & He 2018), or the greatest common divisor of 32 and the channels, and at least
            two channels per group; "instance" has one group per channel, with weight and bias; "layer" normalizes
            over channels.
        channels: number of channels of the map.
    """
    if norm in ("group", "instance"):
        groups = channels if norm == "instance" else gcd(32, channels)
        if norm == "group" and groups == channels > 1:
            groups = channels // 2  # one channel per group would be instance norm
        return nn.GroupNorm(groups, channels)
    if norm == "none":
        return nn.Identity()
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    from timm.layers import LayerNorm2d

    layer: nn.Module = LayerNorm2d(channels)
    return layer


def make_act(act: str, *, inplace: bool = True) -> nn.Module:
    """Make the activation layer that timm has for a name. Raise OptionError where timm has no such activation."""
    if act in _ACTS:
        return _ACTS[act](inplace=inplace)
    from timm.layers import create_act, create_act_layer

    try:
        layer: nn.Module | None = create_act_layer(act, inplace=inplace)
    except KeyError:
        layer = None
    if layer is None:  # timm returns None for an empty name
        names = create_act._ACT_LAYER_DEFAULT
        raise OptionError(
            f"act={act}: timm has no such activation{did_you_mean(act, names)}; it has {', '.join(names)}"
        )
    return layer


class ReflectConv2d(nn.Conv2d):
    """A convolution with padding_mode="reflect" that takes a map of one row or column, which torch cannot mirror.

    There the border repeats the pixel.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H, W)."""
        rows, columns = (cast(int, side) for side in self.padding)
        x = F.pad(x, (columns, columns, 0, 0), mode="reflect" if x.shape[-1] > columns else "replicate")
        x = F.pad(x, (0, 0, rows, rows), mode="reflect" if x.shape[-2] > rows else "replicate")
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


@dataclass(frozen=True)
class ConvUnit:
    """A recipe for convolution units: the order of their layers, the kinds of layers, and the padding.

    Attributes:
        order: the order of the layers.
        norm: the kind of norm, as `make_norm` takes it.
        act: the name of the activation in timm.
        dropout: probability of dropping a channel in training, from 0 to below 1.
        padding: 1 pads each convolution so that the size stays the same, 0 does not pad.
        bias: whether the convolution has a bias; None gives it one unless a norm makes it redundant, in the same unit
            or (norm-act-conv) in the next one.
        padding_mode: what a convolution sees beyond the border, by torch's names.
    """

    order: Order
    norm: Norm
    act: str
    dropout: float
    padding: Literal[0, 1]
    bias: bool | None
    padding_mode: PaddingMode = "zeros"

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise OptionError(f"dropout={self.dropout} must be at least 0 and below 1")
        if self.padding_mode != "zeros" and not self.padding:
            raise OptionError(f"padding_mode={self.padding_mode} has no effect with padding=0; leave one of them out")

    def make(self, in_channels: int, out_channels: int, kernel: int = 3, *, act: bool = True) -> nn.Sequential:
        """Make one unit, whose modules are called conv, norm, act and dropout.

        It maps (B, in_channels, H, W) to (B, out_channels, H', W'), where H' is H, or H - kernel + 1 without padding.

        Args:
            in_channels: channels of the input.
            out_channels: channels of the output.
            kernel: kernel size of the convolution.
            act: whether the unit has its activation.
        """
        bias = self.bias if self.bias is not None else self.norm == "none" or self.order == "conv-act-norm"
        padding, mode = kernel // 2 * self.padding, self.padding_mode if kernel > 1 else "zeros"
        layer = ReflectConv2d if mode == "reflect" else nn.Conv2d
        conv = layer(in_channels, out_channels, kernel, padding=padding, bias=bias, padding_mode=mode)
        norm = make_norm(self.norm, in_channels if self.order == "norm-act-conv" else out_channels)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for name in self.order.split("-"):
            if name == "conv":
                layers["conv"] = conv
            elif name == "norm" and self.norm != "none":
                layers["norm"] = norm
            elif name == "act" and act:
                # In place only on a map that this unit made: as the first layer it would overwrite the caller's map.
                layers["act"] = make_act(self.act, inplace=bool(layers))
        if self.dropout:
            layers["dropout"] = nn.Dropout2d(self.dropout)
        return nn.Sequential(layers)
