"""Two callables timed in rounds, on a clock that the test winds: every fact is exact, and no second is waited."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from math import isclose
from statistics import mean, median

import pytest

from unetkit.bench.statistics import estimate_ratio
from unetkit.bench.timing import TimingConfig, time_pair


class Machine:
    """Work on it takes its cost times `speed` at that moment; who waits and who runs is written down."""

    def __init__(self, speed: Callable[[float], float] = lambda now: 1.0) -> None:
        self.now = 0.0
        self.speed = speed
        self.ran: list[str] = []

    def clock(self) -> float:
        return self.now

    def work(self, name: str, cost: float, first: float = 1.0, times: int = 0) -> Callable[[], None]:
        """Return a callable of which the first so many calls cost more."""

        def call() -> None:
            slow = first if self.ran.count(name) < times else 1.0
            self.ran.append(name)
            self.now += cost * slow * self.speed(self.now)

        return call


@pytest.fixture(scope="module", autouse=True)
def objects_before() -> Iterator[None]:
    """Keep garbage collection, which precedes each timing, from looking at the objects of all other tests."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.slow
def test_a_drift_alike_for_both_leaves_the_ratio_right_where_means_in_sequence_are_far_off() -> None:
    machine = Machine(speed=lambda now: 1 + now / 10)
    timing = time_pair(
        machine.work("c", 0.011), machine.work("b", 0.010), TimingConfig(target_ci=0.0), clock=machine.clock
    )
    half = len(timing.candidate) // 2
    assert abs(estimate_ratio(timing).ratio / 1.1 - 1) < 0.005
    assert mean(timing.candidate[:half]) / mean(timing.baseline[half:]) < 0.9


@pytest.mark.slow
def test_a_quiet_machine_is_timed_until_the_ratio_is_precise() -> None:
    machine = Machine()
    timing = time_pair(machine.work("c", 0.012), machine.work("b", 0.010), TimingConfig(), clock=machine.clock)
    assert timing.stop_reason == "precise"
    assert isclose(estimate_ratio(timing).ratio, 1.2)
    assert 0.5 <= 2 * (sum(timing.candidate) + sum(timing.baseline)) < 1.1  # each after a call that is not timed


@pytest.mark.slow
def test_a_machine_that_is_not_quiet_is_timed_until_the_budget_is_spent() -> None:
    jumps = iter(range(10**6))
    machine = Machine(speed=lambda now: 1 + (next(jumps) * 7919 % 13) / 13)
    timing = time_pair(
        machine.work("c", 0.1), machine.work("b", 0.1), TimingConfig(budget=5, target_ci=0.001), clock=machine.clock
    )
    assert timing.stop_reason == "budget"
    assert 5 < machine.now < 6


@pytest.mark.slow
def test_six_rounds_are_timed_however_slow_a_call_is() -> None:
    machine = Machine(speed=lambda now: 1 + 0.3 * (int(now) % 3))
    timing = time_pair(machine.work("c", 60.0), machine.work("b", 50.0), TimingConfig(budget=20), clock=machine.clock)
    assert (len(timing.candidate), len(timing.baseline)) == (6, 6)
    assert (timing.stop_reason, timing.warmup_rounds, timing.calls_per_sample) == ("budget", 1, 1)


@pytest.mark.slow
def test_a_short_call_is_timed_in_samples_of_a_millisecond_and_told_by_the_call() -> None:
    machine = Machine()
    timing = time_pair(
        machine.work("c", 20e-6), machine.work("b", 10e-6), TimingConfig(budget=1, min_time=0.1), clock=machine.clock
    )
    assert timing.calls_per_sample == pytest.approx(100, abs=1)
    assert isclose(median(timing.candidate), 20e-6)
    assert isclose(median(timing.baseline), 10e-6)


@pytest.mark.slow
def test_what_is_slow_at_first_is_warmed_up() -> None:
    machine = Machine()
    slow = machine.work("c", 0.01, first=3.0, times=40)
    timing = time_pair(slow, machine.work("b", 0.01), TimingConfig(warmup_share=(0.1, 0.5)), clock=machine.clock)
    assert timing.warmup_rounds >= 40
    assert max(timing.candidate) < 0.011


@pytest.mark.slow
def test_a_short_call_follows_one_of_its_own_that_is_not_timed() -> None:
    last = [""]

    def works(name: str, cost: float) -> Callable[[], None]:
        inner = machine.work(name, cost)

        def call() -> None:  # what the other left in the caches costs as much again
            inner()
            machine.now += cost * (last[0] not in ("", name))
            last[0] = name

        return call

    for cost, told in ((0.005, 1.0), (0.1, 2.0)):
        machine = Machine()
        timing = time_pair(
            works("c", cost), works("b", cost), TimingConfig(budget=2, min_time=0.1), clock=machine.clock
        )
        assert isclose(max(timing.candidate), told * cost)


@pytest.mark.slow
def test_warm_up_that_never_settles_ends_with_a_quarter_of_the_budget() -> None:
    machine = Machine(speed=lambda now: 1 + now / 5)  # each round is slower than the last
    timing = time_pair(machine.work("c", 0.5), machine.work("b", 0.5), TimingConfig(budget=40), clock=machine.clock)
    taken = sum(timing.candidate) + sum(timing.baseline)
    assert timing.warmup_rounds >= 3
    assert 10 <= machine.now - taken < 20


@pytest.mark.slow
def test_which_goes_first_is_drawn_by_the_seed() -> None:
    def order(seed: int) -> list[str]:
        machine = Machine()
        time_pair(
            machine.work("c", 0.01),
            machine.work("b", 0.01),
            TimingConfig(seed=seed, warm_cache_below=0),
            clock=machine.clock,
        )
        return machine.ran[2:]

    ran = order(0)
    firsts = ran[::2]
    assert order(0) == ran != order(1)
    assert all({*pair} == {"c", "b"} for pair in zip(ran[::2], ran[1::2], strict=True))
    assert 0.3 < firsts.count("c") / len(firsts) < 0.7


@pytest.mark.slow
def test_work_that_is_only_queued_by_a_call_is_waited_for() -> None:
    machine = Machine()
    queued: list[float] = []

    def wait() -> None:
        machine.now += sum(queued)
        queued.clear()

    timing = time_pair(
        lambda: queued.append(0.03), lambda: queued.append(0.02), TimingConfig(), synchronize=wait, clock=machine.clock
    )
    assert isclose(median(timing.candidate), 0.03)
    assert isclose(median(timing.baseline), 0.02)


@pytest.mark.slow
def test_garbage_is_not_collected_while_timing_and_is_again_afterwards_whatever_happens() -> None:
    machine = Machine()
    seen: list[bool] = []
    work = machine.work("c", 0.01)

    def looked() -> None:
        seen.append(gc.isenabled())
        work()

    time_pair(looked, work, TimingConfig(), clock=machine.clock)
    assert seen
    assert not any(seen)
    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError):
        time_pair(lambda: 1 / 0, work, TimingConfig())
    assert gc.isenabled()
