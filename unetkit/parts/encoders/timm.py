"""Every timm model that gives feature maps at two or more strides, as an encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import timm
import torch
from torch import Tensor, nn

from unetkit.errors import CannotBuild, UnetkitError
from unetkit.parts.encoders.borne import bears
from unetkit.parts.encoders.timm_weights import find, refuse_foreign, watched


class TimmEncoder(nn.Module):
    """A timm model's feature maps; channels and strides are those that the model reports.

    Where several maps have one stride (dilation in place of stride makes such), the deepest of them is given.

    Args:
        levels: how many of its maps to use, counted from the shallowest; none means all.
        output_stride: dilates the last stages so that no map is coarser than this, where the model can.
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
        pretrained: bool | str = False,
    ) -> None:
        super().__init__()
        only = None if levels is None else _first(levels, name, in_channels, output_stride)
        self.model = _create(name, in_channels, output_stride, pretrained, only)
        self.weights_from = _describe(self.model, pretrained)
        config = self.model.pretrained_cfg
        self.size = tuple(config["input_size"][-2:]) if config.get("fixed_input_size") else None
        info = self.model.feature_info
        self.take = _deepest(name, info)
        self.strides = tuple(info.reduction()[i] for i in self.take)
        self.channels = tuple(info.channels()[i] for i in self.take)
        self.source = tuple(f"timm {info.module_name()[i]}" for i in self.take)
        self.min_size, self.multiple = (1, 1)
        if not self.size:
            key = "timm", name, output_stride, tuple(self.take)
            self.min_size, self.multiple = bears(key, self.model, in_channels, self.strides[-1])
        self.channels_last = str(getattr(self.model, "output_fmt", "NCHW")).endswith("NHWC")

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, H, W) -> maps of (B, channels[i], H / strides[i], W / strides[i]), rounded as the model does."""
        maps = self.model(x)
        return [maps[i].permute(0, 3, 1, 2) if self.channels_last else maps[i] for i in self.take]


def _deepest(name: str, info: Any) -> list[int]:
    """The index of the deepest map of each stride."""
    strides = list(info.reduction())
    found = [i for i, s in enumerate(strides) if i + 1 == len(strides) or strides[i + 1] > s]
    if len(found) < 2:
        raise CannotBuild(
            f"timm/{name} gives maps at one stride only ({', '.join(map(str, strides))}), and a U needs two; "
            "take an encoder with a pyramid (`unetkit list encoders 'resnet*'`)"
        )
    return found


def _first(levels: int, name: str, in_channels: int, output_stride: int) -> list[int]:
    """The indices of the first maps, so that timm leaves out the layers below them."""
    with torch.device("meta"):
        deepest = _deepest(name, _create(name, in_channels, output_stride, False).feature_info)
    if not 2 <= levels <= len(deepest):
        raise CannotBuild(f"timm/{name} gives {len(deepest)} maps; levels={levels} must be from 2 to that")
    return deepest[:levels]


def _create(name: str, in_channels: int, output_stride: int, weights: bool | str, only: list[int] | None = None) -> Any:
    options: dict[str, Any] = {"output_stride": output_stride} if output_stride != 32 else {}
    if only:
        options["out_indices"] = tuple(only)
    if isinstance(weights, str):
        if not Path(weights).is_file():
            raise CannotBuild(f"there is no weights file {weights}; --pretrained takes a file in timm's format")
        options["pretrained_cfg_overlay"] = {"file": weights}
    loads = bool(weights) and torch.get_default_device().type != "meta"
    try:
        find(name, pretrained=weights is True, loads=loads)
        with watched(loads) as loadings:
            model = timm.create_model(name, features_only=True, in_chans=in_channels, pretrained=loads, **options)
        refuse_foreign(name, model, loadings)
    except Exception as error:  # whatever timm, its hub client or a file's reader raises
        raise CannotBuild(_reason(name, error, weights, output_stride)) from error
    return model


def _reason(name: str, error: Exception, weights: bool | str, output_stride: int) -> str:
    text = " ".join(str(error).split())[:300]
    why = text if isinstance(error, UnetkitError) else f"{type(error).__name__}: {text}".rstrip(": ")
    if weights:
        where = f"read from {weights}" if isinstance(weights, str) else "had from timm's hub"
        return (
            f"the pretrained weights of timm/{name} cannot be {where} ({why}); give a file in timm's format with "
            "`--pretrained FILE`, or leave --pretrained out for random weights"
        )
    if isinstance(error, UnetkitError):
        return text
    if output_stride != 32:
        return f"timm/{name} does not take output_stride={output_stride} ({why}); leave it out, or take a ResNet"
    return f"timm/{name} gives no feature maps ({why})"


def _describe(model: Any, weights: bool | str) -> str:
    if not weights:
        return "random"
    config = model.pretrained_cfg
    return str(weights) if isinstance(weights, str) else f"timm {config['architecture']}.{config.get('tag', '')}"
