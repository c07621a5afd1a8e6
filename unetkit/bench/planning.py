"""Plan a benchmark that trains: how long it takes, and which differences it would find, from a few pilot trainings.

The module imports no torch.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from math import sqrt
from pathlib import Path
from statistics import fmean, variance

from unetkit.bench.config import BenchConfig
from unetkit.bench.grid import Case
from unetkit.bench.quality_statistics import detectable_difference
from unetkit.bench.results import BenchRun, ResultsWriter, TrainingRecord, read_results
from unetkit.bench.runner import BenchRunner
from unetkit.bench.training_runner import collect_scores
from unetkit.errors import BuildError, OptionError
from unetkit.utils.formatting import format_bytes, format_plural
from unetkit.utils.tables import Listing, TableData

#: Number of pilot trainings of each of the two pilot rows.
PILOT_SEEDS = 2
#: Degrees of freedom below which a standard deviation is hardly known.
_FEW_DEGREES = 5
#: Numbers of seeds for which the smallest difference is given.
SEED_NUMBERS = (6, 8, 11, 16)


@dataclass(frozen=True)
class BenchPlan:
    """The time that a benchmark would take, and the differences that it would find.

    Attributes:
        rows: number of rows that can be built.
        slots: number of trainings at the same time.
        seconds: estimated seconds of one training of each row together.
        pilots: number of pilot trainings.
        std: standard deviation of paired differences over seeds, pooled over the pilot rows.
        degrees: degrees of freedom of this standard deviation.
        memory: estimated peak memory of a training of the largest row, in bytes; 0 if it is unknown.
        largest: line of the largest row.
        failed: error of each row that cannot be built.
    """

    rows: int
    slots: int
    seconds: float
    pilots: int
    std: float
    degrees: int
    memory: int
    largest: str
    failed: tuple[str, ...]


def plan_benchmark(
    runner: BenchRunner,
    folder: Path | None,
    on_training: Callable[[TrainingRecord, int], None] = lambda record, total: None,
) -> BenchPlan:
    """Estimate what a benchmark takes, from the trainings in a folder or from pilot trainings of two of its rows.

    The pilot rows are the baseline and the row with the most multiply-accumulates.

    Args:
        runner: the benchmark, with data.
        folder: a folder with trainings; None, or a folder without results, trains pilots in a temporary folder.
        on_training: called with each pilot training when it is done, and with their number.

    Raises:
        OptionError: The benchmark trains nothing.
        BuildError: No row can be built, or a pilot training failed.
    """
    if runner.training is None:
        raise OptionError("bench plan: only trainings are planned; give --data, too")
    runner.open_data(check_images=False)
    failed = runner.dry_build(runner.cases)
    cases = [case for case in runner.cases if case.id in runner.dry_builds]
    if not cases:
        raise BuildError(f"none of the rows can be built; the first: {failed[0].error}")
    with ExitStack() as stack:
        if folder is not None and (folder / "rows.jsonl").exists():
            run = read_results(folder)
        else:
            temporary = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="unetkit-plan-")))
            run = _train_pilots(runner, _choose_pilots(runner, cases), temporary, on_training)
        return _estimate(runner, cases, run, tuple(result.error for result in failed))


def _choose_pilots(runner: BenchRunner, cases: Sequence[Case]) -> list[Case]:
    """Return the baseline and the most expensive other row."""
    runner.choose_baseline(None)
    baseline = next(case for case in cases if case.id == runner.baseline_row)
    others = [case for case in cases if case is not baseline]
    return [baseline, *sorted(others, key=lambda case: runner.dry_builds[case.id]["macs"])[-1:]]


def _train_pilots(
    runner: BenchRunner, pilots: list[Case], folder: Path, on_training: Callable[[TrainingRecord, int], None]
) -> BenchRun:
    config = replace(
        runner.config,
        seeds=PILOT_SEEDS,
        max_seeds=BenchConfig.max_seeds,
        race=False,
        metrics=("parameters", *(metric.name for metric in runner.trained_metrics)),
        retry_failed=False,
        keep_weights=False,
    )
    pilot = BenchRunner(pilots, config, runner.manager, on_notice=runner.on_notice)
    writer = ResultsWriter(folder)
    try:
        for _ in pilot.measure_rows(writer, ""):
            pass
        for record in pilot.train_rows(writer):
            on_training(record, PILOT_SEEDS * len(pilots))
            if record.error:
                raise BuildError(f"a pilot training failed: {record.error}")
    finally:
        pilot.close()
        writer.close()
    return read_results(folder)


def _estimate(runner: BenchRunner, cases: Sequence[Case], run: BenchRun, failed: tuple[str, ...]) -> BenchPlan:
    """Estimate from measured trainings, whose time grows linearly with the multiply-accumulates of a row."""
    if run.header.training is None:
        raise OptionError(f"{run.folder} contains no trainings; give the folder of a benchmark with --data")
    built = runner.dry_builds
    done = [one for one in run.trainings if not one.error and one.row_id in built]
    if not done:
        raise OptionError(f"{run.folder} contains no finished trainings of rows of this grid")
    start, rate = _fit_line([(built[one.row_id]["macs"], one.seconds) for one in done])
    seconds = sum(start + rate * built[case.id]["macs"] for case in cases)
    largest = max(cases, key=lambda case: int(built[case.id]["activations"]))
    base, growth = _fit_line([(built[one.row_id]["activations"], one.memory) for one in done])
    std, degrees = _pool_differences(run)
    return BenchPlan(
        rows=len(cases),
        slots=len(runner.training_slots()) if runner.config.engine != "ray" else 1,
        seconds=seconds,
        pilots=len(done),
        std=std,
        degrees=degrees,
        memory=round(base + growth * built[largest.id]["activations"]),
        largest=str(largest.plan),
        failed=failed,
    )


def _fit_line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return intercept and slope of the line of least squares, neither below 0."""
    x, y = [a for a, _ in points], [b for _, b in points]
    spread = sum((a - fmean(x)) ** 2 for a in x)
    slope = sum((a - fmean(x)) * (b - fmean(y)) for a, b in points) / spread if spread else 0.0
    slope = min(max(slope, 0.0), fmean(y) / fmean(x) if fmean(x) else 0.0)
    return fmean(y) - slope * fmean(x), slope


def _pool_differences(run: BenchRun) -> tuple[float, int]:
    """Return the pooled standard deviation of differences to the baseline over seeds, and its degrees of freedom."""
    if run.header.training is None:
        return 0.0, 0
    header = run.header.training
    scores, failed = collect_scores(run.trainings, str(header.rules["metric"]), header.seed)
    baseline, total, degrees = scores.get(header.baseline_row, []), 0.0, 0
    for row_id, values in scores.items():
        if row_id == header.baseline_row or row_id in failed:
            continue
        differences = [a - b for a, b in zip(values, baseline, strict=False)]
        if len(differences) > 1:
            total += variance(differences) * (len(differences) - 1)
            degrees += len(differences) - 1
    return (sqrt(total / degrees) if degrees else 0.0), degrees


def _format_duration(seconds: float) -> str:
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"


def format_plan(plan: BenchPlan, metric: str) -> Listing:
    """Format a plan as a table of numbers of seeds.

    Args:
        plan: the plan.
        metric: name of the metric of the verdicts.
    """
    rows = [
        [
            str(seeds),
            str(seeds * plan.rows),
            _format_duration(seeds * plan.seconds / plan.slots),
            f"{detectable_difference(plan.std, seeds):.4f}" if plan.std else "",
        ]
        for seeds in SEED_NUMBERS
    ]
    head = [
        f"{format_plural(plan.rows, 'row')}, {format_plural(plan.slots, 'training')} at a time, "
        f"from {format_plural(plan.pilots, 'training')} that were measured"
    ]
    memory = f"about {format_bytes(plan.memory)}" if plan.memory else "an unknown amount"
    notes = [f"a training of the largest row, {plan.largest}, needs {memory} of memory"]
    if plan.degrees and not plan.std:
        notes.append("the scores of the measured trainings do not vary, as if they were too short to learn anything")
    elif plan.degrees:
        notes.append(
            f"the differences to the baseline vary over seeds with a standard deviation of about {plan.std:.4f}; a "
            "single comparison finds the smallest difference with a probability of 80%, one among several less often"
        )
    if plan.std and plan.degrees < _FEW_DEGREES:
        notes.append(f"{format_plural(plan.degrees + 1, 'seed')} are few: this deviation may be off by a factor of 3")
    notes += [f"a row cannot be built: {why}" for why in plan.failed]
    table = TableData(["seeds", "trainings", "time", f"smallest difference of {metric}"], rows)
    return Listing(head, [table], notes)
