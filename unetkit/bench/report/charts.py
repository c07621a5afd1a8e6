"""What the chart of cost against cost draws, as plain data for JSON: points, and the front of every two columns."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

from unetkit.bench.columns import HIDDEN, Column, estimate_of, varying
from unetkit.bench.effects import CONDITIONS, Told, verdict
from unetkit.bench.results import BenchRow, BenchRun
from unetkit.bench.statistics import Estimate, format_interval, judge_together
from unetkit.utils.formatting import format_ratio, format_size


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
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


#: Colours and shapes that can be told apart.
COLOURS = 8
#: What an axis is drawn in, where its column's unit is too small to read: a factor and its unit.
_SCALES = {"s": (1e3, "ms"), "B": (2.0**-20, "MiB")}


def conditions_of(run: BenchRun) -> list[str]:
    """The sizes and batches of a run: only rows under the same can be compared by their costs."""
    return list(dict.fromkeys(map(condition_of, run.rows)))


def condition_of(row: BenchRow) -> str:
    """256x256, batch size 8."""
    return f"{format_size(row.size)}, batch size {row.batch_size}"


def naming(run: BenchRun) -> Callable[[BenchRow], str]:
    """What tells a row from others under the same condition: resnet34 · transposed · add."""
    told = [factor for factor in varying(run) if factor not in CONDITIONS]

    def name(row: BenchRow) -> str:
        return " · ".join(row.factors[factor] for factor in told if factor in row.factors) or row.line

    return name


def under(run: BenchRun, condition: str) -> list[int]:
    """Which rows stand under a condition."""
    return [index for index, row in enumerate(run.rows) if condition_of(row) == condition]


def costs_of(run: BenchRun, columns: Sequence[Column]) -> dict[str, Any]:
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


def _few(factor: str, run: BenchRun) -> bool:
    """Whether the eye can tell its values apart."""
    return len({row.factors.get(factor) for row in run.rows}) <= COLOURS


def _is_axis(column: Column, run: BenchRun) -> bool:
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
    return [known[index][0] for index in pareto_front([(a, b) for _, a, b in known])]


#: Rows whose rounds are drawn, for each metric and condition; and dots that are drawn of one row or effect.
ROWS, DOTS = 100, 60


def effects_data(told: Sequence[Told], run: BenchRun) -> dict[str, list[dict[str, Any]]]:
    """What is drawn of each metric's effects."""
    name = naming(run)
    drawn: dict[str, list[dict[str, Any]]] = {}
    for one in told:
        drawn.setdefault(one[0].name, []).append(_effect(one, name))
    return drawn


def rounds_data(run: BenchRun) -> dict[str, list[list[dict[str, Any]]]]:
    """For each timed metric and condition, the ratios of the rounds of at most ROWS rows."""
    name = naming(run)
    return {
        metric: [
            [_rounds(row, metric, name) for row in _rows_timed(run, metric, condition)[:ROWS]]
            for condition in conditions_of(run)
        ]
        for metric in timed_metrics(run)
    }


def timed_metrics(run: BenchRun) -> list[str]:
    """The names of the timed metrics of which there are samples."""
    return [metric.name for metric in run.header.metrics if any(metric.name in row.timings for row in run.rows)]


def is_complete(run: BenchRun) -> bool:
    """Whether every round of every row is drawn."""
    many = any(len(timing.candidate) > DOTS for row in run.rows for timing in row.timings.values())
    return not many and all(
        len(_rows_timed(run, name, condition)) <= ROWS
        for name in timed_metrics(run)
        for condition in conditions_of(run)
    )


def doubtful_rows(run: BenchRun) -> dict[str, list[int]]:
    """By metric, the numbers of the rows whose difference does not stand among so many comparisons."""
    found = {}
    for metric in timed_metrics(run):
        rows = [(at, row.timings[metric]) for at, row in enumerate(run.rows, 1) if metric in row.timings]
        estimates = [estimate_of(timing) for _, timing in rows]
        judged = zip(rows, estimates, judge_together(estimates), strict=True)
        found[metric] = [at for (at, _), estimate, among in judged if among != estimate.verdict]
    return {metric: numbers for metric, numbers in found.items() if numbers}


def _rows_timed(run: BenchRun, metric: str, condition: str) -> list[BenchRow]:
    rows = [run.rows[index] for index in under(run, condition)]
    return [row for row in rows if metric in row.timings]


def _effect(told: Told, name: Callable[[BenchRow], str]) -> dict[str, Any]:
    _, effect = told
    dots = [
        [estimate.ratio, f"{name(b)} over {name(a)}, {condition_of(b)}: {format_ratio(estimate.ratio)}"]
        for a, b, estimate in _thinned(effect.pairs)
    ]
    return _item(f"{effect.factor}: {effect.a} → {effect.b}", effect.estimate, verdict(*told), dots)


def _rounds(row: BenchRow, metric: str, name: Callable[[BenchRow], str]) -> dict[str, Any]:
    timing, estimate = row.timings[metric], estimate_of(row.timings[metric])
    ratios = [ours / base for ours, base in zip(timing.candidate, timing.baseline, strict=True)]
    dots = [[float(f"{ratio:.4g}"), ""] for ratio in _thinned(ratios)]
    return _item(name(row), estimate, estimate.verdict, dots)


def _item(name: str, estimate: Estimate, verdict: str, dots: list[Any]) -> dict[str, Any]:
    numbers = {"ratio": estimate.ratio, "low": estimate.low, "high": estimate.high}
    words = f"{format_interval(estimate) if estimate.rounds else format_ratio(estimate.ratio)} {verdict}"
    return {"name": name, "words": words, "verdict": verdict, "dots": dots, **numbers}


def _thinned(items: Sequence[Any]) -> list[Any]:
    """At most DOTS, evenly spaced."""
    step = max(len(items) / DOTS, 1)
    return [items[int(index * step)] for index in range(min(len(items), DOTS))]
