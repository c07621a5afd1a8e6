"""Confusion, the scores that follow from it, and the boundary F-score, beside those of others."""

from __future__ import annotations

import importlib
import json
import math
import random
import warnings
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from unetkit.data.types import IGNORE, Sample, Target
from unetkit.train.metrics import (
    Evaluation,
    Scores,
    boundary_counts,
    boundary_scores,
    confusion_matrix,
    mean_of_defined,
    mean_scores,
    scores,
)


@cache
def classification() -> ModuleType:
    """Import torchmetrics' functions where a test calls them: it takes longer than all tests of this file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it looks for packages by pkg_resources
        return importlib.import_module("torchmetrics.functional.classification")


NAMES = ("background", "cat", "dog", "cow", "bird")


def masks(seed: int, classes: int, size: tuple[int, int] = (9, 7), ignored: float = 0.2) -> tuple[Tensor, Tensor]:
    """Draw a prediction and a truth, of few classes each so that some occur in one or none."""
    source = torch.Generator().manual_seed(seed)

    def drawn() -> Tensor:
        some = torch.randperm(classes, generator=source)[: 1 + seed % classes]
        return some[torch.randint(len(some), size, generator=source)]

    prediction, truth = drawn(), drawn()
    truth[torch.rand(size, generator=source) < ignored] = IGNORE
    return prediction, truth


def slow(prediction: Tensor, truth: Tensor, classes: int) -> dict[str, list[float]]:
    """The scores of each class by counting pixels one by one."""
    pairs = [(int(p), int(t)) for p, t in zip(prediction.flatten(), truth.flatten(), strict=True) if t != IGNORE]
    found: dict[str, list[float]] = {"iou": [], "dice": [], "precision": [], "recall": []}
    for one in range(classes):
        right = sum(p == one == t for p, t in pairs)
        seen, true = sum(p == one for p, _ in pairs), sum(t == one for _, t in pairs)
        either = sum(one in pair for pair in pairs)
        parts = {"iou": (right, either), "dice": (2 * right, seen + true), "precision": (right, seen)}
        for name, (part, whole) in {**parts, "recall": (right, true)}.items():
            found[name].append(part / whole if whole else math.nan)
    return found


def close(one: Any, other: Any) -> bool:
    return np.allclose(one, other, rtol=1e-9, atol=0, equal_nan=True)


@given(st.integers(0, 10**6), st.integers(2, 5))
def test_scores_are_what_counting_gives(seed: int, classes: int) -> None:
    prediction, truth = masks(seed, classes)
    found = scores(confusion_matrix(prediction, truth, classes), NAMES[:classes])
    for name, expected in slow(prediction, truth, classes).items():
        assert close(getattr(found, name), expected), name
    counted = truth != IGNORE
    assert close(found.accuracy, float((prediction == truth)[counted].double().mean()))
    occurring = [value for value in found.iou if not math.isnan(value)]
    assert close(found.miou, sum(occurring) / len(occurring) if occurring else math.nan)


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(2, 5))
def test_the_table_is_torchmetrics(seed: int, classes: int) -> None:
    prediction, truth = masks(seed, classes)
    theirs = classification().multiclass_confusion_matrix(prediction, truth, classes, ignore_index=IGNORE)
    ours = confusion_matrix(prediction, truth, classes)
    assert ours.dtype == torch.int64
    assert torch.equal(ours, theirs)
    if (truth != IGNORE).any():
        told = classification().multiclass_jaccard_index(
            prediction, truth, classes, average="none", ignore_index=IGNORE
        )
        told = torch.where(ours.sum(0) + ours.sum(1) > 0, told, math.nan)  # theirs is 0 for an absent class
        assert np.allclose(scores(ours, NAMES[:classes]).iou, told, rtol=1e-6, equal_nan=True)


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(2, 5))
def test_scores_are_those_of_smp(seed: int, classes: int) -> None:
    prediction, truth = masks(seed, classes)
    counts = smp.metrics.get_stats(
        prediction[None], truth[None], "multiclass", ignore_index=IGNORE, num_classes=classes
    )
    found = scores(confusion_matrix(prediction, truth, classes), NAMES[:classes])
    theirs = {"iou": "iou_score", "dice": "f1_score", "precision": "precision", "recall": "recall"}
    for ours, name in theirs.items():
        told = getattr(smp.metrics, name)(*counts, reduction="none", zero_division=-1.0)[0]
        told = torch.where(told < 0, math.nan, told)  # smp counts an absent class as 1, unless told otherwise
        assert np.allclose(getattr(found, ours), told, rtol=1e-6, equal_nan=True), ours


@settings(max_examples=40)
@given(st.integers(0, 10**6))
def test_labels_have_a_table_each_and_torchmetrics_has_the_same(seed: int) -> None:
    pairs = [masks(seed + number, 2) for number in range(3)]
    prediction, truth = (torch.stack(each) for each in zip(*pairs, strict=True))
    ours = confusion_matrix(prediction, truth, 3)
    theirs = classification().multilabel_confusion_matrix(prediction[None], truth[None], 3, ignore_index=IGNORE)
    assert torch.equal(ours, theirs)
    found = scores(ours, NAMES[:3])
    for label in range(3):
        expected = slow(prediction[label], truth[label], 2)
        assert all(close(getattr(found, rate)[label], expected[rate][1]) for rate in expected)
    counted = truth != IGNORE
    assert close(found.accuracy, float((prediction == truth)[counted].double().mean()))


def test_an_absent_class_is_none_in_json_and_in_no_mean() -> None:
    truth, prediction = torch.tensor([[0, 0, 1, 1]]), torch.tensor([[0, 0, 1, 0]])
    found = scores(confusion_matrix(prediction, truth, 3), NAMES[:3])
    assert found.iou[:2] == (2 / 3, 1 / 2)
    assert math.isnan(found.iou[2])
    assert found.miou == pytest.approx((2 / 3 + 1 / 2) / 2)
    told = found.to_dict()
    assert told["iou"] == {"background": 2 / 3, "cat": 1 / 2, "dog": None}
    assert json.loads(json.dumps(told, allow_nan=False)) == told


def test_a_class_that_was_only_predicted_has_an_iou_of_0_and_no_recall() -> None:
    found = scores(confusion_matrix(torch.tensor([[0, 1]]), torch.tensor([[0, 0]]), 2), NAMES[:2])
    assert found.iou == (0.5, 0.0)
    assert math.isnan(found.recall[1])
    assert found.precision[1] == 0


def test_where_nothing_counts_there_is_no_score() -> None:
    nothing = torch.full((3, 3), IGNORE)
    found = scores(confusion_matrix(torch.zeros_like(nothing), nothing, 2), NAMES[:2])
    assert math.isnan(found.miou)
    assert math.isnan(found.accuracy)
    assert found.to_dict()["miou"] is None


# Many images

BINARY = Target("binary", ("background", "cell"))
ANIMALS = Target("multiclass", NAMES)
LABELS = Target("multilabel", ("hot", "wet", "old"))


@pytest.mark.parametrize("target", [BINARY, ANIMALS], ids=lambda target: str(target.kind))
def test_of_classes_that_are_alike_the_first_is_decided_for(target: Target) -> None:
    levels = torch.randint(3, (2, len(target.names), 40, 30), generator=torch.Generator().manual_seed(0)) / 2
    levels[0, :, 3, 4] = torch.nan
    decided = target.to_mask(levels)
    assert decided.dtype == torch.int64
    assert torch.equal(decided, levels.argmax(1))


def sample_of(mask: Tensor, instances: Tensor | None = None) -> Sample:
    return Sample("one", torch.zeros(1, *mask.shape[-2:]), mask, instances)


def likely(prediction: Tensor, classes: int) -> Tensor:
    """Probabilities that decide for a prediction."""
    if prediction.ndim == 3:
        return prediction * 0.6 + 0.2
    return torch.nn.functional.one_hot(prediction, classes).movedim(-1, 0) * 0.5 + 0.5 / classes


def evaluated(target: Target, seeds: range, **options: Any) -> Evaluation:
    found = Evaluation(target, **options)
    for seed in seeds:
        pairs = [masks(seed * 7 + label, 2) for label in range(3)]
        labels = [torch.stack(each) for each in zip(*pairs, strict=True)]
        prediction, truth = labels if target.kind == "multilabel" else masks(seed, len(target.names))
        found.add(f"image{seed}", likely(prediction, len(target.names)), sample_of(truth))
    return found


@pytest.mark.parametrize("target", [BINARY, ANIMALS, LABELS], ids=lambda target: target.kind)
def test_what_processes_saw_apart_is_what_one_sees(target: Target) -> None:
    one = evaluated(target, range(10), outlines=True)
    together = Evaluation(target)
    for part in (range(1, 10, 2), range(0, 10, 2)):
        together.merge(json.loads(json.dumps(evaluated(target, part, outlines=True).to_dict())))
    assert together.summary() == one.summary()
    assert torch.equal(together.matrix, one.matrix)
    json.dumps(one.summary(), allow_nan=False)


def test_micro_is_of_all_pixels_and_macro_of_images() -> None:
    found = evaluated(ANIMALS, range(6))
    pairs = [masks(seed, 5) for seed in range(6)]
    every = [torch.cat([pair[side].flatten() for pair in pairs])[None] for side in (0, 1)]
    assert close(found.micro().iou, slow(every[0], every[1], 5)["iou"])
    each = [slow(*pair, 5) for pair in pairs]
    for rate in ("iou", "dice", "precision", "recall"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert close(getattr(found.macro(), rate), np.nanmean([one[rate] for one in each], axis=0))
    summary = found.summary()
    assert summary["images"] == 6
    assert summary["miou"] == found.micro().miou != summary["macro"]["miou"] == found.macro().miou


def test_the_macro_mean_of_smp_is_ours_where_every_class_occurs() -> None:
    source = torch.Generator().manual_seed(0)
    truths, predictions = (torch.randint(3, (4, 16, 16), generator=source) for _ in range(2))
    counts = smp.metrics.get_stats(predictions, truths, "multiclass", num_classes=3)
    tables = [scores(confusion_matrix(*pair, 3), NAMES[:3]) for pair in zip(predictions, truths, strict=True)]
    told = smp.metrics.iou_score(*counts, reduction="macro-imagewise")
    assert mean_scores(tables, NAMES[:3]).miou == pytest.approx(float(told))
    table = sum(confusion_matrix(*pair, 3) for pair in zip(predictions, truths, strict=True))
    assert isinstance(table, Tensor)
    told = smp.metrics.iou_score(*counts, reduction="macro")
    assert scores(table, NAMES[:3]).miou == pytest.approx(float(told))


def test_the_worst_images_come_first_and_those_without_a_score_last() -> None:
    found, truth = Evaluation(BINARY), torch.zeros(4, 4, dtype=torch.int64)
    truth[:2] = 1
    half = truth.clone()
    half[0] = 0
    for name, prediction in (("good", truth), ("bad", 1 - truth), ("half", half)):
        found.add(name, likely(prediction, 2), sample_of(truth))
    found.add("nothing", likely(truth, 2), sample_of(torch.full_like(truth, IGNORE)))
    assert [image.name for image in found.lowest_first()] == ["bad", "half", "good", "nothing"]


def test_an_evaluation_without_images_has_no_score() -> None:
    assert Evaluation(BINARY).summary()["miou"] is None


def test_means_leave_out_what_is_not_there_and_have_no_order() -> None:
    values = [random.Random(0).random() for _ in range(100)]
    assert mean_of_defined([*values, math.nan]) == mean_of_defined(sorted(values)) == math.fsum(values) / 100
    assert math.isnan(mean_of_defined([math.nan]))
    assert isinstance(mean_scores([], NAMES), Scores)


# Outlines


def square(top: int, left: int, side: int = 10, size: int = 30) -> Tensor:
    mask = torch.zeros(size, size, dtype=torch.int64)
    mask[top : top + side, left : left + side] = 1
    return mask


@pytest.mark.parametrize(("shift", "tolerance", "met"), [(0, 0, 36), (1, 1, 36), (2, 2, 36), (3, 2, 22)])
def test_an_outline_within_the_tolerance_is_met(shift: int, tolerance: float, met: int) -> None:
    counts = boundary_counts(square(5, 5 + shift), square(5, 5), 2, tolerance)
    assert counts[1].tolist() == [met, 36, met, 36]
    assert boundary_scores(counts)[1] == pytest.approx(met / 36)


def direct(prediction: Tensor, truth: Tensor, one: int, tolerance: float) -> float:
    """The boundary F-score of a class from its definition, pixel by pixel."""

    def outline(mask: Tensor) -> list[tuple[int, int]]:
        found = []
        for y, x in (mask == one).nonzero().tolist():
            near = [(y + dy, x + dx) for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0))]
            inside = [(v, u) for v, u in near if 0 <= v < mask.shape[0] and 0 <= u < mask.shape[1]]
            if truth[y, x] != IGNORE and any(mask[p] != one and truth[p] != IGNORE for p in inside):
                found.append((y, x))
        return found

    def met(some: list[tuple[int, int]], others: list[tuple[int, int]]) -> float:
        return sum(min((math.dist(p, o) for o in others), default=math.inf) <= tolerance for p in some)

    seen, true = outline(prediction), outline(truth)
    if not seen and not true:
        return math.nan
    if not seen or not true:
        return 0.0
    precision, recall = met(seen, true) / len(seen), met(true, seen) / len(true)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 1.0, 1.5, 3.0]))
def test_the_boundary_score_is_that_of_its_definition(seed: int, tolerance: float) -> None:
    prediction, truth = (mask.repeat_interleave(2, 0).repeat_interleave(2, 1) for mask in masks(seed, 3, (5, 6)))
    found = boundary_scores(boundary_counts(prediction, truth, 3, tolerance))
    assert close(found, [direct(prediction, truth, one, tolerance) for one in range(3)])


def test_the_tolerance_is_a_share_of_the_diagonal() -> None:
    large, moved = square(100, 100, 50, 400), square(100, 104, 50, 400)
    assert boundary_scores(boundary_counts(moved, large, 2))[1] == 1  # 0.75% of 566 is 4.2
    assert boundary_scores(boundary_counts(square(100, 105, 50, 400), large, 2))[1] < 1


@given(st.integers(0, 10**6))
@settings(max_examples=20)
def test_a_mask_meets_its_own_outlines(seed: int) -> None:
    _, truth = masks(seed, 3)
    assume(bool((truth != IGNORE).any()))
    found = boundary_scores(boundary_counts(truth.clamp_min(0), truth, 3, 0))
    assert set(found) <= {1.0, 0.0} | {value for value in found if math.isnan(value)}
    assert boundary_counts(truth, truth, 3, 0)[:, 0].tolist() == boundary_counts(truth, truth, 3, 0)[:, 1].tolist()


def test_labels_have_outlines_each() -> None:
    both = torch.stack([square(5, 5), torch.zeros(30, 30, dtype=torch.int64)])
    first, second = boundary_scores(boundary_counts(both, both, 2))
    assert first == 1
    assert math.isnan(second)
