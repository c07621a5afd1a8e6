"""Verdicts, intervals and numbers of seeds, on scores whose truth is known."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import stdtr, stdtrit

from unetkit.bench.quality_statistics import (
    MIN_SEEDS,
    Comparison,
    FloatArray,
    QualityRules,
    class_iou,
    compare_rows,
    detectable_difference,
    detection_power,
    draw_scores,
    equivalence_power,
    image_weights,
    make_looks,
    mean_dice,
    mean_interval,
    mean_iou,
    nominal_levels,
    required_seeds,
    spending,
    two_way_interval,
    wanted_seeds,
)
from unetkit.train.metrics import scores as torch_scores

AUTO = (6, 8, 11, 16)


def made_rules(looks: tuple[int, ...] = (8,), *, margin: float = 0.5, race: bool = False) -> QualityRules:
    return QualityRules("miou", "more", margin, looks, race)


def made_scores(values: FloatArray) -> dict[str, list[float]]:
    return {str(row): one.tolist() for row, one in enumerate(values)}


def compared(differences: Sequence[float], rules: QualityRules) -> Comparison:
    """The comparison of a row that differs by these from a baseline."""
    base = numpy.sin(numpy.arange(len(differences)))
    return compare_rows(
        {"baseline": base.tolist(), "row": (base + numpy.array(differences)).tolist()}, "baseline", rules
    )["row"]


def shares(shifts: Sequence[float], rules: QualityRules, runs: int, seed: int = 0) -> tuple[float, float, float]:
    """Shares of runs with a difference and with a "same", and of intervals that hold the truth.

    The differences between any two rows have a standard deviation of 1. The first row is the baseline.
    """
    rng = numpy.random.default_rng(seed)
    different = same = held = 0
    for _ in range(runs):
        values = rng.normal(size=(len(shifts), rules.looks[-1])) * 0.5**0.5 + numpy.array(shifts)[:, None]
        scores = made_scores(values)
        wanted = wanted_seeds(scores, "0", rules)
        found = compare_rows({row: scores[row][: wanted[row]] for row in scores}, "0", rules)
        verdicts = [one.verdict for one in found.values()]
        different += "better" in verdicts or "worse" in verdicts
        same += "same" in verdicts
        held += sum(one.low <= shifts[int(row)] - shifts[0] <= one.high for row, one in found.items())
    return different / runs, same / runs, held / runs / (len(shifts) - 1)


def most(share: float, runs: int) -> float:
    """Return what a share comes to at most in so many runs, except once in a thousand times."""
    return share + 3.1 * math.sqrt(share * (1 - share) / runs)


@pytest.mark.parametrize(
    ("rows", "looks", "race"), [(1, (8,), False), (1, AUTO, False), (5, AUTO, False), (5, AUTO, True)]
)
def test_at_most_one_table_in_20_of_equal_rows_calls_any_of_them_different(
    rows: int, looks: tuple[int, ...], race: bool
) -> None:
    runs = 300
    different, _, held = shares([0.0] * (rows + 1), made_rules(looks, race=race), runs)
    assert different <= most(0.05, runs)
    assert 0.915 <= held <= 0.99


@pytest.mark.parametrize(("rows", "looks", "race"), [(1, (12,), False), (5, AUTO, True)])
def test_at_most_one_table_in_20_calls_a_row_the_same_that_differs_by_the_margin(
    rows: int, looks: tuple[int, ...], race: bool
) -> None:
    _, same, _ = shares([0.0, *[0.9] * rows], made_rules(looks, margin=0.9, race=race), 200)
    assert same <= most(0.05, 200)


def test_differences_are_found_and_equality_too() -> None:
    assert shares([0.0, 1.5], made_rules(AUTO), 100)[0] > 0.95
    assert shares([0.0, 0.0], made_rules(AUTO, margin=1.5), 100)[1] > 0.9


@pytest.mark.parametrize("alpha", [0.025, 0.002])
def test_looks_spend_what_they_may_and_five_per_cent_at_each_of_them_is_far_too_much(alpha: float) -> None:
    runs, rng = 60_000, numpy.random.default_rng(0)
    values = rng.standard_normal((runs, 16))
    rejected, naive = numpy.zeros(runs, bool), numpy.zeros(runs, bool)
    for look, level in zip(AUTO, nominal_levels(alpha, AUTO), strict=True):
        statistic = values[:, :look].mean(1) / values[:, :look].std(1, ddof=1) * look**0.5
        rejected |= statistic > stdtrit(look - 1, 1 - level)
        naive |= stdtr(look - 1, -statistic) < alpha
        spent = alpha * spending(look / 16)
        assert abs(rejected.mean() - spent) < 4 * math.sqrt(spent / runs)
    assert naive.mean() > 1.8 * alpha


def test_a_single_look_spends_everything_and_small_probabilities_need_no_rare_draws() -> None:
    assert nominal_levels(0.025, (9,)) == pytest.approx([0.025])
    assert spending(1) == pytest.approx(1)
    ratios = [nominal_levels(alpha, AUTO) / alpha for alpha in (0.025, 0.05 / 276, 1e-7)]
    assert all((ratio > 0.1).all() and (ratio < 0.5).all() for ratio in ratios)


def test_looks_are_a_fixed_number_or_grow_up_to_the_largest() -> None:
    assert make_looks(5, 16) == (5,)
    assert make_looks(None, 16) == AUTO
    assert make_looks(None, 32) == (6, 8, 11, 16, 23, 32)
    assert make_looks(None, 24) == (6, 8, 11, 16, 24)
    assert [make_looks(None, most) for most in (4, 6, 7, 8)] == [(4,), (6,), (7,), (6, 8)]


def test_rules_survive_json_and_refuse_nonsense() -> None:
    rules = made_rules(AUTO, race=True)
    assert QualityRules.from_dict(json.loads(json.dumps(rules.to_dict()))) == rules
    assert rules.for_metric("loss", "less") == QualityRules("loss", "less", 0.5, AUTO, True)
    wrong: list[dict[str, Any]] = [{"looks": ()}, {"looks": (8, 8)}, {"looks": (0,)}, {"better": "larger"}]
    for values in (*wrong, {"margin": -1}, {"margin": math.nan}, {"alpha": 0}, {"alpha": 0.5}):
        with pytest.raises(ValueError, match="must be"):
            QualityRules.from_dict({**rules.to_dict(), **values})


def test_a_comparison_says_what_a_paired_t_test_says() -> None:
    differences = numpy.array([0.3, 0.5, 0.1, 0.4, 0.2, 0.6, 0.3, -0.1])
    found = compared(differences.tolist(), made_rules(margin=0.0))
    assert found.difference == pytest.approx(differences.mean())
    assert found.std == pytest.approx(differences.std(ddof=1))
    assert (found.low, found.high) == pytest.approx(mean_interval(differences))
    half = stdtrit(7, 0.975) * differences.std(ddof=1) / 8**0.5
    assert found.high - found.low == pytest.approx(2 * half)
    assert (found.verdict, found.decided_at, found.seeds, found.more_seeds) == ("better", 8, 8, None)
    assert found.is_decided
    assert 0.9 < found.correlation < 1


def test_less_is_better_for_a_loss_and_the_difference_keeps_its_sign() -> None:
    scores = {"a": [1.0, 1.1, 1.2, 1.1, 1.0, 1.3], "b": [0.5, 0.7, 0.7, 0.6, 0.4, 0.9]}
    found = compare_rows(scores, "a", QualityRules("loss", "less", 0.0, (6,)))["b"]
    assert found.verdict == "better"
    assert found.low < found.difference < found.high < 0


def test_fewer_than_six_seeds_are_exploratory_however_large_the_difference() -> None:
    found = compared([1, 1.01, 1, 1.02, 0.99], made_rules((5,)))
    assert (found.verdict, found.decided_at, found.is_decided) == ("exploratory", 0, False)
    assert found.more_seeds == 1
    assert compared([1, 1.01, 1, 1.02, 0.99], made_rules(AUTO)).verdict == "exploratory"
    assert compared([1, 1.01, 1, 1.02, 0.99, 1], made_rules((3, 6))).verdict == "better"
    assert wanted_seeds({"a": [], "b": []}, "a", made_rules((3,))) == {"a": 3, "b": 3}
    for count in (0, 1):
        single = compared([0.5] * count, made_rules((1,)))
        assert single.verdict == "exploratory"
        assert math.isnan(single.low)
        assert math.isnan(single.std)
        assert math.isnan(single.correlation)
        assert single.more_seeds is None
    assert math.isnan(compared([], made_rules()).difference)


def test_scores_without_variance_do_not_crash() -> None:
    same, constant = [0.7] * 8, [0.8] * 8
    found = compare_rows({"a": same, "b": same, "c": constant}, "a", made_rules())
    assert (found["b"].verdict, found["c"].verdict) == ("same", "better")
    assert math.isnan(found["b"].correlation)
    identical = compared([0.0] * 8, made_rules(margin=0.0))
    assert (identical.verdict, identical.more_seeds) == ("inconclusive", None)
    assert compared([0.1] * 8, made_rules()).verdict == "better"  # paired, although both rows vary
    stopped = compared([0.0] * 6, made_rules(AUTO, margin=0.0))
    assert stopped.is_hopeless


def test_bad_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        compared([math.nan] * 8, made_rules())
    with pytest.raises(ValueError, match="baseline"):
        compare_rows({"a": [1.0]}, "b", made_rules())
    assert compare_rows({"a": [1.0]}, "a", made_rules()) == {}
    assert wanted_seeds({"a": [1.0]}, "a", made_rules(AUTO, race=True)) == {"a": 6}


def test_a_clear_row_stops_and_an_unclear_one_goes_on_with_the_baseline() -> None:
    rng = numpy.random.default_rng(0)
    values = rng.normal(size=(3, 16)) * 0.1
    values[1] += 2
    values[2, :6] = values[0, :6] + [0.0, 0.2, 0.25, -0.05, 0.15, 0.1]
    rules = made_rules(AUTO, margin=0.0)
    start = {row: one[:6] for row, one in made_scores(values).items()}
    assert wanted_seeds({row: [] for row in start}, "0", rules) == dict.fromkeys(start, 6)
    assert wanted_seeds(start, "0", rules) == {"0": 8, "1": 6, "2": 8}
    assert compare_rows(start, "0", rules)["1"].decided_at == 6
    undecided = compare_rows(start, "0", rules)["2"]
    assert undecided.verdict == "inconclusive"
    assert undecided.more_seeds is not None


def test_a_hopeless_row_is_given_up_and_says_so() -> None:
    differences = [1.0, -1.0, 0.9, -1.1, 1.0, -0.8]
    found = compared(differences, made_rules(AUTO, margin=0.1))
    assert found.is_hopeless
    assert found.more_seeds is not None
    assert found.more_seeds > 100
    base = numpy.sin(numpy.arange(6))
    scores = {"a": base.tolist(), "b": (base + differences).tolist()}
    assert wanted_seeds(scores, "a", made_rules(AUTO, margin=0.1)) == {"a": 6, "b": 6}


def test_a_race_drops_what_is_worse_than_the_best_and_trains_the_best_on() -> None:
    values = numpy.random.default_rng(1).normal(size=(4, 16)) * 0.1
    values[1] += 0.4
    values[2] += 2
    values[3] += 1.99
    scores = {row: one[:6] for row, one in made_scores(values).items()}
    rules = made_rules(AUTO, margin=0.01, race=True)
    found = compare_rows(scores, "0", rules)
    leader = max(("2", "3"), key=lambda row: sum(scores[row]))
    assert found["1"].worse_than == leader
    assert found[leader].worse_than == ""
    assert found[leader].verdict == "better"
    values[1] = values[0] + 0.05 * numpy.sin(numpy.arange(16) * 2)  # not decided against the baseline, but dropped
    scores = {row: one[:6] for row, one in made_scores(values).items()}
    found = compare_rows(scores, "0", rules)
    assert (found["1"].worse_than, found["1"].verdict) == (leader, "inconclusive")
    assert wanted_seeds(scores, "0", rules)["1"] == 6


def test_a_race_of_many_rows_leaves_half_of_the_error_probability_to_comparisons_with_the_baseline() -> None:
    values = numpy.random.default_rng(0).normal(size=(24, 8)) * 0.1
    differences = numpy.repeat([1.0, 3.0], 4)
    differences += 5.7 / 8**0.5 * differences.std(ddof=1) - differences.mean()
    values[1] = values[0] + 0.1 * differences
    assert 0.05 / 276 < 2 * stdtr(7, -5.7) < 0.025 / 23
    assert compare_rows(made_scores(values), "0", made_rules(race=True))["1"].verdict == "better"


def as_trained(scores: Mapping[str, Sequence[float]], rules: QualityRules) -> dict[str, list[float]]:
    """The scores that a run gets that trains what is wanted until nothing is missing."""
    had: dict[str, list[float]] = {row: [] for row in scores}
    while True:
        wanted = wanted_seeds(had, "0", rules)
        assert all(wanted[row] >= len(had[row]) for row in had)
        if all(wanted[row] == len(had[row]) for row in had):
            return had
        had = {row: list(scores[row][: wanted[row]]) for row in had}


@settings(max_examples=30)
@given(
    values=arrays(float, (4, 16), elements=st.floats(-1, 1, width=16)),
    shifts=arrays(float, (4,), elements=st.sampled_from([0.0, 0.5, 2.0])),
    race=st.booleans(),
    margin=st.sampled_from([0.0, 0.5]),
)
def test_verdicts_depend_neither_on_the_order_of_rows_nor_on_what_was_trained_in_addition(
    values: FloatArray, shifts: FloatArray, race: bool, margin: float
) -> None:
    rules = made_rules(AUTO, race=race, margin=margin)
    scores = made_scores(values + shifts[:, None])
    trained = as_trained(scores, rules)
    verdicts = {row: (one.verdict, one.worse_than) for row, one in compare_rows(trained, "0", rules).items()}
    full = {row: (one.verdict, one.worse_than) for row, one in compare_rows(scores, "0", rules).items()}
    assert verdicts == full
    assert wanted_seeds(scores, "0", rules) == {row: len(one) for row, one in trained.items()}
    means = numpy.array([[numpy.mean(one[:look]) for one in scores.values()] for look in AUTO])
    if (numpy.diff(numpy.sort(means), axis=1) > 1e-9).all():  # a tie of the best goes to the first
        turned = compare_rows(dict(reversed(list(scores.items()))), "0", rules)
        assert {row: (one.verdict, one.worse_than) for row, one in turned.items()} == full
    negated = {row: [-value for value in one] for row, one in scores.items()}
    less = QualityRules("loss", "less", margin, AUTO, race)
    assert {row: (one.verdict, one.worse_than) for row, one in compare_rows(negated, "0", less).items()} == full


@pytest.mark.parametrize("ratio", [0.5, 0.8, 1.2])
def test_the_required_seeds_find_a_difference_in_80_of_100_cases(ratio: float) -> None:
    count = required_seeds(1.0, ratio, 0.0)
    assert count is not None
    values = numpy.random.default_rng(0).normal(ratio, 1, (4000, count))
    found = numpy.abs(values.mean(1)) / values.std(1, ddof=1) * count**0.5 > stdtrit(count - 1, 0.975)
    assert 0.77 <= found.mean() <= 0.86
    assert detection_power(1.0, ratio, count) == pytest.approx(found.mean(), abs=0.04)
    assert detectable_difference(1.0, count) == pytest.approx(ratio, rel=0.09)


def test_the_required_seeds_find_equality_in_80_of_100_cases() -> None:
    count = required_seeds(1.0, 0.0, 0.8)
    assert count is not None
    values = numpy.random.default_rng(0).normal(0, 1, (4000, count))
    reach = numpy.abs(values.mean(1)) + stdtrit(count - 1, 0.95) * values.std(1, ddof=1) / count**0.5
    assert 0.77 <= (reach < 0.8).mean() <= 0.86
    assert equivalence_power(1.0, 0.0, 0.8, count) == pytest.approx((reach < 0.8).mean(), abs=0.04)


def test_more_seeds_are_required_for_less_and_none_suffice_for_nothing() -> None:
    assert required_seeds(1.0, 10.0, 0.0) == MIN_SEEDS
    assert required_seeds(0.0, 0.1, 0.0) == MIN_SEEDS
    assert required_seeds(1.0, 0.0, 0.0) is None
    assert required_seeds(0.0, 0.0, 0.0) is None
    assert required_seeds(1.0, 0.001, 0.01) is None
    sizes = [required_seeds(1.0, difference, 0.0) or 0 for difference in (0.2, 0.4, 0.8)]
    assert sizes == sorted(sizes, reverse=True)
    assert (required_seeds(1.0, 0.1, 0.4) or 0) < (required_seeds(1.0, 0.1, 0.0) or 0)
    assert detectable_difference(1.0, 1) == math.inf
    assert detection_power(1.0, 1.0, 1) == equivalence_power(1.0, 0.0, 1.0, 1) == 0


@pytest.mark.parametrize(("seeds", "images"), [(6, 30), (6, 200), (16, 30)])
@pytest.mark.parametrize("kind", ["seeds", "images", "all"])
def test_the_two_way_interval_holds_the_truth_for_other_images_too(seeds: int, images: int, kind: str) -> None:
    a, b, c = {"seeds": (1.0, 0.0, 0.0), "images": (0.0, 1.0, 0.0), "all": (1.0, 1.0, 1.0)}[kind]
    b, c = b * (images / seeds) ** 0.5, c * images**0.5
    rng, runs, held = numpy.random.default_rng(0), 300, 0
    weights = image_weights(images, 150) / images
    for _ in range(runs):
        by_image = a * rng.standard_normal((seeds, 1)) + b * rng.standard_normal(images)
        by_image = by_image + c * rng.standard_normal((seeds, images))
        low, high = two_way_interval(by_image.mean(1), weights @ by_image.T, images)
        held += low <= 0 <= high
    assert 0.95 - 3.1 * math.sqrt(0.0475 / runs) - 0.005 <= held / runs <= 0.99


def test_a_two_way_interval_needs_two_seeds_and_is_students_if_images_do_not_matter() -> None:
    points = numpy.array([0.1, 0.4, 0.3])
    draws = numpy.tile(points, (100, 1))
    assert two_way_interval(points, draws) == pytest.approx(mean_interval(points))
    assert all(map(math.isnan, two_way_interval(points[:1], draws[:, :1])))
    assert all(map(math.isnan, mean_interval(points[:1])))
    low, high = two_way_interval(numpy.ones(3), numpy.ones((10, 3)))
    assert low == high == 1


def test_resampled_scores_are_those_of_sums_over_the_drawn_images() -> None:
    rng = numpy.random.default_rng(0)
    counts, weights = rng.integers(0, 50, (3, 10, 2, 2)).astype(float), image_weights(10, 20)
    assert (weights.sum(1) == 10).all()
    assert numpy.array_equal(weights, image_weights(10, 20))
    found = draw_scores(counts, mean_iou, weights)
    assert found.shape == (20, 3)
    expected = mean_iou((weights[4][:, None, None] * counts[1]).sum(0))
    assert found[4, 1] == pytest.approx(float(expected))
    labels = draw_scores(rng.random((2, 10, 4, 2, 2)), lambda sums: class_iou(sums, 1).mean(-1), weights)
    assert labels.shape == (20, 2)


@given(arrays(numpy.int64, (3, 3), elements=st.integers(0, 3)))
def test_scores_equal_those_of_an_evaluation(matrix: FloatArray) -> None:
    expected = torch_scores(torch.tensor(matrix), ("a", "b", "c"))
    assert mean_iou(matrix) == pytest.approx(expected.miou, nan_ok=True)
    assert mean_dice(matrix) == pytest.approx(expected.mdice, nan_ok=True)
    for index, value in enumerate(expected.iou):
        assert class_iou(matrix, index) == pytest.approx(value, nan_ok=True)
    assert numpy.array_equal(mean_iou(numpy.stack([matrix, matrix])), numpy.full(2, mean_iou(matrix)), equal_nan=True)
