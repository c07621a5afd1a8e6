"""The forward pass of a U-Net over parts that are already built.

Shapes: B batch, C channels, H and W height and width; sizes are (H, W).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import lcm

import torch.nn.functional as F
from torch import Tensor, nn

from unetkit.errors import BuildError
from unetkit.network import Network, Outputs, prediction_of
from unetkit.protocols import Align, Block, Fusion, Upsampler
from unetkit.utils.formatting import Size
from unetkit.utils.integers import scale_side
from unetkit.utils.spatial import crop_end, is_same_size, size_of, strided_size


class Stage(nn.Module):
    """One level of the decoder: upsample, fuse with the skip, apply the block.

    Attributes:
        scale: the ratio of the stride below to its own.
        stride: the stride of its output.
        align, fusion: None if the encoder has no map of this stride.
    """

    def __init__(
        self, up: Upsampler, align: Align | None, fusion: Fusion | None, block: Block, *, scale: float, stride: int
    ) -> None:
        super().__init__()
        self.up = up
        self.align = align
        self.fusion = fusion
        self.block = block
        self.scale = scale
        self.stride = stride

    def forward(self, x: Tensor, skip: Tensor | None = None, input_size: Size | None = None) -> Tensor:
        """Decode one level.

        Args:
            x: the map from below, (B, C, h, w).
            skip: the encoder's map of this stride, (B, D, H, W); None if it has none.
            input_size: the size of the network's input, which gives that of the output without a skip; None, as for
                valid convolutions, means (h, w) times the scale.
        """
        below = round(self.stride * self.scale)  # the stride of x
        scaled = scale_side(x.shape[-2], below, self.stride), scale_side(x.shape[-1], below, self.stride)
        if skip is None or self.align is None or self.fusion is None:
            size = None if input_size is None else strided_size(input_size, self.stride)
            x = self.up(x, size or scaled)
            # A learned upsampler multiplies sizes that the encoder rounded up: what is too large is cropped.
            return self.block(x if size is None else crop_end(x, size))
        x = self.up(x, self.align.target_size(scaled, size_of(skip)))
        return self.block(self.fusion(*self.align(x, skip)))


class BlockSequence(nn.Sequential):
    """A chain of blocks, such as `double+scse`."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__(*blocks)
        self.valid = any(getattr(block, "valid", False) for block in blocks)


class UNet(Network):
    """An encoder, decoder stages, and a head.

    `_decode` is the forward pass; `Network.forward` returns all of its outputs in training and the logits in eval mode.

    Attributes:
        encoder: gives a map for each of its strides, shallow to deep; see `unetkit.protocols` for each part.
        stages: the decoder stages, deep to shallow.
        skips: the index of the encoder's map that each stage fuses; None for a stage without a skip.
        head: turns the last map into logits.
        logits: the upsampler that brings logits to the input size; None for `--logits none` and for networks of
            valid convolutions, whose output is smaller than the input.
    """

    def __init__(
        self,
        encoder: nn.Module,
        stages: Sequence[Stage],
        skips: Sequence[int | None],
        head: nn.Module,
        logits: nn.Module | None,
        *,
        min_size: int = 1,
        multiple: int = 1,
        size: Size | None = None,
        valid: bool = False,
    ) -> None:
        super().__init__(min_size=min_size, multiple=multiple, size=size, valid=valid)
        self.encoder = encoder
        self.stages = nn.ModuleList(stages)
        self.skips = tuple(skips)
        self.head = head
        self.logits = logits
        #: True if the upsampler of the logits has weights; it is then applied even to logits of the input size.
        self.has_learned_logits = logits is not None and any(True for _ in logits.parameters())
        self.output_stride = stages[-1].stride if logits is None else 1

    @property
    def output_part(self) -> nn.Module:
        return self.head

    def forward_features(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the logits, and the map of each stage, deep to shallow: (B, widths[i], h, w).

        If the input is padded (see `padded_size`), the maps are those of the padded input.
        """
        outputs, decoded = self._decode(x)
        return prediction_of(outputs), decoded

    def forward_auxiliary(self, x: Tensor, heads: nn.ModuleList) -> tuple[Tensor, ...]:
        """Return the logits, and those of further heads on earlier stages, which are resized to the size of the first.

        Args:
            x: images, (B, in_channels, H, W).
            heads: heads for the maps of the stages before the last, shallow to deep; there may be fewer than stages.
        """
        logits, decoded = self.forward_features(x)
        # A padded input is cropped as the logits are: after they are resized.
        padded = size_of(decoded[-1]) if self.logits is None else self.padded_size(size_of(x))
        earlier = zip(heads, decoded[-2::-1], strict=False)
        resized = (F.interpolate(head(features), padded, mode="bilinear") for head, features in earlier)
        return logits, *(crop_end(one, size_of(logits)) for one in resized)

    def _compute_outputs(self, x: Tensor) -> Outputs:
        outputs, _ = self._decode(x)
        return outputs

    def _decode(self, x: Tensor) -> tuple[Outputs, list[Tensor]]:
        """Return the outputs of the head, and the map of each stage."""
        size = size_of(x)
        x = self.pad_input(x)
        padded = size_of(x)
        maps: list[Tensor] = self.encoder(x)
        skips = (None if index is None else maps[index] for index in self.skips)
        x, decoded = maps[-1], []
        for stage, skip in zip(self.stages, skips, strict=True):
            x = stage(x, skip, None if self.valid else padded)
            decoded.append(x)
        outputs = self._check_outputs(self.head(x))
        logits = self._resize_logits(prediction_of(outputs), padded)
        return self._fit_outputs(outputs, logits, size), decoded

    def _resize_logits(self, logits: Tensor, size: Size) -> Tensor:
        if self.logits is None or (is_same_size(size_of(logits), size) and not self.has_learned_logits):
            return logits
        # A learned upsampler multiplies sizes by its stride: too many pixels are cropped, too few are interpolated.
        logits = crop_end(self.logits(logits, size), size)
        return logits if is_same_size(size_of(logits), size) else F.interpolate(logits, size, mode="bilinear")

    @property
    def channels(self) -> tuple[int, ...]:
        """The channels of the encoder's maps, shallow to deep."""
        return self._read_declared("channels")

    @property
    def strides(self) -> tuple[int, ...]:
        """The strides of the encoder's maps, shallow to deep."""
        return self._read_declared("strides")

    def _read_declared(self, name: str) -> tuple[int, ...]:
        try:
            return tuple(getattr(self.encoder, name))
        except AttributeError:  # which nn.Module would report as a missing attribute of the network
            what = f"model.encoder is a {type(self.encoder).__name__} without the attribute {name}"
            raise BuildError(f"{what}; set it to that of the encoder that it replaces or wraps") from None

    @property
    def period(self) -> int:
        return lcm(self.multiple, *self.strides)
