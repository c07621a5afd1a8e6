"""The encoder that uses any timm model."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

from unetkit.parts.encoders.feature_pyramid import SimpleFeaturePyramid
from unetkit.parts.encoders.normalization import NormalizationStats, parse_normalization_stats
from unetkit.parts.encoders.timm_features import FeatureMaps, TimmSpec, set_nlc_output, to_nchw
from unetkit.parts.encoders.timm_input_sizes import probe
from unetkit.parts.encoders.timm_options import check_timm_options
from unetkit.utils.spatial import size_of


class TimmEncoder(nn.Module):
    """Feature maps of a timm model, with the channels and strides that the model reports.

    Where several maps have the same stride, as with dilation, only the deepest of them is used. Where all maps have one
    stride, as in a plain vision transformer, a feature pyramid is made from the last map (ViTDet, Li 2022). All other
    options are passed to the model's constructor in timm; an option that the constructor does not have is an error.

    Args:
        levels: number of feature maps to use, counted from the shallowest; none means all.
        output_stride: largest stride of the feature maps, reached by dilating the last stages, where the model can.
        img_size: input size to build the model for, (height, width) or one number for both, where its weights depend on
            the size; the same as `--size`. None means timm's default size for the model.
        pretrained: true loads timm's pretrained weights, a path loads a file in timm's format; the same as
            `--pretrained`. On the meta device the weights must exist but are not loaded.
    """

    #: Not the pyramid.
    pretrained_part = "model"

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
        spec = check_timm_options(TimmSpec(name, in_channels, output_stride), options)
        limits = probe(spec, levels, (img_size, img_size) if isinstance(img_size, int) else img_size)
        self.spec, self.timm_options = spec, limits.timm_options
        self.model = spec.create(pretrained, **limits.timm_options)
        if limits.has_nlc_output:
            set_nlc_output(self.model)
        self.maps = limits.maps
        self.pyramid = _make_pyramid(self.maps, levels)
        self.strides = self.maps.pyramid_strides or self.maps.strides
        self.channels = self.pyramid.channels if self.pyramid else self.maps.channels
        self.source = self.maps.source
        self.min_size, self.multiple, self.size = limits.min_size, limits.multiple, limits.size
        self.pretrained, self.weights_from = bool(pretrained), _describe_weights(self.model, pretrained)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, H, W) -> maps (B, channels[i], H / strides[i], W / strides[i]), rounded as the model does."""
        maps = to_nchw(self.model(x), self.model, self.maps, size_of(x))
        return maps if self.pyramid is None else self.pyramid(maps[0])

    def statistics(self) -> NormalizationStats | None:
        """Return mean and standard deviation for the pretrained weights; None without.

        For weights from a file these are the values of timm's own weights of the same model.
        """
        return parse_normalization_stats(self.model.pretrained_cfg) if self.pretrained else None


def _make_pyramid(maps: FeatureMaps, levels: int | None) -> SimpleFeaturePyramid | None:
    return SimpleFeaturePyramid(maps.channels[0], maps.strides[0], levels=levels) if maps.pyramid_strides else None


def _describe_weights(model: Any, pretrained: bool | str) -> str:
    if not pretrained:
        return "random"
    config = model.pretrained_cfg
    return str(pretrained) if isinstance(pretrained, str) else f"timm {config['architecture']}.{config.get('tag', '')}"
