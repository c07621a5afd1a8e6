"""The data of the report's charts, as plain data for JSON: a scatter plot of costs, effects, and timing rounds.

The scatter plot shows one metric against another with the Pareto front. The other two charts have an item for each
effect or row: a ratio with its interval, and a dot for each pair of rows or each round.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

from unetkit.bench.columns import HIDDEN, Column, estimate_ratio_cached, find_varying_factors
from unetkit.bench.effects import CONDITIONS, MetricEffect, judge_effect
from unetkit.bench.results import BenchRow, BenchRun
from unetkit.bench.statistics import Estimate, format_interval, judge_with_holm
from unetkit.errors import UnetkitError
from unetkit.plan import Plan
from unetkit.utils.formatting import format_ratio, format_size

#: Largest number of values of a factor that colours and shapes can distinguish.
MAX_COLOURS = 8
#: Largest number of rows whose rounds are drawn, for each metric and condition.
MAX_ROWS = 100
#: Largest number of dots that are drawn for one row or effect.
MAX_DOTS = 60
#: Scale and unit of an axis whose column has a unit that is too small to read.
_AXIS_SCALES = {"s": (1e3, "ms"), "B": (2.0**-20, "MiB")}


def format_condition(row: BenchRow) -> str:
    """Format the input size and the batch size of a row: "256x256, batch size 8".

    Args:
        row: row of a run.
    """
    return f"{format_size(row.size)}, batch size {row.batch_size}"


def list_conditions(run: BenchRun) -> list[str]:
    """Return the conditions of a run, in order of appearance; only rows of the same condition have comparable costs.

    Args:
        run: the results of a benchmark.
    """
    return list(dict.fromkeys(map(format_condition, run.rows)))


def find_rows(run: BenchRun, condition: str) -> list[int]:
    """Return the indices of the rows with a condition.

    Args:
        run: the results of a benchmark.
        condition: as `format_condition` returns it.
    """
    return [index for index, row in enumerate(run.rows) if format_condition(row) == condition]


def make_row_namer(run: BenchRun) -> Callable[[BenchRow], str]:
    """Return a function that names a row by the factors that vary: "resnet34 · transposed · add".

    Args:
        run: the results of a benchmark.
    """
    varying = [factor for factor in find_varying_factors(run.rows) if factor not in CONDITIONS]

    def name_row(row: BenchRow) -> str:
        return " · ".join(row.factors[factor] for factor in varying if factor in row.factors) or row.line

    return name_row


def find_baseline_rows(run: BenchRun) -> set[str]:
    """Return the ids of the rows that are the baseline: under each condition, or the one that trainings name.

    Args:
        run: the results of a benchmark.
    """
    if run.header.training is not None:
        return {run.header.training.baseline_row}
    try:
        baseline = replace(Plan.parse(run.header.baseline), size=None, seed=None)
        plans = {row.id: replace(Plan.parse(row.line), size=None, seed=None) for row in run.rows if row.is_measured}
    except UnetkitError:  # an option of another version
        return set()
    return {row.id for row in run.rows if plans.get(row.id) == baseline and row.mode == run.header.baseline_mode}


def make_cost_data(
    run: BenchRun,
    columns: Sequence[Column],
    half_widths: Callable[[BenchRow, str], float | None] = lambda row, column: None,
) -> dict[str, Any]:
    """Return the axes and points of the scatter plot, and the Pareto front of each condition and pair of axes.

    Args:
        run: the results of a benchmark.
        columns: all columns of the run.
        half_widths: returns the half-width of the error bar of a row in a column, None without.
    """
    conditions, name_row = list_conditions(run), make_row_namer(run)
    axes = [column for column in columns if _is_axis(column, run)]
    values = [[_to_finite(column.value(row)) for column in axes] for row in run.rows]
    points = [
        {
            "name": name_row(row),
            "row": run.numbers[row.id],
            "line": row.line,
            "condition": conditions.index(format_condition(row)),
            "factors": row.factors,
            "values": numbers,
            "texts": [column.text(row) for column in axes],
            "errors": [half_widths(row, column.name) for column in axes],
        }
        for row, numbers in zip(run.rows, values, strict=True)
    ]
    varying = [factor for factor in find_varying_factors(run.rows) if factor not in CONDITIONS]
    return {
        "axes": [_make_axis(column) for column in axes],
        "rising": next((metric.name for metric in run.header.metrics if metric.better == "more"), None),
        "conditions": conditions,
        "colours": [factor for factor in varying if _has_few_values(factor, run)],
        "points": points,
        "fronts": [_find_fronts(axes, values, find_rows(run, condition)) for condition in conditions],
    }


def _has_few_values(factor: str, run: BenchRun) -> bool:
    """Return whether colours can distinguish the values of a factor."""
    return len({row.factors.get(factor) for row in run.rows}) <= MAX_COLOURS


def _is_axis(column: Column, run: BenchRun) -> bool:
    factors = {factor for row in run.rows for factor in row.factors}
    is_candidate = column.rank < HIDDEN and column.name not in factors
    return is_candidate and any(_to_finite(column.value(row)) is not None for row in run.rows)


def _to_finite(value: object) -> float | None:
    """Return a value if it is a finite number, as JSON requires; None otherwise."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _make_axis(column: Column) -> dict[str, Any]:
    scale, unit = _AXIS_SCALES.get(column.unit, (1.0, column.unit))
    return {
        "name": column.name,
        "title": f"{column.title} ({unit})" if unit else column.title,
        "scale": scale,
        "better": column.better,
    }


def _find_fronts(axes: Sequence[Column], values: list[list[float | None]], rows: list[int]) -> dict[str, list[int]]:
    """Return the rows on the front of each pair of axes, by their indices, such as "0 3".

    Pairs with an axis for which it is unknown which values are better are left out.
    """
    rated = [index for index, column in enumerate(axes) if column.better]
    return {f"{x} {y}": _find_front(axes, values, rows, x, y) for x, y in combinations(rated, 2)}


def _find_front(axes: Sequence[Column], values: list[list[float | None]], rows: list[int], x: int, y: int) -> list[int]:
    x_sign, y_sign = (1 if axes[axis].better == "less" else -1 for axis in (x, y))
    pairs = [(row, values[row][x], values[row][y]) for row in rows]
    known = [(row, x_sign * a, y_sign * b) for row, a, b in pairs if a is not None and b is not None]
    return [known[index][0] for index in pareto_front([(a, b) for _, a, b in known])]


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the points that no other point dominates, where less is better for both numbers.

    A point dominates another if it is not worse in either number and better in one; of equal points, all or none are on
    the front. Negate numbers for which more is better.

    Args:
        points: any number of points.

    Returns:
        Indices of the points on the front, sorted by the first number, the second number and the index. Points with a
        NaN are left out.
    """
    order = sorted((x, y, index) for index, (x, y) in enumerate(points) if x == x and y == y)
    front: list[int] = []
    last = (float("inf"), float("inf"))
    for x, y, index in order:
        if y < last[1] or (x, y) == last or not front:
            front.append(index)
            last = (x, y)
    return front


def make_effect_data(effects: Sequence[MetricEffect], run: BenchRun) -> dict[str, list[dict[str, Any]]]:
    """Return the items of the chart of effects, by metric.

    Args:
        effects: effects on metrics of the run.
        run: the results of a benchmark.
    """
    name_row = make_row_namer(run)
    items: dict[str, list[dict[str, Any]]] = {}
    for metric, effect in effects:
        items.setdefault(metric.name, []).append(_make_effect_item((metric, effect), name_row))
    return items


def _make_effect_item(metric_effect: MetricEffect, name_row: Callable[[BenchRow], str]) -> dict[str, Any]:
    _, effect = metric_effect
    dots = [
        [estimate.ratio, f"{name_row(b)} / {name_row(a)}, {format_condition(b)}: {format_ratio(estimate.ratio)}"]
        for a, b, estimate in _thin(effect.pairs)
    ]
    name = f"{effect.factor}: {effect.a} → {effect.b}"
    return _make_item(name, effect.estimate, judge_effect(*metric_effect), dots)


def make_round_data(run: BenchRun) -> dict[str, list[list[dict[str, Any]]]]:
    """Return the items of the chart of rounds, by timed metric and condition, for at most MAX_ROWS rows each.

    Args:
        run: the results of a benchmark.
    """
    name_row = make_row_namer(run)
    return {
        metric: [
            [_make_round_item(row, metric, name_row) for row in _find_timed_rows(run, metric, condition)[:MAX_ROWS]]
            for condition in list_conditions(run)
        ]
        for metric in list_timed_metrics(run)
    }


def _make_round_item(row: BenchRow, metric: str, name_row: Callable[[BenchRow], str]) -> dict[str, Any]:
    timing, estimate = row.timings[metric], estimate_ratio_cached(row.timings[metric])
    ratios = [candidate / baseline for candidate, baseline in zip(timing.candidate, timing.baseline, strict=True)]
    dots = [[float(f"{ratio:.4g}"), ""] for ratio in _thin(ratios)]
    return _make_item(name_row(row), estimate, estimate.verdict, dots)


def _make_item(name: str, estimate: Estimate, verdict: str, dots: list[Any]) -> dict[str, Any]:
    numbers = {"ratio": estimate.ratio, "low": estimate.low, "high": estimate.high}
    text = f"{format_interval(estimate) if estimate.rounds else format_ratio(estimate.ratio)} {verdict}"
    return {"name": name, "text": text, "verdict": verdict, "dots": dots, **numbers}


def _thin(items: Sequence[Any]) -> list[Any]:
    """Return at most MAX_DOTS items, evenly spaced."""
    step = max(len(items) / MAX_DOTS, 1)
    return [items[int(index * step)] for index in range(min(len(items), MAX_DOTS))]


def list_timed_metrics(run: BenchRun) -> list[str]:
    """Return the names of the timed metrics that have samples.

    Args:
        run: the results of a benchmark.
    """
    return [metric.name for metric in run.header.metrics if any(metric.name in row.timings for row in run.rows)]


def has_all_rounds(run: BenchRun) -> bool:
    """Return whether the chart of rounds shows every round of every row.

    Args:
        run: the results of a benchmark.
    """
    if any(len(timing.candidate) > MAX_DOTS for row in run.rows for timing in row.timings.values()):
        return False
    return all(
        len(_find_timed_rows(run, name, condition)) <= MAX_ROWS
        for name in list_timed_metrics(run)
        for condition in list_conditions(run)
    )


def find_doubtful_rows(run: BenchRun) -> dict[str, list[int]]:
    """Return the numbers of the rows whose difference is not significant among so many comparisons, by metric.

    Args:
        run: the results of a benchmark.
    """
    doubtful = {}
    for metric in list_timed_metrics(run):
        rows = [(run.numbers[row.id], row.timings[metric]) for row in run.rows if metric in row.timings]
        estimates = [estimate_ratio_cached(timing) for _, timing in rows]
        judged = zip(rows, estimates, judge_with_holm(estimates), strict=True)
        doubtful[metric] = [number for (number, _), estimate, verdict in judged if verdict != estimate.verdict]
    return {metric: numbers for metric, numbers in doubtful.items() if numbers}


def _find_timed_rows(run: BenchRun, metric: str, condition: str) -> list[BenchRow]:
    rows = [run.rows[index] for index in find_rows(run, condition)]
    return [row for row in rows if metric in row.timings]
