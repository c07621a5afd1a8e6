"""Where cells lie: clusters of several kinds, each cell overlapping those that it will press on.

N cells; lengths in pixels.
"""

from __future__ import annotations

from itertools import product
from math import cos, pi, sin
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


class Kind(NamedTuple):
    """What cells of a kind have in common.

    Attributes:
        name: as a class.
        size: of a cell, where 1 is an ordinary one's.
        length: of a cell, its width being 1.
        waves: amplitudes of the 2, 3, 4 ... waves that its outline has, its radius being 1.
        texture: what its inside looks like.
    """

    name: str
    size: float
    length: float
    waves: tuple[float, ...]
    texture: str


KINDS = (
    Kind("round cell", 1.0, 1.15, (0.05, 0.04, 0.02), "nucleus"),
    Kind("spindle cell", 1.0, 2.4, (0.05, 0.08, 0.03), "streaks"),
    Kind("grainy cell", 0.9, 1.3, (0.06, 0.05, 0.04, 0.03), "grains"),
    Kind("lobed cell", 1.2, 1.2, (0.05, 0.18, 0.14, 0.05), "vacuoles"),
    Kind("striped cell", 0.8, 1.6, (0.12, 0.04, 0.02), "stripes"),
)


class Placed(NamedTuple):
    """N cells before they press on one another: centres, radii and angles (N,), kinds (N,), waves (N, K) complex."""

    y: Floats
    x: Floats
    radius: Floats
    length: Floats
    angle: Floats
    kind: Ints
    waves: NDArray[np.complex64]


def placed(rng: np.random.Generator, size: int, radius: float, crowding: float, kinds: int) -> Placed:
    """Cells of the first `kinds` KINDS, in clusters, until they would cover the share `crowding` of the image."""
    spots = np.array(_spots(rng, size, radius, crowding))
    n = len(spots)
    kind = rng.integers(kinds, size=n)
    amplitudes = np.array([(*KINDS[k].waves, 0.0, 0.0)[:4] for k in range(kinds)])[kind]
    waves = amplitudes * np.abs(rng.normal(1, 0.4, (n, 4))) * np.exp(1j * rng.uniform(0, 2 * np.pi, (n, 4)))
    length = np.array([k.length for k in KINDS])[kind] * rng.uniform(0.85, 1.25, n)
    scale = np.array([k.size for k in KINDS])[kind]
    y, x, r = spots.T.astype(np.float32)
    angle = rng.uniform(0, 2 * np.pi, n)
    return Placed(y, x, r * _f(scale), _f(length), _f(angle), kind, waves.astype(np.complex64))


def _f(values: Any) -> Floats:
    return np.asarray(values, dtype=np.float32)


Spot = tuple[float, float, float]
#: A spot's centre and that of another are at least this share of the sum of their radii apart.
_NEAREST = 0.7
_LARGEST = 1.5


def _spots(rng: np.random.Generator, size: int, radius: float, crowding: float) -> list[Spot]:
    """Centres (y, x) and radii: each cell is set beside one before it, or now and then on free ground."""
    wanted = max(3, round(crowding * size * size / (pi * radius * radius)))
    found: list[Spot] = []
    # Whatever is too near lies in the same square of this side, or in one beside it.
    side = 2 * _NEAREST * _LARGEST * radius
    squares: dict[tuple[int, int], list[Spot]] = {}
    for chances in rng.random((4 * wanted, 4)).tolist():
        if len(found) == wanted:
            break
        y, x, r = spot = _tried(chances, found, size, radius)
        row, column = int(y // side), int(x // side)
        near = (squares.get((row + i, column + j), ()) for i, j in product((-1, 0, 1), repeat=2))
        outside = min(y, x) < -r or max(y, x) > size + r
        if outside or any(_presses(spot, other) for others in near for other in others):
            continue
        found.append(spot)
        squares.setdefault((row, column), []).append(spot)
    return found


def _tried(chances: list[float], found: list[Spot], size: int, radius: float) -> Spot:
    """A spot from four numbers between 0 and 1."""
    r = radius * (0.7 + (_LARGEST - 0.7) * chances[0] ** 2)
    if not found or chances[2] >= 0.8:
        return size * chances[1], size * chances[3], r
    y, x, beside = found[int(len(found) * chances[2] / 0.8)]
    turn, far = 2 * pi * chances[1], (beside + r) * (_NEAREST + 0.02 + 0.23 * chances[3])
    return y + far * sin(turn), x + far * cos(turn), r


def _presses(one: Spot, other: Spot) -> bool:
    return (one[0] - other[0]) ** 2 + (one[1] - other[1]) ** 2 < (_NEAREST * (one[2] + other[2])) ** 2
