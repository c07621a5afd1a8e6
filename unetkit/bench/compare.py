"""Compare two runs of a benchmark row by row, to find regressions.

`diff_runs` compares every value of the rows that both runs have, and `format_diff` and `diff_to_dict` show the result.
Times are compared as ratios to the baseline that both runs were timed against, counts and sizes as they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import exp, isclose, isfinite, log
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy

from unetkit.bench.columns import BaselineTimes, estimate_ratio_cached
from unetkit.bench.devices import is_contended
from unetkit.bench.quality import RowQuality, RunQuality
from unetkit.bench.quality_statistics import QualityRules
from unetkit.bench.quality_statistics import compare_rows as compare_scores
from unetkit.bench.results import BenchRow, BenchRun, Header, Timing
from unetkit.bench.statistics import (
    EQUIVALENCE_MARGIN,
    TAILS,
    Estimate,
    bootstrap_log_ratio,
    format_interval,
    judge_with_holm,
)
from unetkit.errors import OptionError
from unetkit.registry import MetricInfo
from unetkit.utils.formatting import format_metric, format_plural, format_ratio
from unetkit.utils.tables import Listing, TableData

#: Verdicts on a change, the worst first. "changed": it is unknown which values are better. "unpaired": times that were
#: not measured in rounds with the baseline, and therefore prove nothing.
CHANGE_VERDICTS = ("worse", "changed", "unpaired", "inconclusive", "better", "same")
#: Verdicts that are only counted unless all changes are shown.
_HIDDEN_VERDICTS = ("same", "inconclusive")
#: Relative change of a time that counts as no change, by default. In each of the two runs, the ratio of two copies of
#: one network may be off by 1% for as long as their process lives (`statistics.DIFFERENCE_MARGIN`).
MARGIN = 0.02
#: Metrics of peak memory, which differ between processes that do the same work: for resnet18 at 128x128 on two cores,
#: eight processes differed by up to 13 MiB (with medians of 83 MiB, and 273 MiB in training). Other metrics that are
#: not timed are exact.
PEAK_MEMORY_METRICS = ("memory", "training-memory")
#: Largest differences of peak memory that count as none: relative, and in bytes. The larger one applies.
_PEAK_REL_TOLERANCE, _PEAK_ABS_TOLERANCE = 0.05, 16 * 2**20


@dataclass(frozen=True)
class Change:
    """One value of one row in run A and in run B.

    Attributes:
        row: the row of run B.
        metric: metric of the value; None if the whole row was measured in one run and failed in the other.
        a: value in run A; None if there is none. That of a timed metric is in seconds: the ratio to the baseline times
            the baseline's time in run B, or the median if the runs have different baselines.
        b: value in run B, as `a`.
        verdict: one of CHANGE_VERDICTS; "" before it is judged.
        ratio: of a timed metric, the ratio to the baseline in B divided by that in A, with its 95% confidence interval.
        ratios: of a timed metric, the ratios to the baseline in A and in B.
        difference: of a metric of trained networks, the mean of B minus A over the common seeds, with the bounds of its
            95% confidence interval; NaN with one seed.
        note: why `a` or `b` is missing, or what disturbed the timing.
    """

    row: BenchRow
    metric: MetricInfo | None
    a: float | None
    b: float | None
    verdict: str
    ratio: Estimate | None = None
    ratios: tuple[float, float] | None = None
    difference: tuple[float, float, float] | None = None
    note: str = ""

    @property
    def magnitude(self) -> float:
        """The relative size of the change; infinite if the value exists in only one run."""
        if self.a is None or self.b is None:
            return float("inf")
        if self.ratio:
            return abs(log(self.ratio.ratio))
        if self.difference:
            return abs(self.difference[0])
        return abs(self.b - self.a) / max(abs(self.a), abs(self.b), 1e-300)


@dataclass(frozen=True)
class Diff:
    """The changes from run A to run B.

    Attributes:
        a: folder of run A.
        b: folder of run B.
        differences: differences of the headers, one line each.
        notes: remarks on the comparison, one line each.
        changes: changes of all values of the rows that both runs have, the worst first.
        only_a: rows that only run A has.
        only_b: rows that only run B has.
    """

    a: Path
    b: Path
    differences: list[str]
    notes: list[str]
    changes: list[Change]
    only_a: list[BenchRow]
    only_b: list[BenchRow]

    @property
    def is_worse(self) -> bool:
        """True if any value got worse."""
        return any(change.verdict == "worse" for change in self.changes)

    @property
    def counts(self) -> dict[str, int]:
        """The number of values with each verdict, the worst verdict first."""
        counter = Counter(change.verdict for change in self.changes)
        return {verdict: counter[verdict] for verdict in CHANGE_VERDICTS if counter[verdict]}


def diff_runs(a: BenchRun, b: BenchRun, *, margin: float = MARGIN, unpaired: bool = False) -> Diff:
    """Compare every value of the rows that both runs have, matched by id.

    Times are compared as ratios to the baseline that both runs were timed against, so a machine that became slower is
    no regression. Counts and sizes must be equal. Peak memory may differ by as much as it does between processes.

    Args:
        a: the run before.
        b: the run after.
        margin: times are worse or better if the whole 95% interval is beyond this relative change.
        unpaired: if the baselines differ, compare raw medians without a verdict instead of raising an error.

    Raises:
        OptionError: Both runs contain times, but with different baselines; or the runs have no rows in common.
    """
    metrics = _shared_metrics(a.header, b.header)
    is_paired = _format_baseline(a.header) == _format_baseline(b.header)
    if not is_paired and not unpaired and any(metric.timed for metric in metrics):
        raise OptionError(
            f"times cannot be compared, since the baseline of {a.folder} is {_format_baseline(a.header)} and that of "
            f"{b.folder} is {_format_baseline(b.header)}; use --unpaired to show raw medians without a verdict"
        )
    before, after = ({row.id: row for row in run.rows} for run in (a, b))
    pairs = [(before[row_id], after[row_id]) for row_id in before if row_id in after]
    if not pairs:
        raise OptionError(f"{a.folder} and {b.folder} have no rows in common; compare two runs of the same models")
    costs = tuple(metric for metric in metrics if not metric.trained)
    times = BaselineTimes(b.rows) if is_paired else None
    changes = _judge_timings([change for pair in pairs for change in compare_rows(*pair, costs, times)], margin)
    trained, quality_notes = compare_quality(a, b, pairs)
    changes += trained
    return Diff(
        a.folder,
        b.folder,
        list(_describe_differences(a.header, b.header)),
        [*_describe_drift(pairs, metrics, is_paired), *_describe_unshared_metrics(a.header, b.header), *quality_notes],
        sorted(changes, key=lambda change: (CHANGE_VERDICTS.index(change.verdict), -change.magnitude)),
        [row for row in a.rows if row.id not in after],
        [row for row in b.rows if row.id not in before],
    )


def compare_rows(
    a: BenchRow, b: BenchRow, metrics: tuple[MetricInfo, ...], times: BaselineTimes | None
) -> Iterator[Change]:
    """Yield the change of every value of a row; timings still lack a verdict, which depends on all of them.

    Args:
        a: the row in run A.
        b: the row in run B.
        metrics: metrics that both runs measure.
        times: times of the baseline in run B; None if the runs have different baselines.
    """
    if a.is_measured != b.is_measured:
        yield Change(b, None, None, None, "worse" if a.is_measured else "better", note=b.error or a.error)
    if not (a.is_measured and b.is_measured):
        return
    for metric in metrics:
        before, after = _get_value(a, metric), _get_value(b, metric)
        if before is None or after is None:
            if before is not after:
                reason = (b if after is None else a).failures.get(metric.name, "not measured")
                yield Change(b, metric, before, after, "worse" if after is None else "better", note=reason)
        elif metric.timed:
            yield _compare_timings(a, b, metric, times)
        else:
            yield _compare_values(b, metric, before, after)


def compare_quality(
    a: BenchRun, b: BenchRun, pairs: Sequence[tuple[BenchRow, BenchRow]]
) -> tuple[list[Change], list[str]]:
    """Compare the scores of trained rows, paired by seed, by the metric of the verdicts.

    A row is worse or better if a paired t-test says so, and the same if two one-sided tests within the margin of run B
    do, each at 5% divided by the number of rows. With fewer than six common seeds it is inconclusive.

    Args:
        a: the run before.
        b: the run after.
        pairs: the rows that both runs have.

    Returns:
        The changes, and remarks, one line each.
    """
    if a.header.training is None or b.header.training is None:
        return [], []
    before, after = RunQuality(a), RunQuality(b)
    metric = next(one for one in after.metrics if one.name == after.rules.metric)
    scored = after.header.scored
    prints = [one.header.fingerprints.get(one.header.scored) for one in (before, after)]
    if before.header.scored != scored or prints[0] != prints[1]:
        return [], ["the trainings of A and B are scored on other images, so that their scores are not compared"]
    if metric.name not in {one.name for one in before.metrics} or before.header.seed != after.header.seed:
        return [], [f"A and B have no common seeds and scores by {metric.name}, so that their scores are not compared"]
    rows = [(row, before.of(old, metric.name), after.of(row, metric.name)) for old, row in pairs]
    rows = [one for one in rows if (one[1].scores and one[2].scores) or one[1].failed or one[2].failed]
    return [_compare_scores(row, metric, x, y, after.rules, len(rows)) for row, x, y in rows], []


def _compare_scores(
    row: BenchRow, metric: MetricInfo, a: RowQuality, b: RowQuality, rules: QualityRules, count: int
) -> Change:
    if a.failed or b.failed:
        verdict = "inconclusive" if a.failed and b.failed else "worse" if b.failed else "better"
        failed = b if b.failed else a
        return Change(row, metric, a.mean, b.mean, verdict, note=failed.verdict)
    seeds = min(len(a.scores), len(b.scores))
    rule = replace(rules, looks=(seeds,), race=False, alpha=rules.alpha / count)
    found = compare_scores({"a": a.scores[:seeds], "b": b.scores[:seeds]}, "a", rule)["b"]
    verdict = "inconclusive" if found.verdict == "exploratory" else found.verdict
    difference = (found.difference, found.low, found.high)
    return Change(row, metric, fmean(a.scores[:seeds]), fmean(b.scores[:seeds]), verdict, difference=difference)


def _get_value(row: BenchRow, metric: MetricInfo) -> float | None:
    if metric.timed:
        timing = row.timings.get(metric.name)
        return median(timing.candidate) if timing else None
    return row.values.get(metric.name)


def _compare_timings(a: BenchRow, b: BenchRow, metric: MetricInfo, times: BaselineTimes | None) -> Change:
    if times is None:
        return Change(b, metric, _get_value(a, metric), _get_value(b, metric), "unpaired")
    before, after = (row.timings[metric.name] for row in (a, b))
    ratios = estimate_ratio_cached(before).ratio, estimate_ratio_cached(after).ratio
    contention = max(a.cpu_contention, b.cpu_contention)
    note = f"other processes used {contention:.0%} of its cores" if is_contended(contention) else ""
    x, y = (times.level(b, metric.name, ratio) for ratio in ratios)
    return Change(b, metric, x, y, "", divide_ratios(before, after), ratios, note=note)


def _compare_values(row: BenchRow, metric: MetricInfo, a: float, b: float) -> Change:
    if metric.unit == "s":
        return Change(row, metric, a, b, "unpaired")
    is_peak_memory = metric.name in PEAK_MEMORY_METRICS
    tolerance = max(_PEAK_REL_TOLERANCE * max(a, b), _PEAK_ABS_TOLERANCE) if is_peak_memory else 0.0
    if isclose(a, b, rel_tol=1e-9, abs_tol=tolerance):
        return Change(row, metric, a, b, "same")
    better = metric.better
    verdict = "changed" if not better else "worse" if (b > a) == (better == "less") else "better"
    return Change(row, metric, a, b, verdict)


def divide_ratios(a: Timing, b: Timing) -> Estimate:
    """Estimate the ratio to the baseline in B divided by that in A, with a bootstrap interval.

    The two timings come from different processes, so their rounds are resampled independently.

    Args:
        a: paired samples of a row and the baseline in run A.
        b: paired samples of the same row and baseline in run B.
    """
    rng = numpy.random.default_rng(0)
    (before, draws_a), (after, draws_b) = (bootstrap_log_ratio(timing, rng) for timing in (a, b))
    low, high = numpy.quantile(draws_b - draws_a, TAILS).tolist()
    center = after - before
    rounds = min(len(a.candidate), len(b.candidate))
    return Estimate(exp(center), exp(min(low, center)), exp(max(high, center)), rounds)


def judge_changes(estimates: Sequence[Estimate], margin: float) -> list[str]:
    """Return the verdicts on all timings of a comparison.

    A timing is worse or better if the whole interval is beyond the margin and the difference remains significant after
    Holm's correction for all timings (`statistics.judge_with_holm`). It is the same if the interval is within 5% of 1.

    Args:
        estimates: ratios of B over A.
        margin: relative change that counts as no change.
    """
    significant = [verdict in ("slower", "faster") for verdict in judge_with_holm(estimates)]
    return [_judge(estimate, margin, flag) for estimate, flag in zip(estimates, significant, strict=True)]


def _judge(estimate: Estimate, margin: float, is_significant: bool) -> str:
    if is_significant and estimate.low > 1 + margin:
        return "worse"
    if is_significant and estimate.high < 1 / (1 + margin):
        return "better"
    is_same = estimate.low >= 1 / (1 + EQUIVALENCE_MARGIN) and estimate.high <= 1 + EQUIVALENCE_MARGIN
    return "same" if is_same else "inconclusive"


def _judge_timings(changes: list[Change], margin: float) -> list[Change]:
    """Return the changes with a verdict on each timing.

    Timings that other processes disturbed are inconclusive instead of worse or better, since they differ by more
    between processes than their rounds show.
    """
    ratios = [change.ratio for change in changes if change.ratio]
    verdicts = iter(judge_changes(ratios, margin))
    judged = []
    for change in changes:
        verdict = next(verdicts) if change.ratio else change.verdict
        is_disturbed = bool(change.ratio and change.note)
        if is_disturbed and verdict in ("worse", "better"):
            verdict = "inconclusive"
        judged.append(replace(change, verdict=verdict))
    return judged


def _shared_metrics(a: Header, b: Header) -> tuple[MetricInfo, ...]:
    known = {(metric.name, metric.unit, metric.timed) for metric in a.metrics}
    return tuple(metric for metric in b.metrics if (metric.name, metric.unit, metric.timed) in known)


def _format_baseline(header: Header) -> str:
    return f"{header.baseline}, {header.baseline_mode}"


def _describe_differences(a: Header, b: Header) -> Iterator[str]:
    if _format_baseline(a) != _format_baseline(b):
        yield f"baseline: {_format_baseline(a)} in A; {_format_baseline(b)} in B"
    for title in ("machine", "versions", "settings"):
        yield from _describe_items(title, getattr(a, title), getattr(b, title))


def _describe_items(title: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[str]:
    for key in {**a, **b}:
        if a.get(key) != b.get(key):
            yield f"{title}: {key} is {a.get(key, 'not recorded')} in A and {b.get(key, 'not recorded')} in B"


def _describe_unshared_metrics(a: Header, b: Header) -> Iterator[str]:
    shared = {metric.name for metric in _shared_metrics(a, b)}
    for header, name in ((a, "A"), (b, "B")):
        if only := [metric.name for metric in header.metrics if metric.name not in shared]:
            yield f"measured only in {name}: {', '.join(only)}"


def _describe_drift(
    pairs: list[tuple[BenchRow, BenchRow]], metrics: tuple[MetricInfo, ...], is_paired: bool
) -> Iterator[str]:
    """Yield how the times of the baseline itself changed, which ratios to it cannot show."""
    drifts = {metric.name: _measure_drift(pairs, metric.name) for metric in metrics if metric.timed and is_paired}
    if texts := ", ".join(f"{name} {format_ratio(drift)}" for name, drift in drifts.items() if drift):
        hint = "a slowdown that a row shares with the baseline is visible only here"
        yield f"median time of the baseline in B divided by that in A: {texts}; {hint}"


def _measure_drift(pairs: list[tuple[BenchRow, BenchRow]], name: str) -> float | None:
    timings = [(a.timings[name], b.timings[name]) for a, b in pairs if name in a.timings and name in b.timings]
    return median(median(b.baseline) / median(a.baseline) for a, b in timings) if timings else None


def format_diff(diff: Diff, *, everything: bool = False) -> Listing:
    """Format a comparison for people: the differences of the runs, the changes, and how many there are.

    Args:
        diff: the comparison.
        everything: also show values that did not change.
    """
    shown = [change for change in diff.changes if everything or _is_shown(change)]
    name_row = _make_row_namer(diff)
    rows = [[name_row(change.row), *_make_cells(change), change.verdict] for change in shown]
    title = f"{len(shown)} of {format_plural(len(diff.changes), 'value')}, the worst first"
    change_title = "B/A, or B-A" if any(change.difference for change in shown) else "B/A"
    tables = [TableData(["row", "metric", "A", "B", change_title, "verdict"], rows, title)] if rows else []
    counts = ", ".join(f"{number} {verdict}" for verdict, number in diff.counts.items())
    return Listing(
        [f"A is {diff.a}, B is {diff.b}", *diff.differences, *diff.notes],
        tables,
        [
            *(f"only in A: {name_row(row)}" for row in diff.only_a),
            *(f"only in B: {name_row(row)}" for row in diff.only_b),
            f"{format_plural(len(diff.changes), 'value')} compared: {counts}" if counts else "no values to compare",
        ],
    )


def diff_to_dict(diff: Diff) -> dict[str, Any]:
    """Convert a comparison with all its values to plain data for JSON.

    Args:
        diff: the comparison.
    """
    return {
        "a": str(diff.a),
        "b": str(diff.b),
        "worse": diff.is_worse,
        "counts": diff.counts,
        "differences": diff.differences,
        "notes": diff.notes,
        "only_a": [row.line for row in diff.only_a],
        "only_b": [row.line for row in diff.only_b],
        "changes": [_change_to_dict(change) for change in diff.changes],
    }


def _is_shown(change: Change) -> bool:
    """Return whether a change is shown by default; times that were measured only once are not."""
    is_untimed_seconds = change.metric is not None and not change.metric.timed and change.verdict == "unpaired"
    return not is_untimed_seconds and change.verdict not in _HIDDEN_VERDICTS


def _make_row_namer(diff: Diff) -> Callable[[BenchRow], str]:
    """Return a function that names a row by its line and those of its conditions that differ between rows."""
    rows = [*(change.row for change in diff.changes), *diff.only_a, *diff.only_b]
    varying = [name for name in ("size", "batch_size", "mode") if len({row.factors[name] for row in rows}) > 1]
    return lambda row: ", ".join([row.line, *(f"{name.replace('_', ' ')} {row.factors[name]}" for name in varying)])


def _make_cells(change: Change) -> list[str]:
    """Return the cells for metric, A, B, and B over A."""
    if change.metric is None:
        cells = ["measured", f"failed: {change.note}"]
        return ["all", *(cells if change.verdict == "worse" else cells[::-1]), ""]
    return [change.metric.name, _format_value(change, 0), _format_value(change, 1), _format_change(change)]


def _format_value(change: Change, index: int) -> str:
    """Format the value in A (index 0) or in B (index 1)."""
    number = (change.a, change.b)[index]
    if number is None or change.metric is None:
        return f"missing: {change.note}"
    text = f"{number:.4f}" if change.metric.trained else format_metric(number, change.metric.unit)
    return f"{text}, ratio {format_ratio(change.ratios[index])}" if change.ratios else text


def _format_change(change: Change) -> str:
    if change.ratio:
        return format_interval(change.ratio)
    if change.difference:
        mean, low, high = change.difference
        return f"{mean:+.4f} ({low:+.4f} to {high:+.4f})" if isfinite(low) else f"{mean:+.4f}"  # of one seed
    return format_ratio(change.b / change.a) if change.a and change.b else ""


def _change_to_dict(change: Change) -> dict[str, Any]:
    row, metric = change.row, change.metric
    return {
        "id": row.id,
        "line": row.line,
        "factors": row.factors,
        "metric": metric.name if metric else None,
        "unit": metric.unit if metric else None,
        **{key: getattr(change, key) for key in ("a", "b", "ratios", "verdict", "note")},
        "difference": change.difference and [value if isfinite(value) else None for value in change.difference],
        "ratio": asdict(change.ratio) if change.ratio else None,
    }
