"""Simulate benchmarks, and check verdicts on scores that are drawn from measured trainings."""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import files

import numpy
import pytest

from unetkit.bench.quality_selftest import (
    GRID_SHIFTS,
    MAX_FALSE_RATE,
    SHIFTS,
    QualitySelftest,
    draw_smoothly,
    format_quality_selftest,
    has_passed,
    load_matrices,
    simulate,
)
from unetkit.bench.quality_statistics import mean_iou
from unetkit.utils.tables import to_markdown

RUNS = 160


@pytest.fixture(scope="module")
def result() -> QualitySelftest:
    return simulate(load_matrices(), RUNS)


def test_the_measured_matrices_are_small_and_of_the_same_seeds_and_images() -> None:
    matrices = load_matrices()
    assert len(files("unetkit.bench").joinpath("cells_scores.npz").read_bytes()) < 60_000
    assert len({counts.shape for counts in matrices.values()}) == 1
    for counts in matrices.values():
        assert counts.shape[0] >= 12
        assert counts.shape[1:] == (40, 2, 2)
        assert (counts.sum((2, 3), dtype=int) == 96 * 96).all()
        assert (mean_iou(counts.sum(1, dtype=float)) > 0.5).all()


@pytest.mark.slow
def test_the_rules_pass_their_check_and_one_run_each_is_always_wrong_about_equal_rows(result: QualitySelftest) -> None:
    assert has_passed(result)
    by_method = {(one.shift, one.method): one for one in result.pairs}
    assert {shift for shift, _ in by_method} == set(SHIFTS)
    assert by_method[0.0, "one run each"].is_false == 1
    assert 0.1 < by_method[0.02, "one run each"].is_false < 0.4
    for shift in SHIFTS[1:]:
        few = by_method[shift, "6 seeds"]
        assert few.better == pytest.approx(few.predicted, abs=0.12)
        assert few.is_false < MAX_FALSE_RATE
    assert by_method[0.02, "looks up to 16"].better > by_method[0.02, "6 seeds"].better
    assert 6 <= by_method[0.0, "looks up to 16"].seeds < 12


def test_looks_and_a_race_save_trainings_and_settle_what_is_clearly_worse(result: QualitySelftest) -> None:
    assert result.saved > 0.25
    fixed, raced = result.grids[-2:]
    assert fixed.shifts == raced.shifts == GRID_SHIFTS
    assert fixed.seeds == 16
    assert fixed.found[-0.04] > 0.8
    assert raced.found[-0.04] + raced.dropped[-0.04] > 0.7


def test_too_many_false_verdicts_or_intervals_that_are_too_narrow_fail_the_check(result: QualitySelftest) -> None:
    first, *others = result.pairs
    assert not has_passed(replace(result, pairs=[replace(first, better=0.2), *others]))
    assert not has_passed(replace(result, pairs=[replace(first, coverage=0.8), *others]))
    assert not has_passed(replace(result, grids=[replace(result.grids[0], false_tables=0.3)]))
    assert not has_passed(replace(result, images=[replace(result.images[0], coverage=0.7)]))


def test_the_listing_says_what_was_found(result: QualitySelftest) -> None:
    text = to_markdown(format_quality_selftest(result))
    assert f"{RUNS} benchmarks each" in text
    assert "fewer trainings than 16 seeds for each row" in text
    assert "passed" in text
    assert "nan" not in text
    assert len(format_quality_selftest(replace(result, images=[])).tables) == 2


def test_smoothed_draws_keep_mean_and_variance_and_do_not_recur() -> None:
    measured = numpy.array([0.5, 0.7, 0.72, 0.74, 0.75])
    draws = draw_smoothly(measured, (50_000,), numpy.random.default_rng(0))
    assert draws.mean() == pytest.approx(measured.mean(), abs=0.002)
    assert draws.std() == pytest.approx(measured.std(), rel=0.02)
    assert len(numpy.unique(draws)) == len(draws)
