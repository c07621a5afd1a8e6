"""What a choice changes: rows that differ in one factor alone, compared pair by pair, and over all pairs.

Every row is timed against the same baseline, in a process of its own; so the ratio of two rows is the quotient of two
ratios that the machine's drift has left already, and not that of two times taken minutes apart.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import StringIO
from itertools import combinations
from math import exp, log
from typing import Any
from zlib import crc32

import numpy

from unetkit.bench.compare import PEAKS
from unetkit.bench.results import BenchRow, BenchRun
from unetkit.bench.show import head
from unetkit.bench.statistics import TAILS, Estimate, Floats, format_interval, log_draws
from unetkit.errors import UnknownNameError, did_you_mean
from unetkit.registry import MetricInfo
from unetkit.utils.tables import Listing, TableData

#: What a row is measured under, and no choice.
CONDITIONS = ("size", "batch_size")
#: Values of a factor that are all compared with each other; of more, each is compared with the first.
VALUES = 8
#: 97.5% of Student's t for 2 to 10 degrees of freedom.
_T = (4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


@dataclass(frozen=True)
class Effect:
    """What b in place of a does to a metric.

    Attributes:
        factor: "fuse".
        a, b: two of its values, in the order of the rows.
        metric: that is compared.
        estimate: b over a, the geometric mean over the pairs. Its interval covers both the noise of rounds and, from
            three pairs on, what differs from pair to pair: the wider of the bootstrap's and Student's t. Of a figure
            it is from the least pair to the greatest.
        pairs: rows that differ in this factor alone, and b over a for each.
    """

    factor: str
    a: str
    b: str
    metric: str
    estimate: Estimate
    pairs: tuple[tuple[BenchRow, BenchRow, Estimate], ...]


@dataclass(frozen=True)
class _Known:
    """The logarithm of a row's figure or ratio, and draws of it; where it is exact, rounds 0 and one draw."""

    log: float
    draws: Floats
    rounds: int


def effects_of(run: BenchRun, metric: str) -> list[Effect]:
    """The effect of every two values of each factor that was chosen, where rows tell it; of many, beside the first.

    A factor that a row has not, as a whole model has no fusion, is no match for one that another has. Figures that are
    not above 0 have no ratio, and are left out.
    """
    known = {row.id: found for row in run.rows if row.is_measured and (found := _known(row, metric))}
    rows = [row for row in run.rows if row.id in known]
    factors = dict.fromkeys(factor for row in rows for factor in row.factors if factor not in CONDITIONS)
    return [effect for factor in factors for effect in _effects(factor, rows, metric, known)]


def _effects(factor: str, rows: list[BenchRow], metric: str, known: dict[str, _Known]) -> Iterator[Effect]:
    groups = _alike(factor, rows)
    values = dict.fromkeys(row.factors[factor] for row in rows if factor in row.factors)
    both = [*combinations(values, 2)]
    for a, b in both if len(values) <= VALUES else both[: len(values) - 1]:
        pairs = [(group[a], group[b]) for group in groups if a in group and b in group]
        if pairs:
            quotients = [_over(known[two.id], known[one.id]) for one, two in pairs]
            told = tuple((*pair, _estimate([quotient])) for pair, quotient in zip(pairs, quotients, strict=True))
            yield Effect(factor, a, b, metric, _estimate(quotients), told)


def _alike(factor: str, rows: Iterable[BenchRow]) -> list[dict[str, BenchRow]]:
    """Rows that have all but this factor in common, by its value."""
    groups: dict[frozenset[tuple[str, str]], dict[str, BenchRow]] = {}
    for row in rows:
        if factor in row.factors:
            others = frozenset(item for item in row.factors.items() if item[0] != factor)
            groups.setdefault(others, {})[row.factors[factor]] = row
    return [*groups.values()]


def _known(row: BenchRow, metric: str) -> _Known | None:
    if metric in row.timings:
        chance = numpy.random.default_rng(crc32(f"{row.id} {metric}".encode()))  # the same whenever it is read
        return _Known(*log_draws(row.timings[metric], chance), len(row.timings[metric].candidate))
    figure = row.values.get(metric, 0.0)
    return _Known(log(figure), numpy.array([log(figure)]), 0) if figure > 0 else None


def _over(b: _Known, a: _Known) -> _Known:
    return _Known(b.log - a.log, b.draws - a.draws, min(a.rounds, b.rounds))


def _estimate(quotients: list[_Known]) -> Estimate:
    """Their geometric mean."""
    logs = numpy.array([quotient.log for quotient in quotients])
    mean = float(logs.mean())
    rounds = sum(quotient.rounds for quotient in quotients)
    low, high = _tails([quotient.draws for quotient in quotients]) if rounds else (float(logs.min()), float(logs.max()))
    if rounds and len(logs) >= 3:
        reach = student(len(logs) - 1) * float(logs.std(ddof=1)) / len(logs) ** 0.5
        low, high = min(low, mean - reach), max(high, mean + reach)
    return Estimate(exp(mean), exp(min(low, mean)), exp(max(high, mean)), rounds)


def _tails(draws: list[Floats]) -> tuple[float, float]:
    low, high = numpy.quantile(numpy.mean(draws, axis=0), TAILS).tolist()
    return low, high


def student(degrees: float) -> float:
    """97.5% of Student's t; `degrees` of freedom from 2 on, within 1%."""
    return float(numpy.interp(degrees, range(2, 11), _T)) if degrees <= 10 else 1.96 + 2.5 / degrees


#: A Verdict's words, for what is counted and not timed.
_COUNTED = {"slower": "more", "faster": "less"}
#: Pairs from which on their differences alone give an interval.
_ENOUGH = 3

Told = tuple[MetricInfo, Effect]


def list_effects(run: BenchRun, names: str | None = None) -> list[Told]:
    """The effects on every metric of a run, or on those that "latency,memory" names.

    Raises:
        UnknownNameError: the run has no such metric.
    """
    asked = {metric.name: metric for metric in run.header.metrics}
    wanted = [*asked] if names is None else [name.strip() for name in names.split(",")]
    if unknown := [name for name in wanted if name not in asked]:
        hint = did_you_mean(unknown[0], asked)
        raise UnknownNameError(f"--columns: no metric is called {unknown[0]!r}{hint}; there are {', '.join(asked)}")
    return [(metric, effect) for metric in map(asked.__getitem__, wanted) for effect in effects_of(run, metric.name)]


def format_effects(run: BenchRun, told: list[Told]) -> Listing:
    """A table of them."""
    rows = [_cells(*one) for one in told]
    cells = TableData(["factor", "change", "metric", "ratio", "verdict", "pairs"], rows)
    notes = [] if rows else ["no two rows differ in one factor alone: there are no effects to tell"]
    return Listing(head(run), [cells] if rows else [], notes)


def effects_to_records(told: list[Told]) -> list[dict[str, Any]]:
    """The same as plain data, with each pair of rows by their ids."""
    return [
        {
            **_plain(metric, effect),
            "pairs": [{"a": one.id, "b": two.id, "ratio": ratio.ratio} for one, two, ratio in effect.pairs],
        }
        for metric, effect in told
    ]


def effects_to_csv(told: list[Told]) -> str:
    """A line an effect, under a line of headings."""
    out = StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["factor", "a", "b", "metric", "ratio", "low", "high", "verdict", "pairs"])
    writer.writerows([*_plain(metric, effect).values(), len(effect.pairs)] for metric, effect in told)
    return out.getvalue()


def verdict(metric: MetricInfo, effect: Effect) -> str:
    """slower, faster, same or inconclusive; of counts and sizes more or less.

    Not judged are seconds that were measured once, and peak memory of so few pairs that nothing tells how it varies.
    """
    if not metric.timed and (metric.unit == "s" or (metric.name in PEAKS and len(effect.pairs) < _ENOUGH)):
        return "not judged"
    word = effect.estimate.verdict
    return word if metric.timed else _COUNTED.get(word, word)


def _cells(metric: MetricInfo, effect: Effect) -> list[str]:
    change, ratio = f"{effect.a} -> {effect.b}", format_interval(effect.estimate)
    return [effect.factor, change, effect.metric, ratio, verdict(metric, effect), str(len(effect.pairs))]


def _plain(metric: MetricInfo, effect: Effect) -> dict[str, Any]:
    told = {name: getattr(effect, name) for name in ("factor", "a", "b", "metric")}
    numbers = {name: getattr(effect.estimate, name) for name in ("ratio", "low", "high")}
    return {**told, **numbers, "verdict": verdict(metric, effect)}
