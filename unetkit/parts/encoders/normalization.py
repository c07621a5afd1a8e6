"""The mean and standard deviation by which images were normalized when an encoder's weights were pretrained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import nn

#: Mean and standard deviation of red, green and blue, for values from 0 to 1.
NormalizationStats = tuple[tuple[float, ...], tuple[float, ...]]


def get_normalization_stats(encoder: nn.Module) -> NormalizationStats | None:
    """Return the mean and standard deviation that an encoder's pretrained weights expect.

    Args:
        encoder: the `encoder` of a network, or a whole model; one of a plugin declares them by a method `statistics()`.

    Returns:
        Mean and standard deviation of three channels, however many the encoder takes. None where the weights are
        random, where the encoder's library does not declare them, or where they are not for RGB values from 0 to 1.

    Raises:
        BuildError: they are in a file on the hub that cannot be read.
    """
    statistics = getattr(encoder, "statistics", None)
    return cast("NormalizationStats | None", statistics()) if callable(statistics) else None


def parse_normalization_stats(config: Mapping[str, Any]) -> NormalizationStats | None:
    """Read mean and standard deviation from the configuration that timm or smp keeps beside weights.

    Return None where they are missing or are not for RGB values from 0 to 1.
    """
    is_rgb = [*config.get("input_range", (0, 1))] == [0, 1] and config.get("input_space", "RGB") == "RGB"
    if not is_rgb or "mean" not in config or "std" not in config:
        return None
    return tuple(map(float, config["mean"])), tuple(map(float, config["std"]))
