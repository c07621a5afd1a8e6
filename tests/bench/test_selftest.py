"""Run selftests on made-up samples whose truth is known, and on a real network in real processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy
import pytest
from click.testing import CliRunner

from tests.bench.test_statistics import timed
from unetkit.bench.devices import Slot
from unetkit.bench.results import Timing
from unetkit.bench.selftest import (
    CALLS_PER_SAMPLE,
    EXTRA_CALLS,
    SelftestResult,
    SelftestTask,
    estimate_sequential_means,
    format_selftest,
    has_passed,
    make_tasks,
    summarize_results,
    time_task,
)
from unetkit.bench.statistics import estimate_ratio
from unetkit.bench.timing import TimingConfig
from unetkit.cli import cli
from unetkit.errors import BuildError, FileError, OptionError, UnknownNameError
from unetkit.plan import Plan

TINY = Plan.parse("--encoder plain:widths=[4,8] --size 16")
SLOT = Slot("cpu", (), 1)


def made(runs: int = 20, noise: float = 0.02) -> list[SelftestResult]:
    """Make runs on a machine that drifts."""
    return [
        SelftestResult(extra, timed(1 + extra / CALLS_PER_SAMPLE, 40, 100 * run + extra, noise=noise), 5.0)
        for run in range(runs)
        for extra in EXTRA_CALLS
    ]


def test_paired_rounds_are_right_on_a_machine_that_drifts_and_means_in_sequence_are_not() -> None:
    found = summarize_results(made())
    assert [(tally.true_ratio, tally.method) for tally in found] == [
        (truth, method) for truth in (1.0, 1.05, 1.2) for method in ("paired rounds", "sequential means")
    ]
    assert has_passed(found)
    assert found[0].verdicts["same"] == found[2].verdicts["slower"] == found[4].verdicts["slower"] == 1
    assert all(tally.coverage >= 0.85 for tally in found[::2])
    assert all(tally.coverage < 0.5 for tally in found[1::2])
    assert all(tally.max_error < 0.05 for tally in found[::2])
    assert all(tally.median_error > 0.05 for tally in found[1::2])
    assert (found[0].runs, found[0].rounds, found[0].seconds) == (20, 40, 5.0)
    assert sum(found[1].verdicts.values()) == pytest.approx(1)


def test_aims_are_missed_where_the_samples_say_too_little() -> None:
    found = summarize_results(made(noise=0.5))
    assert not has_passed(found)
    shown = format_selftest(found, TINY, SLOT)
    assert shown.notes[0].endswith("% of the runs (at most 5% allowed)")
    assert shown.notes[1].startswith("5% more work called slower: ")
    assert len(shown.tables[0].rows) == 6


def test_sequential_means_are_the_first_half_of_one_over_the_second_of_the_other() -> None:
    timing = Timing((2.0, 2.2, 9.0, 9.0), (9.0, 9.0, 1.0, 1.1), 1, 0, "budget")
    assert estimate_sequential_means(timing).ratio == pytest.approx(2.0)
    steady = Timing((2.0,) * 8, (1.0,) * 8, 1, 0, "precise")
    assert estimate_sequential_means(steady).verdict == "slower"


def test_welchs_interval_holds_the_ratio_of_means_where_nothing_drifts() -> None:
    chance = numpy.random.default_rng(0)
    held = 0
    for _ in range(400):
        a, b = chance.normal(1.2, 0.1, 20), chance.normal(1.0, 0.02, 20)
        estimate = estimate_sequential_means(Timing(tuple(a), tuple(b), 1, 0, "precise"))
        held += estimate.low <= 1.2 <= estimate.high
    assert 0.92 < held / 400 < 0.98


def test_every_truth_is_timed_as_often_in_random_order_with_seeds_of_their_own() -> None:
    planned = make_tasks(TINY, TimingConfig(seed=7), 5)
    assert planned == make_tasks(TINY, TimingConfig(seed=7), 5)
    assert sorted((task.timing_config.seed, task.extra_calls) for task in planned) == [
        (7 + r, e) for r in range(5) for e in EXTRA_CALLS
    ]
    assert [task.extra_calls for task in planned] != [
        task.extra_calls for task in make_tasks(TINY, TimingConfig(seed=8), 5)
    ]


@pytest.mark.slow
def test_a_real_network_called_twice_as_often_is_slower() -> None:
    said: dict[str, Any] = {}
    time_task(
        SelftestTask(
            TINY, CALLS_PER_SAMPLE, TimingConfig(budget=1.0, min_sample_time=0.0, warm_cache_below=0.0, min_time=0.1)
        ),
        SLOT,
        said.update,
    )
    timing = Timing.from_dict(said)
    assert len(timing.candidate) == len(timing.baseline) >= 6
    assert estimate_ratio(timing).ratio > 1.5
    assert json.loads(json.dumps(said))["calls_per_sample"] == 1


@pytest.mark.slow
def test_the_command_times_in_processes_and_keeps_every_sample(tmp_path: Path) -> None:
    out = tmp_path / "samples.jsonl"
    line = ["bench", "selftest", "--runs", "2", "--budget", "0.2", "--network", str(TINY), "--threads", "1", "--json"]
    done = CliRunner().invoke(cli, [*line, "--out", str(out)])
    assert done.exit_code in (0, 1)
    figures = json.loads(done.stdout)
    assert [figure["runs"] for figure in figures] == [2] * 6
    assert "6 of 6 runs" in done.stderr
    kept = [json.loads(text) for text in out.read_text().splitlines()]
    assert sorted(one["extra_calls"] for one in kept) == [0, 0, 1, 1, 4, 4]
    again = summarize_results(
        [SelftestResult(one["extra_calls"], Timing.from_dict(one["timing"]), one["seconds"]) for one in kept]
    )
    assert [tally.median_error for tally in again] == [figure["median_error"] for figure in figures]


@pytest.mark.parametrize(
    ("words", "error", "said"),
    [
        (["--network", "--encoder plian"], UnknownNameError, "plain"),
        (["--network", "--encodr plain"], UnknownNameError, "encoder"),
        (["--size", "0"], OptionError, "size"),
        (["--device", "cuda:77", "--runs", "2", "--network", str(TINY)], BuildError, "cannot be timed"),
        (["--out", "/proc/none/x.jsonl"], FileError, "cannot be written"),
    ],
)
def test_what_cannot_be_timed_is_refused(words: list[str], error: type[Exception], said: str) -> None:
    done = CliRunner().invoke(cli, ["bench", "selftest", *words])
    assert isinstance(done.exception, error)
    assert said in str(done.exception)
