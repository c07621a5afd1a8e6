"""Does the method say "the same" of the same, and find 5%? A network is timed against itself and more of itself, often.

A sample is 20 calls of a small network; of the candidate 20, 21 or 24: exactly 0%, 5% and 20% more of the same work.
Each time, both networks are built anew in a process of their own. Nothing here imports torch but the child.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from random import Random

import numpy

from unetkit.bench.devices import Slot
from unetkit.bench.effects import student
from unetkit.bench.engines import NoticeCallback, run_locally
from unetkit.bench.grid import PRELOAD, Mode
from unetkit.bench.results import Timing
from unetkit.bench.statistics import Estimate, Verdict, estimate_ratio
from unetkit.bench.timing import TimingConfig, time_pair
from unetkit.errors import BuildError
from unetkit.plan import Plan
from unetkit.plugins import load_manager
from unetkit.utils.processes import Emit
from unetkit.utils.tables import Listing, TableData

#: Calls in a sample of the baseline, and how many more the candidate's has.
CALLS, EXTRA = 20, (0, 1, 4)
VERDICTS: tuple[Verdict, ...] = ("slower", "faster", "same", "inconclusive")


@dataclass(frozen=True)
class SelftestTask:
    """One run: which network, with its size; how many calls more; the rules, with a seed of its own."""

    plan: Plan
    extra: int
    rules: TimingConfig
    plugins: tuple[str, ...] = ()


@dataclass(frozen=True)
class SelftestResult:
    """What became of a task, and the seconds that it took, its process and building included."""

    extra: int
    timing: Timing
    seconds: float

    @property
    def truth(self) -> float:
        """The ratio that is right."""
        return 1 + self.extra / CALLS


@dataclass(frozen=True)
class SelftestSummary:
    """What a method said of runs of one truth.

    Attributes:
        truth: the ratio that is right.
        method: "paired rounds" or "sequential means".
        runs: how many.
        verdicts: the share of each.
        error, worst: how far the ratio is off, relative: the median and the most.
        holds: share of intervals that hold the truth.
        rounds, seconds: of a run, medians.
    """

    truth: float
    method: str
    runs: int
    verdicts: dict[Verdict, float]
    error: float
    worst: float
    holds: float
    rounds: float
    seconds: float


def make_tasks(plan: Plan, rules: TimingConfig, runs: int, plugins: tuple[str, ...] = ()) -> list[SelftestTask]:
    """So many runs of each truth, in random order: what the machine does meanwhile falls on all alike."""
    planned = [
        SelftestTask(plan, extra, replace(rules, seed=rules.seed + run), plugins)
        for run in range(runs)
        for extra in EXTRA
    ]
    Random(rules.seed).shuffle(planned)  # noqa: S311 - no secret
    return planned


def measure_tasks(
    planned: Sequence[SelftestTask], slot: Slot, notice: NoticeCallback
) -> Generator[SelftestResult, None, None]:
    """Do them one after the other, each in a process of its own, as `unetkit bench` does rows.

    Raises:
        BuildError: a process failed, with its cause.
    """
    timeout = 300 + 4 * max(task.rules.budget for task in planned)
    ask = f"{__name__}:time_one"
    for ended in run_locally(planned, ask, [slot], timeout=timeout, preload=PRELOAD, on_notice=notice):
        if ended.error:
            raise BuildError(f"{ended.task.plan} cannot be timed: {ended.error}")
        yield SelftestResult(ended.task.extra, Timing.from_dict(ended.facts), ended.seconds)


def time_one(task: SelftestTask, slot: Slot, say: Emit) -> None:
    """The child: two copies of the network, built apart, and one of them called more often."""
    from unetkit.bench.builtin_metrics import BenchModel, latency
    from unetkit.bench.worker import prepare_process

    device, parts = prepare_process(slot, task.rules.seed), load_manager(task.plugins).parts
    one, other = (BenchModel(task.plan, 1, Mode(), device, parts) for _ in range(2))
    for subject in Random(task.rules.seed).sample((one, other), 2):  # noqa: S311
        _ = subject.x
    candidate, baseline = _repeated(latency(one), CALLS + task.extra), _repeated(latency(other), CALLS)
    say(vars(time_pair(candidate, baseline, task.rules, synchronize=one.synchronize)))


def _repeated(call: Callable[[], object], times: int) -> Callable[[], None]:
    def repeated() -> None:
        for _ in range(times):
            call()

    return repeated


def tally_results(found: Sequence[SelftestResult]) -> list[SelftestSummary]:
    """For each truth, what the paired rounds said, and what sequential means say of the same samples."""
    methods = {"paired rounds": estimate_ratio, "sequential means": sequential}
    truths = sorted({result.truth for result in found})
    return [
        _tally([result for result in found if result.truth == truth], method, estimate)
        for truth in truths
        for method, estimate in methods.items()
    ]


def _tally(found: Sequence[SelftestResult], method: str, estimate: Callable[[Timing], Estimate]) -> SelftestSummary:
    truth = found[0].truth
    said = [estimate(result.timing) for result in found]
    verdicts = [one.verdict for one in said]
    errors = [abs(one.ratio / truth - 1) for one in said]
    return SelftestSummary(
        truth=truth,
        method=method,
        runs=len(said),
        verdicts={verdict: verdicts.count(verdict) / len(said) for verdict in VERDICTS},
        error=statistics.median(errors),
        worst=max(errors),
        holds=sum(one.low <= truth <= one.high for one in said) / len(said),
        rounds=statistics.median(len(result.timing.candidate) for result in found),
        seconds=statistics.median(result.seconds for result in found),
    )


def sequential(timing: Timing) -> Estimate:
    """The ratio of means that a script has which times one network after the other, with Welch's interval.

    From the same samples: the candidate's of the first half of the rounds, and the baseline's of the second.
    """
    half = len(timing.candidate) // 2
    one, other = numpy.array(timing.candidate[:half]), numpy.array(timing.baseline[half:])
    a, b = (float(part.var(ddof=1)) / len(part) / float(part.mean()) ** 2 for part in (one, other))
    degrees = (a + b) ** 2 / max(a**2 / (len(one) - 1) + b**2 / (len(other) - 1), 1e-300)
    ratio = float(one.mean() / other.mean())
    reach = student(max(degrees, 2.0)) * (a + b) ** 0.5
    return Estimate(ratio, ratio * (1 - reach), ratio * (1 + reach), len(timing.candidate))


#: Shares: of runs of the same that are called different, at most; of 5% more that are called slower, at least.
FALSE_ALARMS, FOUND = 0.05, 0.8


def passed(found: Sequence[SelftestSummary]) -> bool:
    """Whether paired rounds reach both aims."""
    return _false_alarms(found[0]) <= FALSE_ALARMS and found[2].verdicts["slower"] >= FOUND


def _false_alarms(tally: SelftestSummary) -> float:
    return tally.verdicts["slower"] + tally.verdicts["faster"]


def format_selftest(found: Sequence[SelftestSummary], plan: Plan, slot: Slot) -> Listing:
    """The table, and whether the aims are reached."""
    rows = [_cells(tally) for tally in found]
    heads = ["extra work", "method", "runs", *VERDICTS, "off by", "at worst", "interval holds it", "rounds", "seconds"]
    same, more = found[0], found[2]
    notes = [
        f"called different though the same: {_false_alarms(same):.0%} (aim: at most {FALSE_ALARMS:.0%})",
        f"called slower with 5% more work: {more.verdicts['slower']:.0%} (aim: at least {FOUND:.0%})",
    ]
    return Listing([f"{plan}, batch size 1, on {slot}"], [TableData(heads, rows)], notes)


def _cells(tally: SelftestSummary) -> list[str]:
    shares = [f"{tally.verdicts[verdict]:.0%}" for verdict in VERDICTS]
    errors = [f"{tally.error:.1%}", f"{tally.worst:.1%}", f"{tally.holds:.0%}"]
    extra = f"{tally.truth - 1:.0%}"
    return [extra, tally.method, str(tally.runs), *shares, *errors, f"{tally.rounds:.0f}", f"{tally.seconds:.1f}"]
