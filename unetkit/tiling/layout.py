"""How an image is cut into the tiles that a network takes, and why so. Sizes are (height, width) in pixels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

from unetkit.deploy.tiles import Axis, blended, exact
from unetkit.errors import BadOption
from unetkit.inspect.figures import format_size
from unetkit.plan import Size

#: A tile's side unless it is said, and up to which side an image is passed at once.
TILE, AT_ONCE = 512, 1024


@dataclass(frozen=True)
class Layout:
    """How an image is cut into tiles.

    Attributes:
        rows, columns: of tiles.
        why: which way and why, for people.
    """

    rows: Axis
    columns: Axis
    why: str

    @property
    def tiles(self) -> int:
        """How many."""
        return len(self.rows.starts) * len(self.columns.starts)


@dataclass(frozen=True)
class Fit:
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
        self, image: Size, tile: Size | None = None, overlap: int | None = None, *, flips: bool = False
    ) -> Layout:
        """Tiles for an image: exact where they can be.

        Args:
            image: its height and width.
            tile: height and width of what the network is given at a time, brought down to what it takes.
            overlap: of tiles that are blended, which they then are in any case.
            flips: whether tiles are passed mirrored too, which exchanges their ends.

        Raises:
            BadOption: an overlap as large as the tile, or a tile other than the one size that the network takes.
        """
        if flips and self.edge:
            widest = max(self.edge[0][0], self.edge[1][0]), max(self.edge[0][1], self.edge[1][1])
            return replace(self, edge=(widest, widest)).layout(image, tile, overlap)
        given = self._given(image, tile)
        at_once = self._axes(given, image, (0, 0), (0, 0))
        if all(len(axis.starts) == 1 for axis in at_once):
            return Layout(*at_once, "in one tile: exactly what one pass over the whole image gives")
        if overlap is None and self.edge and all(self._room(given, axis) for axis in (0, 1)):
            overlaps = format_size(cast(Size, tuple(before + after for before, after in zip(*self.edge, strict=True))))
            reason = f"{_said(given)} that overlap by {overlaps}: exactly what one pass over the whole image gives"
            return Layout(*self._axes(given, image, *self.edge), reason)
        return self._blended(given, image, overlap)

    def at_once(self, image: Size) -> Layout:
        """The whole image as one tile. Raises BadOption where the network takes only what is smaller."""
        if self.fixed and (image[0] > self.fixed[0] or image[1] > self.fixed[1]):
            raise BadOption(
                f"--check: the network takes {format_size(self.fixed)} alone, so no one pass sees {format_size(image)}"
            )
        return self.layout(image, self.fixed or self._over(image))

    def _blended(self, given: Size, image: Size, overlap: int | None) -> Layout:
        outputs = [given[axis] - self.shrinks[axis] for axis in (0, 1)]
        shared = [side // 4 for side in outputs] if overlap is None else [overlap, overlap]
        if overlap is not None and overlap >= min(outputs):
            raise BadOption(
                f"--overlap {overlap}: must be below what a tile gives, {format_size((outputs[0], outputs[1]))}"
            )
        reason = "as --overlap asks" if overlap is not None else f"since {self._reason()}"
        margins = [_halves(shrink) for shrink in self.shrinks]
        leasts = [self.least[axis] - self.shrinks[axis] for axis in (0, 1)]
        rows, columns = (
            blended(image[i], outputs[i], self.period, shared[i], least=leasts[i], margin=margins[i]) for i in (0, 1)
        )
        return Layout(
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
                raise BadOption(
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

    def _axes(self, given: Size, image: Size, before: Size, after: Size) -> tuple[Axis, Axis]:
        rows, columns = (
            exact(
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
