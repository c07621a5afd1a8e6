"""Other engines for the network of a run: exported once, equal to the network, and chosen by their time."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from click.testing import CliRunner, Result
from PIL import Image

from tests.predict.test_predictor import trained
from unetkit.cli import cli
from unetkit.data.synthetic_cells import KINDS
from unetkit.data.types import Target
from unetkit.errors import ExportError, OptionError
from unetkit.exporter import engines
from unetkit.exporter.engines import open_engine
from unetkit.predict import engines as known
from unetkit.predict.auto_engine import AutoEngine, ComparedEngine
from unetkit.predict.config import PredictConfig
from unetkit.predict.engines import Engine
from unetkit.predict.evaluate import evaluate
from unetkit.predict.predictor import count_passes, plan_outputs
from unetkit.predict.torch_engine import describe_run
from unetkit.train.checkpoint import TrainRun

THREE = Target("multiclass", ("background", *(kind.name for kind in KINDS[:2])))  # as of cells:classes=3
TILES = np.zeros((1, 1, 4, 4), np.float32)


class Sleeper:
    """An engine whose passes take some milliseconds."""

    def __init__(self, milliseconds: float, value: float = 0.5) -> None:
        self.milliseconds, self.value, self.passes = milliseconds, value, 0

    def __call__(self, tiles: np.ndarray, /) -> np.ndarray:
        time.sleep(self.milliseconds / 1000)
        self.passes += 1
        return np.full((len(tiles), 2, *tiles.shape[2:]), self.value, np.float32)

    def explain_if_too_large(self, size: tuple[int, int]) -> str:
        return "too large"


def opens(engine: Engine) -> Callable[[], Engine]:
    return lambda: engine


def test_the_fastest_engine_that_agrees_is_used() -> None:
    def fails() -> Engine:
        raise ExportError("it has no operator")

    told: list[str] = []
    reference, fast, wrong = Sleeper(20), Sleeper(2), Sleeper(0, 0.6)
    others = {"fast": opens(fast), "slow": opens(Sleeper(40)), "wrong": opens(wrong), "broken": fails}
    auto = AutoEngine(reference, "torch", others, on_notice=told.append)
    assert auto.explain_if_too_large((1, 1)) == "too large"
    for _ in range(2):
        assert (auto(TILES) == 0.5).all()
    assert auto.chosen == "fast"
    before = reference.passes, wrong.passes
    auto(TILES)
    assert (reference.passes, wrong.passes) == before
    assert [re.split("[:,]", line)[0] for line in told] == [
        "engine wrong is not used",
        "engine broken is not used",
        "engine fast",
    ]


@pytest.mark.parametrize(("expected", "cost", "chosen"), [(3, 10, "torch"), (10_000, 10, "fast"), (20, 0, "fast")])
def test_engines_are_opened_only_where_that_pays(expected: int, cost: float, chosen: str) -> None:
    fast = Sleeper(0)
    auto = AutoEngine(Sleeper(10), "torch", {"fast": opens(fast)}, cost=cost, expected=expected)
    for _ in range(3):
        auto(TILES)
    assert auto.chosen == chosen
    assert bool(fast.passes) == (chosen == "fast")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TrainRun:
    return trained(tmp_path_factory.mktemp("runs") / "three", THREE)


def predict(run: TrainRun, image: Path, out: Path, *more: str) -> Result:
    result = CliRunner().invoke(cli, ["predict", str(run.folder), str(image), "--out", str(out), *more])
    assert result.exit_code == 0, result.output
    return result


@pytest.mark.slow
def test_masks_are_those_of_torch_and_the_network_is_exported_once(run: TrainRun, tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (150, 130), np.uint8)).save(image)
    masks: dict[str, np.ndarray] = {}
    chances: dict[str, np.ndarray] = {}
    notices = {}
    for engine in ("torch", "onnxruntime", "openvino"):
        notices[engine] = predict(
            run, image, tmp_path / engine, "--engine", engine, "--tile", "64", "--probabilities"
        ).stderr
        masks[engine] = np.array(Image.open(tmp_path / engine / "a.png"))
        chances[engine] = tifffile.imread(tmp_path / engine / "a-probabilities.tif")
        assert (masks[engine] != masks["torch"]).mean() <= 1e-5
        assert np.allclose(chances[engine], chances["torch"], atol=1e-5)
    assert [engine for engine, text in notices.items() if "exporting" in text] == ["onnxruntime"]
    (exported,) = (run.folder / engines.CACHE).iterdir()
    data = bytearray(exported.read_bytes())
    data[len(data) // 2] ^= 1  # damaged: it is exported again
    exported.write_bytes(data)
    assert "exporting" in predict(run, image, tmp_path / "whole", "--engine", "openvino").stderr
    again = TrainRun(**vars(run))
    other = trained(tmp_path / "other", THREE, encoder="plain:widths=[8,8]")
    run.weights_path().write_bytes(other.weights_path().read_bytes())
    predict(again, image, tmp_path / "new", "--engine", "onnxruntime")
    (newer,) = (run.folder / engines.CACHE).iterdir()
    assert newer != exported
    auto = predict(other, image, tmp_path / "auto")  # a few tiles are no reason to export
    assert "export" not in auto.stderr
    assert not (other.folder / engines.CACHE).exists()


@pytest.mark.slow
def test_scores_are_those_of_torch(run: TrainRun) -> None:
    data = "cells:count=2,val=1,test=1,size=32,classes=3"
    command = ["eval", str(run.folder), "--data", data, "--json"]
    found = [CliRunner().invoke(cli, [*command, "--engine", name]) for name in ("torch", "openvino")]
    assert [one.exit_code for one in found] == [0, 0], [one.output for one in found]
    assert found[0].stdout == found[1].stdout

    def fails(run: TrainRun, network: object) -> Engine:
        raise ExportError("no engine")

    with pytest.raises(ExportError, match="no engine"):
        evaluate(run, data, open_engine=fails)


def test_an_export_that_fails_is_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained(tmp_path / "run", THREE)
    network = run.network()
    info = describe_run(run, network)
    tried: list[object] = []

    def fails(*given: object, **more: object) -> None:
        tried.append(given)
        raise ExportError("it has no operator")

    monkeypatch.setattr(engines, "export", fails)
    told: list[str] = []
    tiles = np.zeros((1, 1, 64, 64), np.float32)
    for _ in range(2):
        auto = open_engine("auto", run, network, info, on_notice=told.append)
        for _ in range(3):
            auto(tiles)
    assert len(tried) == 1
    assert [line.split()[0] for line in told] == ["exporting", "engine", "engine"]
    with pytest.raises(ExportError, match="no operator"):
        open_engine("onnxruntime", run, network, info)


def test_an_engine_that_differs_is_refused() -> None:
    assert (ComparedEngine(Sleeper(0), "right", Sleeper(0))(TILES) == 0.5).all()
    with pytest.raises(ExportError, match=r"--engine wrong: .*probabilities .* 1\.0e-01"):
        ComparedEngine(Sleeper(0, 0.6), "wrong", Sleeper(0))(TILES)


def test_what_cannot_be_opened_is_refused(run: TrainRun, monkeypatch: pytest.MonkeyPatch) -> None:
    network = run.network()
    info = describe_run(run, network)
    with pytest.raises(OptionError, match=r"no engine .*; give one of auto, torch"):
        open_engine("tensorrt", run, network, info)
    monkeypatch.setattr(known, "find_spec", lambda name: None)
    with pytest.raises(OptionError, match=r"pip install 'unetkit\[onnx,openvino\]'"):
        open_engine("openvino", run, network, info)
    assert not isinstance(open_engine("auto", run, network, info), AutoEngine)


def test_passes_are_counted_from_headers(run: TrainRun, tmp_path: Path) -> None:
    for name, side in (("a", 64), ("b", 300)):
        Image.fromarray(np.zeros((side, side), np.uint8)).save(tmp_path / f"{name}.png")
    (tmp_path / "c.png").write_bytes(b"no image")
    jobs = plan_outputs([tmp_path], tmp_path / "out", THREE)
    info = describe_run(run, run.network())
    tiles = info.tiles.layout((300, 300), (64, 64)).tiles
    one = info.tiles.layout((64, 64), (64, 64)).tiles
    assert count_passes(jobs, info, PredictConfig(tile=(64, 64))) == tiles + one
    assert count_passes(jobs, info, PredictConfig(tile=(64, 64), tta=True, batch_size=tiles)) == 8
