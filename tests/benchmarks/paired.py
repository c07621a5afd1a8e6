"""Ratios of paired runs, timed as `unetkit bench` times: in random order, so that what drifts drifts for both."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

from unetkit.bench.results import Timing
from unetkit.bench.statistics import estimate_ratio, minimum_ratio
from unetkit.bench.timing import TimingConfig, time_pair


@dataclass(frozen=True)
class Ratio:
    """How long the first takes as a share of the second: the median over pairs, with its 95% interval."""

    name: str
    timing: Timing

    def __str__(self) -> str:
        estimate = estimate_ratio(self.timing)
        first, second = median(self.timing.candidate), median(self.timing.baseline)
        return (
            f"| {self.name} | {estimate.ratio:.3f} | {estimate.low:.3f} to {estimate.high:.3f} "
            f"| {minimum_ratio(self.timing):.3f} | {estimate.rounds} | {first:.4f} | {second:.4f} |"
        )


HEADER = (
    "| what | ratio | 95% interval | ratio of minima | pairs | first, median s | second, median s |\n"
    "| --- | --- | --- | --- | --- | --- | --- |"
)


def compare(name: str, first: Callable[[], Any], second: Callable[[], Any], rounds: int) -> Ratio:
    """Time two callables in so many rounds, after a call of each that does not count."""
    no_more = 1e-9  # neither seconds nor calls
    return Ratio(
        name,
        time_pair(
            first,
            second,
            TimingConfig(budget=no_more, min_rounds=rounds, min_sample_time=no_more, warm_cache_below=no_more),
        ),
    )


def process(*arguments: str) -> Callable[[], Any]:
    """A whole Python process, its output thrown away."""
    return lambda: subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
