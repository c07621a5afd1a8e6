"""The convolution unit that blocks, heads and the plain encoder are made of."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from math import gcd
from typing import Literal

from timm.layers import create_act, create_act_layer, create_norm_layer
from torch import nn

from unetkit.errors import OptionError, did_you_mean

Order = Literal["conv-norm-act", "conv-act-norm", "norm-act-conv"]
Norm = Literal["batch", "group", "instance", "layer", "none"]


def make_norm(norm: Norm, channels: int) -> nn.Module:
    """Timm's layer for a norm of (B, C, H, W).

    "group" has 32 groups (Wu & He 2018), or as many as divide both 32 and the channels, of two channels at least.
    "instance" is a group for each channel, with weight and bias.
    """
    if norm in ("group", "instance"):
        groups = channels if norm == "instance" else gcd(32, channels)
        if norm == "group" and groups == channels > 1:
            groups = channels // 2  # a channel a group would be instance norm
        grouped: nn.Module = create_norm_layer("groupnorm", channels, num_groups=groups)
        return grouped
    if norm == "none":
        return nn.Identity()
    layer: nn.Module = create_norm_layer({"batch": "batchnorm2d", "layer": "layernorm2d"}[norm], channels)
    return layer


def make_act(act: str, *, inplace: bool = True) -> nn.Module:
    """Timm's layer for an activation's name. Raises OptionError for a name that timm has not."""
    try:
        layer: nn.Module | None = create_act_layer(act, inplace=inplace)
    except KeyError:
        layer = None
    if layer is None:  # timm's answer to an empty name
        known = create_act._ACT_LAYER_DEFAULT
        raise OptionError(
            f"act={act}: timm has no such activation{did_you_mean(act, known)}; it has {', '.join(known)}"
        )
    return layer


@dataclass(frozen=True)
class ConvUnit:
    """How every unit of a block is made: the order of its layers, which they are, and whether it is padded.

    `bias` None gives the convolution a bias unless a norm follows it, in its own unit or (norm-act-conv) the next.
    """

    order: Order
    norm: Norm
    act: str
    dropout: float
    padding: Literal[0, 1]
    bias: bool | None

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise OptionError(f"dropout={self.dropout}: takes a share from 0 to below 1")

    def unit(self, in_channels: int, out_channels: int, kernel: int = 3, *, act: bool = True) -> nn.Sequential:
        """One convolution with its norm and activation, in order; modules are named conv, norm, act, dropout.

        (B, in_channels, H, W) -> (B, out_channels, H', W'), where H' is H, or H - kernel + 1 without padding.
        """
        bias = self.bias if self.bias is not None else self.norm == "none" or self.order == "conv-act-norm"
        conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2 * self.padding, bias=bias)
        norm = make_norm(self.norm, in_channels if self.order == "norm-act-conv" else out_channels)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for name in self.order.split("-"):
            if name == "conv":
                layers["conv"] = conv
            elif name == "norm" and self.norm != "none":
                layers["norm"] = norm
            elif name == "act" and act:
                # In place only on a map that this unit made: the first layer would overwrite its caller's.
                layers["act"] = make_act(self.act, inplace=bool(layers))
        if self.dropout:
            layers["dropout"] = nn.Dropout2d(self.dropout)
        return nn.Sequential(layers)
