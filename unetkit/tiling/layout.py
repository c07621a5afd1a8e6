"""Divide an image into tiles that a network accepts, and compute the weight of each tile in every pixel.

This is plain geometry without torch. Along each axis the image is mirrored at its ends as far as necessary. Sizes are
(height, width) in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import cast

import numpy as np

from unetkit.errors import OptionError
from unetkit.utils.formatting import Size, format_size
from unetkit.utils.integers import round_up

#: The sigma of the Gaussian weights as a fraction of the side of a tile, as in nnU-Net.
_SIGMA = 1 / 8


@dataclass(frozen=True)
class TileAxis:
    """The tiles along the rows or the columns of an image.

    Attributes:
        side: the side of the image.
        tile: the side of a tile's output.
        starts: where each tile's output begins in the image, ascending from 0.
        margin: how much larger a tile's input is than its output, before and behind; above 0 for valid convolutions.
        cuts: where one tile's output ends and the next one's begins; None if tiles are blended.
    """

    side: int
    tile: int
    starts: tuple[int, ...]
    margin: tuple[int, int] = (0, 0)
    cuts: tuple[int, ...] | None = None

    @property
    def total(self) -> int:
        """The side of the output of a single pass: that of the image, or more if the network does not accept that."""
        return self.starts[-1] + self.tile

    @property
    def ends(self) -> tuple[int, ...]:
        """Return for each tile the position up to which the result is complete after it."""
        return (*self.starts[1:], self.total)

    def input_range(self, index: int) -> tuple[int, int]:
        """Return the range of a tile's input, which may exceed the image where it is mirrored."""
        start = self.starts[index]
        return start - self.margin[0], start + self.tile + self.margin[1]

    def weight(self, index: int) -> np.ndarray:
        """Return the weight of a tile in each pixel of its output, (tile,) float32.

        Over all tiles the weights sum to 1.
        """
        start = self.starts[index]
        here = np.arange(start, start + self.tile)
        if self.cuts is not None:
            low, high = (0, *self.cuts)[index], (*self.cuts, self.total)[index]
            return np.asarray((low <= here) & (here < high), np.float32)
        return np.asarray(_gaussian(self.tile) / self._total[here], np.float32)

    @cached_property
    def _total(self) -> np.ndarray:
        total = np.zeros(self.total)
        for start in self.starts:
            total[start : start + self.tile] += _gaussian(self.tile)
        return total


def exact_axis(
    side: int,
    tile: int,
    period: int,
    *,
    least: int = 1,
    margin: tuple[int, int] = (0, 0),
    edge: tuple[int, int] = (0, 0),
) -> TileAxis:
    """Place tiles so that every pixel is taken from one tile whose borders do not influence it.

    Args:
        side: the side of the image.
        tile: the largest output of a pass; other outputs of the network differ from it by multiples of the period.
        period: the total stride of the network.
        least: the smallest output of a pass.
        margin: see the attribute.
        edge: the number of output pixels that the borders of a tile influence, before and behind; together at least a
            period less than `tile`, unless a single tile is used.
    """
    extended, tile = _extend(side, tile, period, least)
    step = max(period, (tile - sum(edge)) // period * period)
    starts = _starts(extended, tile, step)
    cuts = tuple((after + edge[0] + before + tile - edge[1]) // 2 for before, after in pairwise(starts))
    return TileAxis(side, tile, starts, margin, cuts)


def blended_axis(
    side: int, tile: int, period: int, overlap: int, *, least: int = 1, margin: tuple[int, int] = (0, 0)
) -> TileAxis:
    """Place tiles that overlap by at least `overlap` pixels, with Gaussian weights. For arguments see `exact_axis`."""
    extended, tile = _extend(side, tile, period, least)
    step = max(period if period < tile else 1, (tile - overlap) // period * period)
    return TileAxis(side, tile, _starts(extended, tile, min(step, tile)), margin)


def _extend(side: int, tile: int, period: int, least: int) -> tuple[int, int]:
    """Return the total side, which differs from the tile by multiples of the period, and the tile."""
    extended = max(least, tile - (tile - side) // period * period)
    return extended, min(tile, extended)


def _starts(extended: int, tile: int, step: int) -> tuple[int, ...]:
    return (*range(0, extended - tile, step), extended - tile)


def _gaussian(tile: int) -> np.ndarray:
    bell: np.ndarray = np.exp(-0.5 * ((np.arange(tile) - (tile - 1) / 2) / (tile * _SIGMA)) ** 2)
    return bell


#: The default side of a tile, and the largest side of an image that is passed as a single tile.
TILE, AT_ONCE = 512, 1024


@dataclass(frozen=True)
class TileLayout:
    """The tiles of an image.

    Attributes:
        rows, columns: the tiles along each axis.
        explanation: how the tiles are combined and why, for people.
    """

    rows: TileAxis
    columns: TileAxis
    explanation: str

    @property
    def tiles(self) -> int:
        """The number of tiles."""
        return len(self.rows.starts) * len(self.columns.starts)


@dataclass(frozen=True)
class TileRequirements:
    """The requirements of a network on tiles. Heights and widths are those of the input, in pixels.

    Attributes:
        period: sizes that differ by its multiples behave alike.
        fixed: the only size that the network accepts, or None.
        least: the smallest input.
        shrinks: how much smaller the output is than the input.
        edge: how much of a tile's output, at the top and left and at the bottom and right, differs from that of a
            larger input; None if all of it may differ.
        explanation: which property of the network causes this.
    """

    period: int
    fixed: Size | None
    least: Size
    shrinks: Size = (0, 0)
    edge: tuple[Size, Size] | None = None
    explanation: str = ""

    def layout(
        self, image: Size, tile: Size | None = None, overlap: int | None = None, *, tta: bool = False
    ) -> TileLayout:
        """Divide an image into tiles, which give the exact result if possible.

        Args:
            image: the height and width of the image.
            tile: the requested height and width of a tile's input, which is rounded down to an accepted size.
            overlap: the overlap of tiles, which are then always blended.
            tta: whether tiles are also mirrored, which exchanges their ends.

        Raises:
            OptionError: The overlap is as large as the tile, or the network accepts only another size.
        """
        if tta and self.edge:
            widest = max(self.edge[0][0], self.edge[1][0]), max(self.edge[0][1], self.edge[1][1])
            return replace(self, edge=(widest, widest)).layout(image, tile, overlap)
        given = self._tile_input(image, tile)
        single_tile = self._axes(given, image, (0, 0), (0, 0))
        if all(len(axis.starts) == 1 for axis in single_tile):
            return TileLayout(*single_tile, "in one tile: exactly what a single pass over the whole image gives")
        if overlap is None and self.edge and all(self._leaves_half(given, axis) for axis in (0, 1)):
            overlaps = format_size(cast(Size, tuple(before + after for before, after in zip(*self.edge, strict=True))))
            tiles = f"{_describe_tiles(given)} that overlap by {overlaps}"
            reason = f"{tiles}: exactly what a single pass over the whole image gives"
            return TileLayout(*self._axes(given, image, *self.edge), reason)
        return self._blended(given, image, overlap)

    def single_tile(self, image: Size) -> TileLayout:
        """Use the whole image as one tile. Raises OptionError if the network accepts only smaller inputs."""
        if self.fixed and (image[0] > self.fixed[0] or image[1] > self.fixed[1]):
            raise OptionError(
                f"--check: the network accepts only {format_size(self.fixed)}, "
                f"so a single pass cannot cover {format_size(image)}"
            )
        return self.layout(image, self.fixed or self._covering_input(image))

    def _blended(self, given: Size, image: Size, overlap: int | None) -> TileLayout:
        outputs = [given[axis] - self.shrinks[axis] for axis in (0, 1)]
        shared = [side // 4 for side in outputs] if overlap is None else [overlap, overlap]
        if overlap is not None and overlap >= min(outputs):
            raise OptionError(
                f"--overlap {overlap}: must be smaller than a tile's output, {format_size((outputs[0], outputs[1]))}"
            )
        reason = "as --overlap asks" if overlap is not None else f"since {self._reason()}"
        margins = [_halves(shrink) for shrink in self.shrinks]
        leasts = [self.least[axis] - self.shrinks[axis] for axis in (0, 1)]
        rows, columns = (
            blended_axis(image[i], outputs[i], self.period, shared[i], least=leasts[i], margin=margins[i])
            for i in (0, 1)
        )
        return TileLayout(
            rows,
            columns,
            f"{_describe_tiles(given)} that overlap by {format_size((shared[0], shared[1]))}, blended, {reason}",
        )

    def _reason(self) -> str:
        if not self.edge or self.fixed:
            return self.explanation
        best = max(2 * sum(edge) + shrink for *edge, shrink in zip(*self.edge, self.shrinks, strict=True))
        return f"{self.explanation}; --tile {round_up(best, self.period)} would be exact"

    def _leaves_half(self, given: Size, axis: int) -> bool:
        """Return whether at least half of a tile's output is not shared with other tiles."""
        assert self.edge  # noqa: S101
        output = given[axis] - self.shrinks[axis]
        return 2 * (self.edge[0][axis] + self.edge[1][axis]) <= output >= 2 * self.period

    def _tile_input(self, image: Size, tile: Size | None) -> Size:
        """Return the input size of a tile: the requested one, rounded down to an accepted size."""
        if self.fixed:
            if tile not in (None, self.fixed):
                raise OptionError(
                    f"--tile {format_size(tile)}: the network takes {format_size(self.fixed)} only; leave it out"
                )
            return self.fixed
        requested = tile or (self._covering_input(image) if max(image) <= AT_ONCE else (TILE, TILE))
        pairs = zip(requested, self.least, strict=True)
        height, width = (max(least, side - (side - least) % self.period) for side, least in pairs)
        return height, width

    def _covering_input(self, image: Size) -> Size:
        """Return the input size whose output covers an image."""
        return image[0] + self.shrinks[0] + self.period, image[1] + self.shrinks[1] + self.period

    def _axes(self, given: Size, image: Size, before: Size, after: Size) -> tuple[TileAxis, TileAxis]:
        rows, columns = (
            exact_axis(
                image[axis],
                given[axis] - self.shrinks[axis],
                self.period,
                least=self.least[axis] - self.shrinks[axis],
                margin=_halves(self.shrinks[axis]),
                edge=(before[axis], after[axis]),
            )
            for axis in (0, 1)
        )
        return rows, columns


def _halves(number: int) -> tuple[int, int]:
    """Divide a number as a center crop does: the smaller half of an odd number comes first."""
    return number // 2, number - number // 2


def _describe_tiles(given: Size) -> str:
    return f"in tiles of {format_size(given)}"
