"""The synthetic set: what its samples promise, and that it is as hard as it should be."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch.utils.data import DataLoader

from unetkit.data.synthetic_cells import KINDS, cells
from unetkit.data.types import Sample
from unetkit.errors import OptionError
from unetkit.options import read_signature
from unetkit.train.metrics import separated_instances


def some(count: int = 6, split: str = "train", **options: float) -> list[Sample]:
    images = cells(**options).splits[split]  # type: ignore[arg-type]
    return [images[index] for index in range(count)]


def equal(one: Sample, other: Sample) -> bool:
    assert one.instances is not None
    assert other.instances is not None
    pairs = ((one.image, other.image), (one.mask, other.mask), (one.instances, other.instances))
    return one.name == other.name and all(torch.equal(a, b) for a, b in pairs)


@settings(max_examples=12)
@given(
    size=st.integers(16, 150),
    classes=st.integers(2, 6),
    seed=st.integers(0, 2**40),
    radius=st.floats(4, 30),
    crowding=st.floats(0.02, 1.5),
)
def test_every_sample_is_whole(size: int, classes: int, seed: int, radius: float, crowding: float) -> None:
    data = cells(size=size, classes=classes, seed=seed, radius=radius, crowding=crowding)
    image, mask, instances = data.splits["train"][0][1:]
    assert instances is not None
    assert (image.shape, image.dtype) == ((1, size, size), torch.float32)
    assert image.min() >= 0
    assert image.max() <= 1
    assert mask.dtype == instances.dtype == torch.int64
    assert torch.equal(mask > 0, instances > 0)
    assert mask.max() < classes
    for number in np.unique(instances[instances > 0]):
        inside = instances == int(number)
        assert mask[inside].min() == mask[inside].max()
        assert ndimage.label(inside)[1] == 1


def test_a_line_of_background_keeps_cells_apart() -> None:
    for sample in some():
        assert sample.instances is not None
        owner = sample.instances.numpy()
        _, pieces = ndimage.label(owner > 0, np.ones((3, 3)))  # not even by their corners do two cells touch
        assert pieces == len(np.unique(owner)) - 1


def test_most_cells_touch_others() -> None:
    counts = [separated_instances(sample.mask, sample.instances) for sample in some() if sample.instances is not None]
    assert sum(told for told, _ in counts) == sum(touching for _, touching in counts)
    assert sum(touching for _, touching in counts) > 6 * 15


def test_a_sample_depends_on_the_seed_the_split_and_its_index_alone() -> None:
    first = some()
    assert all(map(equal, first, some()))
    np.random.seed(3)
    torch.manual_seed(3)
    more = cells(count=7, val=3, test=0).splits["train"]
    assert equal(more[5], first[5])
    assert not any(torch.equal(a.image, b.image) for a, b in pairwise(first))
    others = (cells(seed=1).splits["train"], cells().splits["val"], cells().splits["test"])
    assert not any(torch.equal(images[0].image, first[0].image) for images in others)


def test_workers_make_the_same() -> None:
    images = cells(size=48, count=4).splits["train"]
    loader = DataLoader(images, batch_size=None, num_workers=2)  # type: ignore[arg-type, var-annotated]
    assert all(equal(images[index], Sample(*made)) for index, made in enumerate(loader))


def test_a_set_says_what_it_is() -> None:
    data = cells(count=3, val=2, test=1)
    assert {name: len(images) for name, images in data.splits.items()} == {"train": 3, "val": 2, "test": 1}
    assert (data.channels, data.target.kind, data.target.names) == (1, "binary", ("background", "cell"))
    assert "test" not in cells(test=0).splits
    names = [sample.name for images in data.splits.values() for sample in (images[i] for i in range(len(images)))]
    assert len(set(names)) == 6
    with pytest.raises(IndexError):
        data.splits["val"][2]


def test_with_more_classes_each_kind_has_one() -> None:
    data = cells(classes=6, size=256)
    assert data.target.kind == "multiclass"
    assert data.target.names == ("background", *(kind.name for kind in KINDS))
    assert set(data.splits["train"][0].mask.flatten().tolist()) == {0, 1, 2, 3, 4, 5}
    assert set(cells(classes=3).splits["train"][0].mask.flatten().tolist()) == {0, 1, 2}


def test_brightness_tells_no_kind() -> None:
    """A kind's mean brightness lies within the spread of each other kind's pixels."""
    samples = some(classes=6, count=8)
    image, mask = (torch.stack([sample[part] for sample in samples]).squeeze() for part in (1, 2))  # type: ignore[misc]
    kinds = [image[mask == kind] for kind in range(1, 6)]
    means = torch.stack([kind.mean() for kind in kinds])
    assert means.max() - means.min() < min(kind.std() for kind in kinds) / 2


def iou(found: torch.Tensor, truth: torch.Tensor) -> float:
    return float((found & truth).sum() / (found | truth).sum())


def test_no_threshold_finds_the_cells() -> None:
    """Not even the best for each image, chosen with the truth in hand, from either side, beats 'all is cell' much."""
    for sample in some(8):
        image, truth = sample.image[0], sample.mask == 1
        levels = image.flatten().quantile(torch.linspace(0, 1, 33))
        best = max(max(iou(image > level, truth), iou(image <= level, truth)) for level in levels)
        assert best < 0.65


def test_a_larger_image_has_more_cells_not_larger_ones() -> None:
    small, large = (len(set(some(1, size=size)[0].instances.flatten().tolist())) for size in (64, 256))  # type: ignore[union-attr]
    assert large > 8 * small


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"classes": 7}, "classes must be 2 to 6; got 7"),
        ({"classes": 1}, "classes must be 2 to 6; got 1"),
        ({"size": 15}, "size must be at least 16; got 15"),
        ({"count": 0}, "count must be at least 1; got 0"),
        ({"val": 0}, "val must be at least 1; got 0"),
        ({"radius": 3.5}, "radius must be at least 4; got 3.5"),
        ({"radius": float("nan")}, "radius must be at least 4; got nan"),
        ({"noise": -1}, "noise must be at least 0; got -1"),
        ({"crowding": 0}, "crowding must be above 0 and at most 1.5; got 0"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, float], told: str) -> None:
    with pytest.raises(OptionError, match=told):
        cells(**options)  # type: ignore[arg-type]


def test_every_option_is_on_the_page_with_its_default() -> None:
    page = (Path(__file__).parents[2] / "docs" / "cells.md").read_text(encoding="utf-8")
    assert not [
        option.name for option in read_signature(cells).options if f"| `{option.name}` | {option.default} |" not in page
    ]
