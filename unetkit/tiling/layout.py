"""How an image is cut into the tiles that a network takes, and why so. Sizes are (height, width) in pixels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import cast

import numpy as np

from unetkit.errors import OptionError
from unetkit.utils.formatting import Size, format_size

#: Of a Gaussian's sigma, to a tile's side: nnU-Net's.
_SIGMA = 1 / 8


@dataclass(frozen=True)
class TileAxis:
    """Tiles along the rows or the columns of an image.

    Attributes:
        side: of the image.
        tile: of what a pass over a tile gives.
        starts: where each tile's output begins in the image, ascending from 0.
        margin: what a tile's input has before its output and behind it; above 0 for valid convolutions.
        cuts: where what a tile gives ends and the next one's begins; None where tiles are blended.
    """

    side: int
    tile: int
    starts: tuple[int, ...]
    margin: tuple[int, int] = (0, 0)
    cuts: tuple[int, ...] | None = None

    @property
    def whole(self) -> int:
        """Of what one pass over the whole image gives: the side, or more, where the network does not take it."""
        return self.starts[-1] + self.tile

    @property
    def ends(self) -> tuple[int, ...]:
        """For each tile, up to where all is known when it and those before it are."""
        return (*self.starts[1:], self.whole)

    def taken(self, index: int) -> tuple[int, int]:
        """From where to where a tile's input goes: beyond the image where it is mirrored."""
        start = self.starts[index]
        return start - self.margin[0], start + self.tile + self.margin[1]

    def share(self, index: int) -> np.ndarray:
        """What a tile has in each pixel of its output, (tile,) float32; over all tiles they sum to 1."""
        start = self.starts[index]
        here = np.arange(start, start + self.tile)
        if self.cuts is not None:
            low, high = (0, *self.cuts)[index], (*self.cuts, self.whole)[index]
            return np.asarray((low <= here) & (here < high), np.float32)
        return np.asarray(_bell(self.tile) / self._total[here], np.float32)

    @cached_property
    def _total(self) -> np.ndarray:
        total = np.zeros(self.whole)
        for start in self.starts:
            total[start : start + self.tile] += _bell(self.tile)
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
    """Tiles from which every pixel is taken once, from where the tile's end does not reach it.

    Args:
        side: of the image.
        tile: the largest output of a pass; what a network gives is this, or differs from it by periods.
        period: of the network: its total stride.
        least: the smallest output of a pass.
        margin: as the attribute.
        edge: how many pixels of a tile's output its end reaches, before and behind; together less than `tile` by a
            period at least, unless one tile is the whole.
    """
    whole, tile = _extended(side, tile, period, least)
    step = max(period, (tile - sum(edge)) // period * period)
    starts = _starts(whole, tile, step)
    cuts = tuple((after + edge[0] + before + tile - edge[1]) // 2 for before, after in pairwise(starts))
    return TileAxis(side, tile, starts, margin, cuts)


def blended_axis(
    side: int, tile: int, period: int, overlap: int, *, least: int = 1, margin: tuple[int, int] = (0, 0)
) -> TileAxis:
    """Tiles that share `overlap` pixels or more, weighted by a Gaussian. Arguments as those of `exact`."""
    whole, tile = _extended(side, tile, period, least)
    step = max(period if period < tile else 1, (tile - overlap) // period * period)
    return TileAxis(side, tile, _starts(whole, tile, min(step, tile)), margin)


def _extended(side: int, tile: int, period: int, least: int) -> tuple[int, int]:
    """The whole, which differs from the tile by periods, and the tile, which is no larger."""
    whole = max(least, tile - (tile - side) // period * period)
    return whole, min(tile, whole)


def _starts(whole: int, tile: int, step: int) -> tuple[int, ...]:
    return (*range(0, whole - tile, step), whole - tile)


def _bell(tile: int) -> np.ndarray:
    bell: np.ndarray = np.exp(-0.5 * ((np.arange(tile) - (tile - 1) / 2) / (tile * _SIGMA)) ** 2)
    return bell


#: A tile's side unless it is said, and up to which side an image is passed at once.
TILE, AT_ONCE = 512, 1024


@dataclass(frozen=True)
class TileLayout:
    """How an image is cut into tiles.

    Attributes:
        rows, columns: of tiles.
        why: which way and why, for people.
    """

    rows: TileAxis
    columns: TileAxis
    why: str

    @property
    def tiles(self) -> int:
        """How many."""
        return len(self.rows.starts) * len(self.columns.starts)


@dataclass(frozen=True)
class TileRequirements:
    """What a network asks of tiles. Heights and widths in pixels of the input.

    Attributes:
        period: sizes that pass alike differ by its multiples.
        fixed: the one size that it takes, else None.
        least: the smallest input that it is given.
        shrinks: how much smaller than its input its output is.
        edge: how much of a tile's output, at the top and left and at the bottom and right, differs from that of a
            larger input; None where all of it may.
        why: what makes it all.
    """

    period: int
    fixed: Size | None
    least: Size
    shrinks: Size = (0, 0)
    edge: tuple[Size, Size] | None = None
    why: str = ""

    def layout(
        self, image: Size, tile: Size | None = None, overlap: int | None = None, *, tta: bool = False
    ) -> TileLayout:
        """Tiles for an image: exact where they can be.

        Args:
            image: its height and width.
            tile: height and width of what the network is given at a time, brought down to what it takes.
            overlap: of tiles that are blended, which they then are in any case.
            tta: whether tiles are passed mirrored too, which exchanges their ends.

        Raises:
            OptionError: an overlap as large as the tile, or a tile other than the one size that the network takes.
        """
        if tta and self.edge:
            widest = max(self.edge[0][0], self.edge[1][0]), max(self.edge[0][1], self.edge[1][1])
            return replace(self, edge=(widest, widest)).layout(image, tile, overlap)
        given = self._given(image, tile)
        single_tile = self._axes(given, image, (0, 0), (0, 0))
        if all(len(axis.starts) == 1 for axis in single_tile):
            return TileLayout(*single_tile, "in one tile: exactly what one pass over the whole image gives")
        if overlap is None and self.edge and all(self._room(given, axis) for axis in (0, 1)):
            overlaps = format_size(cast(Size, tuple(before + after for before, after in zip(*self.edge, strict=True))))
            reason = f"{_said(given)} that overlap by {overlaps}: exactly what one pass over the whole image gives"
            return TileLayout(*self._axes(given, image, *self.edge), reason)
        return self._blended(given, image, overlap)

    def single_tile(self, image: Size) -> TileLayout:
        """The whole image as one tile. Raises OptionError where the network takes only what is smaller."""
        if self.fixed and (image[0] > self.fixed[0] or image[1] > self.fixed[1]):
            raise OptionError(
                f"--check: the network takes {format_size(self.fixed)} alone, so no one pass sees {format_size(image)}"
            )
        return self.layout(image, self.fixed or self._over(image))

    def _blended(self, given: Size, image: Size, overlap: int | None) -> TileLayout:
        outputs = [given[axis] - self.shrinks[axis] for axis in (0, 1)]
        shared = [side // 4 for side in outputs] if overlap is None else [overlap, overlap]
        if overlap is not None and overlap >= min(outputs):
            raise OptionError(
                f"--overlap {overlap}: must be below what a tile gives, {format_size((outputs[0], outputs[1]))}"
            )
        reason = "as --overlap asks" if overlap is not None else f"since {self._reason()}"
        margins = [_halves(shrink) for shrink in self.shrinks]
        leasts = [self.least[axis] - self.shrinks[axis] for axis in (0, 1)]
        rows, columns = (
            blended_axis(image[i], outputs[i], self.period, shared[i], least=leasts[i], margin=margins[i])
            for i in (0, 1)
        )
        return TileLayout(
            rows, columns, f"{_said(given)} that overlap by {format_size((shared[0], shared[1]))}, blended, {reason}"
        )

    def _reason(self) -> str:
        if not self.edge:
            return self.why
        best = max(2 * sum(edge) + shrink for *edge, shrink in zip(*self.edge, self.shrinks, strict=True))
        return f"{self.why}; --tile {-(-best // self.period) * self.period} leaves room to be exact"

    def _room(self, given: Size, axis: int) -> bool:
        """Whether at least half of a tile's output is its own."""
        assert self.edge  # noqa: S101
        output = given[axis] - self.shrinks[axis]
        return 2 * (self.edge[0][axis] + self.edge[1][axis]) <= output >= 2 * self.period

    def _given(self, image: Size, tile: Size | None) -> Size:
        """The input of a tile: what was asked for, brought down to a size that passes."""
        if self.fixed:
            if tile not in (None, self.fixed):
                raise OptionError(
                    f"--tile {format_size(tile)}: the network takes {format_size(self.fixed)} alone; leave it out"
                )
            return self.fixed
        wanted = tile or (self._over(image) if max(image) <= AT_ONCE else (TILE, TILE))
        pairs = zip(wanted, self.least, strict=True)
        height, width = (max(least, side - (side - least) % self.period) for side, least in pairs)
        return height, width

    def _over(self, image: Size) -> Size:
        """An input whose output covers an image."""
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
    """As a crop from the centre leaves it: of an odd number the smaller half before."""
    return number // 2, number - number // 2


def _said(given: Size) -> str:
    return f"in tiles of {format_size(given)}"
