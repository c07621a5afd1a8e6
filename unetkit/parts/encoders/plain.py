"""The plain encoder: the contracting path of the U-Net of 2015."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from unetkit.errors import OptionError
from unetkit.parts.blocks import DoubleConv


class PlainEncoder(nn.Module):
    """Two 3x3 convolutions per level with a 2x2 max pool between levels (Ronneberger 2015).

    Args:
        depth: number of max pools, one less than the number of feature maps; none means 4, or follows from widths.
        widths: channels of the feature maps, shallow to deep; none means 64, doubled at each level.
        order: order of the layers in each convolution unit; norm-act-conv is the pre-activation order of ResNet v2.
        norm: normalization of each unit; group uses at most 32 groups, layer normalizes over channels.
        act: activation of each unit, by its name in timm, such as relu, gelu or silu.
        dropout: probability of dropping a channel after each unit in training, from 0 to below 1.
        padding: 1 keeps height and width between pools, 0 (valid convolutions) makes both smaller by 2 per convolution.
        bias: whether convolutions have a bias; none gives them one only where no norm makes it redundant.
        padding_mode: what 3x3 convolutions see beyond the border, as in torch.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        depth: int | None = None,
        widths: tuple[int, ...] | None = None,
        order: Literal["conv-norm-act", "conv-act-norm", "norm-act-conv"] = "conv-norm-act",
        norm: Literal["batch", "group", "instance", "layer", "none"] = "batch",
        act: str = "relu",
        dropout: float = 0.0,
        padding: Literal[0, 1] = 1,
        bias: bool | None = None,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
    ) -> None:
        super().__init__()
        self.channels = _resolve_widths(depth, widths)
        self.strides = tuple(2**i for i in range(len(self.channels)))
        self.source = ("double conv", *("max pool, double conv" for _ in self.channels[1:]))
        self.valid = padding == 0
        # torch refuses to normalize a single value, even in eval mode; with few channels, group norm has one per group.
        has_single_values = norm == "instance" or (norm == "group" and 32 % self.channels[-1] == 0)
        self.min_size = self.strides[-1] * (2 if has_single_values else 1)
        self.pool = nn.MaxPool2d(2)
        self.levels = nn.ModuleList(
            DoubleConv(
                i,
                o,
                order=order,
                norm=norm,
                act=act,
                dropout=dropout,
                padding=padding,
                bias=bias,
                padding_mode=padding_mode,
            )
            for i, o in zip((in_channels, *self.channels), self.channels, strict=False)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return one map per level, taken before its pool: (B, channels[i], H / strides[i], W / strides[i])."""
        maps: list[Tensor] = []
        for level in self.levels:
            x = level(self.pool(x) if maps else x)
            maps.append(x)
        return maps


def _resolve_widths(depth: int | None, widths: tuple[int, ...] | None) -> tuple[int, ...]:
    if depth is not None and depth < 1:
        raise OptionError(f"depth={depth} must be at least 1, which gives two levels")
    if widths is None:
        return tuple(64 * 2**i for i in range((depth or 4) + 1))
    if len(widths) < 2 or min(widths) < 1:
        raise OptionError(f"widths={list(widths)} must have at least two integers of at least 1, shallow to deep")
    if depth is not None and len(widths) != depth + 1:
        raise OptionError(
            f"depth={depth} needs {depth + 1} widths, but widths={list(widths)} has {len(widths)}; leave depth out"
        )
    return tuple(widths)
