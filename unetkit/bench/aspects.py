"""What a timed metric is read as: median, quantiles, throughput, and the ratio to the baseline with its interval."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from unetkit.bench.rows import Better, Row, Timing
from unetkit.bench.statistics import Estimate, fluctuation, minimum_ratio, quantile, ratio_of
from unetkit.bench.texts import format_digits, format_interval, format_ratio, format_seconds

Value = float | str | None

#: The rank of columns that are shown only where they are asked for.
HIDDEN = 9


@dataclass(frozen=True)
class Aspect:
    """One of the columns that every timed metric has.

    Attributes:
        suffix: after the metric's name and a dash; "" for the column with the metric's own name.
        summary: what it is.
        value, text: of a timing and its row.
        unit, better: as a Column's.
        ranks: as a Column's, for a run's first timed metric and for its others.
    """

    suffix: str
    summary: str
    value: Callable[[Timing, Row], float | str]
    text: Callable[[Timing, Row], str]
    unit: str = ""
    better: Better = "less"
    ranks: tuple[int, int] = (HIDDEN, HIDDEN)


@lru_cache(maxsize=8192)
def estimate_of(timing: Timing) -> Estimate:
    """The ratio to the baseline, worked out once, though numbers, texts and sorting all ask for it."""
    return ratio_of(timing)


def _p50(timing: Timing) -> float:
    return quantile(timing.candidate, 0.5)


def _p90(timing: Timing) -> float:
    return quantile(timing.candidate, 0.9)


def _rate(timing: Timing, row: Row) -> float:
    return row.batch / _p50(timing)


def _judged(timing: Timing) -> str:
    return f"{format_interval(estimate_of(timing))} {estimate_of(timing).verdict}"


def _seconds(
    suffix: str, summary: str, of: Callable[[Timing], float], ranks: tuple[int, int] = (HIDDEN, HIDDEN)
) -> Aspect:
    return Aspect(suffix, summary, lambda t, row: of(t), lambda t, row: format_seconds(of(t)), "s", ranks=ranks)


def _ratio(suffix: str, summary: str, of: Callable[[Timing], float]) -> Aspect:
    return Aspect(suffix, summary, lambda t, row: of(t), lambda t, row: format_ratio(of(t)))


#: In the order of the columns.
ASPECTS = (
    _seconds("", "median of the rounds", _p50, (0, 1)),
    _seconds("p90", "nine of ten rounds took no longer", _p90, (5, HIDDEN)),
    _seconds("min", "the fastest round", lambda t: min(t.candidate), (2, HIDDEN)),
    Aspect(
        "rate",
        "images a second: batch over median",
        _rate,
        lambda t, row: f"{format_digits(_rate(t, row))}/s",
        "images/s",
        "more",
        (4, HIDDEN),
    ),
    Aspect(
        "ratio",
        "to the baseline in the same rounds, with its 95% interval and verdict",
        lambda t, row: estimate_of(t).ratio,
        lambda t, row: _judged(t),
        ranks=(0, 1),
    ),
    _ratio("ratio-low", "lower end of the interval", lambda t: estimate_of(t).low),
    _ratio("ratio-high", "upper end of the interval", lambda t: estimate_of(t).high),
    Aspect(
        "verdict",
        "slower, faster, same or inconclusive against the baseline",
        lambda t, row: estimate_of(t).verdict,
        lambda t, row: estimate_of(t).verdict,
        better="",
    ),
    _ratio("min-ratio", "the fastest round over the baseline's fastest", minimum_ratio),
    Aspect(
        "fluctuation",
        "interquartile range over median: above 10% a row is noisy, above 25% unreliable",
        lambda t, row: fluctuation(t.candidate),
        lambda t, row: f"{fluctuation(t.candidate):.1%}",
    ),
    Aspect("rounds", "rounds timed", lambda t, row: len(t.candidate), lambda t, row: str(len(t.candidate)), better=""),
)
