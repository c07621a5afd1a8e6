"""Two runs compared, row by row, for regressions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from unetkit.bench.changes import VERDICTS, Change, changes, judged
from unetkit.bench.rows import Header, MetricInfo, Row, Run
from unetkit.bench.texts import format_ratio
from unetkit.errors import BadOption

#: The ratio of two copies of one network can be off by 1%, for as long as their process lives (`statistics.MARGIN`): in
#: each of the two runs.
MARGIN = 0.02


@dataclass(frozen=True)
class Diff:
    """What changed from run A to run B.

    Attributes:
        a, b: their folders.
        differences: in what their headers differ, a line each.
        notes: what a reader should know of the comparison.
        changes: of every figure of the rows that both have, the worst first.
        only_a, only_b: rows that one of them has not.
    """

    a: Path
    b: Path
    differences: list[str]
    notes: list[str]
    changes: list[Change]
    only_a: list[Row]
    only_b: list[Row]

    @property
    def worse(self) -> bool:
        """Whether anything is."""
        return any(change.verdict == "worse" for change in self.changes)

    @property
    def counts(self) -> dict[str, int]:
        """How many figures have each verdict, the worst first."""
        counted = Counter(change.verdict for change in self.changes)
        return {verdict: counted[verdict] for verdict in VERDICTS if counted[verdict]}


def diff_runs(a: Run, b: Run, *, margin: float = MARGIN, unpaired: bool = False) -> Diff:
    """Compare every figure of the rows that both runs have, matched by id.

    Times are compared as ratios to the baseline that both runs were timed against, so that a machine that is slower
    today is no regression. Counts and sizes must be equal; peak memory may differ as it does between processes.

    Args:
        a, b: the run before and the run after.
        margin: times are worse or better where the whole 95% interval lies beyond this share.
        unpaired: where the baselines differ, show raw medians, without a verdict, instead of refusing.

    Raises:
        BadOption: both have times, and their baselines differ; or the runs share no row.
    """
    metrics = _shared(a.header, b.header)
    paired = _baseline(a.header) == _baseline(b.header)
    if not paired and not unpaired and any(metric.timed for metric in metrics):
        raise BadOption(
            f"times cannot be compared: the baseline of {a.folder} is {_baseline(a.header)}, that of {b.folder} "
            f"{_baseline(b.header)}; --unpaired shows raw medians, without a verdict, and compares all else"
        )
    before, after = ({row.id: row for row in run.rows} for run in (a, b))
    both = [(before[id_], after[id_]) for id_ in before if id_ in after]
    if not both:
        raise BadOption(f"{a.folder} and {b.folder} have no row in common: nothing can be compared")
    found = _all_judged([change for pair in both for change in changes(*pair, metrics, paired)], margin)
    return Diff(
        a.folder,
        b.folder,
        list(_differences(a.header, b.header)),
        [*_drift(both, metrics, paired), *_unmatched(a.header, b.header)],
        sorted(found, key=lambda change: (VERDICTS.index(change.verdict), -change.size)),
        [row for row in a.rows if row.id not in after],
        [row for row in b.rows if row.id not in before],
    )


def _all_judged(found: list[Change], margin: float) -> list[Change]:
    ratios = [change.ratio for change in found if change.ratio]
    verdicts = iter(judged(ratios, margin))
    return [_noted(replace(change, verdict=next(verdicts))) if change.ratio else change for change in found]


def _noted(change: Change) -> Change:
    """Two processes that others disturb differ by more than the rounds of each tell."""
    moved = change.verdict in ("worse", "better")
    return replace(change, verdict="inconclusive") if moved and change.note else change


def _shared(a: Header, b: Header) -> tuple[MetricInfo, ...]:
    known = {(metric.name, metric.unit, metric.timed) for metric in a.metrics}
    return tuple(metric for metric in b.metrics if (metric.name, metric.unit, metric.timed) in known)


def _baseline(header: Header) -> str:
    return f"{header.baseline}, {header.baseline_mode}"


def _differences(a: Header, b: Header) -> Iterator[str]:
    if _baseline(a) != _baseline(b):
        yield f"baseline: {_baseline(a)} in A, {_baseline(b)} in B"
    for title in ("machine", "versions", "settings"):
        yield from _unlike(title, getattr(a, title), getattr(b, title))


def _unlike(title: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[str]:
    for key in {**a, **b}:
        if a.get(key) != b.get(key):
            yield f"{title}: {key} is {a.get(key, 'not said')} in A, {b.get(key, 'not said')} in B"


def _unmatched(a: Header, b: Header) -> Iterator[str]:
    shared = {metric.name for metric in _shared(a, b)}
    for one, name in ((a, "A"), (b, "B")):
        if only := [metric.name for metric in one.metrics if metric.name not in shared]:
            yield f"measured in {name} alone: {', '.join(only)}"


def _drift(both: list[tuple[Row, Row]], metrics: tuple[MetricInfo, ...], paired: bool) -> Iterator[str]:
    """What became of the baseline itself, which the ratios to it cannot show."""
    drifts = {metric.name: _drift_of(both, metric.name) for metric in metrics if metric.timed and paired}
    if told := ", ".join(f"{name} {format_ratio(drift)}" for name, drift in drifts.items() if drift):
        alike = "what slows it and a row alike shows here alone, unpaired"
        yield f"the baseline's own median, B over A: {told}; {alike}"


def _drift_of(both: list[tuple[Row, Row]], name: str) -> float | None:
    pairs = [(a.timings[name], b.timings[name]) for a, b in both if name in a.timings and name in b.timings]
    return median(median(b.baseline) / median(a.baseline) for a, b in pairs) if pairs else None
