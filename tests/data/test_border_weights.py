"""Border maps: the formula of 2015 against a direct slow computation, kept and found again."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unetkit.data import border_weights as borders
from unetkit.data.border_weights import (
    TOLERANCE,
    BorderMaps,
    border_weights,
    connected_components,
    instances_from_mask,
    relabel,
)
from unetkit.data.synthetic_cells import cells
from unetkit.data.types import IGNORE, Sample
from unetkit.errors import OptionError


def slow(instances: Tensor, w0: float = 10, sigma: float = 5) -> Tensor:
    """Equation 2 of the paper, its second term, pixel by pixel and cell by cell."""
    spots = {number: torch.nonzero(instances == number).double() for number in set(instances.flatten().tolist()) - {0}}
    out = torch.zeros(instances.shape, dtype=torch.float64)
    for y in range(instances.shape[0]):
        for x in range(instances.shape[1]):
            if instances[y, x] != 0 or len(spots) < 2:
                continue
            here = torch.tensor([y, x]).double()
            d1, d2 = sorted(float((spot - here).norm(dim=1).min()) for spot in spots.values())[:2]
            out[y, x] = w0 * math.exp(-((d1 + d2) ** 2) / (2 * sigma**2))
    return out.float()


def scattered(seed: int, size: int, count: int) -> Tensor:
    """Rectangles in any place, some over others, numbered with gaps."""
    draw = np.random.default_rng(seed)
    found = torch.zeros(size, size, dtype=torch.int64)
    for number in range(count):
        y, x = draw.integers(0, size, 2)
        height, width = draw.integers(1, 8, 2)
        found[y : y + height, x : x + width] = 3 * number + 2
    return found


@settings(max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    size=st.integers(1, 28),
    count=st.integers(0, 7),
    w0=st.sampled_from([1.0, 10.0, 200.0]),
    sigma=st.sampled_from([0.7, 3.0, 5.0]),
)
def test_the_map_is_the_formulas(seed: int, size: int, count: int, w0: float, sigma: float) -> None:
    instances = scattered(seed, size, count)
    fast, direct = border_weights(instances, w0=w0, sigma=sigma), slow(instances, w0, sigma)
    torch.testing.assert_close(fast, direct, rtol=1e-5, atol=w0 * TOLERANCE * 1.001)
    assert fast.dtype == torch.float32
    assert torch.equal(fast > 0, direct * (direct >= w0 * TOLERANCE) > 0) or (fast - direct).abs().max() < w0 * 2e-4


def test_the_map_of_real_cells_is_the_formulas() -> None:
    instances = cells(size=48).splits["train"][0].instances
    assert instances is not None
    torch.testing.assert_close(border_weights(instances), slow(instances), rtol=1e-5, atol=10 * TOLERANCE * 1.001)


def test_two_cells_a_pixel_apart_by_hand() -> None:
    """In the middle of a gap of one pixel both distances are 1."""
    row = torch.tensor([[1, 1, 0, 2, 2, 0, 0]])
    expected = [0, 0, 10 * math.exp(-4 / 50), 0, 0, 10 * math.exp(-25 / 50), 10 * math.exp(-49 / 50)]
    torch.testing.assert_close(border_weights(row), torch.tensor([expected]))


@pytest.mark.parametrize("instances", [torch.zeros(5, 6), torch.ones(5, 6), torch.eye(5)], ids=str)
def test_fewer_than_two_cells_have_no_border(instances: Tensor) -> None:
    assert torch.equal(border_weights(instances.long()), torch.zeros(instances.shape))


@pytest.mark.parametrize(("w0", "sigma"), [(-1, 5), (10, 0), (math.nan, 5), (10, math.inf)])
def test_impossible_weights_are_refused(w0: float, sigma: float) -> None:
    with pytest.raises(OptionError, match="w0 must be 0 or more and sigma above 0"):
        border_weights(torch.zeros(3, 3), w0=w0, sigma=sigma)
    with pytest.raises(OptionError, match="w0 must be 0 or more and sigma above 0"):
        BorderMaps(w0, sigma)


def test_pieces_are_connected_by_sides_and_of_one_class() -> None:
    mask = torch.tensor([[1, 1, 2, 0], [0, 0, 2, 0], [1, 0, 0, 3], [0, 1, IGNORE, 3]])
    found = instances_from_mask(mask)
    assert [len(set(found[mask == index].tolist())) for index in (1, 2, 3)] == [3, 1, 1]
    assert sorted(set(found.flatten().tolist())) == [0, 1, 2, 3, 4, 5]
    assert found[mask <= 0].eq(0).all()
    assert found.dtype == torch.int64


def test_multi_label_masks_have_no_borders() -> None:
    with pytest.raises(OptionError, match="multi-label"):
        instances_from_mask(torch.zeros(3, 4, 4).long())


def test_numbers_are_without_gaps() -> None:
    assert relabel(np.array([[7, 7, 0], [900, 3, 3]])).tolist() == [[2, 2, 0], [3, 1, 1]]
    assert relabel(np.array([[7, 9]])).tolist() == [[1, 2]]
    assert connected_components(np.zeros((2, 2), bool)).tolist() == [[0, 0], [0, 0]]


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each map that was computed."""
    made: list[int] = []

    def counted(instances: Tensor, **words: float) -> Tensor:
        made.append(1)
        return border_weights(instances, **words)

    monkeypatch.setattr(borders, "border_weights", counted)
    return made


def sample(name: str, number: int = 1) -> Sample:
    instances = scattered(number, 16, 4)
    return Sample(name, torch.zeros(1, 16, 16), (instances > 0).long(), instances)


def test_a_map_is_computed_once(computed: list[int]) -> None:
    maps = BorderMaps()
    first = maps(sample("a"))
    assert maps(sample("a")) is first
    instances = sample("a").instances
    assert instances is not None
    assert torch.equal(first, border_weights(instances))
    assert len(computed) == 1
    maps(sample("a", 2))  # the same name with other instances
    assert len(computed) == 2


def test_memory_holds_the_latest_and_no_more(computed: list[int]) -> None:
    maps = BorderMaps(memory=2 * 16 * 16 * 4)
    for name in "abacab":  # c takes b's place, and b then c's
        maps(sample(name))
    assert len(computed) == 4
    assert maps.bytes == 2 * 16 * 16 * 4
    assert len(maps.kept) == 2


def test_a_folder_is_shared(computed: list[int], tmp_path: Path) -> None:
    first = BorderMaps(folder=tmp_path / "maps")(sample("a"))
    assert torch.equal(BorderMaps(folder=tmp_path / "maps")(sample("a")), first)
    assert len(computed) == 1
    BorderMaps(sigma=3, folder=tmp_path / "maps")(sample("a"))
    assert len(computed) == 2
    assert [path.suffix for path in (tmp_path / "maps").iterdir()] == [".npy", ".npy"]


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"PK\x03\x04", b"rubbish", None])
def test_a_damaged_file_is_written_anew(computed: list[int], tmp_path: Path, content: bytes | None) -> None:
    first = BorderMaps(folder=tmp_path)(sample("a"))
    (path,) = tmp_path.iterdir()
    if content is None:
        np.save(path, np.zeros((3, 3), np.float32))
    else:
        path.write_bytes(content)
    assert torch.equal(BorderMaps(folder=tmp_path)(sample("a")), first)
    assert len(computed) == 2
    assert torch.equal(BorderMaps(folder=tmp_path)(sample("a")), first)
    assert len(computed) == 2


def test_where_no_instances_are_known_the_pieces_of_the_mask_serve() -> None:
    mask = torch.tensor([[1, 1, 0, 2, 2]])
    assert torch.equal(BorderMaps()(Sample("a", torch.zeros(1, 1, 5), mask)), border_weights(mask))
