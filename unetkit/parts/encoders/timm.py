"""Every timm model as an encoder."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

from unetkit.parts.encoders.feature_pyramid import Pyramid
from unetkit.parts.encoders.normalization import Statistics, of_config
from unetkit.parts.encoders.timm_features import FeatureMaps, TimmSpec, flatten, nchw
from unetkit.parts.encoders.timm_input_sizes import probe
from unetkit.parts.encoders.timm_options import check_timm_options
from unetkit.utils.spatial import size_of


class TimmEncoder(nn.Module):
    """A timm model's feature maps; channels and strides are those that the model reports.

    Where several maps have one stride (dilation in place of stride makes such), the deepest of them is given. Where
    all have one, as those of a plain vision transformer, a pyramid is made of the last (Li 2022, ViTDet). Other options
    are those of timm's own constructor of the model; one that it does not have, or that changes nothing in the maps,
    is refused.

    Args:
        levels: how many of its maps to use, counted from the shallowest; none means all.
        output_stride: dilates the last stages so that no map is coarser than this, where the model can.
        img_size: the size, (height, width) or one number for both, that a model is built for whose weights depend on
            it; `--size` says the same. None means the size that timm builds it for.
        pretrained: timm's weights for it, or the path of a file in timm's format; `--pretrained` says the same. On
            the meta device, which holds no weights, they are looked for, but neither downloaded nor read.
    """

    def __init__(
        self,
        in_channels: int,
        name: str,
        *,
        levels: int | None = None,
        output_stride: Literal[8, 16, 32] = 32,
        img_size: int | tuple[int, int] | None = None,
        pretrained: bool | str = False,
        **options: Any,
    ) -> None:
        super().__init__()
        request = check_timm_options(TimmSpec(name, in_channels, output_stride), options)
        facts = probe(request, levels, (img_size, img_size) if isinstance(img_size, int) else img_size)
        self.model = request.create(pretrained, **facts.extra)
        if facts.flat:
            flatten(self.model)
        self.maps = facts.maps
        self.pyramid = _pyramid(self.maps, levels)
        self.strides = self.maps.pyramid or self.maps.strides
        self.channels = self.pyramid.channels if self.pyramid else self.maps.channels
        self.source = self.maps.source
        self.min_size, self.multiple, self.size = facts.min_size, facts.multiple, facts.size
        self.pretrained, self.weights_from = bool(pretrained), _describe(self.model, pretrained)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, H, W) -> maps of (B, channels[i], H / strides[i], W / strides[i]), rounded as the model does."""
        maps = nchw(self.model(x), self.model, self.maps, size_of(x))
        return maps if self.pyramid is None else self.pyramid(maps[0])

    def statistics(self) -> Statistics | None:
        """As `unetkit.parts.encoders.normalization` says; of a file, those of timm's own weights of this name."""
        return of_config(self.model.pretrained_cfg) if self.pretrained else None


def _pyramid(maps: FeatureMaps, levels: int | None) -> Pyramid | None:
    return Pyramid(maps.channels[0], maps.strides[0], levels=levels) if maps.pyramid else None


def _describe(model: Any, weights: bool | str) -> str:
    if not weights:
        return "random"
    config = model.pretrained_cfg
    return str(weights) if isinstance(weights, str) else f"timm {config['architecture']}.{config.get('tag', '')}"
