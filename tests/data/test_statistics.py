"""What numbers files have: the range that augmentation goes by, and pixels without data."""

from __future__ import annotations

import json
from math import inf, nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from tests.reading import read_image
from tests.train.example_sets import squares
from unetkit import train
from unetkit.data.datasets import open_data
from unetkit.data.statistics import find_far_value, measure_statistics
from unetkit.data.types import IGNORE, Sample, check_values
from unetkit.errors import FileError, OptionError
from unetkit.train.config import TrainConfig

H, W = 24, 32


class Images:
    """Images without masks, as a split of a data set."""

    def __init__(self, *images: np.ndarray) -> None:
        self.images = [torch.from_numpy(image.astype(np.float32)) for image in images]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        image = self.images[index]
        missing = image.isnan().any(0)
        return Sample(str(index), image, torch.zeros(image.shape[1:]).long().masked_fill(missing, IGNORE))


def ramp(low: float, high: float) -> np.ndarray:
    return np.linspace(low, high, H * W).reshape(1, H, W)


def test_the_range_leaves_the_lowest_and_the_highest_two_hundredth_out() -> None:
    found = measure_statistics(Images(ramp(0, 10), ramp(10, 20)))
    assert found.mean[0] == pytest.approx(10)
    assert found.std[0] == pytest.approx(20 / 12**0.5, rel=0.01)
    assert (found.range.low[0], found.range.high[0]) == pytest.approx((0.1, 19.9), abs=0.03)


def test_pixels_without_data_do_not_count() -> None:
    image = ramp(0, 10)
    image[:, :12] = nan
    found = measure_statistics(Images(image))
    assert found.mean[0] == pytest.approx(7.5, abs=0.02)
    assert found.range.low[0] > 4.9
    nothing = measure_statistics(Images(np.full((2, H, W), nan)))
    assert (nothing.mean, nothing.std) == ((0.0, 0.0), (1.0, 1.0))


def test_the_range_is_never_empty() -> None:
    stars = np.zeros((1, H, W))
    stars[0, 0, 0] = 7
    assert measure_statistics(Images(stars)).range == ((0.0,), (7.0,))
    channels = np.concatenate([ramp(0, 4), np.full((1, H, W), 3)])
    low, high = measure_statistics(Images(channels)).range
    assert high[1] - low[1] == pytest.approx(high[0] - low[0])
    assert measure_statistics(Images(np.full((1, H, W), 5))).range == ((5.0,), (6.0,))


def smooth(low: float, high: float, dtype: Any = np.float32) -> np.ndarray:
    return (low + (high - low) * np.random.default_rng(0).random((H, W))).astype(dtype)


def holed(values: np.ndarray, number: float, rows: int = 3) -> np.ndarray:
    values = values.copy()
    values[:rows] = number
    return values


@pytest.mark.parametrize(
    ("values", "number", "certain"),
    [
        (holed(smooth(0.05, 0.09), -9999), -9999, True),
        (holed(smooth(200, 3000), -9999), -9999, True),
        (holed(smooth(0, 1), -3.4028235e38), -3.4028235e38, True),
        (holed(smooth(0, 1), 3.4028235e38), 3.4028235e38, True),
        (holed(smooth(-50, 50, np.int16), -32768), -32768, True),
        (holed(smooth(300, 900, np.uint16), 65535), 65535, True),
        (holed(smooth(120, 240, np.uint8), 0), 0, False),
        (holed(smooth(20, 110, np.uint8), 255), 255, False),
    ],
)
def test_a_number_far_from_all_others_is_found(values: np.ndarray, number: float, certain: bool) -> None:
    found = find_far_value(values)
    assert found is not None
    assert found.value == pytest.approx(number, rel=1e-6)
    assert found.certain == certain
    assert f"give --nodata {found.value:g}" in found.describe()


@pytest.mark.parametrize(
    "values",
    [
        smooth(0, 255, np.uint8),
        holed(smooth(0, 255, np.uint8), 0),
        holed(smooth(5, 250, np.uint8), 255),
        holed(smooth(100, 1500, np.uint16), 4095),
        (smooth(0, 1) > 0.5).astype(np.uint8),
        smooth(0, 1) > 0.5,
        np.full((H, W), 7.0),
        np.full((H, W), nan),
        smooth(-3, 3),
        np.zeros((0, 3)),
    ],
)
def test_usual_images_have_none(values: np.ndarray) -> None:
    assert find_far_value(values) is None


@pytest.mark.parametrize(
    ("values", "nodata"),
    [
        (holed(smooth(0, 1), nan), nan),
        (holed(smooth(0, 1), -inf), -inf),
        (holed(smooth(0, 1), -9999), -9999),
        (holed(smooth(0, 1), -3.4028235e38), -3.4e38),
        (holed(smooth(0.2, 1), 0.1), 0.1),
        (holed(smooth(1, 255, np.uint8), 0), 0),
        (holed(smooth(-5, 5, np.int16), -32768), -32768),
    ],
)
def test_pixels_without_data_are_nan(values: np.ndarray, nodata: float, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "x.tif", values)
    image = read_image(tmp_path / "x.tif", nodata)
    assert image[:, :3].isnan().all()
    assert image[:, 3:].isfinite().all()
    tifffile.imwrite(
        tmp_path / "two.tif", np.stack([values, smooth(1, 2).astype(values.dtype)]), photometric="minisblack"
    )
    assert read_image(tmp_path / "two.tif", nodata)[:, :3].isnan().all()
    tifffile.imwrite(tmp_path / "tag.tif", values, extratags=[(42113, 2, 0, f"{nodata:g}", True)])
    assert torch.equal(read_image(tmp_path / "tag.tif").isnan(), image.isnan())


@pytest.mark.parametrize("number", [nan, inf, -inf])
def test_what_is_no_number_is_refused_with_the_file_unless_it_means_no_data(number: float, tmp_path: Path) -> None:
    values = smooth(0, 1)
    values[5, 7] = number
    tifffile.imwrite(tmp_path / "x.tif", values)
    with pytest.raises(FileError, match=r"x\.tif: contains NaN .* 1 pixel; .* --nodata nan"):
        read_image(tmp_path / "x.tif", nodata=-9999)
    sample = Sample("x", torch.from_numpy(values)[None], torch.zeros(H, W).long())
    with pytest.raises(FileError, match="x: its image contains NaN or infinity"):
        check_values(sample)


def put(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tif":
        tifffile.imwrite(path, values)
    else:
        Image.fromarray(values).save(path)


def written(folder: Path, kind: str) -> Path:
    """The same images in 8 bit, as 12 bits in 16, and as small numbers; or as floats with gaps."""
    data = squares()
    for split in ("train", "val"):
        for sample in (data.splits[split][index] for index in range(len(data.splits[split]))):
            image, mask = sample.image[0].numpy(), (sample.mask.numpy() * 255).astype(np.uint8)
            gap = image.copy()
            gap[:6] = -9999
            of_kind: dict[str, np.ndarray] = {
                "8 bit": (image * 255).round().astype(np.uint8),
                "12 bit": (image * 4095).round().astype(np.uint16),
                "small": image / 50,
                "gaps": gap,
            }
            ending = "tif" if of_kind[kind].dtype == np.float32 else "png"
            put(folder / split / "images" / f"{sample.name}.{ending}", of_kind[kind])
            put(folder / split / "masks" / f"{sample.name}.png", mask)
    return folder


def trained(folder: Path, kind: str, **config: Any) -> train.TrainRun:
    where = written(folder / kind, kind)
    config = {"epochs": 14, "batch_size": 4, "lr": 0.02, "preview_every": 0, "device": "cpu", **config}
    return train.run("--encoder plain:widths=[4,8]", folder / f"run {kind}", data=str(where), **config)


def best(run: train.TrainRun) -> float:
    lines = (run.folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return max(float(json.loads(line)["miou"]) for line in lines)


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> float:
    """The score of the images in 8 bit."""
    return best(trained(tmp_path_factory.mktemp("usual"), "8 bit"))


@pytest.mark.slow
def test_the_same_images_in_other_numbers_are_learned_as_well(usual: float, tmp_path: Path) -> None:
    scores = {"8 bit": usual} | {kind: best(trained(tmp_path, kind)) for kind in ("12 bit", "small")}
    assert min(scores.values()) > 0.8, scores
    assert max(scores.values()) - min(scores.values()) < 0.03, scores


@pytest.mark.slow
def test_images_with_gaps_are_learned_as_well_once_that_is_said(usual: float, tmp_path: Path) -> None:
    assert best(trained(tmp_path, "gaps", nodata="-9999")) > usual - 0.05
    (note,) = open_data(str(tmp_path / "gaps")).notes
    assert "contains -9999, but otherwise numbers from" in note
    assert open_data(str(tmp_path / "gaps"), nodata=-9999).notes == ()


def test_a_number_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"^--nodata none: .*nan or inf$"):
        TrainConfig(nodata="none")
