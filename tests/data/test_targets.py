"""Targets of outputs, against their definitions computed pixel by pixel."""

from __future__ import annotations

from math import exp, hypot
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage
from torch import Tensor

from unetkit.data.targets import Boundary, Center, Distance
from unetkit.data.types import IGNORE, Target
from unetkit.errors import OptionError

CLASSES = Target("multiclass", ("ground", "cat", "dog"))
LABELS = Target("multilabel", ("cat", "dog"))


def masks(low: int = IGNORE, high: int = 2) -> st.SearchStrategy[Tensor]:
    shape = arrays.array_shapes(min_dims=2, max_dims=2, max_side=7)
    return arrays.arrays(np.int64, shape, elements=st.integers(low, high)).map(torch.from_numpy)


def pixels(mask: Tensor) -> list[tuple[int, int]]:
    return [(y, x) for y in range(mask.shape[0]) for x in range(mask.shape[1])]


def objects_of(mask: Tensor) -> list[set[tuple[int, int]]]:
    """The connected components of each class above 0."""
    found = []
    for index in range(1, 3):
        labels, count = ndimage.label(mask.numpy() == index)
        found += [{(y, x) for y, x in pixels(mask) if labels[y, x] == number} for number in range(1, count + 1)]
    return found


@given(masks(), st.integers(1, 3))
def test_a_boundary_is_near_another_class(mask: Tensor, width: int) -> None:
    found = Boundary(CLASSES, width=width)(mask)
    for y, x in pixels(mask):
        near = mask[max(0, y - width) : y + width + 1, max(0, x - width) : x + width + 1]
        expected = any(value not in (IGNORE, int(mask[y, x])) for value in near.flatten().tolist())
        assert int(found[y, x]) == (IGNORE if mask[y, x] == IGNORE else expected)


@given(masks())
def test_a_distance_is_a_share_of_the_largest_in_the_object(mask: Tensor) -> None:
    (found,) = Distance(CLASSES)(mask)
    inside = {pixel for one in objects_of(mask) for pixel in one}
    for one in objects_of(mask):
        index = mask[next(iter(one))]
        others = [(y, x) for y, x in pixels(mask) if mask[y, x] not in (index, IGNORE)]
        far = {p: min((hypot(p[0] - y, p[1] - x) for y, x in others), default=1.0) for p in one}
        for pixel in one:
            assert float(found[pixel]) == pytest.approx(far[pixel] / max(far.values()), abs=1e-6)
    for pixel in {*pixels(mask)} - inside:
        assert found[pixel].isnan() if mask[pixel] == IGNORE else found[pixel] == 0


@given(masks(), st.floats(0.5, 5))
def test_a_center_is_a_gaussian_around_the_nearest_center_of_mass(mask: Tensor, sigma: float) -> None:
    (found,) = Center(CLASSES, sigma=sigma)(mask)
    centers = [tuple(round(sum(p[axis] for p in one) / len(one)) for axis in (0, 1)) for one in objects_of(mask)]
    for y, x in pixels(mask):
        squares = [(y - cy) ** 2 + (x - cx) ** 2 for cy, cx in centers]
        expected = max((exp(-square / (2 * sigma**2)) for square in squares), default=0.0)
        assert found[y, x].isnan() if mask[y, x] == IGNORE else float(found[y, x]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("target", [Boundary, Distance, Center])
@given(masks(high=1))
def test_each_label_has_a_map_of_its_own(target: Any, mask: Tensor) -> None:
    both = target(LABELS)(torch.stack([mask, mask.flip(0)]))
    binary = Target("binary", ("ground", "cat"))
    for found, plane in zip(both, (mask, mask.flip(0)), strict=True):
        torch.testing.assert_close(found, target(binary)(plane).reshape(plane.shape), equal_nan=True)


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [(Boundary, {"width": 0}, "width=0 must be at least 1"), (Center, {"sigma": 0.0}, "sigma=0 must be above 0")],
)
def test_an_option_out_of_range_is_refused(target: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        target(CLASSES, **options)
