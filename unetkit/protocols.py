"""What each kind of part promises. Typing only: a part need not inherit from these.

Shapes are NCHW. In a factory, positional parameters are wiring that the builder supplies, keyword-only ones are the
user's options; there is no `**kwargs`, so that an option that does not exist is refused. Only the factory of a library
(`Registry.add_library`) may take them, where it refuses with OptionError what the library would not use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from unetkit.utils.formatting import Size


class Encoder(Protocol):
    """Made by `(in_channels, *, ...)`.

    Attributes:
        channels: of each map it gives, shallow to deep.
        strides: of each, strictly increasing.
        valid: True where unpadded convolutions shorten the maps on purpose, so that the output stays smaller than
            the input. Optional, False.
        min_size: the smallest height and width that it takes. Optional, the deepest stride. A smaller input is padded
            by the network, unless the encoder is valid.
        multiple: what height and width must be multiples of, padded likewise. Optional, 1.
        size: the one height and width that it takes, where it takes only one; a smaller input is padded to it, a larger
            one refused. Optional, None. An encoder that can be built for a size has an option `img_size`, (height,
            width), which is given what `--size` says.
        widths: for each map, how wide a stage that joins it is where no widths are said; for maps that hold several
            side by side. Optional, `channels`.
        weights_from: where its weights come from, in words, for the trace. Optional, "random".
        source: for each map, where it comes from, for the trace. Optional.
        statistics: a method without arguments, which gives the mean and the standard deviation that its pretrained
            weights take images by, or None; see `unetkit.parts.encoders.normalization`. Optional.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]

    def __call__(self, x: Tensor, /) -> list[Tensor]:
        """(B, C, H, W) -> maps of (B, channels[i], about H / strides[i], about W / strides[i])."""
        ...


class Upsampler(Protocol):
    """Made by `(channels, scale, *, ...)`."""

    out_channels: int

    def __call__(self, x: Tensor, size: Size, /) -> Tensor:
        """(B, channels, h, w) -> (B, out_channels, *size), or what is nearest to that size for this upsampler."""
        ...


class Align(Protocol):
    """Made by `(*, ...)`: brings the upsampled map and the skip to one size."""

    def target_size(self, scaled: Size, skip: Size, /) -> Size:
        """The size to ask the upsampler for: `scaled` (the map's times the scale) or `skip` (the skip's)."""
        ...

    def __call__(self, x: Tensor, skip: Tensor, /) -> tuple[Tensor, Tensor]:
        """(B, C, h, w), (B, D, H, W) -> both with one height and width."""
        ...


class Fusion(Protocol):
    """Made by `(x_channels, skip_channels, *, ...)`."""

    out_channels: int

    def __call__(self, x: Tensor, skip: Tensor, /) -> Tensor:
        """(B, x_channels, H, W), (B, skip_channels, H, W) -> (B, out_channels, H, W)."""
        ...


class Block(Protocol):
    """Made by `(in_channels, out_channels, *, ...)`. May declare `valid` as an encoder does."""

    def __call__(self, x: Tensor, /) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H', W')."""
        ...


class Model(Protocol):
    """Made by `(in_channels, classes, *, ...)`: a whole model, in place of parts.

    Attributes:
        min_size: the smallest height and width that it takes. Optional, 1. A smaller input is padded by the network.
        multiple: what height and width must be multiples of, padded likewise. Optional, 1.
        size: the one height and width that it takes, where it takes only one, as of an encoder. Optional, None.
        weights_from: where its encoder's weights come from, in words, for the trace. Optional, "random".
        source: for each map of the part that gives several, where it comes from, for the trace. Optional.
        statistics: as of an encoder. Optional.

    What `--encoder` says is given to an option `encoder` as text, with the library that it is of ("timm/resnet34"),
    what `--pretrained` says to `pretrained`, and `--size` to `img_size`; without such an option the first two are
    refused.
    """

    def __call__(self, x: Tensor, /) -> Tensor:
        """(B, in_channels, H, W) -> logits (B, classes, H, W)."""
        ...


class Head(Protocol):
    """Made by `(in_channels, classes, *, ...)`."""

    def __call__(self, x: Tensor, /) -> Tensor:
        """(B, in_channels, H, W) -> logits (B, classes, H, W)."""
        ...
