"""Ratios, intervals, verdicts and effects of samples whose truth is known."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy
import pytest

from tests.bench.example_runs import made_run
from unetkit.bench.effects import Effect, estimate_effects
from unetkit.bench.results import BenchRun, Timing
from unetkit.bench.statistics import (
    Estimate,
    estimate_ratio,
    find_timing_warnings,
    judge_with_holm,
    minimum_ratio,
    quantile,
    relative_iqr,
)


def timed(truth: float, rounds: int, seed: int, *, noise: float = 0.02, kept: float = 0.0) -> Timing:
    """Samples on a machine that drifts; one round in ten is an outlier; of a round's noise the next keeps a share."""
    chance = numpy.random.default_rng(seed)
    machine = numpy.exp(numpy.cumsum(chance.normal(0, 0.05, rounds)))
    errors = chance.normal(0, noise, rounds) * numpy.where(chance.random(rounds) < 0.1, 6, 1)
    for i in range(1, rounds):
        errors[i] += kept * errors[i - 1]
    return Timing(tuple(machine * truth * numpy.exp(errors)), tuple(machine), 1, 3, "precise")


@pytest.mark.parametrize("rounds", [6, 8, 12, 24, 100])
def test_the_interval_holds_the_truth_in_95_of_100_cases_from_six_rounds_on(rounds: int) -> None:
    held = [
        estimate.low <= 1.3 <= estimate.high for estimate in (estimate_ratio(timed(1.3, rounds, s)) for s in range(300))
    ]
    assert sum(held) / 300 > 0.925


def test_rounds_that_follow_their_neighbours_count_for_fewer() -> None:
    held, narrower = 0, 0
    for seed in range(200):
        timing = timed(1.0, 100, seed, kept=0.5)
        mixed = numpy.random.default_rng(seed).permutation(100)
        shuffled = Timing(
            tuple(numpy.array(timing.candidate)[mixed]), tuple(numpy.array(timing.baseline)[mixed]), 1, 0, ""
        )
        estimate, other = estimate_ratio(timing), estimate_ratio(shuffled)
        held += estimate.low <= 1 <= estimate.high
        narrower += other.half_width < estimate.half_width
    assert held / 200 > 0.85
    assert narrower / 200 > 0.8


def test_the_ratio_is_the_same_whenever_it_is_read_and_turned_round_it_is_its_inverse() -> None:
    timing = timed(1.2, 31, 0)
    turned = replace(timing, candidate=timing.baseline, baseline=timing.candidate)
    one, other = estimate_ratio(timing), estimate_ratio(turned)
    assert one == estimate_ratio(timing)
    assert one.low < one.ratio < one.high
    assert other.ratio == pytest.approx(1 / one.ratio)
    assert other.low == pytest.approx(1 / one.high, rel=0.002)
    assert one.rounds == 31


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (1.011, 1.5, "slower"),
        (0.5, 0.989, "faster"),
        (1.009, 1.03, "same"),
        (0.96, 1.04, "same"),
        (0.9, 1.04, "inconclusive"),
        (1.0, 1.2, "inconclusive"),
    ],
)
def test_a_verdict_needs_the_whole_interval(low: float, high: float, verdict: str) -> None:
    assert Estimate(math.sqrt(low * high), low, high, 20).verdict == verdict
    assert Estimate(math.sqrt(low * high), low, high, 5).verdict == "inconclusive"


def test_an_exact_ratio_has_a_verdict_though_it_has_no_rounds() -> None:
    assert Estimate(1.5, 1.5, 1.5, 0).verdict == "slower"
    assert judge_with_holm([Estimate(1.5, 1.5, 1.5, 0)] * 100) == ["slower"] * 100


def test_five_percent_is_found_and_nothing_is_found_in_the_same() -> None:
    assert estimate_ratio(timed(1.05, 40, 3)).verdict == "slower"
    assert estimate_ratio(timed(1 / 1.05, 40, 3)).verdict == "faster"
    assert estimate_ratio(timed(1.0, 40, 3)).verdict == "same"


def test_a_table_of_twenty_alike_has_a_false_alarm_in_at_most_one_of_twenty_tables() -> None:
    alone, together = 0, 0
    for table in range(60):
        estimates = [
            estimate_ratio(timed(1.01, 24, 1000 * table + row)) for row in range(20)
        ]  # as far off as is no difference
        alone += any(estimate.verdict in ("slower", "faster") for estimate in estimates)
        together += any(verdict in ("slower", "faster") for verdict in judge_with_holm(estimates))
    assert alone > 15
    assert together <= 6


def test_a_table_keeps_clear_differences_however_few_rounds_show_them() -> None:
    clear, none = estimate_ratio(timed(1.2, 40, 0)), estimate_ratio(timed(1.0, 40, 1))
    assert judge_with_holm([clear, *[none] * 19]) == ["slower", *["same"] * 19]
    large, small = (estimate_ratio(timed(ratio, 6, 0)) for ratio in (6.9, 1.07))
    assert judge_with_holm([large, *[none] * 49]) == ["slower", *["same"] * 49]
    assert (large.verdict, small.verdict) == ("slower", "slower")
    assert judge_with_holm([small] * 20) == ["inconclusive"] * 20
    assert judge_with_holm([]) == []


def test_quantiles_minimum_and_fluctuation() -> None:
    assert quantile([1.0, 2.0, 3.0], 0.5) == 2.0
    assert relative_iqr([9.0, 10.0, 10.0, 10.0, 11.0]) == 0.0
    assert relative_iqr([8.0, 9.0, 10.0, 11.0, 12.0]) == pytest.approx(0.2)
    assert minimum_ratio(Timing((3.0, 2.0), (1.0, 4.0), 1, 0, "budget")) == 2.0


def test_a_reader_is_warned_of_samples_that_fluctuate_are_few_or_not_precise() -> None:
    steady = Timing((1.0,) * 20, (1.0,) * 20, 1, 3, "precise")
    assert find_timing_warnings(steady, "latency") == []
    moving = replace(steady, baseline=(1.0, 1.15, 1.3, 1.3) * 5)
    [line] = find_timing_warnings(moving, "latency")
    assert line.startswith("latency: ")
    assert "15%" in line
    assert "unreliable" not in line
    wild = replace(steady, candidate=(1.0, 2.0) * 10)
    [line] = find_timing_warnings(wild, "latency")
    assert "unreliable" in line
    few = Timing((1.0, 1.2) * 3, (1.0,) * 6, 1, 1, "budget")
    [line] = find_timing_warnings(few, "training")
    for fact in ("6 rounds", "±9.1%", "--retry-failed", "--budget"):
        assert fact in line


def effect(run: BenchRun, metric: str, factor: str, b: str) -> Effect:
    [found] = [effect for effect in estimate_effects(run, metric) if (effect.factor, effect.b) == (factor, b)]
    return found


def test_an_effect_is_found_over_the_rows_that_differ_in_that_factor_alone(tmp_path: Path) -> None:
    found = effect(made_run(tmp_path), "latency", "fuse", "add")
    assert (found.a, found.b) == ("concat", "add")
    assert found.estimate.low < 0.9 < found.estimate.high
    assert found.estimate.verdict == "faster"
    assert len(found.pairs) == 11  # of 12, one row ran out of memory
    for one, other, estimate in found.pairs:
        assert {**one.factors, "fuse": "add"} == other.factors
        assert estimate.rounds == 24


@pytest.mark.slow
def test_two_names_of_one_part_have_no_effect(tmp_path: Path) -> None:
    verdicts = []
    for seed in range(20):
        run = made_run(tmp_path, seed=seed, change={"up=nearest": 1.0})
        found = effect(run, "latency", "up", "nearest")
        verdicts.append(found.estimate.verdict)
    assert {*verdicts} <= {"same", "inconclusive"}  # one row of each run fluctuates by tenths
    assert verdicts.count("same") >= 10


def test_size_and_batch_are_conditions_and_have_no_effects(tmp_path: Path) -> None:
    assert {effect.factor for effect in estimate_effects(made_run(tmp_path), "latency")} == {
        "encoder",
        "up",
        "fuse",
        "model",
    }


def test_a_whole_model_is_matched_with_whole_models_alone(tmp_path: Path) -> None:
    run = made_run(tmp_path)
    found = effect(run, "latency", "model", "smp/fpn")
    assert [one.batch_size for one, _, _ in found.pairs] == [1]  # at 8 it cannot be built
    assert found.estimate.ratio == pytest.approx(0.7 / 1.02, rel=0.03)
    models = {row.id for row in run.rows if row.factors["model"] != "unet"}
    others = [pair for effect in estimate_effects(run, "latency") if effect.factor != "model" for pair in effect.pairs]
    assert not models & {row.id for one, two, _ in others for row in (one, two)}


def test_the_effect_on_a_plain_figure_is_exact_for_each_pair(tmp_path: Path) -> None:
    found = effect(made_run(tmp_path), "macs", "fuse", "add")
    for _, _, pair in found.pairs:
        assert (pair.ratio, pair.low, pair.high) == pytest.approx((0.8, 0.8, 0.8))
        assert pair.rounds == 0
    assert found.estimate.ratio == pytest.approx(0.8)
    assert found.estimate.half_width < 1e-9


def test_pairs_that_disagree_make_the_interval_wide(tmp_path: Path) -> None:
    run = made_run(tmp_path)
    rows = tuple(
        replace(row, values={"macs": row.values["macs"] * (1.5 if row.factors.get("encoder") == "resnet34" else 1.0)})
        if row.is_measured and row.factors.get("fuse") == "add"
        else row
        for row in run.rows
    )
    found = effect(replace(run, rows=rows), "macs", "fuse", "add")
    assert found.estimate.ratio == pytest.approx(0.8 * 1.5 ** (5 / 11))
    assert found.estimate.low < 0.9 < 1.0 < found.estimate.high
    assert found.estimate.verdict == "inconclusive"


def test_figures_that_are_not_above_zero_have_no_effect(tmp_path: Path) -> None:
    run = made_run(tmp_path)
    rows = tuple(replace(row, values={"energy": 0.0}) for row in run.rows)
    assert estimate_effects(replace(run, rows=rows), "energy") == []
