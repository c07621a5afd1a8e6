"""What samples say: the ratio of two timings with its interval, a verdict, and whether the samples can be trusted.

The ratio is the median over rounds of candidate over baseline, its interval the bootstrap's of that median
(`interval_of`). An interval tells what other rounds would have said in the same process. Where two networks lie in
memory stays as it is for all rounds: MARGIN is for that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import log
from statistics import NormalDist
from typing import Any, Literal

import numpy
from numpy.typing import NDArray

from unetkit.bench.results import Timing
from unetkit.utils.formatting import format_ratio

Floats = NDArray[numpy.float64]

#: What an interval of 95% leaves out on either side.
TAILS = (0.025, 0.975)
_DRAWS = 4000


def interval_of(values: Floats) -> tuple[float, float]:
    """The 95% interval of the median of values in the order in which they were measured."""
    low, high = _at(numpy.sort(values), _ends(int(_independent(values)))).tolist()
    return low, high


def draws_of(values: Floats, chance: numpy.random.Generator) -> Floats:
    """What the median would have been, had the values been drawn again: 4000 times."""
    half = (_independent(values) + 1) / 2
    return _at(numpy.sort(values), chance.beta(half, half, _DRAWS))


def _independent(values: Floats) -> float:
    """How many independent values would say as much: fewer where one above the median is followed by others.

    Newey and West, "A simple, positive semi-definite, heteroskedasticity and autocorrelation consistent covariance
    matrix", 1987, on the signs, which are what a median's error comes from.
    """
    signs = numpy.sign(values - numpy.median(values))
    lags = min(int(1.5 * len(signs) ** (1 / 3)), len(signs) - 1)
    own = float(signs @ signs) or 1.0
    both = [float(signs[:-lag] @ signs[lag:]) * (1 - lag / (lags + 1)) for lag in range(1, lags + 1)]
    return len(signs) / max(1.0, 1 + 2 * sum(both) / own)


@lru_cache(maxsize=4096)
def _ends(count: int) -> tuple[float, float]:
    half = (count + 1) / 2
    low, high = numpy.quantile(numpy.random.default_rng(0).beta(half, half, _DRAWS), TAILS).tolist()
    return low, high


def _at(ordered: Floats, shares: Any) -> Floats:
    """The values at these shares of their order, between two where they fall between."""
    count = len(ordered)
    found: Floats = numpy.interp(shares, numpy.arange(1, count + 1) / (count + 1), ordered)
    return found


Verdict = Literal["faster", "slower", "same", "inconclusive"]

#: Rounds below which there is no interval of 95% for a median: all of 5 are on one side of it in 1 of 16 cases.
LEAST = 6
#: Two copies of one network in one process differ for as long as they live, by where they lie in memory: medians of 8 s
#: were 0.1% below to 0.8% above 1 in 23 of 24 processes of a machine that others used, the copy built first mostly the
#: slower. So a difference must be beyond that.
MARGIN = 0.01
#: What is within this is called the same.
SAME = 0.05
#: An interval whose ends differ by more than this factor tells that the machine did something else meanwhile.
WIDEST = 2.0
#: IQR over median above which samples are warned of, and are unreliable.
FLUCTUATES, UNRELIABLE = 0.10, 0.25

_Z = NormalDist().inv_cdf(TAILS[1])


@dataclass(frozen=True)
class Estimate:
    """A ratio: 1.2 is 20% slower, or more.

    Attributes:
        ratio: the estimate.
        low, high: its 95% interval.
        rounds: that it is from; 0 where it is exact.
    """

    ratio: float
    low: float
    high: float
    rounds: int

    @property
    def half_width(self) -> float:
        """Of the interval, over the ratio."""
        return (self.high - self.low) / (2 * self.ratio)

    @property
    def verdict(self) -> Verdict:
        """A difference where the whole interval is beyond 1% (MARGIN), "same" where it is within 5% (SAME).

        Of fewer than six rounds, or of an interval from one end to twice as much, it is always "inconclusive".
        """
        if 0 < self.rounds < LEAST or self.high > WIDEST * self.low:
            return "inconclusive"
        if self.low > 1 + MARGIN:
            return "slower"
        if self.high < 1 / (1 + MARGIN):
            return "faster"
        return "same" if self.low >= 1 / (1 + SAME) and self.high <= 1 + SAME else "inconclusive"

    @property
    def p(self) -> float:
        """How likely a ratio within 1% of 1 would look at least as different, two-sided.

        From the interval, as if its logarithm were normal; never below 2 / 2^rounds, the least that a sign test gives.
        """
        beyond = abs(log(self.ratio)) - log(1 + MARGIN)
        if beyond <= 0:
            return 1.0
        error = max(log(self.high / self.low) / (2 * _Z), 1e-12)
        least = 2.0 ** (1 - self.rounds) if self.rounds else 0.0
        return max(2 * NormalDist().cdf(-beyond / error), min(least, 1.0))


def estimate_ratio(timing: Timing) -> Estimate:
    """Candidate over baseline."""
    logs = _log_ratios(timing)
    low, high = interval_of(logs)
    ratio, low, high = numpy.exp([numpy.median(logs), low, high]).tolist()
    return Estimate(ratio, min(low, ratio), max(high, ratio), len(logs))


def minimum_ratio(timing: Timing) -> float:
    """The quickest sample of the candidate over that of the baseline: what is left when nothing else ran."""
    return min(timing.candidate) / min(timing.baseline)


def log_draws(timing: Timing, chance: numpy.random.Generator) -> tuple[float, Floats]:
    """The logarithm of the ratio, and 4000 draws of what it would have been had the rounds been drawn again."""
    logs = _log_ratios(timing)
    return float(numpy.median(logs)), draws_of(logs, chance)


def judge_together(estimates: Sequence[Estimate]) -> list[Verdict]:
    """The verdicts of a whole table: a difference is called one only where it is, by Holm, among so many.

    Of 20 networks that are alike one would look different by chance at 95%; here no more than one table in 20 has any
    (Holm, "A simple sequentially rejective multiple test procedure", 1979).
    """
    verdicts = [estimate.verdict for estimate in estimates]
    order = sorted(range(len(estimates)), key=lambda i: estimates[i].p)
    holds = True
    for rank, i in enumerate(order):
        holds = holds and estimates[i].p * (len(order) - rank) <= 0.05
        if not holds and verdicts[i] in ("faster", "slower"):
            verdicts[i] = "inconclusive"
    return verdicts


def fluctuation(samples: Sequence[float]) -> float:
    """The middle half of the samples, from end to end, over their median."""
    low, middle, high = numpy.quantile(samples, (0.25, 0.5, 0.75)).tolist()
    return float((high - low) / middle)


def quantile(samples: Sequence[float], share: float) -> float:
    """Such as p50 and p90: 0.5 and 0.9."""
    return float(numpy.quantile(samples, share))


def timing_warnings(timing: Timing, name: str) -> list[str]:
    """What a reader should know of a timed metric's samples, in one line; none where all is well."""
    found = []
    moved = max(fluctuation(timing.candidate), fluctuation(timing.baseline))
    if moved > FLUCTUATES:
        much = ": unreliable" if moved > UNRELIABLE else ""
        found.append(f"its samples or the baseline's fluctuate by {moved:.0%} (IQR/median){much}")
    if (rounds := len(timing.candidate)) < 2 * LEAST:
        found.append(f"only {rounds} rounds")
    if timing.stop_reason == "budget":
        width = estimate_ratio(timing).half_width
        found.append(f"the budget ended at ±{width:.1%}; --retry-failed with a larger --budget tells more")
    return [f"{name}: {', '.join(found)}"] if found else []


def _log_ratios(timing: Timing) -> Floats:
    return numpy.log(numpy.divide(timing.candidate, timing.baseline))


def format_interval(estimate: Estimate) -> str:
    """1.43 (1.41 to 1.46)."""
    return f"{format_ratio(estimate.ratio)} ({format_ratio(estimate.low)} to {format_ratio(estimate.high)})"
