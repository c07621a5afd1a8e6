"""The statistics of timing samples: ratios with confidence intervals, verdicts, and warnings about weak samples.

The ratio of two timings is the median over all rounds of candidate/baseline, and its interval is the bootstrap interval
of this median (`median_interval`). The interval describes what other rounds in the same process would have shown. Where
two networks lie in memory does not change within a process, so the interval does not include its effect, and a verdict
needs a difference of more than DIFFERENCE_MARGIN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from statistics import NormalDist
from typing import Any, Literal

import numpy
from numpy.typing import NDArray
from scipy.special import betaincinv, stdtr

from unetkit.bench.results import Timing
from unetkit.utils.formatting import format_ratio

FloatArray = NDArray[numpy.float64]
Verdict = Literal["faster", "slower", "same", "inconclusive"]

#: Quantiles that bound a 95% interval.
TAILS = (0.025, 0.975)
#: Smallest number of rounds with a 95% interval of the median: all of five rounds lie on the same side of it in 1 of 16
#: cases.
MIN_ROUNDS = 6
#: Largest relative difference that may be due to the place in memory. Two copies of one network in one process differ
#: for as long as the process lives: over 8 s, the median ratio was between 0.1% below and 0.8% above 1 in 23 of 24
#: processes on a machine with other load, and the copy that was built first was mostly the slower one.
DIFFERENCE_MARGIN = 0.01
#: Largest relative difference that counts as "same".
EQUIVALENCE_MARGIN = 0.05
#: If the bounds of an interval differ by more than this factor, the machine did something else in the meantime.
_MAX_INTERVAL_RATIO = 2.0
#: Relative interquartile ranges above which there is a warning, and above which samples are called unreliable.
_NOISY_IQR, _UNRELIABLE_IQR = 0.10, 0.25
#: Number of bootstrap draws.
_DRAWS = 4000
_Z = NormalDist().inv_cdf(TAILS[1])


@dataclass(frozen=True)
class Estimate:
    """An estimated ratio; 1.2 means 20% slower, or 20% more.

    Attributes:
        ratio: point estimate.
        low: lower bound of the 95% confidence interval.
        high: upper bound of the 95% confidence interval.
        rounds: number of rounds that the estimate is based on; 0 if the ratio is exact.
    """

    ratio: float
    low: float
    high: float
    rounds: int

    @property
    def half_width(self) -> float:
        """The half-width of the interval, relative to the ratio."""
        return (self.high - self.low) / (2 * self.ratio)

    @property
    def verdict(self) -> Verdict:
        """The verdict on this ratio alone.

        It is "slower" or "faster" if the whole interval is more than 1% away from 1 (DIFFERENCE_MARGIN), "same" if the
        whole interval is within 5% of 1 (EQUIVALENCE_MARGIN), and "inconclusive" otherwise, with fewer than six rounds,
        or if the bounds of the interval differ by more than a factor of two.
        """
        if 0 < self.rounds < MIN_ROUNDS or self.high > _MAX_INTERVAL_RATIO * self.low:
            return "inconclusive"
        if self.low > 1 + DIFFERENCE_MARGIN:
            return "slower"
        if self.high < 1 / (1 + DIFFERENCE_MARGIN):
            return "faster"
        is_same = self.low >= 1 / (1 + EQUIVALENCE_MARGIN) and self.high <= 1 + EQUIVALENCE_MARGIN
        return "same" if is_same else "inconclusive"

    @property
    def p_value(self) -> float:
        """The two-sided p-value of the hypothesis that the true ratio is within 1% of 1.

        It is derived from the interval, and assumes that the error of the logarithm of the ratio follows Student's t
        distribution with one degree of freedom less than there are rounds. In simulations of 6 to 40 independent rounds
        at this limit, with normal and with heavy-tailed errors, p-values below 0.25% had a frequency of 0.3% or less; a
        normal distribution gave up to 0.5%.
        """
        beyond = abs(log(self.ratio)) - log(1 + DIFFERENCE_MARGIN)
        if beyond <= 0:
            return 1.0
        distance = beyond / max(log(self.high / self.low) / (2 * _Z), 1e-12)
        if not self.rounds:
            return 2 * NormalDist().cdf(-distance)
        return 2 * float(stdtr(max(self.rounds - 1, 1), -distance))


def estimate_ratio(timing: Timing) -> Estimate:
    """Estimate the ratio of the candidate's time to the baseline's.

    Args:
        timing: paired samples of both.
    """
    log_ratios = _log_ratios(timing)
    low, high = median_interval(log_ratios)
    ratio, low, high = numpy.exp([numpy.median(log_ratios), low, high]).tolist()
    return Estimate(ratio, min(low, ratio), max(high, ratio), len(log_ratios))


def minimum_ratio(timing: Timing) -> float:
    """Return the ratio of the candidate's fastest sample to the baseline's, which other load affects least.

    Args:
        timing: paired samples of both.
    """
    return min(timing.candidate) / min(timing.baseline)


def bootstrap_log_ratio(timing: Timing, rng: numpy.random.Generator) -> tuple[float, FloatArray]:
    """Return the logarithm of the ratio, and 4000 bootstrap draws of it.

    Args:
        timing: paired samples of a candidate and the baseline.
        rng: random generator for the draws.
    """
    log_ratios = _log_ratios(timing)
    return float(numpy.median(log_ratios)), bootstrap_medians(log_ratios, rng)


def _log_ratios(timing: Timing) -> FloatArray:
    return numpy.log(numpy.divide(timing.candidate, timing.baseline))


def median_interval(values: FloatArray) -> tuple[float, float]:
    """Return the 95% bootstrap interval of the median, from the distribution that `bootstrap_medians` draws from.

    Args:
        values: measured values in the order of measurement, so that the correlation of neighbours is known.
    """
    shape = (_effective_sample_size(values) + 1) / 2
    low, high = _interpolate(numpy.sort(values), betaincinv(shape, shape, TAILS)).tolist()
    return low, high


def bootstrap_medians(values: FloatArray, rng: numpy.random.Generator) -> FloatArray:
    """Draw the median of 4000 bootstrap samples.

    The position of the median of a resampled set in the original order follows a beta distribution, so it is drawn from
    this distribution and nothing needs to be resampled.

    Args:
        values: measured values in the order of measurement.
        rng: random generator for the draws.
    """
    shape = (_effective_sample_size(values) + 1) / 2
    return _interpolate(numpy.sort(values), rng.beta(shape, shape, _DRAWS))


def _effective_sample_size(values: FloatArray) -> float:
    """Return the number of independent values with as much information on the median.

    It is below the number of values if neighbours tend to lie on the same side of the median. The correction is that of
    Newey and West, "A simple, positive semi-definite, heteroskedasticity and autocorrelation consistent covariance
    matrix", 1987, applied to the signs, which determine the error of a median.
    """
    signs = numpy.sign(values - numpy.median(values))
    lags = min(int(1.5 * len(signs) ** (1 / 3)), len(signs) - 1)
    variance = float(signs @ signs) or 1.0
    covariances = [float(signs[:-lag] @ signs[lag:]) * (1 - lag / (lags + 1)) for lag in range(1, lags + 1)]
    return len(signs) / max(1.0, 1 + 2 * sum(covariances) / variance)


def _interpolate(sorted_values: FloatArray, positions: Any) -> FloatArray:
    """Return the values at positions between 0 and 1 in the sorted order, interpolated between neighbours."""
    count = len(sorted_values)
    interpolated: FloatArray = numpy.interp(positions, numpy.arange(1, count + 1) / (count + 1), sorted_values)
    return interpolated


def judge_with_holm(estimates: Sequence[Estimate]) -> list[Verdict]:
    """Return the verdicts of a whole table, corrected for multiple comparisons.

    Among 20 equal networks, one would appear different by chance at 95%. With this correction, at most one table in 20
    contains such an error (Holm, "A simple sequentially rejective multiple test procedure", 1979). A difference that
    does not pass becomes "inconclusive".

    Args:
        estimates: all ratios of the table.
    """
    verdicts = [estimate.verdict for estimate in estimates]
    order = sorted(range(len(estimates)), key=lambda i: estimates[i].p_value)
    is_significant = True
    for rank, i in enumerate(order):
        is_significant = is_significant and estimates[i].p_value * (len(order) - rank) <= 0.05
        if not is_significant and verdicts[i] in ("faster", "slower"):
            verdicts[i] = "inconclusive"
    return verdicts


def relative_iqr(samples: Sequence[float]) -> float:
    """Return the interquartile range of samples divided by their median.

    Args:
        samples: one or more positive numbers.
    """
    low, middle, high = numpy.quantile(samples, (0.25, 0.5, 0.75)).tolist()
    return float((high - low) / middle)


def quantile(samples: Sequence[float], q: float) -> float:
    """Return a quantile of samples.

    Args:
        samples: one or more numbers.
        q: which quantile, between 0 and 1: 0.5 for the median (p50), 0.9 for p90.
    """
    return float(numpy.quantile(samples, q))


def find_timing_warnings(timing: Timing, name: str) -> list[str]:
    """Return a warning about the samples of a timed metric, in one line; no warning if the samples are good.

    Args:
        timing: paired samples of a candidate and the baseline.
        name: name of the metric.
    """
    reasons = []
    spread = max(relative_iqr(timing.candidate), relative_iqr(timing.baseline))
    if spread > _NOISY_IQR:
        consequence = ", so the result is unreliable" if spread > _UNRELIABLE_IQR else ""
        reasons.append(f"its samples or the baseline's fluctuate by {spread:.0%} (IQR/median){consequence}")
    if (rounds := len(timing.candidate)) < 2 * MIN_ROUNDS:
        reasons.append(f"only {rounds} rounds were timed")
    if timing.stop_reason == "budget":
        half_width = estimate_ratio(timing).half_width
        advice = "use --retry-failed with a larger --budget"
        reasons.append(f"the budget ended at an interval of ±{half_width:.1%} ({advice})")
    return [f"{name}: {'; '.join(reasons)}"] if reasons else []


def format_interval(estimate: Estimate) -> str:
    """Format a ratio with its interval: "1.43 (1.41 to 1.46)".

    Args:
        estimate: the ratio.
    """
    return f"{format_ratio(estimate.ratio)} ({format_ratio(estimate.low)} to {format_ratio(estimate.high)})"
