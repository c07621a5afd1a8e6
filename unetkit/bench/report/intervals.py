"""What the charts of effects and of rounds draw, as plain data for JSON: dots, and what they come to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from unetkit.bench.aspects import estimate_of
from unetkit.bench.effect_listing import Told, verdict
from unetkit.bench.report.charts import condition_of, conditions_of, naming, under
from unetkit.bench.rows import Row, Run
from unetkit.bench.statistics import Estimate, compare
from unetkit.bench.texts import format_interval, format_ratio

#: Rows whose rounds are drawn, for each metric and condition; and dots that are drawn of one row or effect.
ROWS, DOTS = 100, 60


def effects_data(told: Sequence[Told], run: Run) -> dict[str, list[dict[str, Any]]]:
    """What is drawn of each metric's effects."""
    name = naming(run)
    drawn: dict[str, list[dict[str, Any]]] = {}
    for one in told:
        drawn.setdefault(one[0].name, []).append(_effect(one, name))
    return drawn


def rounds_data(run: Run) -> dict[str, list[list[dict[str, Any]]]]:
    """For each timed metric and condition, the ratios of the rounds of at most ROWS rows."""
    name = naming(run)
    return {
        metric: [
            [_rounds(row, metric, name) for row in _rows_timed(run, metric, condition)[:ROWS]]
            for condition in conditions_of(run)
        ]
        for metric in timed_metrics(run)
    }


def timed_metrics(run: Run) -> list[str]:
    """The names of the timed metrics of which there are samples."""
    return [metric.name for metric in run.header.metrics if any(metric.name in row.timings for row in run.rows)]


def is_complete(run: Run) -> bool:
    """Whether every round of every row is drawn."""
    many = any(len(timing.candidate) > DOTS for row in run.rows for timing in row.timings.values())
    return not many and all(
        len(_rows_timed(run, name, condition)) <= ROWS
        for name in timed_metrics(run)
        for condition in conditions_of(run)
    )


def doubtful_rows(run: Run) -> dict[str, list[int]]:
    """By metric, the numbers of the rows whose difference does not stand among so many comparisons."""
    found = {}
    for metric in timed_metrics(run):
        rows = [(at, row.timings[metric]) for at, row in enumerate(run.rows, 1) if metric in row.timings]
        estimates = [estimate_of(timing) for _, timing in rows]
        judged = zip(rows, estimates, compare(estimates), strict=True)
        found[metric] = [at for (at, _), estimate, among in judged if among != estimate.verdict]
    return {metric: numbers for metric, numbers in found.items() if numbers}


def _rows_timed(run: Run, metric: str, condition: str) -> list[Row]:
    rows = [run.rows[index] for index in under(run, condition)]
    return [row for row in rows if metric in row.timings]


def _effect(told: Told, name: Callable[[Row], str]) -> dict[str, Any]:
    _, effect = told
    dots = [
        [estimate.ratio, f"{name(b)} over {name(a)}, {condition_of(b)}: {format_ratio(estimate.ratio)}"]
        for a, b, estimate in _thinned(effect.pairs)
    ]
    return _item(f"{effect.factor}: {effect.a} → {effect.b}", effect.estimate, verdict(*told), dots)


def _rounds(row: Row, metric: str, name: Callable[[Row], str]) -> dict[str, Any]:
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
