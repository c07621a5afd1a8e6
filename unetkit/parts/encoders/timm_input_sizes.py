"""Which sizes a timm model takes, and what it must be made with to take them: tried on meta tensors, once a process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import timm
from torch import Tensor

from unetkit.errors import BuildError, OptionError
from unetkit.parts.encoders.input_sizes import TRIES, accepts, enclosing_sizes, round_up, search
from unetkit.parts.encoders.timm_features import FeatureMaps, TimmSpec, flatten, nchw, read_feature_maps
from unetkit.parts.encoders.timm_weights import find_timm_weights
from unetkit.utils.formatting import Size


@dataclass(frozen=True)
class SizeLimits:
    """What an encoder of a timm model is made with, and what it declares.

    Attributes:
        maps: which maps it gives.
        extra: what timm is asked for beside the request.
        own: the size that the model is meant for.
        flat: whether its map is asked for as (B, N, C), where timm's own (B, C, H, W) reads values of tensors.
        min_size, multiple, size: as an encoder declares them.
    """

    maps: FeatureMaps
    extra: dict[str, Any]
    own: Size
    flat: bool = False
    min_size: int = 1
    multiple: int = 1
    size: Size | None = None

    def padded(self, size: Size) -> Size:
        """The size that an input is padded to."""
        if self.size:
            return max(size[0], self.size[0]), max(size[1], self.size[1])
        height, width = (max(self.min_size, round_up(side, self.multiple)) for side in size)
        return height, width


@cache
def probe(request: TimmSpec, levels: int | None, img_size: Size | None) -> SizeLimits:
    """All that is to be known of a model before it is built.

    Args:
        request: the model.
        levels: how many of its maps to use, counted from the shallowest; None means all.
        img_size: the size that it is meant for, where that is not timm's.

    Raises:
        BuildError: timm cannot make it, not with so many levels, or not for this size.
        OptionError: the size has a side below 1.
    """
    if img_size and min(img_size) < 1:
        raise OptionError(f"timm/{request.name}: img_size={_by(img_size)} has a side below 1; give (height, width)")
    facts = _Trial(request, levels).facts()
    if img_size is None or img_size == facts.own:
        return facts
    if facts.size:
        return _rebuilt(request, levels, facts, img_size)
    with suppress(BuildError):
        made = _Trial(request, levels, img_size=facts.padded(img_size)).facts()
        # Positions are made for the size; windows that grew with it would only narrow what the model takes.
        if (made.min_size, made.multiple, made.size) == (facts.min_size, facts.multiple, None):
            return made
    return facts


def _rebuilt(request: TimmSpec, levels: int | None, facts: SizeLimits, img_size: Size) -> SizeLimits:
    """What a model of one size is for another; the smallest for which timm makes it and that holds the other."""
    for size in _candidates(facts, img_size):
        with suppress(BuildError):
            trial = _Trial(request, levels, img_size=size)
            if trial.passes(*size):
                return trial.fixed()
    if facts.padded(img_size) == facts.size:
        return facts
    raise BuildError(
        f"timm/{request.name} takes {_by(facts.own)} only, and timm cannot make it for {_by(img_size)}; "
        f"give --size {_by(facts.own)} or less, or take another encoder"
    )


def _candidates(facts: SizeLimits, img_size: Size) -> Iterator[Size]:
    """Multiples of the deepest stride, then of the model's own side, that hold an image, the nearest first."""
    steps = [facts.maps.step * times for times in range(1, TRIES + 1)] + [max(facts.own)]
    yield from enclosing_sizes(img_size, steps)


class _Trial:
    """A model on meta, tried at sizes."""

    def __init__(self, request: TimmSpec, levels: int | None, **extra: Any) -> None:
        self.in_channels = request.in_channels
        self.ghost, self.extra = _flexible(request, extra)
        self.maps = read_feature_maps(request, self.ghost, levels)
        if self.maps.only:
            self.extra["out_indices"] = self.maps.only
            self.ghost = request.meta_model(**self.extra)
        height, width = extra.get("img_size", self.ghost.pretrained_cfg["input_size"][-2:])
        self.own: Size = height, width
        getter = hasattr(self.ghost, "out_indices")
        self.flat = bool(self.maps.pyramid) and getter and not self.passes(height, width)
        if self.flat:
            flatten(self.ghost)

    def passes(self, *size: int) -> bool:
        """Whether a height and width pass, with maps of the sizes that their strides say."""

        def fit(given: list[Tensor]) -> bool:
            return self.maps.fit(nchw(given, self.ghost, self.maps, size), size)

        return accepts(self.ghost, self.in_channels, *size, fit=fit)

    def fixed(self) -> SizeLimits:
        """What it is where it takes one size only."""
        return SizeLimits(self.maps, self.extra, self.own, self.flat, size=self.own)

    def facts(self) -> SizeLimits:
        """What its sizes are. Who takes its own size, but not twice that, takes no multiple of anything."""
        step, (height, width) = self.maps.step, self.own
        said = self.ghost.pretrained_cfg.get("fixed_input_size")
        if said and not self.passes(2 * height, 2 * width) and self.passes(height, width):
            return self.fixed()
        found = search(self.passes, step, max(self.own), aligned=bool(self.maps.pyramid))
        if found is None and self.passes(height, width):
            return self.fixed()
        return SizeLimits(self.maps, self.extra, self.own, self.flat, *(found or (step, step)))


def _flexible(request: TimmSpec, extra: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A model on meta that takes many sizes, where timm makes it so when asked, and what it was asked for."""
    find_timm_weights(request.name, pretrained=False, loads=False)
    if timm.get_pretrained_cfg(request.name).fixed_input_size:
        with suppress(BuildError):
            return _ghost(request, {**extra, "dynamic_img_size": True})
    return _ghost(request, {**extra})


def _ghost(request: TimmSpec, extra: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A model on meta, and what it was asked for: its last map, where it is a transformer that has not timm's three."""
    try:
        return request.meta_model(**extra), extra
    except BuildError:
        with suppress(BuildError):
            last = {**extra, "out_indices": 1}
            ghost = request.meta_model(**last)
            if hasattr(ghost, "out_indices"):
                return ghost, last
        raise


def _by(size: Size) -> str:
    return f"{size[0]}x{size[1]}"
