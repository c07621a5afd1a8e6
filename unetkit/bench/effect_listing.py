"""What `unetkit bench show --effects` prints: what each choice changes, over matched pairs of rows."""

from __future__ import annotations

import csv
from io import StringIO
from typing import Any

from unetkit.bench.changes import PEAKS
from unetkit.bench.effects import Effect, effects_of
from unetkit.bench.listing import Cells, Listing
from unetkit.bench.rows import MetricInfo, Run
from unetkit.bench.show import head
from unetkit.bench.texts import format_interval
from unetkit.errors import UnknownName, nearest

#: A Verdict's words, for what is counted and not timed.
_COUNTED = {"slower": "more", "faster": "less"}
#: Pairs from which on their differences alone give an interval.
_ENOUGH = 3

Told = tuple[MetricInfo, Effect]


def list_effects(run: Run, names: str | None = None) -> list[Told]:
    """The effects on every metric of a run, or on those that "latency,memory" names.

    Raises:
        UnknownName: the run has no such metric.
    """
    asked = {metric.name: metric for metric in run.header.metrics}
    wanted = [*asked] if names is None else [name.strip() for name in names.split(",")]
    if unknown := [name for name in wanted if name not in asked]:
        hint = nearest(unknown[0], asked)
        raise UnknownName(f"--columns: no metric is called {unknown[0]!r}{hint}; there are {', '.join(asked)}")
    return [(metric, effect) for metric in map(asked.__getitem__, wanted) for effect in effects_of(run, metric.name)]


def format_effects(run: Run, told: list[Told]) -> Listing:
    """A table of them."""
    rows = [_cells(*one) for one in told]
    cells = Cells(["factor", "change", "metric", "ratio", "verdict", "pairs"], rows)
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
