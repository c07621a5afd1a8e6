"""Values of masks between those of their neighbours, as resizing, anti-aliasing and JPEG make them at edges.

Shapes: H and W height and width.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import NamedTuple

import numpy as np

#: A blended code has at most this share of all pixels, and all of them together at most the other share.
_MOST_OF_ONE, _MOST_OF_ALL = 0.01, 0.15
#: The number of pixels of a code that are looked at, their distance to their neighbours, and how much a code may
#: differ from a mixture of two of them, in steps of 8 bits for each channel.
_PIXELS, _REACH, _OFF = 64, 3, 16.0
#: How far a rare colour is at most from another one that it was meant to be, as where JPEG or a drawing program changed
#: it; numbers of classes may be next to each other.
_NEAR = 12.0
#: The largest number of codes that are looked at, and of others: what has more is a photograph, or has objects.
_CODES, _MOST_PURE = 512, 64


class Blended(NamedTuple):
    """Codes that are mixtures of others.

    Attributes:
        codes: the mixed ones, most frequent first.
        pure: the others.
        share: the share of all pixels that have mixed ones.
    """

    codes: tuple[int, ...]
    pure: tuple[int, ...]
    share: float


def find_blended(totals: Mapping[int, int], masks: Mapping[int, np.ndarray], *, colours: bool) -> Blended | None:
    """Find the codes that are mixtures of their neighbours.

    Args:
        totals: the number of pixels of each code (a number, or a packed colour) in all masks.
        masks: a mask (H, W) of codes that contains it, for each code.
        colours: whether codes are colours.

    Returns:
        None if there are none, or if they have so many pixels that they are classes.
    """
    pixels = sum(totals.values())
    ordered = sorted(totals, key=lambda code: -totals[code])
    rare = [code for code in ordered if totals[code] <= _MOST_OF_ONE * pixels]
    pure = np.array([code for code in ordered if code not in {*rare}])
    if not 2 <= len(pure) <= _MOST_PURE or not rare:
        return None
    found = [code for code in rare[:_CODES] if _is_blend(code, masks[code], pure, colours)]
    share = sum(totals[code] for code in found) / pixels
    if not found or share > _MOST_OF_ALL:
        return None
    left = tuple(code for code in ordered if code not in {*found})
    return Blended((*found, *rare[_CODES:]), left, share)


def _is_blend(code: int, mask: np.ndarray, pure: np.ndarray, colours: bool) -> bool:
    """Return whether a code is nearly another one, or most of its pixels have neighbours that it is a mixture of."""
    if colours and _nearest(code, pure) <= _NEAR:
        return True
    rows, columns = np.nonzero(mask == code)
    some = slice(None, None, -(-len(rows) // _PIXELS))
    known = np.isin(mask, pure)
    blends = 0
    for row, column in zip(rows[some], columns[some], strict=True):
        window = (
            slice(max(0, row - _REACH), row + _REACH + 1),
            slice(max(0, column - _REACH), column + _REACH + 1),
        )
        near = np.unique(mask[window][known[window]])
        blends += len(near) > 1 and _distance(code, near, colours) <= _OFF
    return blends > 0.7 * len(rows[some])


def _distance(code: int, near: np.ndarray, colours: bool) -> float:
    """Return how far a code is from the nearest mixture of two others."""
    if not colours:
        return max(0.0, float(near.min()) - code, code - float(near.max()))
    point, ends = _channels(np.array([code]))[0], _channels(near[:12])
    distances = []
    for first, second in combinations(ends, 2):
        along = second - first
        at = np.clip((point - first) @ along / (along @ along), 0, 1)
        distances.append(float(np.linalg.norm(point - first - at * along)))
    return min(distances)


def _nearest(code: int, others: np.ndarray) -> float:
    """Return how far a colour is from the nearest of others."""
    return float(np.linalg.norm(_channels(others) - _channels(np.array([code])), axis=1).min())


def _channels(codes: np.ndarray) -> np.ndarray:
    """Return red, green and blue of packed colours, (N, 3)."""
    return np.stack([codes >> 16 & 255, codes >> 8 & 255, codes & 255], 1).astype(float)
