"""Ratios of paired runs: each round runs both in random order, so that a machine whose speed drifts drifts for both."""

from __future__ import annotations

import gc
import math
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Ratio:
    """How long the first takes as a share of the second: the median over pairs, with a bootstrap 95% interval.

    Attributes:
        minimum: the ratio of the two shortest times.
        pairs: how many rounds counted.
    """

    name: str
    median: float
    low: float
    high: float
    minimum: float
    pairs: int
    first_seconds: float
    second_seconds: float

    def __str__(self) -> str:
        return (
            f"| {self.name} | {self.median:.3f} | {self.low:.3f} to {self.high:.3f} | {self.minimum:.3f} "
            f"| {self.pairs} | {self.first_seconds:.4f} | {self.second_seconds:.4f} |"
        )


HEADER = (
    "| what | ratio | 95% interval | ratio of minima | pairs | first, median s | second, median s |\n"
    "| --- | --- | --- | --- | --- | --- | --- |"
)


def compare(name: str, first: Callable[[], Any], second: Callable[[], Any], rounds: int, warmup: int = 2) -> Ratio:
    """Time two callables in paired rounds, after `warmup` rounds that do not count."""
    times: list[tuple[float, float]] = []
    order = random.Random(0)
    for index in range(warmup + rounds):
        gc.collect()
        if order.random() < 0.5:
            a, b = _seconds(first), _seconds(second)
        else:
            b, a = _seconds(second), _seconds(first)
        if index >= warmup:
            times.append((a, b))
    logs = [math.log(a / b) for a, b in times]
    low, high = bootstrap(logs)
    firsts, seconds = zip(*times, strict=True)
    return Ratio(
        name,
        math.exp(statistics.median(logs)),
        math.exp(low),
        math.exp(high),
        min(firsts) / min(seconds),
        rounds,
        statistics.median(firsts),
        statistics.median(seconds),
    )


def bootstrap(values: Sequence[float], draws: int = 2000) -> tuple[float, float]:
    """The 95% interval of the median."""
    chance = random.Random(0)
    medians = sorted(statistics.median(chance.choices(values, k=len(values))) for _ in range(draws))
    return medians[int(0.025 * draws)], medians[int(0.975 * draws)]


def process(*arguments: str) -> Callable[[], Any]:
    """A whole Python process, its output thrown away."""
    return lambda: subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
