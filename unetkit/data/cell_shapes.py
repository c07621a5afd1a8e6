"""What outlines cells have, and how they press on one another: each a region of its own.

H and W height and width.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import ndimage

from unetkit.data.cell_places import Floats, Ints, Placed


class Regions(NamedTuple):
    """Cells as they lie in the image, each map (H, W).

    Attributes:
        owner: whose a pixel is, 0 for nobody's, i + 1 for the i-th cell's.
        out: how far out in its cell a pixel lies: 0 in the centre, 1 on the outline and outside.
        along, across: where in its cell it lies, in the cell's own axes, its radius being 1.
    """

    owner: Ints
    out: Floats
    along: Floats
    across: Floats


def regions(cells: Placed, size: int) -> Regions:
    """Who owns each pixel: of the cells that reach it, the one in whose middle it lies most.

    So neighbours share a border where they meet, as cells that press on one another do.
    """
    maps = Regions(np.zeros((size, size), np.int64), *(np.ones((size, size), np.float32) for _ in range(3)))
    for index, cell in enumerate(zip(*cells, strict=True)):
        y, x, radius, length = map(float, cell[:4])
        # Waves lift an outline to half as far again, but for the rarest.
        reach = radius * length**0.5 * 1.5
        rows, columns = (slice(max(0, int(c - reach)), max(0, min(size, int(c + reach) + 2))) for c in (y, x))
        if rows.start < rows.stop and columns.start < columns.stop:
            _paint(maps, index + 1, rows, columns, Placed(*cell))
    return maps


def _paint(maps: Regions, number: int, rows: slice, columns: slice, cell: Placed) -> None:
    y = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None] - cell.y
    x = np.arange(columns.start, columns.stop, dtype=np.float32)[None] - cell.x
    c, s, stretch = np.cos(cell.angle), np.sin(cell.angle), np.sqrt(cell.length)
    along, across = (x * c + y * s) / (cell.radius * stretch), (y * c - x * s) * (stretch / cell.radius)
    out = np.sqrt(along * along + across * across)
    wave = turn = (along + np.complex64(1j) * across) / np.maximum(out, np.float32(1e-6))
    outline = np.ones_like(out)
    for amplitude in cell.waves:
        wave = wave * turn
        outline += (amplitude * wave).real
    out /= np.maximum(outline, np.float32(0.3))
    nearer = out < maps.out[rows, columns]
    maps.owner[rows, columns][nearer] = number
    for field, values in zip(maps[1:], (out, along, across), strict=True):
        field[rows, columns][nearer] = values[nearer]


def apart(owner: Ints, least: int) -> Ints:
    """Who owns each pixel once a line of background, 2 pixels wide, keeps touching cells apart.

    Each cell is one connected piece (of its pieces, the largest) of at least that many pixels, or is gone.
    """
    high = ndimage.maximum_filter(owner, 3)
    low = ndimage.minimum_filter(np.where(owner > 0, owner, len(owner) ** 2), 3)
    kept = np.where(high == low, owner, 0)
    pieces, count = ndimage.label(kept)
    area, of = np.bincount(pieces.ravel(), minlength=count + 1), np.zeros(count + 1, np.int64)
    of[pieces.ravel()] = kept.ravel()
    order = np.lexsort((-area, of))
    largest = order[np.unique(of[order], return_index=True)[1]]
    stays = np.zeros(count + 1, bool)
    stays[largest[area[largest] >= least]] = True
    return np.where(stays[pieces], kept, 0)
