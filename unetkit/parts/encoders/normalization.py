"""What images were normalised by when an encoder's pretrained weights were made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import nn

#: Mean and standard deviation of red, green and blue, of values from 0 to 1.
Statistics = tuple[tuple[float, ...], tuple[float, ...]]


def statistics_of(encoder: nn.Module) -> Statistics | None:
    """Those that an encoder, or a whole model, says its weights were made with.

    None where they are random, or its library does not say, or says what is not of RGB from 0 to 1. They are of three
    channels, however many the encoder takes.

    Args:
        encoder: as a network has it in `encoder`; one of a plugin says them by a method `statistics()`.

    Raises:
        BuildError: they stand in a file of smp's hub, which cannot be had.
    """
    told = getattr(encoder, "statistics", None)
    return cast("Statistics | None", told()) if callable(told) else None


def of_config(config: Mapping[str, Any]) -> Statistics | None:
    """Those of the settings that timm or smp keeps with weights."""
    ranged = [*config.get("input_range", (0, 1))] == [0, 1] and config.get("input_space", "RGB") == "RGB"
    if not ranged or "mean" not in config or "std" not in config:
        return None
    return tuple(map(float, config["mean"])), tuple(map(float, config["std"]))
