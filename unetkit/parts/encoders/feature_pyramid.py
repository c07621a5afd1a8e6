"""A feature pyramid for models whose maps all have one stride, such as plain vision transformers."""

from __future__ import annotations

from torch import Tensor, nn

from unetkit.parts.conv_unit import make_norm


class SimpleFeaturePyramid(nn.Module):
    """The simple feature pyramid of ViTDet (Li 2022, arXiv 2203.16527), which makes every map from the last one alone.

    From a map (B, C, H/s, W/s) at stride s it makes, shallow to deep:

    | stride | layers | shape before the two convolutions |
    | --- | --- | --- |
    | s/4 | transposed conv 2x2 stride 2, norm, GELU, transposed conv 2x2 stride 2 | (B, C/4, 4H/s, 4W/s) |
    | s/2 | transposed conv 2x2 stride 2 | (B, C/2, 2H/s, 2W/s) |
    | s | none | (B, C, H/s, W/s) |
    | 2s | max pool 2x2 | (B, C, H/2s, W/2s) |

    A 1x1 and a 3x3 convolution without bias, each followed by a norm, bring each map to `width` channels; the norms are
    layer norms over channels. A stride s/4 or s/2 that is not an integer is left out.
    """

    def __init__(self, channels: int, stride: int, *, levels: int | None = None, width: int = 256) -> None:
        """Make the layers.

        Args:
            channels: C, the channels of the last map.
            stride: s, the stride of the last map.
            levels: number of maps to make, counted from the shallowest; None means all.
            width: channels of each map that is made.
        """
        super().__init__()
        scales = get_scales(stride)[:levels]
        self.channels = (width,) * len(scales)
        self.levels = nn.ModuleList(
            nn.Sequential(*_make_resampling(channels, scale), *_make_projection(channels // int(max(scale, 1)), width))
            for scale in scales
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, h, w) -> maps (B, width, h * scale, w * scale), for each scale from the largest to the smallest."""
        return [level(x) for level in self.levels]


#: The description in the trace of how the map of each scale is made from the last one.
SCALE_LABELS = {4.0: "; 2 transposed convs", 2.0: "; transposed conv", 1.0: "", 0.5: "; max pool"}


def get_scales(stride: int) -> list[float]:
    """Return the scales of the maps that a pyramid makes from a map of this stride, shallow to deep."""
    return [scale for scale in SCALE_LABELS if (stride / scale).is_integer()]


def _make_resampling(channels: int, scale: float) -> list[nn.Module]:
    if scale == 0.5:
        return [nn.MaxPool2d(2)]
    layers: list[nn.Module] = [nn.ConvTranspose2d(channels, channels // 2, 2, 2)] if scale > 1 else []
    if scale == 4:
        layers += [make_norm("layer", channels // 2), nn.GELU(), nn.ConvTranspose2d(channels // 2, channels // 4, 2, 2)]
    return layers


def _make_projection(channels: int, width: int) -> list[nn.Module]:
    return [
        nn.Conv2d(channels, width, 1, bias=False),
        make_norm("layer", width),
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        make_norm("layer", width),
    ]
