"""Feature networks of timm models: how one is created, and which feature maps it gives.

timm's errors are raised anew as a BuildError of one line that says what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from timm.layers import Format
from torch import Tensor

from unetkit.errors import BuildError, UnetkitError
from unetkit.parts.encoders.feature_pyramid import SCALE_LABELS, get_scales
from unetkit.parts.encoders.timm_weights import capture_load, check_keys, check_timm_weights


class TimmSpec(NamedTuple):
    """Specification of a feature network for timm.

    Attributes:
        name: the model's name in timm, with or without a tag.
        in_channels: channels of the input.
        output_stride: largest stride of its maps, reached by dilation; 32 leaves the model as it is.
        options: further options of the model's constructor, as sorted pairs.
    """

    name: str
    in_channels: int
    output_stride: int = 32
    options: tuple[tuple[str, Any], ...] = ()

    def create(self, pretrained: bool | str = False, **extra: Any) -> Any:
        """Create the feature network.

        Args:
            pretrained: True loads timm's weights, a path loads that file, False leaves the weights random.
            extra: options of the constructor to add; the options of this specification take precedence.

        Raises:
            BuildError: timm cannot create it, or has no such weights.
        """
        options = self.arguments(extra)
        if isinstance(pretrained, str):
            if not Path(pretrained).is_file():
                what = "is a folder" if Path(pretrained).is_dir() else "the file does not exist"
                raise BuildError(f"--pretrained {pretrained}: {what}; give a file in timm's format")
            options["pretrained_cfg_overlay"] = {"file": pretrained}
        loads = bool(pretrained) and torch.get_default_device().type != "meta"
        try:
            check_timm_weights(self.name, pretrained=pretrained is True, loads=loads)
            with capture_load(loads) as captured:
                model = timm.create_model(
                    self.name, features_only=True, in_chans=self.in_channels, pretrained=loads, **options
                )
            check_keys(self.name, model, captured)
        except MemoryError:
            raise
        except Exception as error:  # whatever timm, its hub client or a file's reader raises
            raise BuildError(self._describe_error(error, pretrained)) from error
        return model

    def arguments(self, extra: dict[str, Any]) -> dict[str, Any]:
        """Return the options of the model's constructor: these in addition to those of the specification."""
        dilation = {} if self.output_stride == 32 else {"output_stride": self.output_stride}
        return {**extra, **dict(self.options), **dilation}

    def create_on_meta(self, **extra: Any) -> Any:
        """Create the feature network on the meta device, in eval mode."""
        with torch.device("meta"):
            return self.create(**extra).eval()

    def _describe_error(self, error: Exception, pretrained: bool | str) -> str:
        text = " ".join(str(error).split())[:300]
        named = isinstance(error, UnetkitError | ValueError | AssertionError | RuntimeError)
        reason = text if named and text else f"{type(error).__name__}: {text}".rstrip(": ")
        why = f" ({reason})" if text else ""
        if pretrained:
            failure = f"read from {pretrained}" if isinstance(pretrained, str) else "loaded from timm's hub"
            return (
                f"the pretrained weights of timm/{self.name} cannot be {failure} ({reason}); give a file in timm's "
                "format with `--pretrained FILE`, or leave --pretrained out for random weights"
            )
        if isinstance(error, UnetkitError):
            return text
        if self.options:
            options = ", ".join(f"{name}={value}" for name, value in self.options)
            return f"timm/{self.name} cannot be built with {options}{why}; leave it out, or give another value"
        if self.output_stride != 32:
            refusal = f"timm/{self.name} does not take output_stride={self.output_stride}"
            return f"{refusal}{why}; leave it out, or use a ResNet"
        return f"timm/{self.name} has no feature maps ({reason})"


class FeatureMaps(NamedTuple):
    """The feature maps that an encoder uses of a timm model, shallow to deep.

    Attributes:
        out_indices: the indices that timm is asked for, so that it leaves out what no map needs; None for its default.
        selected: which of the maps that timm then gives are used.
        strides: strides of the used maps.
        channels: channels of the used maps.
        source: for each map of the encoder, timm's module and reduction.
        pyramid_strides: strides of the pyramid that is made from the one map; () where the model has its own maps.
    """

    out_indices: tuple[int, ...] | None
    selected: tuple[int, ...]
    strides: tuple[int, ...]
    channels: tuple[int, ...]
    source: tuple[str, ...]
    pyramid_strides: tuple[int, ...] = ()

    def has_declared_shapes(self, maps: list[Tensor], size: Sequence[int]) -> bool:
        """Return whether the maps of an input of a size have the declared channels and about the declared sizes.

        Valid convolutions make maps somewhat smaller; a model that makes one size of every input is far off.
        """
        for x, stride, channels in zip(maps, self.strides, self.channels, strict=True):
            expected = [side / stride for side in size]
            if x.shape[1] != channels or any(
                not 0.7 * e - 2 <= side <= e + 2 for e, side in zip(expected, x.shape[2:], strict=True)
            ):
                return False
        return True

    @property
    def max_stride(self) -> int:
        """The deepest stride, whose multiples as sides give every map a whole number of pixels."""
        return max(self.strides + self.pyramid_strides)


def read_feature_maps(spec: TimmSpec, network: Any, levels: int | None) -> FeatureMaps:
    """Read from a feature network which maps an encoder uses.

    Where several maps have one stride, the deepest of them is used; where all have one stride, a pyramid is made from
    the last.

    Args:
        spec: the specification of the network.
        network: a feature network of timm, also on meta.
        levels: number of maps to use, counted from the shallowest; None means all.

    Raises:
        BuildError: the network does not have as many maps, or does not dilate as its specification says.
    """
    info = network.feature_info
    strides, channels, modules = info.reduction(), info.channels(), info.module_name()
    if spec.output_stride != 32 and strides[-1] > spec.output_stride:
        raise BuildError(
            f"timm/{spec.name} does not take output_stride={spec.output_stride}: its deepest map stays at stride "
            f"{strides[-1]}; leave it out, or use a ResNet"
        )
    last = len(strides) - 1
    distinct = [i for i, stride in enumerate(strides) if i == last or strides[i + 1] > stride]
    source = [f"timm {modules[i]}, reduction {strides[i]}" for i in distinct]
    scales = get_scales(strides[last]) if len(distinct) == 1 else []
    count = len(scales or distinct)
    if levels is not None and not 2 <= levels <= count:
        raise BuildError(f"timm/{spec.name} has {count} feature maps; levels={levels} must be from 2 to {count}")
    if scales:
        pyramid_strides = tuple(int(strides[last] / scale) for scale in scales[:levels])
        pyramid_source = tuple(source[0] + SCALE_LABELS[scale] for scale in scales[:levels])
        return FeatureMaps(
            (info.out_indices[last],), (0,), (strides[last],), (channels[last],), pyramid_source, pyramid_strides
        )
    used = distinct[:levels]
    out_indices = None if levels is None else tuple(info.out_indices[i] for i in used)
    return FeatureMaps(
        out_indices,
        tuple(range(len(used)) if out_indices else used),
        tuple(strides[i] for i in used),
        tuple(channels[i] for i in used),
        tuple(source[:levels]),
    )


def set_nlc_output(network: Any) -> None:
    """Make a feature network of timm give maps as (B, N, C), where its (B, C, H, W) would read values of tensors."""
    network.output_fmt = Format.NLC


def to_nchw(outputs: list[Tensor], network: Any, maps: FeatureMaps, size: Sequence[int]) -> list[Tensor]:
    """Select the maps that are used, and bring each to (B, C, h, w).

    Args:
        outputs: what the network gave.
        network: the feature network.
        maps: says which of its outputs are used.
        size: height and width of the input.
    """
    layout = getattr(network, "output_fmt", Format.NCHW)
    selected = [outputs[i] for i in maps.selected]
    if layout == Format.NHWC:
        return [x.permute(0, 3, 1, 2) for x in selected]
    if layout == Format.NLC:
        rows, columns = (side // maps.strides[0] for side in size)
        return [x.transpose(1, 2).reshape(*x.shape[::2], rows, columns) for x in selected]
    return selected
