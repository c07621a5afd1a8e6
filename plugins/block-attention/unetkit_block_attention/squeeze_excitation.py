"""Helpers of both blocks: a check that the number of channels stays the same, and the excitation layers."""

from __future__ import annotations

from torch import nn

from unetkit.errors import BuildError, OptionError


def check_same_channels(name: str, in_channels: int, out_channels: int) -> None:
    """Raise BuildError where the channels of a block that cannot change their number differ."""
    if in_channels != out_channels:
        raise BuildError(
            f"{name} keeps the number of channels and cannot change it from {in_channels} to {out_channels}; "
            f"put it after a block that does, as in double+{name}"
        )


def make_excitation(
    channels: int,
    reduction: int,
    *,
    min_channels: int = 1,
) -> nn.Sequential:
    """Make two linear layers without bias, with fewer channels between them: (B, C, 1, 1) -> (B, C, 1, 1).

    Args:
        channels: C, the channels of input and output.
        reduction: between the layers there are channels // reduction channels.
        min_channels: lower bound of the channels between the layers, if the map has as many.

    Raises:
        OptionError: the reduction is below 1.
    """
    if reduction < 1:
        raise OptionError(f"reduction={reduction} must be at least 1")
    inner = max(min(min_channels, channels), channels // reduction)
    return nn.Sequential(
        nn.Conv2d(channels, inner, 1, bias=False),
        nn.ReLU(inplace=True),
        nn.Conv2d(inner, channels, 1, bias=False),
    )
