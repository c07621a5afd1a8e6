"""Paired timing: time a callable against a baseline in interleaved rounds, until their ratio is known precisely enough.

A machine drifts by more than models differ, through other processes, clock rates and caches. Two timings that are taken
a moment apart share most of that drift, so their ratio contains little of it, whereas the ratio of two means that are
measured one after the other contains all of it. The module imports neither torch nor numpy.
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

TimedCall = Callable[[], object]

#: Number of the last warm-up rounds that are compared with as many rounds before them.
_WINDOW = 3
#: Largest relative difference of the medians of the two windows at which warm-up ends.
_STEADY_TOLERANCE = 0.05
#: Factor between the numbers of rounds at which the precision is checked. A check after every round would stop at a
#: round at which the interval is narrow by chance.
_CHECK_GROWTH = 1.5


@dataclass(frozen=True)
class TimingConfig:
    """The settings of a paired timing.

    Attributes:
        budget: time limit for warm-up and rounds, in seconds. The first call of each callable, which may compile, does
            not count.
        target_ci: timing stops when the half-width of the 95% interval of the ratio, relative to the ratio, is at most
            this.
        seed: seed for the order of the two callables in each round.
        min_sample_time: shortest time of a sample, in seconds, approximately. If a call is shorter, a sample is the
            mean of several calls, the same number for both callables.
        warm_cache_below: if a call takes less than this, in seconds, each sample is preceded by a call that is not
            timed, so that the caches are in the state that the callable itself left, rather than the other one. That
            can make a difference of 10% for a short call.
        min_rounds: number of rounds that are timed even if they exceed the budget. With fewer than six, there is no
            95% interval.
        min_time: shortest time of all rounds, in seconds. Of timings of equal work, 2% of those that stopped earlier
            called it different, and none of those that took at least 0.3 s.
        warmup_share: smallest and largest share of the budget for warm-up, between 0 and 1.
    """

    budget: float = 20.0
    target_ci: float = 0.02
    seed: int = 0
    min_sample_time: float = 1e-3
    warm_cache_below: float = 0.02
    min_rounds: int = 6
    min_time: float = 0.5
    warmup_share: tuple[float, float] = (0.01, 0.25)


def time_pair(
    candidate: TimedCall,
    baseline: TimedCall,
    config: TimingConfig,
    *,
    synchronize: TimedCall = lambda: None,
    clock: Callable[[], float] = perf_counter,
) -> Timing:
    """Time two callables in rounds with one sample of each, and return all samples.

    Warm-up ends when, for both callables, the medians of the last three rounds and of the three rounds before them
    differ by at most 5%. Timing ends when the interval is narrow enough, which is checked each time the number of
    rounds has grown by half, or when the budget is spent. Garbage collection is switched off meanwhile, since it would
    slow one of the two callables.

    Args:
        candidate: does its work once. Exceptions are passed on.
        baseline: does its work once, like `candidate`.
        config: settings.
        synchronize: called before a sample starts and before it ends: `torch.cuda.synchronize` on a GPU, where a call
            returns before its work is done.
        clock: returns a time in seconds.

    Returns:
        The samples after warm-up, and why the timing stopped.
    """
    timer = _PairTimer((candidate, baseline), config, synchronize, clock)
    with _disable_gc():
        timer.time_sample(0)
        timer.time_sample(1)
        timer.start = clock()
        warmup_rounds = timer.warm_up()
        stop_reason = timer.time_rounds()
    candidate_samples, baseline_samples = timer.samples
    return Timing(tuple(candidate_samples), tuple(baseline_samples), timer.calls_per_sample, warmup_rounds, stop_reason)


@contextmanager
def _disable_gc() -> Generator[None, None, None]:
    is_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if is_enabled:
            gc.enable()


@dataclass
class _PairTimer:
    """The state of a paired timing; `calls` and `samples` hold the candidate first and the baseline second."""

    calls: tuple[TimedCall, TimedCall]
    config: TimingConfig
    synchronize: TimedCall
    clock: Callable[[], float]
    calls_per_sample: int = 1
    warms_caches: bool = False
    samples: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))
    start: float = 0.0

    def __post_init__(self) -> None:
        self._random = Random(self.config.seed)  # noqa: S311 - no secret

    def time_sample(self, index: int) -> float:
        """Time one sample of a callable and return its seconds for each call."""
        call = self.calls[index]
        if self.warms_caches:
            call()
        self.synchronize()
        start = self.clock()
        for _ in range(self.calls_per_sample):
            call()
        self.synchronize()
        return (self.clock() - start) / self.calls_per_sample

    def time_round(self) -> None:
        """Time a sample of each callable, in random order."""
        order = (0, 1) if self._random.random() < 0.5 else (1, 0)
        for index in order:
            self.samples[index].append(self.time_sample(index))

    @property
    def budget_used(self) -> float:
        """The share of the budget that is spent."""
        return (self.clock() - self.start) / self.config.budget

    def warm_up(self) -> int:
        """Run rounds until their times are steady, choose the size of a sample, and return the number of rounds.

        The samples of these rounds are discarded.
        """
        least, most = self.config.warmup_share
        while self.budget_used < least or (self.budget_used < most and not all(map(_is_steady, self.samples))):
            self.time_round()
        num_rounds = len(self.samples[0])
        recent = [median(samples[-_WINDOW:]) for samples in self.samples if samples]
        shortest = min(recent, default=self.config.warm_cache_below)
        self.calls_per_sample = max(1, ceil(self.config.min_sample_time / max(shortest, 1e-9)))
        self.warms_caches = shortest < self.config.warm_cache_below
        for samples in self.samples:
            samples.clear()
        return num_rounds

    def time_rounds(self) -> str:
        """Time rounds until the ratio is precise or the budget is spent, and return which: "precise" or "budget"."""
        start, next_check = self.clock(), 2.0 * self.config.min_rounds
        while (num_rounds := len(self.samples[0])) < self.config.min_rounds or self.budget_used < 1:
            if num_rounds >= next_check and self.clock() - start >= self.config.min_time:
                if self._is_precise():
                    return "precise"
                next_check = num_rounds * _CHECK_GROWTH
            self.time_round()
        return "precise" if self._is_precise() else "budget"

    def _is_precise(self) -> bool:
        from unetkit.bench.statistics import (
            estimate_ratio,
        )  # imports numpy and scipy, which a TimingConfig does not need

        timing = Timing(tuple(self.samples[0]), tuple(self.samples[1]), 1, 0, "")
        return estimate_ratio(timing).half_width <= self.config.target_ci


def _is_steady(samples: list[float]) -> bool:
    if len(samples) < 2 * _WINDOW:
        return False
    before, after = median(samples[-2 * _WINDOW : -_WINDOW]), median(samples[-_WINDOW:])
    return abs(after - before) <= _STEADY_TOLERANCE * before
