"""Export with 8 and 16 bits: files run at every size, and say what they cost."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

import unetkit
from tests.predict.test_predictor import trained
from unetkit.cli import cli
from unetkit.data.types import Target
from unetkit.errors import OptionError, PluginError, UnetkitError
from unetkit.exporter import quality
from unetkit.exporter.capture import CapturedNetwork
from unetkit.exporter.export import ExportReport, _store, verify
from unetkit.exporter.formats import Onnx
from unetkit.exporter.quality import difference_interval
from unetkit.exporter.quantize import read_calibration_tiles
from unetkit.plugins import default_parts, load_parts
from unetkit.predict.torch_engine import describe_run
from unetkit.train.checkpoint import TrainRun, read_run
from unetkit.train.metrics import confusion_matrix, scores


def called(*words: object) -> Result:
    return CliRunner().invoke(cli, ["export", *map(str, words)])


@pytest.fixture(scope="module", autouse=True)
def few_rounds() -> Iterator[None]:
    """Time passes in the fewest rounds: no test is about the figures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quality, "_SECONDS", 0)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TrainRun:
    """A run on grey images of two classes, which a threshold separates; its network has learned nothing."""
    folder = tmp_path_factory.mktemp("int8")
    rng = np.random.default_rng(0)
    for split, count in (("train", 5), ("val", 3)):
        for index in range(count):
            image = rng.integers(0, 256, (24, 40), np.uint8)
            for kind, values in (("images", image), ("masks", (image > 128).astype(np.uint8))):
                (folder / "data" / split / kind).mkdir(parents=True, exist_ok=True)
                Image.fromarray(values).save(folder / "data" / split / kind / f"{index}.png")
    (folder / "data" / "classes.txt").write_text("dark\nbright\n")
    run = trained(folder / "run", Target("binary", ("dark", "bright")))
    header = json.loads((run.folder / "run.json").read_text())
    header["config"]["data"] = str(folder / "data")
    (run.folder / "run.json").write_text(json.dumps(header))
    return read_run(run.folder)


@pytest.fixture(scope="module")
def exported(run: TrainRun) -> ExportReport:
    return unetkit.export(run, run.folder.parent / "int8.onnx", int8=True)


@pytest.mark.slow
def test_an_int8_file_runs_at_every_size_and_is_verified(exported: ExportReport) -> None:
    assert exported.precision == "int8"
    assert exported.tolerance is None
    assert 0 < exported.difference < 0.5
    assert [one.shape[0] for one in exported.comparisons] == [1, 1, 1, 2]
    assert verify(exported.path).is_intact
    runner = Onnx().open(exported.path)
    for shape in ((1, 1, 1, 1), (3, 1, 17, 41), (2, 1, 64, 32)):
        assert runner(np.zeros(shape, np.float32)).shape[2:] == shape[2:]


@pytest.mark.slow
def test_it_says_what_it_costs_and_so_does_the_file(exported: ExportReport) -> None:
    cost = exported.cost
    assert cost is not None
    assert (cost.images, cost.data) == (3, "data")
    assert cost.miou is not None
    assert {one.engine for one in cost.engines} == {"onnxruntime", "openvino"}
    for one in cost.engines:
        assert one.miou is not None
        assert one.difference == pytest.approx(one.miou - cost.miou)
        assert one.interval
        assert one.to_torch.low <= one.to_torch.ratio <= one.to_torch.high
    metadata = Onnx().read_metadata(exported.path)
    assert metadata["unetkit.precision"] == "int8"
    assert json.loads(metadata["unetkit.cost"])["miou"] == cost.miou
    assert json.loads(metadata["unetkit.quantization"])["calibrated_on"] == "5 of 5 images of data"
    assert json.loads(json.dumps(exported.to_dict()))["cost"]["images"] == 3


@pytest.mark.slow
def test_half_of_a_run_says_what_it_costs(run: TrainRun, tmp_path: Path) -> None:
    result = called(run.folder, "--out", tmp_path / "half.onnx", "--half", "--fixed-size", "24x40", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["precision"], found["cost"]["images"]) == ("float16", 3)
    assert abs(found["cost"]["engines"][0]["difference"]) < 0.05

    class Marked(Onnx):
        """A format of a plugin that writes in its own way."""

        def write(self, captured: CapturedNetwork, path: Path, metadata: Mapping[str, str]) -> None:
            model = onnx.load(tmp_path / "half.onnx")
            onnx.helper.set_model_props(model, {**metadata, "mark": "written by the plugin"})
            onnx.save(model, path)

    parts = load_parts(isolated=True)
    parts.formats.add("marked", Marked)
    marked = unetkit.export(run, tmp_path / "marked.onnx", format="marked", half=True, parts=parts, fixed_size=(24, 40))
    assert Onnx().read_metadata(marked.path)["mark"] == "written by the plugin"


def test_what_fails_when_a_file_is_copied_is_said_in_words(tmp_path: Path) -> None:
    (tmp_path / "lower.onnx").write_bytes(b"no ONNX")  # an error of protobuf is no OSError
    with pytest.raises(PluginError, match=r"format onnx .*half\.onnx: DecodeError"):
        _store("onnx", tmp_path / "lower.onnx", tmp_path / "half.onnx", {})


@pytest.mark.slow
def test_without_its_data_a_run_needs_images_and_has_no_scores(run: TrainRun, tmp_path: Path) -> None:
    alone = trained(tmp_path / "alone", run.target)
    result = called(alone.folder, "--out", tmp_path / "a.onnx", "--int8")
    assert isinstance(result.exception, OptionError)
    assert "--calibrate" in str(result.exception)
    images = Path(run.config.data) / "val" / "images"  # without masks
    result = called(alone.folder, "--out", tmp_path / "a.onnx", "--int8", "--calibrate", images, "--fixed-size", 16)
    assert result.exit_code == 0, result.output
    assert "3 of 3 images" in result.output
    assert "quality was not measured" in result.output


def test_tiles_to_calibrate_on_are_those_of_prediction(run: TrainRun) -> None:
    info = describe_run(run, run.network())
    for data in (None, run.config.data, Path(run.config.data) / "train" / "images"):
        _, tiles = read_calibration_tiles(data, run, info, default_parts())
        assert len(tiles) == 5
        assert {tile.dtype for tile in tiles} == {np.dtype(np.float32)}
        assert all(tile.shape[:2] == (1, 1) and abs(float(tile.mean())) < 1 for tile in tiles)


WORDS = ("--encoder", "plain:widths=[4,8]")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ((*WORDS, "--int8", "--half"), "exclude each other"),
        ((*WORDS, "--int8"), "--calibrate"),
        ((*WORDS, "--calibrate", "cells"), "applies only to --int8"),
        ((*WORDS, "--int8", "--calibrate", "missing"), "does not exist"),
        ((*WORDS, "--int8", "--calibrate", "EMPTY"), "no image"),
        ((*WORDS, "--int8", "--calibrate", "cells"), "channel"),
        ((*WORDS, "--int8", "--calibrate", "cells", "--out", "a.pt2"), "ONNX only"),
    ],
)
def test_what_cannot_be_quantized_is_refused(
    words: tuple[str, ...], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("EMPTY").mkdir()
    result = called(*words, *(() if "--out" in words else ("--out", "a.onnx")))
    assert isinstance(result.exception, UnetkitError)
    assert why in str(result.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["EMPTY"]


@pytest.mark.parametrize("labels", [False, True])
def test_the_interval_resamples_images_for_both(labels: bool) -> None:
    rng = torch.Generator().manual_seed(0)

    def matrices(right: float) -> np.ndarray:
        shape = (3, 8, 8) if labels else (8, 8)
        found = []
        for _ in range(20):
            truth = torch.randint(0, 2 if labels else 3, shape, generator=rng)
            wrong = torch.rand(shape, generator=rng) > right
            found.append(confusion_matrix(torch.where(wrong, torch.zeros_like(truth), truth), truth, 3).numpy())
        return np.stack(found).astype(np.float64)

    good, bad = matrices(0.9), matrices(0.6)
    low, high = difference_interval(good, bad) or (0, 0)

    def miou(each: Any) -> float:
        return scores(torch.from_numpy(each.sum(0)), ("a", "b", "c")).miou

    assert low < miou(bad) - miou(good) < high < 0
    assert difference_interval(good, good) == (0, 0)
    assert difference_interval(good[:1], bad[:1]) is None


def test_both_precisions_at_a_time_are_refused() -> None:
    with pytest.raises(OptionError, match="exclude"):
        unetkit.export(unetkit.build("plain:widths=[4,8]"), "a.onnx", half=True, int8=True)
