"""Two benchmarks compared: what got worse is found, and what did not is not."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from math import exp, sqrt
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.bench.example_runs import made_run
from tests.bench.test_show import written
from unetkit.bench.compare import CHANGE_VERDICTS, Change, Diff, diff_runs, divide_ratios, format_diff, judge_changes
from unetkit.bench.results import BenchRow, BenchRun, Timing
from unetkit.bench.statistics import Estimate
from unetkit.cli.bench_results import diff
from unetkit.errors import OptionError, UnetkitError


@cache
def before() -> BenchRun:
    return made_run(Path("runs/before"))


@cache
def after(**change: float) -> BenchRun:
    """Other samples of the same networks, where nothing is said to change."""
    said = {name.replace("__", "="): value for name, value in change.items()}
    return made_run(Path("runs/after"), seed=1, change=said)


def with_rows(run: BenchRun, mend: Callable[[BenchRow], BenchRow]) -> BenchRun:
    return replace(run, rows=tuple(map(mend, run.rows)))


def with_figures(run: BenchRun, mend: Callable[[BenchRow], Mapping[str, float]]) -> BenchRun:
    return with_rows(run, lambda row: replace(row, values={**row.values, **mend(row)}) if row.is_measured else row)


def found(made: Diff, verdict: str, metric: str | None = None) -> list[Change]:
    return [
        change
        for change in made.changes
        if change.verdict == verdict and (metric is None or (change.metric and change.metric.name == metric))
    ]


def test_a_run_is_no_worse_than_itself() -> None:
    made = diff_runs(before(), before())
    assert not made.is_worse
    assert {*made.counts} <= {"same", "inconclusive", "unpaired"}
    assert made.differences == []
    assert made.only_a == made.only_b == []


def test_other_samples_of_the_same_networks_are_no_change() -> None:
    made = diff_runs(before(), after())
    assert not found(made, "worse")
    assert not found(made, "better")


def test_what_became_slower_is_found_and_nothing_else() -> None:
    made = diff_runs(before(), after(up__nearest=1.3))
    assert made.is_worse
    slower = found(made, "worse", "latency")
    assert {change.row.factors["up"] for change in slower} == {"nearest"}
    assert len(slower) >= 7  # of 8, one of which fluctuates by 34%
    for change in slower:
        assert change.ratio is not None
        assert change.ratio.low < 1.3 / 0.995 * 1.1
        assert change.ratio.high > 1.3 / 0.995 * 0.9
    assert not found(made, "better", "latency")


def test_what_became_faster_is_no_failure() -> None:
    made = diff_runs(before(), after(up__nearest=0.6))
    assert found(made, "better", "latency")
    assert not found(made, "worse", "latency")


def test_a_machine_that_slowed_for_both_is_no_regression_but_is_said() -> None:
    def slowed(timing: Timing) -> Timing:
        candidate, baseline = (tuple(1.5 * x for x in samples) for samples in (timing.candidate, timing.baseline))
        return replace(timing, candidate=candidate, baseline=baseline)

    slow = with_rows(before(), lambda row: replace(row, timings={k: slowed(v) for k, v in row.timings.items()}))
    made = diff_runs(before(), slow)
    assert not made.is_worse
    assert "latency 1.50, training 1.50; " in made.notes[0]


def test_the_worst_comes_first() -> None:
    made = diff_runs(before(), after(up__nearest=1.3, fuse__add=1.5))
    verdicts = [CHANGE_VERDICTS.index(change.verdict) for change in made.changes]
    assert verdicts == sorted(verdicts)
    sizes = [change.magnitude for change in found(made, "worse")]
    assert sizes == sorted(sizes, reverse=True)


def test_counts_must_be_equal() -> None:
    more = with_figures(before(), lambda row: {"parameters": row.values["parameters"] + 1})
    made = diff_runs(before(), more)
    assert len(found(made, "worse", "parameters")) == 26
    assert len(found(diff_runs(more, before()), "better", "parameters")) == 26
    assert len(found(made, "worse")) == 26


@pytest.mark.parametrize(("share", "worse"), [(1.02, 0), (1.04, 0), (1.5, 26)])
def test_peak_memory_may_differ_as_it_does_between_processes(share: float, worse: int) -> None:
    mend = lambda row: {"memory": row.values["memory"] * share}  # noqa: E731
    big = with_figures(before(), lambda row: {"memory": row.values["memory"] * 20})
    assert len(found(diff_runs(big, with_figures(big, mend)), "worse", "memory")) == worse


def test_a_plugins_figure_is_changed_and_fails_nothing() -> None:
    made = diff_runs(before(), with_figures(before(), lambda row: {"energy": row.values["energy"] * 2}))
    assert len(found(made, "changed", "energy")) == 26
    assert not made.is_worse


def test_seconds_that_are_no_rounds_prove_nothing() -> None:
    made = diff_runs(before(), with_figures(before(), lambda row: {"build": 9.0}))
    assert len(found(made, "unpaired", "build")) == 26
    assert not made.is_worse
    assert "build" not in str(format_diff(made).tables)


def test_a_row_that_fails_now_is_worse_and_one_that_is_measured_now_better() -> None:
    gone = before().rows[3].id
    mend = lambda row: replace(row, error="out of memory", values={}, timings={}) if row.id == gone else row  # noqa: E731
    made = diff_runs(before(), with_rows(before(), mend))
    (change,) = found(made, "worse")
    assert (change.row.id, change.note, change.metric) == (gone, "out of memory", None)
    assert made.changes[0] == change
    assert "failed: out of memory" in format_diff(made).tables[0].rows[0]
    assert [change.row.id for change in found(diff_runs(with_rows(before(), mend), before()), "better")] == [gone]


def test_a_figure_that_fails_now_is_worse() -> None:
    def mend(row: BenchRow) -> BenchRow:
        return replace(row, timings={}, failures={"latency": "timed out", "training": "timed out"})

    made = diff_runs(before(), with_rows(before(), lambda row: mend(row) if row == before().rows[0] else row))
    assert {change.note for change in found(made, "worse")} == {"timed out"}
    assert len(found(made, "worse")) == 2


def test_rows_and_metrics_that_one_run_has_alone_are_listed() -> None:
    header = replace(before().header, metrics=before().header.metrics[1:])
    made = diff_runs(
        replace(before(), rows=before().rows[2:]), replace(before(), rows=before().rows[:-1], header=header)
    )
    assert [row.id for row in made.only_a] == [before().rows[-1].id]
    assert [row.id for row in made.only_b] == [row.id for row in before().rows[:2]]
    assert "measured only in A: parameters" in made.notes
    assert any(note.startswith("only in B: --encoder resnet18, batch size 1") for note in format_diff(made).notes)


def test_what_differs_in_machine_and_versions_is_said_first() -> None:
    header = replace(
        before().header,
        versions={**before().header.versions, "torch": "2.10.0"},
        machine={**before().header.machine, "cores": 4},
    )
    made = diff_runs(before(), replace(before(), header=header))
    assert made.differences == [
        "machine: cores is 8 in A and 4 in B",
        "versions: torch is 2.9.0 in A and 2.10.0 in B",
    ]
    assert format_diff(made).head[1:3] == made.differences


def test_times_to_other_baselines_are_refused_or_shown_without_a_verdict() -> None:
    header = replace(before().header, baseline="--encoder resnet34")
    with pytest.raises(OptionError, match="runs/before is --encoder resnet18"):
        diff_runs(before(), replace(before(), header=header))
    made = diff_runs(before(), replace(before(), header=header), unpaired=True)
    assert len(found(made, "unpaired", "latency")) == 26
    assert all(change.ratio is None for change in made.changes)
    assert not made.is_worse
    (baseline,) = [line for line in made.differences if line.startswith("baseline: ")]
    assert baseline.index("resnet18") < baseline.index(" A; ") < baseline.index("resnet34")
    assert {row[1] for row in format_diff(made).tables[0].rows} == {"latency", "training"}


def test_runs_without_times_need_no_common_baseline() -> None:
    metrics = before().header.metrics[:3]
    a, b = (
        replace(before(), header=replace(before().header, baseline=line, metrics=metrics)) for line in ("one", "two")
    )
    assert not diff_runs(a, b).is_worse


def test_runs_with_no_row_in_common_are_refused() -> None:
    with pytest.raises(OptionError, match="have no rows in common"):
        diff_runs(replace(before(), rows=before().rows[:3]), replace(before(), rows=before().rows[3:]))


@pytest.mark.slow
@pytest.mark.parametrize(("draws", "spread"), [(40, 0.02), (12, 0.1)])
def test_the_interval_of_a_quotient_holds_the_truth_as_often_as_it_says(draws: int, spread: float) -> None:
    chance = random.Random(0)

    def timing(ratio: float) -> Timing:
        rounds = [ratio * exp(chance.gauss(0, spread)) for _ in range(draws)]
        return Timing(tuple(rounds), (1.0,) * draws, 1, 0, "precise")

    held = 0
    for _ in range(200):
        made = divide_ratios(timing(1.2), timing(1.5))
        held += made.low <= 1.25 <= made.high
    assert held >= 184  # 95% of 200 is 190; fewer than 184 come by chance in one of 3000


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (1.04, 1.3, "worse"),
        (1.02, 1.3, "inconclusive"),
        (0.7, 0.96, "better"),
        (0.97, 1.04, "same"),
        (0.9, 1.04, "inconclusive"),
    ],
)
def test_a_verdict_needs_the_whole_interval(low: float, high: float, verdict: str) -> None:
    assert judge_changes([Estimate(sqrt(low * high), low, high, 20)], 0.03) == [verdict]


def test_one_of_many_figures_must_be_surer_to_be_worse() -> None:
    near, same = Estimate(1.07, 1.035, 1.106, 20), Estimate(1.0, 0.98, 1.02, 20)
    assert judge_changes([near], 0.03) == ["worse"]
    assert judge_changes([near, *[same] * 99], 0.03)[0] == "inconclusive"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("diff")
    other = replace(before(), header=replace(before().header, baseline="--encoder resnet34"))
    runs = {"before": before(), "after": after(), "slower": after(up__nearest=1.3), "other": other}
    return {name: written(root / name, run) for name, run in runs.items()}


def test_exit_codes_are_for_machines(folders: dict[str, str]) -> None:
    run = CliRunner().invoke
    same = run(diff, [folders["before"], folders["after"]])
    assert same.exit_code == 0, same.output
    slower = run(diff, [folders["before"], folders["slower"]])
    assert slower.exit_code == 1
    assert slower.output.splitlines()[0] == f"A is {folders['before']}, B is {folders['slower']}"
    assert " worse" in slower.output
    beyond = json.loads(run(diff, [folders["before"], folders["slower"], "--margin", "0.9", "--json"]).output)
    assert not [one for one in beyond["changes"] if one["verdict"] == "worse" and one["unit"] == "s"]
    for refused in ([folders["before"], folders["other"]], [folders["before"], "nowhere"]):
        assert isinstance(run(diff, refused).exception, UnetkitError)


def test_json_has_every_figure_and_markdown_those_that_changed(folders: dict[str, str]) -> None:
    run, words = CliRunner().invoke, [folders["before"], folders["slower"]]
    data: dict[str, Any] = json.loads(run(diff, [*words, "--json"]).output)
    assert data["worse"]
    assert sum(data["counts"].values()) == len(data["changes"])
    first = data["changes"][0]
    assert (first["verdict"], first["factors"]["up"]) == ("worse", "nearest")
    assert first["ratio"]["low"] > 1.03
    table = [line for line in run(diff, [*words, "--markdown"]).output.splitlines() if line.startswith("|")]
    assert table[0] == "| row | metric | A | B | B/A | verdict |"
    changed = sum(number for verdict, number in data["counts"].items() if verdict in ("worse", "better", "changed"))
    assert len(table) == 2 + changed
    everything = run(diff, [*words, "--all", "--markdown"]).output
    assert len([line for line in everything.splitlines() if line.startswith("|")]) == 2 + len(data["changes"])
