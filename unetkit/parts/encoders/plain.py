"""The contracting path of 2015: double convolutions and 2x2 max pools."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from unetkit.errors import OptionError
from unetkit.parts.blocks import Double


class Plain(nn.Module):
    """Two 3x3 convolutions a level and a 2x2 max pool between levels, VGG-style (Ronneberger 2015).

    Args:
        depth: how many times it pools; it gives one map more than that. None means 4, or what the widths say.
        widths: channels of each map, shallow to deep; none means 64, doubled at each level.
        order: of the layers in a unit.
        norm: after or before each convolution, as the order says.
        act: any activation that timm names.
        dropout: share of channels dropped after each unit in training.
        padding: 1 keeps the size between pools, 0 ("valid") takes 2 pixels off a convolution.
        bias: of the convolutions; none gives them one only where no norm makes it redundant.
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
    ) -> None:
        super().__init__()
        self.channels = _widths(depth, widths)
        self.strides = tuple(2**i for i in range(len(self.channels)))
        self.source = ("double conv", *("max pool, double conv" for _ in self.channels[1:]))
        self.valid = padding == 0
        # torch refuses to normalise a single value, even in eval; group norm of few channels is of one each.
        alone = norm == "instance" or (norm == "group" and 32 % self.channels[-1] == 0)
        self.min_size = self.strides[-1] * (2 if alone else 1)
        self.pool = nn.MaxPool2d(2)
        self.levels = nn.ModuleList(
            Double(i, o, order=order, norm=norm, act=act, dropout=dropout, padding=padding, bias=bias)
            for i, o in zip((in_channels, *self.channels), self.channels, strict=False)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, H, W) -> a map a level, taken before its pool."""
        maps: list[Tensor] = []
        for level in self.levels:
            x = level(self.pool(x) if maps else x)
            maps.append(x)
        return maps


def _widths(depth: int | None, widths: tuple[int, ...] | None) -> tuple[int, ...]:
    if depth is not None and depth < 1:
        raise OptionError(f"depth={depth}: takes at least 1, a U of two levels")
    if widths is None:
        return tuple(64 * 2**i for i in range((depth or 4) + 1))
    if len(widths) < 2 or min(widths) < 1:
        raise OptionError(f"widths={list(widths)}: takes at least two widths of at least 1, shallow to deep")
    if depth is not None and len(widths) != depth + 1:
        raise OptionError(f"depth={depth} has {depth + 1} levels, but widths={list(widths)} gives {len(widths)}")
    return tuple(widths)
