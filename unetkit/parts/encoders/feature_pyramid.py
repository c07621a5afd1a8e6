"""Maps at several strides from a model that has only one, such as a plain vision transformer."""

from __future__ import annotations

from torch import Tensor, nn

from unetkit.parts.conv_unit import make_norm


class Pyramid(nn.Module):
    """The simple feature pyramid of ViTDet (Li 2022, arXiv 2203.16527): every map is made from the last one alone.

    From (B, C, H/s, W/s) it makes, shallow to deep, with s a stride that 4 divides:

    | stride | how | before the two convolutions |
    | --- | --- | --- |
    | s/4 | transposed conv 2x2 stride 2, norm, GELU, transposed conv 2x2 stride 2 | (B, C/4, 4H/s, 4W/s) |
    | s/2 | transposed conv 2x2 stride 2 | (B, C/2, 2H/s, 2W/s) |
    | s | the map itself | (B, C, H/s, W/s) |
    | 2s | max pool 2x2 | (B, C, H/2s, W/2s) |

    A 1x1 and a 3x3 convolution without bias, each with a norm after it, bring each to `width` channels; the norms are
    layer norms over channels. A stride s/4 or s/2 that is no whole number is left out.
    """

    def __init__(self, channels: int, stride: int, *, levels: int | None = None, width: int = 256) -> None:
        """Make the layers.

        Args:
            channels: C, of the last map.
            stride: s, of the last map.
            levels: how many maps to make, counted from the shallowest; None means all.
            width: channels of each map.
        """
        super().__init__()
        scales = scales_of(stride)[:levels]
        self.channels = (width,) * len(scales)
        self.levels = nn.ModuleList(
            nn.Sequential(*_scaled(channels, scale), *_joined(_narrowed(channels, scale), width)) for scale in scales
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, h, w) -> maps of (B, width, h * scale, w * scale), scales falling from 4 or less to 1/2."""
        return [level(x) for level in self.levels]


#: What each scale is made by, for the trace.
MADE_BY = {4.0: "; 2 transposed convs", 2.0: "; transposed conv", 1.0: "", 0.5: "; max pool"}


def scales_of(stride: int) -> list[float]:
    """The scales that a pyramid makes of a map of this stride, shallow to deep."""
    return [scale for scale in MADE_BY if (stride / scale).is_integer()]


def _scaled(channels: int, scale: float) -> list[nn.Module]:
    if scale == 0.5:
        return [nn.MaxPool2d(2)]
    up: list[nn.Module] = [nn.ConvTranspose2d(channels, channels // 2, 2, 2)] if scale > 1 else []
    if scale == 4:
        up += [make_norm("layer", channels // 2), nn.GELU(), nn.ConvTranspose2d(channels // 2, channels // 4, 2, 2)]
    return up


def _narrowed(channels: int, scale: float) -> int:
    return channels // int(max(scale, 1))


def _joined(channels: int, width: int) -> list[nn.Module]:
    return [
        nn.Conv2d(channels, width, 1, bias=False),
        make_norm("layer", width),
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        make_norm("layer", width),
    ]
