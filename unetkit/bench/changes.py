"""What one row's figures became from a run to another, and whether that is worse."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import exp, isclose, log
from statistics import median

import numpy

from unetkit.bench.aspects import estimate_of
from unetkit.bench.others import disturbed
from unetkit.bench.rows import MetricInfo, Row, Timing
from unetkit.bench.statistics import SAME, Estimate, compare, log_draws

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

    row: Row
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


def changes(a: Row, b: Row, metrics: tuple[MetricInfo, ...], paired: bool) -> Iterator[Change]:
    """Every figure that both runs ask of a row; ratios of times are not judged yet, which takes all of them.

    Args:
        a, b: the row in either run.
        metrics: that both measure.
        paired: whether both are timed against one baseline.
    """
    if a.measured != b.measured:
        yield Change(b, None, None, None, "worse" if a.measured else "better", note=b.cause or a.cause)
    if not (a.measured and b.measured):
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


def judged(estimates: Sequence[Estimate], margin: float) -> list[str]:
    """The verdicts of a whole comparison.

    Worse or better where the whole interval lies beyond the margin, and the difference is one among so many figures,
    by Holm (`statistics.compare`); the same where the interval lies within 5%.
    """
    holds = [verdict in ("slower", "faster") for verdict in compare(estimates)]
    return [_judged(estimate, margin, sure) for estimate, sure in zip(estimates, holds, strict=True)]


def _judged(estimate: Estimate, margin: float, sure: bool) -> str:
    if sure and estimate.low > 1 + margin:
        return "worse"
    if sure and estimate.high < 1 / (1 + margin):
        return "better"
    return "same" if estimate.low >= 1 / (1 + SAME) and estimate.high <= 1 + SAME else "inconclusive"


def _number(row: Row, metric: MetricInfo) -> float | None:
    if metric.timed:
        timing = row.timings.get(metric.name)
        return median(timing.candidate) if timing else None
    return row.figures.get(metric.name)


def _timed(a: Row, b: Row, metric: MetricInfo, paired: bool) -> Change:
    medians = _number(a, metric), _number(b, metric)
    if not paired:
        return Change(b, metric, *medians, "unpaired")
    before, after = (row.timings[metric.name] for row in (a, b))
    ratios = estimate_of(before).ratio, estimate_of(after).ratio
    noise = max(a.others, b.others)
    note = f"other work took {noise:.0%} of its cores" if disturbed(noise) else ""
    return Change(b, metric, *medians, "", quotient(before, after), ratios, note)


def _plain(row: Row, metric: MetricInfo, a: float, b: float) -> Change:
    if metric.unit == "s":
        return Change(row, metric, a, b, "unpaired")
    slack = max(_SHARE * max(a, b), _BYTES) if metric.name in PEAKS else 0.0
    if isclose(a, b, rel_tol=1e-9, abs_tol=slack):
        return Change(row, metric, a, b, "same")
    better = metric.better
    verdict = "changed" if not better else "worse" if (b > a) == (better == "less") else "better"
    return Change(row, metric, a, b, verdict)
