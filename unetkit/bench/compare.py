"""Two runs compared, row by row, for regressions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import exp, isclose, log
from pathlib import Path
from statistics import median
from typing import Any

import numpy

from unetkit.bench.columns import estimate_of
from unetkit.bench.devices import is_contended
from unetkit.bench.results import BenchRow, BenchRun, Header, Timing
from unetkit.bench.statistics import SAME, Estimate, format_interval, judge_together, log_draws
from unetkit.errors import OptionError
from unetkit.registry import MetricInfo
from unetkit.utils.formatting import format_metric, format_ratio
from unetkit.utils.tables import Listing, TableData

#: Verdicts, the worst first. "changed": nobody knows which way is better. "unpaired": raw times, which prove nothing.
VERDICTS = ("worse", "changed", "unpaired", "inconclusive", "better", "same")
#: Peak memory, the one size that is measured and not counted, differs between processes that do the same: by up to
#: 13 MiB over 8 of resnet18 at 128x128 on two cores (median 83 MiB, in training 273). What is less proves nothing.
PEAKS = ("memory", "training-memory")
_SHARE, _BYTES = 0.05, 16 * 2**20


@dataclass(frozen=True)
class Change:
    """One figure of one row in run A and in run B.

    Attributes:
        row: as B has it.
        metric: whose figure it is; None where the whole row is measured in one run and failed in the other.
        a, b: the numbers, of a timed metric the medians in seconds; None where there is none.
        ratios: of a timed metric, to the baseline in A and in B.
        ratio: b over a; of a timed metric ratios[1] over ratios[0], with its 95% interval.
        verdict: one of VERDICTS; "" before it is judged.
        note: why a or b is missing.
    """

    row: BenchRow
    metric: MetricInfo | None
    a: float | None
    b: float | None
    verdict: str
    ratio: Estimate | None = None
    ratios: tuple[float, float] | None = None
    note: str = ""

    @property
    def size(self) -> float:
        """How far from unchanged, as a share; what came or went altogether comes before all else."""
        if self.a is None or self.b is None:
            return float("inf")
        if self.ratio:
            return abs(log(self.ratio.ratio))
        return abs(self.b - self.a) / max(abs(self.a), abs(self.b), 1e-300)


def compare_rows(a: BenchRow, b: BenchRow, metrics: tuple[MetricInfo, ...], paired: bool) -> Iterator[Change]:
    """Every figure that both runs ask of a row; ratios of times are not judged yet, which takes all of them.

    Args:
        a, b: the row in either run.
        metrics: that both measure.
        paired: whether both are timed against one baseline.
    """
    if a.is_measured != b.is_measured:
        yield Change(b, None, None, None, "worse" if a.is_measured else "better", note=b.error or a.error)
    if not (a.is_measured and b.is_measured):
        return
    for metric in metrics:
        was, is_ = _number(a, metric), _number(b, metric)
        if was is None or is_ is None:
            if was is not is_:
                why = (b if is_ is None else a).failures.get(metric.name, "no figure")
                yield Change(b, metric, was, is_, "worse" if is_ is None else "better", note=why)
        elif metric.timed:
            yield _timed(a, b, metric, paired)
        else:
            yield _plain(b, metric, was, is_)


def quotient(a: Timing, b: Timing) -> Estimate:
    """B's ratio to the baseline over A's, with the bootstrap's 95% interval: rounds of either run are drawn apart."""
    chance = numpy.random.default_rng(0)
    (before, draws_a), (after, draws_b) = (log_draws(timing, chance) for timing in (a, b))
    low, high = numpy.quantile(draws_b - draws_a, (0.025, 0.975)).tolist()
    middle = after - before
    rounds = min(len(a.candidate), len(b.candidate))
    return Estimate(exp(middle), exp(min(low, middle)), exp(max(high, middle)), rounds)


def judge_changes(estimates: Sequence[Estimate], margin: float) -> list[str]:
    """The verdicts of a whole comparison.

    Worse or better where the whole interval lies beyond the margin, and the difference is one among so many figures,
    by Holm (`statistics.compare`); the same where the interval lies within 5%.
    """
    holds = [verdict in ("slower", "faster") for verdict in judge_together(estimates)]
    return [_judged(estimate, margin, sure) for estimate, sure in zip(estimates, holds, strict=True)]


def _judged(estimate: Estimate, margin: float, sure: bool) -> str:
    if sure and estimate.low > 1 + margin:
        return "worse"
    if sure and estimate.high < 1 / (1 + margin):
        return "better"
    return "same" if estimate.low >= 1 / (1 + SAME) and estimate.high <= 1 + SAME else "inconclusive"


def _number(row: BenchRow, metric: MetricInfo) -> float | None:
    if metric.timed:
        timing = row.timings.get(metric.name)
        return median(timing.candidate) if timing else None
    return row.values.get(metric.name)


def _timed(a: BenchRow, b: BenchRow, metric: MetricInfo, paired: bool) -> Change:
    medians = _number(a, metric), _number(b, metric)
    if not paired:
        return Change(b, metric, *medians, "unpaired")
    before, after = (row.timings[metric.name] for row in (a, b))
    ratios = estimate_of(before).ratio, estimate_of(after).ratio
    noise = max(a.cpu_contention, b.cpu_contention)
    note = f"other work took {noise:.0%} of its cores" if is_contended(noise) else ""
    return Change(b, metric, *medians, "", quotient(before, after), ratios, note)


def _plain(row: BenchRow, metric: MetricInfo, a: float, b: float) -> Change:
    if metric.unit == "s":
        return Change(row, metric, a, b, "unpaired")
    slack = max(_SHARE * max(a, b), _BYTES) if metric.name in PEAKS else 0.0
    if isclose(a, b, rel_tol=1e-9, abs_tol=slack):
        return Change(row, metric, a, b, "same")
    better = metric.better
    verdict = "changed" if not better else "worse" if (b > a) == (better == "less") else "better"
    return Change(row, metric, a, b, verdict)


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
    only_a: list[BenchRow]
    only_b: list[BenchRow]

    @property
    def worse(self) -> bool:
        """Whether anything is."""
        return any(change.verdict == "worse" for change in self.changes)

    @property
    def counts(self) -> dict[str, int]:
        """How many figures have each verdict, the worst first."""
        counted = Counter(change.verdict for change in self.changes)
        return {verdict: counted[verdict] for verdict in VERDICTS if counted[verdict]}


def diff_runs(a: BenchRun, b: BenchRun, *, margin: float = MARGIN, unpaired: bool = False) -> Diff:
    """Compare every figure of the rows that both runs have, matched by id.

    Times are compared as ratios to the baseline that both runs were timed against, so that a machine that is slower
    today is no regression. Counts and sizes must be equal; peak memory may differ as it does between processes.

    Args:
        a, b: the run before and the run after.
        margin: times are worse or better where the whole 95% interval lies beyond this share.
        unpaired: where the baselines differ, show raw medians, without a verdict, instead of refusing.

    Raises:
        OptionError: both have times, and their baselines differ; or the runs share no row.
    """
    metrics = _shared(a.header, b.header)
    paired = _baseline(a.header) == _baseline(b.header)
    if not paired and not unpaired and any(metric.timed for metric in metrics):
        raise OptionError(
            f"times cannot be compared: the baseline of {a.folder} is {_baseline(a.header)}, that of {b.folder} "
            f"{_baseline(b.header)}; --unpaired shows raw medians, without a verdict, and compares all else"
        )
    before, after = ({row.id: row for row in run.rows} for run in (a, b))
    both = [(before[id_], after[id_]) for id_ in before if id_ in after]
    if not both:
        raise OptionError(f"{a.folder} and {b.folder} have no row in common: nothing can be compared")
    found = _all_judged([change for pair in both for change in compare_rows(*pair, metrics, paired)], margin)
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
    verdicts = iter(judge_changes(ratios, margin))
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


def _drift(both: list[tuple[BenchRow, BenchRow]], metrics: tuple[MetricInfo, ...], paired: bool) -> Iterator[str]:
    """What became of the baseline itself, which the ratios to it cannot show."""
    drifts = {metric.name: _drift_of(both, metric.name) for metric in metrics if metric.timed and paired}
    if told := ", ".join(f"{name} {format_ratio(drift)}" for name, drift in drifts.items() if drift):
        alike = "what slows it and a row alike shows here alone, unpaired"
        yield f"the baseline's own median, B over A: {told}; {alike}"


def _drift_of(both: list[tuple[BenchRow, BenchRow]], name: str) -> float | None:
    pairs = [(a.timings[name], b.timings[name]) for a, b in both if name in a.timings and name in b.timings]
    return median(median(b.baseline) / median(a.baseline) for a, b in pairs) if pairs else None


_HEADS = ["row", "metric", "A", "B", "B/A", "verdict"]
#: What is only counted unless all is asked for.
_QUIET = ("same", "inconclusive")


def format_diff(diff: Diff, *, everything: bool = False) -> Listing:
    """What differs, the changes, and what they come to. `everything`: what did not change, too."""
    shown = [change for change in diff.changes if everything or _told(change)]
    named = _namer(diff)
    rows = [[named(change.row), *_cells(change), change.verdict] for change in shown]
    title = f"{len(shown)} of {len(diff.changes)} figures, the worst first"
    tables = [TableData(_HEADS, rows, title)] if rows else []
    return Listing(
        [f"A is {diff.a}, B is {diff.b}", *diff.differences, *diff.notes],
        tables,
        [
            *(f"only in A: {named(row)}" for row in diff.only_a),
            *(f"only in B: {named(row)}" for row in diff.only_b),
            _total(diff),
        ],
    )


def diff_to_dict(diff: Diff) -> dict[str, Any]:
    """The same as plain data, every figure included."""
    return {
        "a": str(diff.a),
        "b": str(diff.b),
        "worse": diff.worse,
        "counts": diff.counts,
        "differences": diff.differences,
        "notes": diff.notes,
        "only_a": [row.line for row in diff.only_a],
        "only_b": [row.line for row in diff.only_b],
        "changes": [_change(change) for change in diff.changes],
    }


def _told(change: Change) -> bool:
    once = change.metric is not None and not change.metric.timed and change.verdict == "unpaired"
    return not once and change.verdict not in _QUIET


def _namer(diff: Diff) -> Callable[[BenchRow], str]:
    """How a row is called: its line, and those of its conditions that differ between rows."""
    rows = [*(change.row for change in diff.changes), *diff.only_a, *diff.only_b]
    differ = [name for name in ("size", "batch_size", "mode") if len({row.factors[name] for row in rows}) > 1]
    return lambda row: ", ".join([row.line, *(f"{name.replace('_', ' ')} {row.factors[name]}" for name in differ)])


def _cells(change: Change) -> list[str]:
    """Metric, A, B, and B over A."""
    if change.metric is None:
        sides = ["measured", f"failed: {change.note}"]
        return ["the row", *(sides if change.verdict == "worse" else sides[::-1]), ""]
    return [change.metric.name, _side(change, 0), _side(change, 1), _ratio(change)]


def _side(change: Change, index: int) -> str:
    number = (change.a, change.b)[index]
    if number is None or change.metric is None:
        return f"none: {change.note}"
    text = format_metric(number, change.metric.unit)
    return f"{text}, ratio {format_ratio(change.ratios[index])}" if change.ratios else text


def _ratio(change: Change) -> str:
    if change.ratio:
        return format_interval(change.ratio)
    return format_ratio(change.b / change.a) if change.a and change.b else ""


def _total(diff: Diff) -> str:
    counts = ", ".join(f"{number} {verdict}" for verdict, number in diff.counts.items())
    return f"{len(diff.changes)} figures compared: {counts or 'none'}"


def _change(change: Change) -> dict[str, Any]:
    row, metric = change.row, change.metric
    return {
        "id": row.id,
        "line": row.line,
        "factors": row.factors,
        "metric": metric.name if metric else None,
        "unit": metric.unit if metric else None,
        **{key: getattr(change, key) for key in ("a", "b", "ratios", "verdict", "note")},
        "ratio": asdict(change.ratio) if change.ratio else None,
    }
