"""One timm model's feature network, as timm makes it; what timm raises, in one line that says what to do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from timm.layers import Format
from torch import Tensor

from unetkit.errors import BuildError, UnetkitError
from unetkit.parts.encoders.feature_pyramid import MADE_BY, scales_of
from unetkit.parts.encoders.timm_weights import capture_load, check_keys, find_timm_weights


class TimmSpec(NamedTuple):
    """What is asked of timm: a name, channels of the input, the stride to dilate from, and timm's own options."""

    name: str
    in_channels: int
    output_stride: int = 32
    options: tuple[tuple[str, Any], ...] = ()

    def create(self, weights: bool | str = False, **extra: Any) -> Any:
        """Its feature network, with timm's weights (True), those of a file, or random ones.

        Args:
            weights: as said.
            extra: more of timm's options; those that were asked for go before them.

        Raises:
            BuildError: timm does not make it so, or has no such weights.
        """
        options = {**extra, **dict(self.options)}
        if self.output_stride != 32:
            options["output_stride"] = self.output_stride
        if isinstance(weights, str):
            if not Path(weights).is_file():
                raise BuildError(f"there is no weights file {weights}; --pretrained takes a file in timm's format")
            options["pretrained_cfg_overlay"] = {"file": weights}
        loads = bool(weights) and torch.get_default_device().type != "meta"
        try:
            find_timm_weights(self.name, pretrained=weights is True, loads=loads)
            with capture_load(loads) as loadings:
                model = timm.create_model(
                    self.name, features_only=True, in_chans=self.in_channels, pretrained=loads, **options
                )
            check_keys(self.name, model, loadings)
        except MemoryError:
            raise
        except Exception as error:  # whatever timm, its hub client or a file's reader raises
            raise BuildError(self._reason(error, weights)) from error
        return model

    def meta_model(self, **extra: Any) -> Any:
        """Its feature network on meta, in eval mode."""
        with torch.device("meta"):
            return self.create(**extra).eval()

    def _reason(self, error: Exception, weights: bool | str) -> str:
        text = " ".join(str(error).split())[:300]
        why = text if isinstance(error, UnetkitError) else f"{type(error).__name__}: {text}".rstrip(": ")
        if weights:
            where = f"read from {weights}" if isinstance(weights, str) else "had from timm's hub"
            return (
                f"the pretrained weights of timm/{self.name} cannot be {where} ({why}); give a file in timm's format "
                "with `--pretrained FILE`, or leave --pretrained out for random weights"
            )
        if isinstance(error, UnetkitError):
            return text
        if self.options:
            said = ", ".join(f"{name}={value}" for name, value in self.options)
            return f"timm/{self.name} cannot be made with {said} ({why}); leave it out, or give another value"
        if self.output_stride != 32:
            said = f"timm/{self.name} does not take output_stride={self.output_stride}"
            return f"{said} ({why}); leave it out, or take a ResNet"
        return f"timm/{self.name} gives no feature maps ({why})"


class FeatureMaps(NamedTuple):
    """The maps of an encoder, shallow to deep.

    Attributes:
        only: the indices that timm is asked for, so that it leaves out what no map needs; None for its own choice.
        take: which of the maps that timm then gives are used.
        strides, channels: of those.
        source: for each map of the encoder, timm's module and reduction.
        pyramid: the strides of the pyramid that is made of the one map; () where the model has its own.
    """

    only: tuple[int, ...] | None
    take: tuple[int, ...]
    strides: tuple[int, ...]
    channels: tuple[int, ...]
    source: tuple[str, ...]
    pyramid: tuple[int, ...] = ()

    def fit(self, given: list[Tensor], size: Sequence[int]) -> bool:
        """Whether maps of an input of (H, W) have the channels and about the sizes that are declared.

        Valid convolutions take some off; a model that makes one size of every input is off by far.
        """
        for x, stride, channels in zip(given, self.strides, self.channels, strict=True):
            wanted = [side / stride for side in size]
            if x.shape[1] != channels or any(
                not 0.7 * w - 2 <= side <= w + 2 for w, side in zip(wanted, x.shape[2:], strict=True)
            ):
                return False
        return True

    @property
    def step(self) -> int:
        """What sides are multiples of where every map is to have a whole number of pixels."""
        return max(self.strides + self.pyramid)


def read_feature_maps(request: TimmSpec, network: Any, levels: int | None) -> FeatureMaps:
    """The maps of a feature network, the first `levels` of them; raises BuildError where it has not so many.

    Where several maps have one stride, the deepest of them is given; where all have, a pyramid is made of the last.
    """
    info = network.feature_info
    strides, channels, modules = info.reduction(), info.channels(), info.module_name()
    if request.output_stride != 32 and strides[-1] > request.output_stride:
        raise BuildError(
            f"timm/{request.name} does not take output_stride={request.output_stride}: its deepest map stays at stride "
            f"{strides[-1]}; leave it out, or take a ResNet"
        )
    last = len(strides) - 1
    take = [i for i, stride in enumerate(strides) if i == last or strides[i + 1] > stride]
    source = [f"timm {modules[i]}, reduction {strides[i]}" for i in take]
    scales = scales_of(strides[last]) if len(take) == 1 else []
    if levels is not None and not 2 <= levels <= len(scales or take):
        raise BuildError(
            f"timm/{request.name} gives {len(scales or take)} maps; levels={levels} must be from 2 to that"
        )
    if scales:
        pyramid = tuple(int(strides[last] / scale) for scale in scales[:levels])
        made = tuple(source[0] + MADE_BY[scale] for scale in scales[:levels])
        return FeatureMaps((info.out_indices[last],), (0,), (strides[last],), (channels[last],), made, pyramid)
    chosen = take[:levels]
    only = None if levels is None else tuple(info.out_indices[i] for i in chosen)
    return FeatureMaps(
        only,
        tuple(range(len(chosen)) if only else chosen),
        tuple(strides[i] for i in chosen),
        tuple(channels[i] for i in chosen),
        tuple(source[:levels]),
    )


def flatten(network: Any) -> None:
    """Ask a getter for maps as (B, N, C), where its own (B, C, H, W) reads values of tensors."""
    network.output_fmt = Format.NLC


def nchw(given: list[Tensor], network: Any, maps: FeatureMaps, size: Sequence[int]) -> list[Tensor]:
    """Those of the maps that a network gives for an input of (H, W) that are used, each as (B, C, h, w)."""
    layout = getattr(network, "output_fmt", Format.NCHW)
    taken = [given[i] for i in maps.take]
    if layout == Format.NHWC:
        return [x.permute(0, 3, 1, 2) for x in taken]
    if layout == Format.NLC:
        rows, columns = (side // maps.strides[0] for side in size)
        return [x.transpose(1, 2).reshape(*x.shape[::2], rows, columns) for x in taken]
    return taken
