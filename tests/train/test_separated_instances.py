"""Touching cells told apart: which touch, and what counts as told apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from unetkit.data.synthetic_cells import cells
from unetkit.train.metrics import DILATION, find_touching, separated_instances


def row(text: str) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """Three rows of the same digits, a dot for background."""
    return np.array([[int(c) if c != "." else 0 for c in text]] * 3)


@pytest.mark.parametrize(
    ("instances", "touching"),
    [
        ("1122", 2),
        ("11..22", 2),
        ("11...22", 2),
        ("11....22", 0),
        ("11..22......33", 2),
        ("11.2.33", 3),
        ("1111", 0),
        ("....", 0),
    ],
)
def test_cells_touch_where_less_than_four_pixels_lie_between(instances: str, touching: int) -> None:
    assert separated_instances(row(instances), row(instances))[1] == touching


@pytest.mark.parametrize(
    ("predicted", "told"),
    [
        ("111..222", 2),
        ("11111111", 0),  # merged
        ("111.....", 1),
        ("........", 0),
        ("1.......", 0),  # a third of it
        ("11......", 1),
        ("1111.222", 2),
        ("1.1..222", 1),  # the first cell in two pieces, each too small
        ("1.111111", 0),  # the large piece has half of itself in the second cell, and that is too little
    ],
)
def test_a_cell_is_told_apart_by_a_piece_of_its_own(predicted: str, told: int) -> None:
    truth = row("111..222")
    assert separated_instances(row(predicted) > 0, truth) == (told, 2)


def test_pieces_of_two_classes_are_apart_though_they_touch() -> None:
    truth = row("11112222")
    assert separated_instances(row("11112222"), truth) == (2, 2)
    assert separated_instances(row("11111111"), truth) == (0, 2)


def test_a_cell_that_touches_none_does_not_count() -> None:
    assert separated_instances(row("111.222......333"), row("111.222......333")) == (2, 2)
    assert separated_instances(row("111.222........."), row("111.222......333")) == (2, 2)


def test_touching_is_what_growing_each_cell_alone_gives() -> None:
    instances = cells(size=96, crowding=0.3).splits["train"][0].instances
    assert instances is not None
    owner = np.unique(instances.numpy(), return_inverse=True)[1].reshape(96, 96)
    grown = [ndimage.grey_dilation(owner == number, 2 * DILATION + 1) for number in range(1, owner.max() + 1)]
    slow = [any((one & other).any() for other in grown if other is not one) for one in grown]
    assert find_touching(owner).tolist() == slow
    assert 0 < sum(slow) < len(slow)


def test_the_truth_tells_all_cells_apart_and_a_merged_mask_few() -> None:
    data = cells(size=96)
    for index in range(3):
        sample = data.splits["val"][index]
        assert sample.instances is not None
        told, touching = separated_instances(sample.mask, sample.instances)
        assert told == touching > 10
        closed = torch.from_numpy(ndimage.binary_closing(sample.mask.numpy(), np.ones((3, 3)), iterations=2))
        assert separated_instances(closed, sample.instances)[0] < touching / 3
