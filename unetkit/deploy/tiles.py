"""Where tiles lie on an image, and what share each has in every pixel. Plain geometry, without torch.

Along each side the image is extended by mirroring to a "whole" that the network takes in one pass; tiles begin at
multiples of the network's period and the last ends where the whole ends, so that a tile sees what the whole image's
pass sees. Shares of 0 and 1 put every pixel together from one tile, shares of a Gaussian blend those that overlap
(Isensee et al. 2021, nnU-Net). All numbers are pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

#: Of a Gaussian's sigma, to a tile's side: nnU-Net's.
_SIGMA = 1 / 8


@dataclass(frozen=True)
class Axis:
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


def exact(
    side: int,
    tile: int,
    period: int,
    *,
    least: int = 1,
    margin: tuple[int, int] = (0, 0),
    edge: tuple[int, int] = (0, 0),
) -> Axis:
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
    return Axis(side, tile, starts, margin, cuts)


def blended(
    side: int, tile: int, period: int, overlap: int, *, least: int = 1, margin: tuple[int, int] = (0, 0)
) -> Axis:
    """Tiles that share `overlap` pixels or more, weighted by a Gaussian. Arguments as those of `exact`."""
    whole, tile = _extended(side, tile, period, least)
    step = max(period if period < tile else 1, (tile - overlap) // period * period)
    return Axis(side, tile, _starts(whole, tile, min(step, tile)), margin)


def _extended(side: int, tile: int, period: int, least: int) -> tuple[int, int]:
    """The whole, which differs from the tile by periods, and the tile, which is no larger."""
    whole = max(least, tile - (tile - side) // period * period)
    return whole, min(tile, whole)


def _starts(whole: int, tile: int, step: int) -> tuple[int, ...]:
    return (*range(0, whole - tile, step), whole - tile)


def _bell(tile: int) -> np.ndarray:
    bell: np.ndarray = np.exp(-0.5 * ((np.arange(tile) - (tile - 1) / 2) / (tile * _SIGMA)) ** 2)
    return bell
