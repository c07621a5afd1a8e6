"""Ratios of paired runs, timed as in `unetkit bench`: in random order, so that drift affects both equally."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

from unetkit.bench.results import Timing
from unetkit.bench.statistics import estimate_ratio, minimum_ratio
from unetkit.bench.timing import TimingConfig, time_pair


@dataclass(frozen=True)
class Ratio:
    """The time of one callable divided by that of another, as a line of a Markdown table.

    Attributes:
        name: name of the comparison.
        timing: samples of both; the first callable is the candidate and the second the baseline.
    """

    name: str
    timing: Timing

    def __str__(self) -> str:
        estimate = estimate_ratio(self.timing)
        first, second = median(self.timing.candidate), median(self.timing.baseline)
        return (
            f"| {self.name} | {estimate.ratio:.3f} | {estimate.low:.3f} to {estimate.high:.3f} "
            f"| {minimum_ratio(self.timing):.3f} | {estimate.rounds} | {first:.4f} | {second:.4f} |"
        )


#: First lines of the table of ratios.
TABLE_HEADER = (
    "| comparison | ratio | 95% interval | ratio of minima | pairs | first, median s | second, median s |\n"
    "| --- | --- | --- | --- | --- | --- | --- |"
)


def compare(
    name: str,
    first: Callable[[], Any],
    second: Callable[[], Any],
    rounds: int,
    *,
    clock: Callable[[], float] = perf_counter,
) -> Ratio:
    """Time two callables in rounds, after one call of each that is not counted.

    Args:
        name: name of the comparison.
        first: does its work once.
        second: does its work once.
        rounds: number of rounds.
        clock: returns a time in seconds; that of the process alone counts less of what else the machine does.
    """
    minimal = 1e-9  # so that exactly `rounds` rounds of one call each are timed
    return Ratio(
        name,
        time_pair(
            first,
            second,
            TimingConfig(budget=minimal, min_rounds=rounds, min_sample_time=minimal, warm_cache_below=minimal),
            clock=clock,
        ),
    )


def run_python(*arguments: str) -> Callable[[], Any]:
    """Return a function that runs a Python process and discards its output.

    Args:
        arguments: arguments of the interpreter.
    """
    return lambda: subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
