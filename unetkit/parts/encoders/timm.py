"""Every timm model that gives feature maps at two or more strides, as an encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import timm
from torch import Tensor, nn

from unetkit.errors import CannotBuild


class TimmEncoder(nn.Module):
    """A timm model's feature maps; channels and strides are those that the model reports.

    Where several maps have one stride (dilation in place of stride makes such), the deepest of them is given.

    Args:
        levels: how many of its maps to use, counted from the shallowest; none means all.
        output_stride: dilates the last stages so that no map is coarser than this, where the model can.
        pretrained: timm's weights for it, or the path of a file in timm's format; `--pretrained` says the same.
    """

    def __init__(
        self,
        in_channels: int,
        name: str,
        *,
        levels: int | None = None,
        output_stride: Literal[8, 16, 32] = 32,
        pretrained: bool | str = False,
    ) -> None:
        super().__init__()
        self.model = _create(name, in_channels, output_stride, pretrained)
        self.weights = _describe(self.model, pretrained)
        info = self.model.feature_info
        strides, channels = list(info.reduction()), list(info.channels())
        deepest = [i for i, s in enumerate(strides) if i + 1 == len(strides) or strides[i + 1] > s]
        if len(deepest) < 2:
            raise CannotBuild(
                f"timm/{name} gives maps at one stride only ({', '.join(map(str, strides))}), and a U needs two; "
                "take an encoder with a pyramid (`unetkit list encoders 'resnet*'`)"
            )
        if levels is not None and not 2 <= levels <= len(deepest):
            raise CannotBuild(f"timm/{name} gives {len(deepest)} maps; levels={levels} must be from 2 to that")
        self.take = deepest[:levels]
        self.strides = tuple(strides[i] for i in self.take)
        self.channels = tuple(channels[i] for i in self.take)
        self.source = tuple(f"timm {info.module_name()[i]}" for i in self.take)
        self.channels_last = str(getattr(self.model, "output_fmt", "NCHW")).endswith("NHWC")

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, H, W) -> maps of (B, channels[i], H / strides[i], W / strides[i]), rounded as the model does."""
        maps = self.model(x)
        return [maps[i].permute(0, 3, 1, 2) if self.channels_last else maps[i] for i in self.take]


def _create(name: str, in_channels: int, output_stride: int, weights: bool | str) -> Any:
    options: dict[str, Any] = {} if output_stride == 32 else {"output_stride": output_stride}
    if isinstance(weights, str):
        if not Path(weights).is_file():
            raise CannotBuild(f"there is no weights file {weights}; --pretrained takes a file in timm's format")
        options["pretrained_cfg_overlay"] = {"file": weights}
    try:
        return timm.create_model(name, features_only=True, in_chans=in_channels, pretrained=bool(weights), **options)
    except Exception as error:  # whatever timm, its hub client or a file's reader raises
        raise CannotBuild(_reason(name, error, weights, output_stride)) from error


def _reason(name: str, error: Exception, weights: bool | str, output_stride: int) -> str:
    why = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}".rstrip(": ")
    if weights:
        where = f"read from {weights}" if isinstance(weights, str) else "had from timm's hub"
        return (
            f"the pretrained weights of timm/{name} cannot be {where} ({why}); give a file in timm's format with "
            "`--pretrained FILE`, or leave --pretrained out for random weights"
        )
    if output_stride != 32:
        return f"timm/{name} does not take output_stride={output_stride} ({why}); leave it out, or take a ResNet"
    return f"timm/{name} gives no feature maps ({why})"


def _describe(model: Any, weights: bool | str) -> str:
    if not weights:
        return "random"
    config = model.pretrained_cfg
    return str(weights) if isinstance(weights, str) else f"timm {config['architecture']}.{config.get('tag', '')}"
