"""Pass an image through a network by tiles, and yield windows of the result with little memory.

This is NumPy without torch, so that exported networks are run by the same code. Shapes: B batch, C channels, L planes
that are computed from the logits, H and W height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import NamedTuple, Protocol

import numpy as np

from unetkit.tiling.layout import TileLayout
from unetkit.utils.formatting import Size
from unetkit.utils.integers import mirror_indices

#: A function from a batch of tiles (B, C, h, w) to their outputs (B, L, h', w').
Pass = Callable[[np.ndarray], np.ndarray]


class Source(Protocol):
    """An image that is read in windows."""

    @property
    def size(self) -> Size: ...

    def read(self, rows: slice, columns: slice) -> np.ndarray:
        """Read a window (C, h, w), float32 or float64; both slices lie within the image."""
        ...


class InMemoryImage:
    """An image (C, H, W) in memory."""

    def __init__(self, image: np.ndarray) -> None:
        self.image = image
        self.size: Size = (image.shape[-2], image.shape[-1])

    def read(self, rows: slice, columns: slice) -> np.ndarray:
        return self.image[:, rows, columns]


class Window(NamedTuple):
    """The result for some rows and columns of the image: values (L, h, w)."""

    rows: slice
    columns: slice
    values: np.ndarray


def iterate_windows(passed: Pass, source: Source, layout: TileLayout, batch_size: int = 1) -> Iterator[Window]:
    """Yield the result in windows, one for each tile, row by row from the top left. Together they cover the image.

    Args:
        passed: computes the planes of a batch of tiles with the network in eval mode.
        source: the image.
        layout: the result of `TileRequirements.layout`.
        batch_size: the number of tiles in a forward pass.
    """
    tiles = _outputs(passed, source, layout, batch_size)
    above: np.ndarray | None = None
    for row in range(len(layout.rows.starts)):
        kept = _RowAssembler(layout, row, above)
        for column in range(len(layout.columns.starts)):
            yield kept.add(column, next(tiles))
        above = kept.below


def join_windows(windows: Iterable[Window], size: Size) -> np.ndarray:
    """Join windows that together cover an image of a size to one array (L, H, W)."""
    joined = np.empty(0)
    for window in windows:
        if not joined.size:
            joined = np.empty((len(window.values), *size), window.values.dtype)
        joined[:, window.rows, window.columns] = window.values
    return joined


class _RowAssembler:
    """Combines the tiles of a row; incomplete values are kept for the next tile or the next row."""

    def __init__(self, layout: TileLayout, row: int, above: np.ndarray | None) -> None:
        self.rows, self.columns, self.row, self.above = layout.rows, layout.columns, row, above
        self.top, self.done = self.rows.starts[row], self.rows.ends[row]
        self.share = self.rows.weight(row)[:, None]
        self.right: np.ndarray | None = None
        self.below: np.ndarray | None = None

    def add(self, column: int, out: np.ndarray) -> Window:
        """Add a tile's output (L, h, w); return the window that is now complete."""
        left, right = self.columns.starts[column], self.columns.ends[column]
        out = out * (self.share * self.columns.weight(column))
        if self.right is not None:
            out[..., : self.right.shape[-1]] += self.right
        block, self.right = out[..., : right - left], out[..., right - left :]
        if self.above is not None:
            block[:, : self.above.shape[1]] += self.above[..., left:right]
        done = self.done - self.top
        if done < block.shape[1]:
            if self.below is None:
                self.below = np.empty((out.shape[0], block.shape[1] - done, self.columns.total), out.dtype)
            self.below[..., left:right] = block[:, done:]
        bottom, end = min(self.done, self.rows.side), min(right, self.columns.side)
        return Window(slice(self.top, bottom), slice(left, end), block[:, : bottom - self.top, : end - left])


def _outputs(passed: Pass, source: Source, layout: TileLayout, batch_size: int) -> Iterator[np.ndarray]:
    """Yield the output of each tile, (L, h, w), row by row."""
    places = ((row, column) for row in range(len(layout.rows.starts)) for column in range(len(layout.columns.starts)))
    while some := list(islice(places, batch_size)):
        tiles = [
            mirrored_window(source, layout.rows.input_range(row), layout.columns.input_range(column))
            for row, column in some
        ]
        yield from passed(np.stack(tiles))


def mirrored_window(source: Source, rows: tuple[int, int], columns: tuple[int, int]) -> np.ndarray:
    """Read a window (C, h, w) of an image that is mirrored at its ends."""
    down, across = (
        mirror_indices(np.arange(*span), side) for span, side in zip((rows, columns), source.size, strict=True)
    )
    top, left = int(down.min()), int(across.min())
    window = source.read(slice(top, int(down.max()) + 1), slice(left, int(across.max()) + 1))
    return window[:, down - top][:, :, across - left]


#: The axes of (B, C, H, W) that are flipped for each mirror image.
_MIRRORED = ((-1,), (-2,), (-2, -1))


def average_over_flips(passed: Pass) -> Pass:
    """Return a pass that averages over its input and the three mirror images of it, each flipped back."""

    def averaged(x: np.ndarray) -> np.ndarray:
        total = passed(x)
        for axes in _MIRRORED:
            total = total + np.flip(passed(np.ascontiguousarray(np.flip(x, axes))), axes)
        return total / (1 + len(_MIRRORED))

    return averaged
