"""What the chart of cost against cost draws, as plain data for JSON: points, and the front of every two columns."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

from unetkit.bench.aspects import HIDDEN
from unetkit.bench.columns import Column, varying
from unetkit.bench.effects import CONDITIONS
from unetkit.bench.pareto import front
from unetkit.bench.rows import Row, Run
from unetkit.inspect.figures import format_size

#: Colours and shapes that can be told apart.
COLOURS = 8
#: What an axis is drawn in, where its column's unit is too small to read: a factor and its unit.
_SCALES = {"s": (1e3, "ms"), "B": (2.0**-20, "MiB")}


def conditions_of(run: Run) -> list[str]:
    """The sizes and batches of a run: only rows under the same can be compared by their costs."""
    return list(dict.fromkeys(map(condition_of, run.rows)))


def condition_of(row: Row) -> str:
    """256x256, batch 8."""
    return f"{format_size(row.size)}, batch {row.batch}"


def naming(run: Run) -> Callable[[Row], str]:
    """What tells a row from others under the same condition: resnet34 · transposed · add."""
    told = [factor for factor in varying(run) if factor not in CONDITIONS]

    def name(row: Row) -> str:
        return " · ".join(row.factors[factor] for factor in told if factor in row.factors) or row.line

    return name


def under(run: Run, condition: str) -> list[int]:
    """Which rows stand under a condition."""
    return [index for index, row in enumerate(run.rows) if condition_of(row) == condition]


def costs_of(run: Run, columns: Sequence[Column]) -> dict[str, Any]:
    """Points for every pair of columns that can be an axis, and the front of every pair under every condition."""
    conditions, name = conditions_of(run), naming(run)
    axes = [column for column in columns if _is_axis(column, run)]
    values = [[_number(column.value(row)) for column in axes] for row in run.rows]
    points = [
        {
            "name": name(row),
            "line": row.line,
            "condition": conditions.index(condition_of(row)),
            "factors": row.factors,
            "values": numbers,
            "texts": [column.text(row) for column in axes],
        }
        for row, numbers in zip(run.rows, values, strict=True)
    ]
    return {
        "axes": [_axis(column) for column in axes],
        "conditions": conditions,
        "colours": [factor for factor in varying(run) if factor not in CONDITIONS and _few(factor, run)],
        "points": points,
        "fronts": [_fronts(axes, values, under(run, condition)) for condition in conditions],
    }


def _few(factor: str, run: Run) -> bool:
    """Whether the eye can tell its values apart."""
    return len({row.factors.get(factor) for row in run.rows}) <= COLOURS


def _is_axis(column: Column, run: Run) -> bool:
    factors = {factor for row in run.rows for factor in row.factors}
    shown = column.rank < HIDDEN and column.name not in factors
    return shown and any(_number(column.value(row)) is not None for row in run.rows)


def _number(value: object) -> float | None:
    """A finite number, as JSON has it."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _axis(column: Column) -> dict[str, Any]:
    scale, unit = _SCALES.get(column.unit, (1.0, column.unit))
    return {
        "name": column.name,
        "title": f"{column.title} ({unit})" if unit else column.title,
        "scale": scale,
        "better": column.better,
    }


def _fronts(axes: Sequence[Column], values: list[list[float | None]], under: list[int]) -> dict[str, list[int]]:
    """By a pair of axes, "0 3", the rows on their front; a pair of which nobody knows what is better has none."""
    known = [index for index, column in enumerate(axes) if column.better]
    return {f"{x} {y}": _front(axes, values, under, x, y) for x, y in combinations(known, 2)}


def _front(axes: Sequence[Column], values: list[list[float | None]], under: list[int], x: int, y: int) -> list[int]:
    signs = [1 if axes[axis].better == "less" else -1 for axis in (x, y)]
    both = [(row, values[row][x], values[row][y]) for row in under]
    known = [(row, signs[0] * a, signs[1] * b) for row, a, b in both if a is not None and b is not None]
    return [known[index][0] for index in front([(a, b) for _, a, b in known])]
