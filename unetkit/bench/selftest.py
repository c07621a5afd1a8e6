"""A check of the timing method on this machine: time a network against itself, and against itself with extra work.

A sample of the baseline is 20 calls of a small network, and a sample of the candidate is 20, 21 or 24 calls of a copy,
which is exactly 0%, 5% or 20% more work. Each run builds both networks in a new process. The results show how often the
verdict of paired rounds is right, and how often that of a script would be that times one network after the other. Only
the child processes import torch.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from random import Random

import numpy
from scipy.special import stdtrit

from unetkit.bench.devices import Slot
from unetkit.bench.engines import NoticeCallback, run_locally
from unetkit.bench.grid import PRELOAD, Mode, list_libraries
from unetkit.bench.results import Timing
from unetkit.bench.statistics import TAILS, Estimate, Verdict, estimate_ratio
from unetkit.bench.timing import TimingConfig, time_pair
from unetkit.errors import BuildError
from unetkit.plan import Plan
from unetkit.plugins import load_manager
from unetkit.utils.processes import Emit
from unetkit.utils.tables import Listing, TableData

#: Number of calls in a sample of the baseline.
CALLS_PER_SAMPLE = 20
#: Numbers of additional calls in a sample of the candidate.
EXTRA_CALLS = (0, 1, 4)
VERDICTS: tuple[Verdict, ...] = ("slower", "faster", "same", "inconclusive")
#: Largest share of the runs with equal work that may be called different.
MAX_FALSE_POSITIVE_RATE = 0.05
#: Smallest share of the runs with 5% more work that must be called slower.
MIN_POWER = 0.8


@dataclass(frozen=True)
class SelftestTask:
    """One run of the check.

    Attributes:
        plan: the network, with its input size.
        extra_calls: number of additional calls in a sample of the candidate.
        timing_config: settings of the timing, with a different seed in each run.
        plugins: plugins to load, as `--plugin` takes them.
    """

    plan: Plan
    extra_calls: int
    timing_config: TimingConfig
    plugins: tuple[str, ...] = ()


@dataclass(frozen=True)
class SelftestResult:
    """The result of one run.

    Attributes:
        extra_calls: number of additional calls in a sample of the candidate.
        timing: the samples.
        seconds: duration of the run, including its process and building the networks.
    """

    extra_calls: int
    timing: Timing
    seconds: float

    @property
    def true_ratio(self) -> float:
        """The true ratio of the candidate's work to the baseline's."""
        return 1 + self.extra_calls / CALLS_PER_SAMPLE


@dataclass(frozen=True)
class SelftestSummary:
    """The results of one method for all runs with the same true ratio.

    Attributes:
        true_ratio: true ratio of the candidate's work to the baseline's.
        method: "paired rounds" or "sequential means".
        runs: number of runs.
        verdicts: share of the runs with each verdict.
        median_error: median of the relative error of the ratio.
        max_error: maximum of the relative error of the ratio.
        coverage: share of the intervals that contain the true ratio.
        rounds: median number of rounds of a run.
        seconds: median duration of a run.
    """

    true_ratio: float
    method: str
    runs: int
    verdicts: dict[Verdict, float]
    median_error: float
    max_error: float
    coverage: float
    rounds: float
    seconds: float


def make_tasks(plan: Plan, timing_config: TimingConfig, runs: int, plugins: tuple[str, ...] = ()) -> list[SelftestTask]:
    """Return all runs in random order, so that changes of the machine affect each true ratio equally.

    Args:
        plan: the network, with its input size.
        timing_config: settings of the timing; its seed is that of the first run.
        runs: number of runs for each true ratio.
        plugins: plugins to load, as `--plugin` takes them.
    """
    tasks = [
        SelftestTask(plan, extra_calls, replace(timing_config, seed=timing_config.seed + run), plugins)
        for run in range(runs)
        for extra_calls in EXTRA_CALLS
    ]
    Random(timing_config.seed).shuffle(tasks)  # noqa: S311 - no secret
    return tasks


def measure_tasks(
    tasks: Sequence[SelftestTask], slot: Slot, on_notice: NoticeCallback
) -> Generator[SelftestResult, None, None]:
    """Measure tasks one after the other, each in its own process, and yield each result.

    Args:
        tasks: the runs.
        slot: device and cores to use.
        on_notice: called if another benchmark has to be waited for.

    Raises:
        BuildError: A process failed.
    """
    timeout = 300 + 4 * max(task.timing_config.budget for task in tasks)
    target = f"{__name__}:time_task"
    preload = [*PRELOAD, *list_libraries(task.plan for task in tasks)]
    for result in run_locally(tasks, target, [slot], timeout=timeout, preload=preload, on_notice=on_notice):
        if result.error:
            raise BuildError(f"{result.task.plan} cannot be timed: {result.error}")
        yield SelftestResult(result.task.extra_calls, Timing.from_dict(result.facts), result.seconds)


def time_task(task: SelftestTask, slot: Slot, emit: Emit) -> None:
    """Time two copies of the network, one of which is called more often, and emit the samples; run in a child process.

    Args:
        task: the run.
        slot: device and cores to use.
        emit: called with the samples.
    """
    from unetkit.bench.builtin_metrics import BenchModel, latency
    from unetkit.bench.worker import prepare_process

    seed = task.timing_config.seed
    device, parts = prepare_process(slot, seed), load_manager(task.plugins).parts
    candidate_model, baseline_model = (BenchModel(task.plan, 1, Mode(), device, parts) for _ in range(2))
    for bench_model in Random(seed).sample((candidate_model, baseline_model), 2):  # noqa: S311 - no secret
        _ = bench_model.x  # builds the model; the one that is built first is mostly a little slower
    candidate = _repeat(latency(candidate_model), CALLS_PER_SAMPLE + task.extra_calls)
    baseline = _repeat(latency(baseline_model), CALLS_PER_SAMPLE)
    emit(vars(time_pair(candidate, baseline, task.timing_config, synchronize=candidate_model.synchronize)))


def _repeat(call: Callable[[], object], times: int) -> Callable[[], None]:
    def repeated() -> None:
        for _ in range(times):
            call()

    return repeated


def summarize_results(results: Sequence[SelftestResult]) -> list[SelftestSummary]:
    """Return a summary of paired rounds and one of sequential means for each true ratio, in ascending order.

    Args:
        results: results of all runs.
    """
    methods = {"paired rounds": estimate_ratio, "sequential means": estimate_sequential_means}
    true_ratios = sorted({result.true_ratio for result in results})
    return [
        _summarize([result for result in results if result.true_ratio == true_ratio], method, estimate)
        for true_ratio in true_ratios
        for method, estimate in methods.items()
    ]


def _summarize(
    results: Sequence[SelftestResult], method: str, estimate_timing: Callable[[Timing], Estimate]
) -> SelftestSummary:
    true_ratio = results[0].true_ratio
    estimates = [estimate_timing(result.timing) for result in results]
    verdicts = [estimate.verdict for estimate in estimates]
    errors = [abs(estimate.ratio / true_ratio - 1) for estimate in estimates]
    return SelftestSummary(
        true_ratio=true_ratio,
        method=method,
        runs=len(estimates),
        verdicts={verdict: verdicts.count(verdict) / len(estimates) for verdict in VERDICTS},
        median_error=statistics.median(errors),
        max_error=max(errors),
        coverage=sum(estimate.low <= true_ratio <= estimate.high for estimate in estimates) / len(estimates),
        rounds=statistics.median(len(result.timing.candidate) for result in results),
        seconds=statistics.median(result.seconds for result in results),
    )


def estimate_sequential_means(timing: Timing) -> Estimate:
    """Estimate the ratio like a script that times one network after the other, as a ratio of means.

    The means are those of the candidate in the first half of the rounds and of the baseline in the second half. The
    interval is that of Welch, "The generalization of 'Student's' problem when several different population variances
    are involved", 1947, with the relative variances of both means.

    Args:
        timing: paired samples of both networks.
    """
    half = len(timing.candidate) // 2
    candidate, baseline = numpy.array(timing.candidate[:half]), numpy.array(timing.baseline[half:])
    a, b = (float(x.var(ddof=1)) / len(x) / float(x.mean()) ** 2 for x in (candidate, baseline))
    degrees = (a + b) ** 2 / max(a**2 / (len(candidate) - 1) + b**2 / (len(baseline) - 1), 1e-300)
    ratio = float(candidate.mean() / baseline.mean())
    half_width = float(stdtrit(max(degrees, 1.0), TAILS[1])) * (a + b) ** 0.5
    return Estimate(ratio, ratio * (1 - half_width), ratio * (1 + half_width), len(timing.candidate))


def has_passed(summaries: Sequence[SelftestSummary]) -> bool:
    """Return whether paired rounds have few enough false positives and enough power.

    Args:
        summaries: as `summarize_results` returns them.
    """
    equal, slower = summaries[0], summaries[2]
    return _false_positive_rate(equal) <= MAX_FALSE_POSITIVE_RATE and slower.verdicts["slower"] >= MIN_POWER


def _false_positive_rate(summary: SelftestSummary) -> float:
    return summary.verdicts["slower"] + summary.verdicts["faster"]


def format_selftest(summaries: Sequence[SelftestSummary], plan: Plan, slot: Slot) -> Listing:
    """Format the summaries as a table, with notes on whether the requirements are met.

    Args:
        summaries: as `summarize_results` returns them.
        plan: the network.
        slot: device and cores that were used.
    """
    errors = ["median error", "max error", "coverage"]
    headers = ["extra work", "method", "runs", *VERDICTS, *errors, "rounds", "seconds"]
    rows = [_make_cells(summary) for summary in summaries]
    equal, slower = summaries[0], summaries[2]
    limit, false_positives, power = MAX_FALSE_POSITIVE_RATE, _false_positive_rate(equal), slower.verdicts["slower"]
    notes = [
        f"equal work called different: {false_positives:.0%} of the runs (at most {limit:.0%} allowed)",
        f"5% more work called slower: {power:.0%} of the runs (at least {MIN_POWER:.0%} required)",
    ]
    return Listing([f"{plan}, batch size 1, on {slot}"], [TableData(headers, rows)], notes)


def _make_cells(summary: SelftestSummary) -> list[str]:
    return [
        f"{summary.true_ratio - 1:.0%}",
        summary.method,
        str(summary.runs),
        *(f"{summary.verdicts[verdict]:.0%}" for verdict in VERDICTS),
        f"{summary.median_error:.1%}",
        f"{summary.max_error:.1%}",
        f"{summary.coverage:.0%}",
        f"{summary.rounds:.0f}",
        f"{summary.seconds:.1f}",
    ]
