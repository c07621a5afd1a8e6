"""The interface of each kind of part, for type checkers; a part need not inherit from these classes.

To let a type checker compare a class with the interface of its kind, its arguments included, annotate it:
`_factory: Callable[[int, int], Fusion] = MyFusion`. A network calls a part as a module, with `part(x)`; `forward` is in
each interface because `torch.nn.Module` declares that it can be called with anything.

Shapes are NCHW. In a factory, positional parameters are supplied by the builder, and keyword-only ones are the user's
options. There is no `**kwargs`, so that an option that does not exist is an error. Only the factory of a library
(`Registry.add_library`) may have it, and must raise OptionError for options that the library would not use.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from unetkit.utils.formatting import Size

    Outputs = Tensor | tuple[Tensor, ...] | Mapping[str, Tensor]


class Encoder(Protocol):
    """The factory is `(in_channels, *, ...)`.

    Attributes:
        channels: the channels of each map, shallow to deep.
        strides: the stride of each map, strictly increasing.
        valid: True if unpadded convolutions make maps smaller on purpose, so that the output is smaller than the input.
            Optional, False.
        min_size: the smallest height and width that it accepts. Optional, the deepest stride. The network pads smaller
            inputs, unless the encoder is valid.
        multiple: height and width must be multiples of this number; the network pads inputs, unless convolutions are
            valid. Optional, 1.
        size: the only height and width that it accepts, if there is only one; smaller inputs are padded, unless
            convolutions are valid, larger ones are errors. Optional, None. An encoder that can be built for a size has
            an option `img_size`, (height, width), which receives `--size`.
        widths: for each map, the width of the stage that joins it if no widths are given, for maps that concatenate
            several maps. Optional, `channels`.
        weights_from: where its weights come from, in words, for the trace. Optional, "random".
        pretrained_part: name of the module within it that pretrained weights fill. Optional, "": all of it.
        source: where each map comes from, for the trace. Optional.
        statistics: a method without arguments that returns the mean and the standard deviation by which images must be
            normalized for its pretrained weights, or None; see `unetkit.parts.encoders.normalization`. Optional.
    """

    @property
    def channels(self) -> tuple[int, ...]: ...

    @property
    def strides(self) -> tuple[int, ...]: ...

    def forward(self, x: Tensor, /) -> list[Tensor]:
        """(B, C, H, W) -> maps of (B, channels[i], about H / strides[i], about W / strides[i])."""
        ...

    def __call__(self, x: Tensor, /) -> list[Tensor]: ...


class Upsampler(Protocol):
    """The factory is `(channels, scale, *, ...)`."""

    @property
    def out_channels(self) -> int: ...

    def forward(self, x: Tensor, size: Size, /) -> Tensor:
        """(B, channels, h, w) -> (B, out_channels, *size), or the nearest size that this upsampler can return."""
        ...

    def __call__(self, x: Tensor, size: Size, /) -> Tensor: ...


class Align(Protocol):
    """The factory is `(*, ...)`. An alignment brings the upsampled map and the skip to one size."""

    def target_size(self, scaled: Size, skip: Size, /) -> Size:
        """Return the size that the upsampler should return.

        `scaled` (the map's size times the scale) or `skip` (the skip's size).
        """
        ...

    def forward(self, x: Tensor, skip: Tensor, /) -> tuple[Tensor, Tensor]:
        """(B, C, h, w), (B, D, H, W) -> both with the same height and width."""
        ...

    def __call__(self, x: Tensor, skip: Tensor, /) -> tuple[Tensor, Tensor]: ...


class Fusion(Protocol):
    """The factory is `(x_channels, skip_channels, *, ...)`."""

    @property
    def out_channels(self) -> int: ...

    def forward(self, x: Tensor, skip: Tensor, /) -> Tensor:
        """(B, x_channels, H, W), (B, skip_channels, H, W) -> (B, out_channels, H, W)."""
        ...

    def __call__(self, x: Tensor, skip: Tensor, /) -> Tensor: ...


class Block(Protocol):
    """The factory is `(in_channels, out_channels, *, ...)`. A block may have `valid` like an encoder."""

    def forward(self, x: Tensor, /) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H', W')."""
        ...

    def __call__(self, x: Tensor, /) -> Tensor: ...


@dataclass(frozen=True)
class Output:
    """The target and the loss that train an output of a network beside its prediction.

    Attributes:
        target: the target that it is trained on, with options, such as "boundary:width=2"; see `unetkit list targets`.
        loss: a sum of losses as for `--loss`, such as "bce+dice"; "" selects the one that fits the target.
        weight: the factor of its loss in the sum of all losses, in which the prediction's loss has a factor of 1.
    """

    target: str
    loss: str = ""
    weight: float = 1.0


class Model(Protocol):
    """The factory is `(in_channels, classes, *, ...)`. A whole model replaces all parts.

    Attributes:
        min_size: the smallest height and width that it accepts. Optional, 1. The network pads smaller inputs.
        multiple: height and width must be multiples of this number; the network pads inputs. Optional, 1.
        size: the only height and width that it accepts, as for an encoder. Optional, None.
        weights_from: where the weights of its encoder come from, in words, for the trace. Optional, "random".
        pretrained_part: name of its encoder, which pretrained weights fill. Optional, "": all of it.
        source: where each map of its encoder comes from, for the trace. Optional.
        statistics: as for an encoder. Optional.
        outputs: as for a head. Optional.

    The option `encoder` receives `--encoder` as text with its library ("timm/resnet34"), `pretrained` receives
    `--pretrained`, and `img_size` receives `--size`. Without the first two options, `--encoder` and `--pretrained` are
    errors.
    """

    def forward(self, x: Tensor, /) -> Outputs:
        """(B, in_channels, H, W) -> logits (B, classes, H, W), or several outputs as those of a head."""
        ...

    def __call__(self, x: Tensor, /) -> Outputs: ...


class Head(Protocol):
    """The factory is `(in_channels, classes, *, ...)`.

    Attributes:
        outputs: for each named output but the prediction, the target and the loss that train it. Optional; needed if
            the head returns a dict.
    """

    def forward(self, x: Tensor, /) -> Outputs:
        """(B, in_channels, H, W) -> logits (B, classes, H, W), or several outputs.

        A dict has outputs by name: the one called "mask", or else the first, is the prediction, with the shape above,
        and each other is (B, C, H, W) and is trained on the target that `outputs` declares. A tuple, which is allowed
        in training mode only, has further predictions of the same classes after the first, (B, classes, h, w), which
        are trained on the mask (deep supervision).
        """
        ...

    def __call__(self, x: Tensor, /) -> Outputs: ...
