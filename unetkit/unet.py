"""The forward pass of a U-Net over parts that are already built.

Shapes: B batch, C channels, H and W height and width; sizes are (H, W).
"""

from __future__ import annotations

from itertools import zip_longest
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from unetkit.network import Network
from unetkit.protocols import Align, Block, Encoder, Fusion, Head, Upsampler
from unetkit.utils.formatting import Size
from unetkit.utils.spatial import crop_end, is_same_size, size_of


class Stage(nn.Module):
    """One level of the decoder: upsample, fuse with the skip, apply the block.

    Attributes:
        stride: the stride of its output.
        scale: the ratio of the stride below to its own.
        align, fuse: None if the encoder has no map of this stride.
    """

    def __init__(
        self,
        up: nn.Module,
        align: nn.Module | None,
        fuse: nn.Module | None,
        block: nn.Module,
        scale: float,
        stride: int,
    ) -> None:
        super().__init__()
        self.up = up
        self.align = align
        self.fuse = fuse
        self.block = block
        self.scale = scale
        self.stride = stride

    def forward(self, x: Tensor, skip: Tensor | None, size: Size | None) -> Tensor:
        """Decode one level.

        Args:
            x: the map from below, (B, C, h, w).
            skip: the encoder's map (B, D, H, W), if this stage has a skip.
            size: the output size of a stage without a skip; None means (h, w) times the scale.
        """
        up, block = cast(Upsampler, self.up), cast(Block, self.block)
        scaled = round(x.shape[-2] * self.scale), round(x.shape[-1] * self.scale)
        if skip is None:
            x = up(x, size or scaled)
            # The encoder rounds sizes up, so the upsampled map can be too large: at the bottom and at the right.
            return block(x if size is None else crop_end(x, size))
        align, fuse = cast(Align, self.align), cast(Fusion, self.fuse)
        x, skip = align(up(x, align.target_size(scaled, size_of(skip))), skip)
        return block(fuse(x, skip))


class BlockSequence(nn.Sequential):
    """A chain of blocks, such as `double+scse`."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__(*blocks)
        self.valid = any(getattr(block, "valid", False) for block in blocks)


class UNet(Network):
    """An encoder, decoder stages, and a head.

    Attributes:
        encoder: returns the maps, shallow to deep.
        stages: the decoder stages, deep to shallow.
        head: turns the last map into logits.
        logits: the upsampler that brings logits to the input size; None for `--logits none` and for networks of
            valid convolutions, whose output is smaller than the input.
    """

    def __init__(
        self,
        encoder: nn.Module,
        stages: list[Stage],
        head: nn.Module,
        logits: nn.Module | None,
        *,
        skips: tuple[int, ...],
        min_size: int,
        multiple: int,
        size: Size | None,
        valid: bool,
    ) -> None:
        """Combine the parts.

        Args:
            encoder, stages, head, logits, min_size, multiple, size: see the attributes of this class and of `Network`.
            skips: the index of the map that each stage joins, deep to shallow; later stages join none.
            valid: whether stages without a skip multiply sizes by the scale, instead of targeting the input size
                divided by their stride, rounded up.
        """
        super().__init__(min_size=min_size, multiple=multiple, size=size, valid=valid)
        self.encoder = encoder
        self.stages = nn.ModuleList(stages)
        self.head = head
        self.logits = logits
        #: True if the upsampler of the logits has weights; it is then applied even to logits of the input size.
        self.has_learned_logits = logits is not None and any(True for _ in logits.parameters())
        self.skips = skips

    @property
    def output_stride(self) -> int:
        """1 if an upsampler brings the logits to the input size, else the stride of the last stage."""
        return 1 if self.logits is not None else cast(int, self.stages[-1].stride)

    @property
    def period(self) -> int:
        return max(self.strides)

    def forward_features(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the logits, and the map of each stage, deep to shallow: (B, widths[i], h, w).

        If the input is padded (see `padded_size`), the maps are those of the padded input.
        """
        maps: list[Tensor] = []
        return self(x, maps), maps

    def _forward_padded(self, x: Tensor, kept: list[Tensor] | None) -> Tensor:
        size = size_of(x)
        maps = cast(Encoder, self.encoder)(x)
        x = maps[-1]
        for stage, skip in zip_longest(self.stages, self.skips):
            stride = cast(int, stage.stride)
            # A stage without a skip targets the size that a strided convolution would give: rounded up.
            end = None if self.valid else ((size[0] - 1) // stride + 1, (size[1] - 1) // stride + 1)
            x = stage(x, None if skip is None else maps[skip], end)
            if kept is not None:
                kept.append(x)
        x = cast(Head, self.head)(x)
        if self.logits is None or (is_same_size(size_of(x), size) and not self.has_learned_logits):
            return x
        # A learned upsampler multiplies the size by its stride: a result that is too large is cropped at the bottom and
        # right, and one that is too small is resized.
        x = crop_end(cast(Upsampler, self.logits)(x, size), size)
        return x if is_same_size(size_of(x), size) else F.interpolate(x, size, mode="bilinear")

    @property
    def channels(self) -> tuple[int, ...]:
        """The channels of the encoder's maps, shallow to deep."""
        return tuple(cast(Encoder, self.encoder).channels)

    @property
    def strides(self) -> tuple[int, ...]:
        """The strides of the encoder's maps, shallow to deep."""
        return cast(Encoder, self.encoder).strides
