"""Input sizes that a timm model takes, and the options that it must be built with to take them.

A model is tried on meta tensors, once per process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import timm
from torch import Tensor

from unetkit.errors import BuildError, OptionError
from unetkit.parts.encoders.input_sizes import MAX_MULTIPLES, accepts, enclosing_sizes, search_size_limits
from unetkit.parts.encoders.timm_features import FeatureMaps, TimmSpec, read_feature_maps, set_nlc_output, to_nchw
from unetkit.parts.encoders.timm_weights import check_timm_weights
from unetkit.utils.formatting import Size, format_size
from unetkit.utils.integers import round_up


@dataclass(frozen=True)
class SizeLimits:
    """Size limits of a timm model, with the options and the maps for which they hold.

    Attributes:
        maps: the feature maps that it gives.
        timm_options: options for timm beside those of the specification.
        native_size: the size that the model was designed for.
        has_nlc_output: whether its map is requested as (B, N, C), because timm's (B, C, H, W) reads values of tensors.
        min_size: the smallest height and width.
        multiple: what height and width must be multiples of.
        size: the only size that it takes; None where it takes many.
    """

    maps: FeatureMaps
    timm_options: dict[str, Any]
    native_size: Size
    has_nlc_output: bool = False
    min_size: int = 1
    multiple: int = 1
    size: Size | None = None

    def padded_size(self, size: Size) -> Size:
        """Return the size to which an input is padded."""
        if self.size:
            return max(size[0], self.size[0]), max(size[1], self.size[1])
        height, width = (max(self.min_size, round_up(side, self.multiple)) for side in size)
        return height, width


@cache
def probe(spec: TimmSpec, levels: int | None, img_size: Size | None) -> SizeLimits:
    """Find the size limits of a model before it is built.

    Args:
        spec: the model.
        levels: number of its maps to use, counted from the shallowest; None means all.
        img_size: the size to build it for; None means timm's default.

    Raises:
        BuildError: timm cannot build it, or not with this number of levels or for this size.
        OptionError: the size has a side below 1.
    """
    if img_size and min(img_size) < 1:
        raise OptionError(
            f"timm/{spec.name}: img_size={format_size(img_size)} has a side below 1; give a positive height and width"
        )
    limits = _SizeProbe(spec, levels).find_limits()
    if img_size is None or img_size == limits.native_size:
        return limits
    if limits.size:
        return _probe_for_size(spec, levels, limits, img_size)
    with suppress(BuildError):
        # Position embeddings are made for the size; windows that grow with it would only restrict the accepted sizes.
        resized = _SizeProbe(spec, levels, img_size=limits.padded_size(img_size)).find_limits()
        if (resized.min_size, resized.multiple, resized.size) == (limits.min_size, limits.multiple, None):
            return resized
    return limits


def _probe_for_size(spec: TimmSpec, levels: int | None, limits: SizeLimits, img_size: Size) -> SizeLimits:
    """Find the smallest size that encloses `img_size` and for which timm can build a model of one fixed size."""
    for size in _candidate_sizes(limits, img_size):
        with suppress(BuildError):
            size_probe = _SizeProbe(spec, levels, img_size=size)
            if size_probe.accepts_size(*size):
                return size_probe.fixed_limits()
    if limits.padded_size(img_size) == limits.size:
        return limits
    native_size = format_size(limits.native_size)
    raise BuildError(
        f"timm/{spec.name} takes {native_size} only, and timm cannot build it for {format_size(img_size)}; "
        f"give --size {native_size} or less, or use another encoder"
    )


def _candidate_sizes(limits: SizeLimits, img_size: Size) -> Iterator[Size]:
    """Yield sizes that enclose an image, of multiples of the deepest stride and of the native side, smallest first."""
    multiples = [limits.maps.max_stride * times for times in range(1, MAX_MULTIPLES + 1)] + [max(limits.native_size)]
    yield from enclosing_sizes(img_size, multiples)


class _SizeProbe:
    """A model on the meta device whose input sizes are probed."""

    def __init__(self, spec: TimmSpec, levels: int | None, **timm_options: Any) -> None:
        self.in_channels = spec.in_channels
        self.meta_model, self.timm_options = _create_flexible(spec, timm_options)
        self.maps = read_feature_maps(spec, self.meta_model, levels)
        if self.maps.out_indices:
            self.timm_options["out_indices"] = self.maps.out_indices
            self.meta_model = spec.create_on_meta(**self.timm_options)
        height, width = timm_options.get("img_size", self.meta_model.pretrained_cfg["input_size"][-2:])
        self.native_size: Size = height, width
        is_getter = hasattr(self.meta_model, "out_indices")  # timm's FeatureGetterNet, which can give (B, N, C)
        has_pyramid = bool(self.maps.pyramid_strides)
        self.has_nlc_output = has_pyramid and is_getter and not self.accepts_size(height, width)
        if self.has_nlc_output:
            set_nlc_output(self.meta_model)

    def accepts_size(self, height: int, width: int) -> bool:
        """Return whether the model takes a size and gives maps of the declared shapes."""
        size = height, width

        def is_valid_output(outputs: list[Tensor]) -> bool:
            return self.maps.has_declared_shapes(to_nchw(outputs, self.meta_model, self.maps, size), size)

        return accepts(self.meta_model, self.in_channels, *size, is_valid_output=is_valid_output)

    def fixed_limits(self) -> SizeLimits:
        """Return the limits of a model that takes its native size only."""
        return SizeLimits(self.maps, self.timm_options, self.native_size, self.has_nlc_output, size=self.native_size)

    def find_limits(self) -> SizeLimits:
        """Find the limits. A model that takes its native size, but not twice that size, takes no other size either."""
        stride, (height, width) = self.maps.max_stride, self.native_size
        is_fixed = self.meta_model.pretrained_cfg.get("fixed_input_size")
        if is_fixed and not self.accepts_size(2 * height, 2 * width) and self.accepts_size(height, width):
            return self.fixed_limits()
        aligned = bool(self.maps.pyramid_strides)
        found = search_size_limits(self.accepts_size, stride, max(self.native_size), aligned=aligned)
        if found is None and self.accepts_size(height, width):
            return self.fixed_limits()
        limits = found or (stride, stride)
        return SizeLimits(self.maps, self.timm_options, self.native_size, self.has_nlc_output, *limits)


def _create_flexible(spec: TimmSpec, timm_options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Create a model on meta, one that takes many sizes if timm can build it so, and return it with its options."""
    check_timm_weights(spec.name, pretrained=False, loads=False)
    if timm.get_pretrained_cfg(spec.name).fixed_input_size:
        with suppress(BuildError):
            return _create_meta_model(spec, {**timm_options, "dynamic_img_size": True})
    return _create_meta_model(spec, {**timm_options})


def _create_meta_model(spec: TimmSpec, timm_options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Create a model on meta, and return it with its options.

    A transformer with fewer blocks than the three that timm takes maps from is asked for its last map.
    """
    try:
        return spec.create_on_meta(**timm_options), timm_options
    except BuildError:
        with suppress(BuildError):
            last_map = {**timm_options, "out_indices": 1}
            meta_model = spec.create_on_meta(**last_map)
            if hasattr(meta_model, "out_indices"):
                return meta_model, last_map
        raise
