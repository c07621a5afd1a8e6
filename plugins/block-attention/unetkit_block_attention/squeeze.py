"""What both blocks have in common: they keep the channels, and weigh them through a narrow layer."""

from __future__ import annotations

from torch import nn

from unetkit.errors import BuildError, OptionError


def same_channels(name: str, in_channels: int, out_channels: int) -> int:
    """The channels of a block that keeps them. Raises BuildError where it is asked to change them."""
    if in_channels != out_channels:
        raise BuildError(
            f"{name} keeps the channels, and cannot join {in_channels} to {out_channels}; "
            f"put it after a block that does: double+{name}"
        )
    return in_channels


def squeeze(channels: int, reduction: int, *, least: int = 1) -> nn.Sequential:
    """Two linear layers without bias, narrow between them: (B, C, 1, 1) -> (B, C, 1, 1).

    Args:
        channels: in and out.
        reduction: between the layers are channels // reduction.
        least: channels that there are between them at any rate, where there are as many.

    Raises:
        OptionError: a reduction below 1.
    """
    if reduction < 1:
        raise OptionError(f"reduction={reduction}: takes at least 1")
    inner = max(min(least, channels), channels // reduction)
    return nn.Sequential(
        nn.Conv2d(channels, inner, 1, bias=False),
        nn.ReLU(inplace=True),
        nn.Conv2d(inner, channels, 1, bias=False),
    )
