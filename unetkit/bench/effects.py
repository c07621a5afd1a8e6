"""The effects of choices: what changing one factor does to a metric, over all pairs of rows that differ only in it.

Every row is timed against the same baseline in its own process. The ratio of two rows is therefore the quotient of two
ratios, neither of which contains the drift of the machine, and not the quotient of two times measured minutes apart.
"""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from itertools import combinations
from math import exp, log
from typing import Any
from zlib import crc32

import numpy
from scipy.special import stdtrit

from unetkit.bench.columns import find_chosen_factors
from unetkit.bench.compare import PEAK_MEMORY_METRICS
from unetkit.bench.metrics import check_measured
from unetkit.bench.results import BenchRow, BenchRun
from unetkit.bench.show import summarize_run
from unetkit.bench.statistics import TAILS, Estimate, FloatArray, bootstrap_log_ratio, format_interval
from unetkit.errors import UnknownNameError, did_you_mean
from unetkit.registry import MetricInfo
from unetkit.utils.tables import Listing, TableData

#: Factors that are conditions of a measurement rather than choices, so they have no effects.
CONDITIONS = ("size", "batch_size")
#: Largest number of values of a factor that are all compared with each other. If there are more, each is compared only
#: with the first.
MAX_PAIRWISE_VALUES = 8
#: Number of pairs from which their differences alone give an interval.
_MIN_PAIRS = 3
#: Verdicts for metrics that are not timed.
_VALUE_VERDICTS = {"slower": "more", "faster": "less"}


@dataclass(frozen=True)
class Effect:
    """The effect on a metric of replacing value `a` of a factor by value `b`.

    Attributes:
        factor: name of the factor, such as "fuse".
        a: value of the factor before, which appears first in the rows.
        b: value of the factor after.
        metric: name of the metric.
        estimate: geometric mean over the pairs of the metric with `b` divided by that with `a`. The interval of a timed
            metric is the wider of two: the bootstrap interval over the rounds, and, from three pairs on, Student's t
            interval over the pairs, which includes the variation between pairs. The interval of any other metric
            extends from the smallest to the largest ratio.
        pairs: pairs of rows that differ only in this factor, with the ratio of each pair.
    """

    factor: str
    a: str
    b: str
    metric: str
    estimate: Estimate
    pairs: tuple[tuple[BenchRow, BenchRow, Estimate], ...]


MetricEffect = tuple[MetricInfo, Effect]


@dataclass(frozen=True)
class _LogValue:
    """The logarithm of a row's value or ratio, and bootstrap draws of it; an exact value has 0 rounds and one draw."""

    log: float
    draws: FloatArray
    rounds: int

    def __sub__(self, other: _LogValue) -> _LogValue:
        return _LogValue(self.log - other.log, self.draws - other.draws, min(other.rounds, self.rounds))


def list_effects(run: BenchRun, names: str | None = None, rows: Sequence[BenchRow] | None = None) -> list[MetricEffect]:
    """Return the effects on metrics of a run that need no training.

    Args:
        run: the results of a benchmark.
        names: names of metrics, separated by commas; all metrics if None.
        rows: the rows whose pairs are used; all rows of the run if None.

    Raises:
        UnknownNameError: The run has no such metric.
    """
    selected = select_metrics(run, names)
    return [(one, effect) for one in selected if not one.trained for effect in estimate_effects(run, one.name, rows)]


def select_metrics(run: BenchRun, names: str | None) -> list[MetricInfo]:
    """Return the metrics of a run of these names, separated by commas; all if None.

    Raises:
        UnknownNameError: The run has no such metric.
    """
    metrics = {metric.name: metric for metric in run.header.metrics}
    selected = [*metrics] if names is None else [name.strip() for name in names.split(",")]
    for name in selected:
        if name not in metrics:
            check_measured(name, metrics, "--columns")
            advice = did_you_mean(name, metrics) or f"; the metrics are {', '.join(metrics)}"
            raise UnknownNameError(f"--columns: there is no metric {name!r}{advice}")
    return [metrics[name] for name in selected]


def estimate_effects(run: BenchRun, metric: str, rows: Sequence[BenchRow] | None = None) -> list[Effect]:
    """Estimate the effects on a metric of all choices for which there are pairs of rows that differ only in them.

    Only rows with the same factors are paired; a whole model, which has no fusion, is never paired with a U-Net that
    has one. Values that are not positive have no ratio and are left out.

    Args:
        run: the results of a benchmark.
        metric: name of a metric.
        rows: the rows whose pairs are used; all rows of the run if None.
    """
    measured = [row for row in (run.rows if rows is None else rows) if row.is_measured]
    log_values = {row.id: value for row in measured if (value := _make_log_value(row, metric))}
    compared = [row for row in measured if row.id in log_values]
    return [
        effect
        for factor, values in list_choices(run, CONDITIONS).items()
        for effect in _estimate_factor(factor, values, compared, metric, log_values)
    ]


def list_choices(run: BenchRun, conditions: Collection[str]) -> dict[str, list[str]]:
    """Return the factors of a run that a command set, each with its values.

    The values are in the order in which the rows of the run first have them, so that an effect has the same direction
    whichever rows it is estimated from, and also after a later command has added rows.

    Args:
        run: the results of a benchmark.
        conditions: factors to leave out.
    """
    factors = [name for name in find_chosen_factors(run.rows) if name not in conditions]
    return {name: [*dict.fromkeys(row.factors[name] for row in run.rows if name in row.factors)] for name in factors}


def _make_log_value(row: BenchRow, metric: str) -> _LogValue | None:
    if metric in row.timings:
        rng = numpy.random.default_rng(crc32(f"{row.id} {metric}".encode()))  # equal draws in every process
        timing = row.timings[metric]
        return _LogValue(*bootstrap_log_ratio(timing, rng), len(timing.candidate))
    value = row.values.get(metric, 0.0)
    return _LogValue(log(value), numpy.array([log(value)]), 0) if value > 0 else None


def find_pairs(
    factor: str, values: Sequence[str], rows: Iterable[BenchRow]
) -> Iterator[tuple[str, str, list[tuple[BenchRow, BenchRow]]]]:
    """Yield the value of a factor before and after each choice, and the pairs of rows that differ only in it.

    Args:
        factor: name of the factor.
        values: its values in order.
        rows: rows of a run.
    """
    groups = _group_by_other_factors(factor, rows)
    found = {value for group in groups for value in group}
    values = [value for value in values if value in found]
    choices = [*combinations(values, 2)]
    for a, b in choices if len(values) <= MAX_PAIRWISE_VALUES else choices[: len(values) - 1]:
        if pairs := [(group[a], group[b]) for group in groups if a in group and b in group]:
            yield a, b, pairs


def _estimate_factor(
    factor: str, values: Sequence[str], rows: list[BenchRow], metric: str, log_values: dict[str, _LogValue]
) -> Iterator[Effect]:
    for a, b, pairs in find_pairs(factor, values, rows):
        differences = [log_values[after.id] - log_values[before.id] for before, after in pairs]
        rated = tuple((*pair, _average([diff])) for pair, diff in zip(pairs, differences, strict=True))
        yield Effect(factor, a, b, metric, _average(differences), rated)


def _group_by_other_factors(factor: str, rows: Iterable[BenchRow]) -> list[dict[str, BenchRow]]:
    """Group rows that are equal in all factors but one, and return each group by the value of that factor.

    Rows without the factor are left out. What a recipe chooses is part of the recipe.
    """
    groups: dict[frozenset[tuple[str, str]], dict[str, BenchRow]] = {}
    for row in rows:
        if factor in row.factors:
            own = {factor, *(row.defaults if factor == "recipe" else ())}
            others = frozenset(item for item in row.factors.items() if item[0] not in own)
            groups.setdefault(others, {}).setdefault(row.factors[factor], row)
    return [*groups.values()]


def _average(differences: list[_LogValue]) -> Estimate:
    """Return the geometric mean of ratios, given their logarithms."""
    logs = numpy.array([difference.log for difference in differences])
    mean = float(logs.mean())
    rounds = sum(difference.rounds for difference in differences)
    if rounds:
        draws = numpy.mean([difference.draws for difference in differences], axis=0)
        low, high = numpy.quantile(draws, TAILS).tolist()
    else:
        low, high = float(logs.min()), float(logs.max())
    if rounds and len(logs) >= _MIN_PAIRS:
        half_width = float(stdtrit(len(logs) - 1, TAILS[1])) * float(logs.std(ddof=1)) / len(logs) ** 0.5
        low, high = min(low, mean - half_width), max(high, mean + half_width)
    return Estimate(exp(mean), exp(min(low, mean)), exp(max(high, mean)), rounds)


def judge_effect(metric: MetricInfo, effect: Effect) -> str:
    """Return the verdict on an effect: slower, faster, same or inconclusive, with more and less for counts and sizes.

    Times that were measured only once are not judged, nor is peak memory with fewer than three pairs, since these do
    not show how much it varies.

    Args:
        metric: the metric of the effect.
        effect: the effect.
    """
    is_peak_of_few_pairs = metric.name in PEAK_MEMORY_METRICS and len(effect.pairs) < _MIN_PAIRS
    if not metric.timed and (metric.unit == "s" or is_peak_of_few_pairs):
        return "not judged"
    verdict = effect.estimate.verdict
    return verdict if metric.timed else _VALUE_VERDICTS.get(verdict, verdict)


def format_effects(run: BenchRun, effects: list[MetricEffect], *others: TableData) -> Listing:
    """Format effects as a table.

    Args:
        run: the results of a benchmark.
        effects: effects on metrics of the run that need no training.
        others: tables of other effects.
    """
    rows = [_make_cells(metric, effect) for metric, effect in effects]
    table = TableData(["factor", "change", "metric", "ratio", "verdict", "pairs"], rows)
    tables = [one for one in (table, *others) if one.rows]
    notes = [] if tables else ["no two rows differ in only one factor, so there are no effects to show"]
    return Listing(summarize_run(run), tables, notes)


def effects_to_records(effects: list[MetricEffect]) -> list[dict[str, Any]]:
    """Convert effects to plain data for JSON, with the ids of the rows of each pair.

    Args:
        effects: effects on metrics of a run.
    """
    return [
        {
            **_effect_to_dict(metric, effect),
            "pairs": [{"a": a.id, "b": b.id, "ratio": estimate.ratio} for a, b, estimate in effect.pairs],
        }
        for metric, effect in effects
    ]


def effects_to_csv(effects: list[MetricEffect], others: Iterable[Mapping[str, Any]] = ()) -> str:
    """Format effects as CSV, one line each, with a line of headings.

    Args:
        effects: effects on metrics of a run that need no training.
        others: records of other effects, which have a difference in place of a ratio.
    """
    out = StringIO()
    names = ["factor", "a", "b", "metric", "ratio", "difference", "low", "high", "verdict", "pairs"]
    writer = csv.DictWriter(out, names, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows({**_effect_to_dict(*effect), "pairs": len(effect[1].pairs)} for effect in effects)
    writer.writerows({**other, "pairs": len(other["pairs"])} for other in others)
    return out.getvalue()


def _make_cells(metric: MetricInfo, effect: Effect) -> list[str]:
    change, ratio = f"{effect.a} -> {effect.b}", format_interval(effect.estimate)
    return [effect.factor, change, effect.metric, ratio, judge_effect(metric, effect), str(len(effect.pairs))]


def _effect_to_dict(metric: MetricInfo, effect: Effect) -> dict[str, Any]:
    names = {name: getattr(effect, name) for name in ("factor", "a", "b", "metric")}
    numbers = {name: getattr(effect.estimate, name) for name in ("ratio", "low", "high")}
    return {**names, **numbers, "verdict": judge_effect(metric, effect)}
