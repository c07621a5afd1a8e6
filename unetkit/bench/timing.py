"""Times a callable against a baseline: round by round, in random order, until their ratio is known well enough.

A machine drifts by more than networks differ: other work, clocks, caches. Two timings a moment apart share most of
that, so their ratio keeps little of it, where the ratio of two means taken one after the other keeps all. Nothing
here imports torch or numpy.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import ceil
from random import Random
from statistics import median
from time import perf_counter

from unetkit.bench.results import Timing

Call = Callable[[], object]

#: Rounds of warm-up compared with as many before them.
_WINDOW = 3
#: How far the medians of the two may be apart, relative.
_STEADY = 0.05
#: Looks grow by this, since looking after every round would stop at a round that is narrow by luck.
_GROWTH = 1.5


@dataclass(frozen=True)
class TimingConfig:
    """How long to time, and how well.

    Attributes:
        budget: seconds for warm-up and rounds. The first call of each, which may compile, is not among them.
        precision: half-width of the interval of the ratio, relative, that is narrow enough.
        seed: draws which of the two goes first in a round.
        sample: seconds that a sample lasts at least, about: where a call is shorter, it is the mean of several, as many
            for both.
        refill: seconds of a call below which each sample follows a call that is not timed: caches are then as the
            network's own last call left them, and not as the other's, which can take a tenth of a short call.
        least: rounds that are timed however slow they are: with fewer there is no interval of 95%.
        settle: seconds that rounds take at least: of real timings that ended sooner, 2% called the same different, and
            of those that took 0.3 s, none.
        warmup: least and most share of the budget for warm-up.
    """

    budget: float = 20.0
    target_ci: float = 0.02
    seed: int = 0
    sample: float = 1e-3
    refill: float = 0.02
    least: int = 6
    settle: float = 0.5
    warmup: tuple[float, float] = (0.01, 0.25)


def time_pair(
    candidate: Call,
    baseline: Call,
    rules: TimingConfig,
    *,
    wait: Call = lambda: None,
    clock: Callable[[], float] = perf_counter,
) -> Timing:
    """Time both, a sample of each a round, and keep every sample.

    Warm-up ends when the medians of three rounds and of the three before are within 5% of each other, for both
    callables. Rounds end when the interval is narrow enough, looked at after 1.5 times as many rounds each time, or
    when the budget is spent.

    Args:
        candidate, baseline: each does its work once. What they raise is passed on.
        rules: how long, and how well.
        wait: called before a sample starts and before it ends: `torch.cuda.synchronize` on a GPU, whose calls return
            before they are done.
        clock: seconds, from any start.
    """
    pair = _Pair((candidate, baseline), rules, wait, clock)
    with _no_collection():
        pair.sample(0)
        pair.sample(1)
        pair.start = clock()
        warmup = pair.warm_up()
        ended = pair.measure()
    one, other = pair.samples
    return Timing(tuple(one), tuple(other), pair.calls, warmup, ended)


@contextmanager
def _no_collection() -> Generator[None, None, None]:
    """Collecting garbage would fall on one of the two."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@dataclass
class _Pair:
    """Candidate and baseline, and the samples so far, in that order."""

    both: tuple[Call, Call]
    rules: TimingConfig
    wait: Call
    clock: Callable[[], float]
    calls: int = 1
    refills: bool = False
    samples: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))
    start: float = 0.0

    def __post_init__(self) -> None:
        self._draw = Random(self.rules.seed)  # noqa: S311 - no secret

    def sample(self, which: int) -> float:
        """Seconds a call."""
        call, calls = self.both[which], self.calls
        if self.refills:
            call()
        self.wait()
        start = self.clock()
        for _ in range(calls):
            call()
        self.wait()
        return (self.clock() - start) / calls

    def round(self) -> None:
        order = (0, 1) if self._draw.random() < 0.5 else (1, 0)
        for which in order:
            self.samples[which].append(self.sample(which))

    @property
    def spent(self) -> float:
        """Share of the budget."""
        return (self.clock() - self.start) / self.rules.budget

    def warm_up(self) -> int:
        """Rounds until times no longer fall; then it is chosen what a sample is, and they are forgotten."""
        least, most = self.rules.warmup
        while self.spent < least or (self.spent < most and not all(map(_steady, self.samples))):
            self.round()
        rounds = len(self.samples[0])
        usual = [median(seconds[-_WINDOW:]) for seconds in self.samples if seconds]
        quickest = min(usual, default=self.rules.refill)
        self.calls = max(1, ceil(self.rules.sample / max(quickest, 1e-9)))
        self.refills = quickest < self.rules.refill
        for seconds in self.samples:
            seconds.clear()
        return rounds

    def measure(self) -> str:
        """Rounds until they are enough; says why."""
        began, look = self.clock(), 2.0 * self.rules.least
        while (rounds := len(self.samples[0])) < self.rules.least or self.spent < 1:
            if rounds >= look and self.clock() - began >= self.rules.settle:
                if self._precise():
                    return "precise"
                look = rounds * _GROWTH
            self.round()
        return "precise" if self._precise() else "budget"

    def _precise(self) -> bool:
        from unetkit.bench.statistics import (
            estimate_ratio,  # imports numpy, which who only chooses rules has no need of
        )

        timing = Timing(tuple(self.samples[0]), tuple(self.samples[1]), 1, 0, "")
        return estimate_ratio(timing).half_width <= self.rules.target_ci


def _steady(seconds: list[float]) -> bool:
    if len(seconds) < 2 * _WINDOW:
        return False
    before, after = median(seconds[-2 * _WINDOW : -_WINDOW]), median(seconds[-_WINDOW:])
    return abs(after - before) <= _STEADY * before
