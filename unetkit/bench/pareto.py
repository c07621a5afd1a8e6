"""Which of many points no other beats: the Pareto front of two costs."""

from __future__ import annotations

from collections.abc import Sequence


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Which points no other beats, where less is better of both numbers (negate one of which more is better).

    A point is beaten by another that is no worse in both and better in one; equal points stand or fall together.

    Returns:
        Indices into `points`, by the first number, then the second, then the index. Points with a NaN are left out.
    """
    order = sorted((x, y, index) for index, (x, y) in enumerate(points) if x == x and y == y)
    kept: list[int] = []
    best = (float("inf"), float("inf"))
    for x, y, index in order:
        if y < best[1] or (x, y) == best or not kept:
            kept.append(index)
            best = (x, y)
    return kept
