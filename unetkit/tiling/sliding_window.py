"""An image through a network by tiles: windows of the result, one after the other, and no more held than they need.

B batch, C channels, L planes of what is made of the logits, H and W height and width.
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

#: What a batch of tiles (B, C, h, w) is passed through: (B, L, h', w').
Pass = Callable[[Tensor], Tensor]


class Source(Protocol):
    """An image that is read by windows."""

    @property
    def size(self) -> Size: ...

    def read(self, rows: slice, columns: slice) -> Tensor:
        """A window (C, h, w), float32 or float64; both slices lie within the image."""
        ...


class InMemoryImage:
    """An image (C, H, W) that is in memory already."""

    def __init__(self, image: Tensor) -> None:
        self.image = image
        self.size: Size = (image.shape[-2], image.shape[-1])

    def read(self, rows: slice, columns: slice) -> Tensor:
        return self.image[:, rows, columns]


class Window(NamedTuple):
    """What is known of rows and columns of the image: values (L, h, w) on the CPU."""

    rows: slice
    columns: slice
    values: Tensor


def windows(passed: Pass, source: Source, layout: TileLayout, batch_size: int = 1) -> Iterator[Window]:
    """The result, window by window: row by row from the top left, a window a tile. Together they cover the image.

    Args:
        passed: the network and what is made of its logits, in eval mode.
        source: the image.
        layout: as `Fit.layout` gives it.
        batch_size: tiles a pass.
    """
    tiles = _outputs(passed, source, layout, batch_size)
    above: Tensor | None = None
    for row in range(len(layout.rows.starts)):
        kept = _Kept(layout, row, above)
        for column in range(len(layout.columns.starts)):
            yield kept.take(column, next(tiles))
        above = kept.below


class _Kept:
    """A row of tiles as it is put together: what is not yet whole is kept, for the next tile or the next row."""

    def __init__(self, layout: TileLayout, row: int, above: Tensor | None) -> None:
        self.rows, self.columns, self.row, self.above = layout.rows, layout.columns, row, above
        self.top, self.done = self.rows.starts[row], self.rows.ends[row]
        self.share = torch.from_numpy(self.rows.share(row))[:, None]
        self.right: Tensor | None = None
        self.below: Tensor | None = None

    def take(self, column: int, out: Tensor) -> Window:
        """Add a tile's output (L, h, w); give the window that is whole now."""
        left, right = self.columns.starts[column], self.columns.ends[column]
        out = out * (self.share * torch.from_numpy(self.columns.share(column)))
        if self.right is not None:
            out[..., : self.right.shape[-1]] += self.right
        whole, self.right = out[..., : right - left], out[..., right - left :]
        if self.above is not None:
            whole[:, : self.above.shape[1]] += self.above[..., left:right]
        done = self.done - self.top
        if done < whole.shape[1]:
            if self.below is None:
                self.below = out.new_empty(out.shape[0], whole.shape[1] - done, self.columns.whole)
            self.below[..., left:right] = whole[:, done:]
        bottom, end = min(self.done, self.rows.side), min(right, self.columns.side)
        return Window(slice(self.top, bottom), slice(left, end), whole[:, : bottom - self.top, : end - left])


def _outputs(passed: Pass, source: Source, layout: TileLayout, batch_size: int) -> Iterator[Tensor]:
    """What a pass makes of each tile, (L, h, w), row by row."""
    places = ((row, column) for row in range(len(layout.rows.starts)) for column in range(len(layout.columns.starts)))
    while some := list(islice(places, batch_size)):
        tiles = [mirrored_window(source, layout.rows.taken(row), layout.columns.taken(column)) for row, column in some]
        yield from passed(torch.stack(tiles)).cpu()


def mirrored_window(source: Source, rows: tuple[int, int], columns: tuple[int, int]) -> Tensor:
    """A window (C, h, w) of an image that is mirrored beyond its ends."""
    down, across = (
        mirror_indices(torch.arange(*span), side) for span, side in zip((rows, columns), source.size, strict=True)
    )
    top, left = int(down.min()), int(across.min())
    window = source.read(slice(top, int(down.max()) + 1), slice(left, int(across.max()) + 1))
    return window[:, down - top][:, :, across - left]


#: The axes of (B, C, H, W) that are turned for each mirror image.
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
    """Pass an image by tiles, mirrored beyond its borders; exactly as in one pass where the network allows it.

    Args:
        network: as `unetkit.build` or `unetkit.load` gives it, on any device; it is used in eval mode and left as it
            was.
        image: (C, H, W), as the network takes it, on any device.
        tile: height and width of what is passed at a time; if None, 512x512, the network's one size, or all of an image
            of no more than 1024x1024.
        overlap: blend tiles that overlap by so many pixels; where None, as `unetkit.tiling.layout` decides.
        batch_size: tiles a pass.
        tta: take the mean over the image and its three mirror images.
        then: makes of logits (B, K, h, w) what is blended and averaged, such as a run's `target.probabilities`.

    Returns:
        The logits, or what `then` makes of them, (L, H, W), on the CPU.

    Raises:
        InputSizeError: no size passes, or memory does not suffice for a tile.
        OptionError: a tile or overlap that the network does not take.
    """
    source = InMemoryImage(image)
    layout = find_tile_requirements(network).layout(source.size, tile, overlap, tta=tta)
    first = next(network.parameters())
    with preserve_mode(network), torch.inference_mode():
        network.eval()
        through = make_forward(network, first.device, first.dtype, then, tta=tta)
        result = torch.empty(0)
        for window in windows(through, source, layout, batch_size):
            if not result.numel():
                result = window.values.new_empty(window.values.shape[0], *source.size)
            result[:, window.rows, window.columns] = window.values
    return result.clone()  # made outside, it may be used in autograd


def make_forward(
    network: nn.Module,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    then: Callable[[Tensor], Tensor] | None = None,
    *,
    tta: bool = False,
) -> Pass:
    """What a batch of tiles is passed through: the network in eval mode, and what is made of its logits."""

    def once(x: Tensor) -> Tensor:
        logits = full_size(network, x)
        return then(logits) if then else logits

    def passed(x: Tensor) -> Tensor:
        try:
            with torch.inference_mode():
                x = x.to(device, dtype)
                return _mean(once, x) if tta else once(x)
        except (RuntimeError, MemoryError) as error:
            if not is_oom(error):
                raise
            what = f"{x.shape[0]} of {x.shape[-2]}x{x.shape[-1]}"
            raise InputSizeError(
                f"not enough memory for a pass of {what}; give a smaller --tile or --batch-size"
            ) from error

    return passed


def _mean(once: Pass, x: Tensor) -> Tensor:
    """Over an input and its mirror images, each turned back."""
    total = once(x)
    for axes in _MIRRORED:
        total = total + once(x.flip(axes)).flip(axes)
    return total / (1 + len(_MIRRORED))
