"""Pass an image through a network by tiles, and yield windows of the result with little memory.

Shapes: B batch, C channels, L planes that are computed from the logits, H and W height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from unetkit.errors import InputSizeError
from unetkit.tiling.layout import TileLayout
from unetkit.tiling.requirements import find_tile_requirements, full_size
from unetkit.utils.formatting import Size
from unetkit.utils.modules import preserve_mode
from unetkit.utils.spatial import mirror_indices
from unetkit.utils.system import is_oom

#: A function from a batch of tiles (B, C, h, w) to their outputs (B, L, h', w').
Pass = Callable[[Tensor], Tensor]


class Source(Protocol):
    """An image that is read in windows."""

    @property
    def size(self) -> Size: ...

    def read(self, rows: slice, columns: slice) -> Tensor:
        """Read a window (C, h, w), float32 or float64; both slices lie within the image."""
        ...


class InMemoryImage:
    """An image (C, H, W) in memory."""

    def __init__(self, image: Tensor) -> None:
        self.image = image
        self.size: Size = (image.shape[-2], image.shape[-1])

    def read(self, rows: slice, columns: slice) -> Tensor:
        return self.image[:, rows, columns]


class Window(NamedTuple):
    """The result for some rows and columns of the image: values (L, h, w) on the CPU."""

    rows: slice
    columns: slice
    values: Tensor


def iterate_windows(passed: Pass, source: Source, layout: TileLayout, batch_size: int = 1) -> Iterator[Window]:
    """Yield the result in windows, one for each tile, row by row from the top left. Together they cover the image.

    Args:
        passed: computes the planes of a batch of tiles with the network in eval mode.
        source: the image.
        layout: the result of `TileRequirements.layout`.
        batch_size: the number of tiles in a forward pass.
    """
    tiles = _outputs(passed, source, layout, batch_size)
    above: Tensor | None = None
    for row in range(len(layout.rows.starts)):
        kept = _RowAssembler(layout, row, above)
        for column in range(len(layout.columns.starts)):
            yield kept.add(column, next(tiles))
        above = kept.below


class _RowAssembler:
    """Combines the tiles of a row; incomplete values are kept for the next tile or the next row."""

    def __init__(self, layout: TileLayout, row: int, above: Tensor | None) -> None:
        self.rows, self.columns, self.row, self.above = layout.rows, layout.columns, row, above
        self.top, self.done = self.rows.starts[row], self.rows.ends[row]
        self.share = torch.from_numpy(self.rows.weight(row))[:, None]
        self.right: Tensor | None = None
        self.below: Tensor | None = None

    def add(self, column: int, out: Tensor) -> Window:
        """Add a tile's output (L, h, w); return the window that is now complete."""
        left, right = self.columns.starts[column], self.columns.ends[column]
        out = out * (self.share * torch.from_numpy(self.columns.weight(column)))
        if self.right is not None:
            out[..., : self.right.shape[-1]] += self.right
        block, self.right = out[..., : right - left], out[..., right - left :]
        if self.above is not None:
            block[:, : self.above.shape[1]] += self.above[..., left:right]
        done = self.done - self.top
        if done < block.shape[1]:
            if self.below is None:
                self.below = out.new_empty(out.shape[0], block.shape[1] - done, self.columns.total)
            self.below[..., left:right] = block[:, done:]
        bottom, end = min(self.done, self.rows.side), min(right, self.columns.side)
        return Window(slice(self.top, bottom), slice(left, end), block[:, : bottom - self.top, : end - left])


def _outputs(passed: Pass, source: Source, layout: TileLayout, batch_size: int) -> Iterator[Tensor]:
    """Yield the output of each tile, (L, h, w), row by row."""
    places = ((row, column) for row in range(len(layout.rows.starts)) for column in range(len(layout.columns.starts)))
    while some := list(islice(places, batch_size)):
        tiles = [
            mirrored_window(source, layout.rows.input_range(row), layout.columns.input_range(column))
            for row, column in some
        ]
        yield from passed(torch.stack(tiles)).cpu()


def mirrored_window(source: Source, rows: tuple[int, int], columns: tuple[int, int]) -> Tensor:
    """Read a window (C, h, w) of an image that is mirrored at its ends."""
    down, across = (
        mirror_indices(torch.arange(*span), side) for span, side in zip((rows, columns), source.size, strict=True)
    )
    top, left = int(down.min()), int(across.min())
    window = source.read(slice(top, int(down.max()) + 1), slice(left, int(across.max()) + 1))
    return window[:, down - top][:, :, across - left]


#: The axes of (B, C, H, W) that are flipped for each mirror image.
_MIRRORED = ((-1,), (-2,), (-2, -1))


def tiled(
    network: nn.Module,
    image: Tensor,
    *,
    tile: Size | None = None,
    overlap: int | None = None,
    batch_size: int = 1,
    tta: bool = False,
    then: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Pass an image through a network by tiles; the result equals that of a single pass if the network allows it.

    The image is mirrored at its borders.

    Args:
        network: a network from `unetkit.build` or `unetkit.load`, on any device; it is used in eval mode and not
            changed.
        image: (C, H, W), normalized for the network, on any device.
        tile: the height and width of tiles; None for 512x512, for the only size that the network accepts, or for a
            single pass if the image is at most 1024x1024.
        overlap: blend tiles that overlap by this number of pixels; None lets `unetkit.tiling.layout` decide.
        batch_size: the number of tiles in a forward pass.
        tta: average over the image and its three mirror images.
        then: converts logits (B, K, h, w) to what is blended and averaged, such as a run's `target.probabilities`.

    Returns:
        The logits, or the result of `then`, (L, H, W), on the CPU.

    Raises:
        InputSizeError: The network accepts no size, or memory is not sufficient for a tile.
        OptionError: The network does not accept this tile or overlap.
    """
    source = InMemoryImage(image)
    layout = find_tile_requirements(network).layout(source.size, tile, overlap, tta=tta)
    first = next(network.parameters())
    with preserve_mode(network), torch.inference_mode():
        network.eval()
        through = make_forward(network, first.device, first.dtype, then, tta=tta)
        result = torch.empty(0)
        for window in iterate_windows(through, source, layout, batch_size):
            if not result.numel():
                result = window.values.new_empty(window.values.shape[0], *source.size)
            result[:, window.rows, window.columns] = window.values
    return result.clone()  # a clone made outside inference mode can be used in autograd


def make_forward(
    network: nn.Module,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    then: Callable[[Tensor], Tensor] | None = None,
    *,
    tta: bool = False,
) -> Pass:
    """Return a function that passes a batch of tiles through the network in eval mode and converts its logits."""

    def once(x: Tensor) -> Tensor:
        logits = full_size(network, x)
        return then(logits) if then else logits

    def passed(x: Tensor) -> Tensor:
        try:
            with torch.inference_mode():
                x = x.to(device, dtype)
                return _mean_over_flips(once, x) if tta else once(x)
        except (RuntimeError, MemoryError) as error:
            if not is_oom(error):
                raise
            what = f"{x.shape[0]} of {x.shape[-2]}x{x.shape[-1]}"
            raise InputSizeError(
                f"not enough memory for a pass of {what}; give a smaller --tile or --batch-size"
            ) from error

    return passed


def _mean_over_flips(once: Pass, x: Tensor) -> Tensor:
    """Average over an input and its mirror images, each flipped back."""
    total = once(x)
    for axes in _MIRRORED:
        total = total + once(x.flip(axes)).flip(axes)
    return total / (1 + len(_MIRRORED))
