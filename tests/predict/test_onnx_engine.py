"""Exported networks give the masks that torch gives, and what does not fit is said."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from click.testing import CliRunner
from onnx import TensorProto
from PIL import Image

from tests.predict.onnx_files import INFO, graph, write
from tests.predict.test_predictor import pixels, trained
from unetkit.cli import cli
from unetkit.data.types import Target
from unetkit.errors import FileError, InputSizeError
from unetkit.exporter.export import export
from unetkit.predict.config import PredictConfig
from unetkit.predict.onnx_engine import OnnxEngine, open_onnx
from unetkit.predict.predictor import Predictor, plan_outputs
from unetkit.predict.torch_engine import make_predictor
from unetkit.tiling.layout import TileRequirements
from unetkit.train.checkpoint import TrainRun

GREY, RGB = "grey", "rgb"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[TrainRun, Path]]:
    folder = tmp_path_factory.mktemp("runs")
    made = {
        GREY: trained(folder / GREY, Target("multiclass", ("ground", "cell", "edge"))),
        RGB: trained(folder / RGB, Target("multilabel", ("hot", "wet")), 3),
    }
    return {name: (run, export(run, folder / f"{name}.onnx").path) for name, run in made.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dtype", "options", "told"),
    [
        (GREY, np.uint8, {"tile": (64, 64)}, "exactly"),
        (GREY, np.uint16, {"tile": (64, 48), "overlap": 16, "batch_size": 3}, "blended"),
        (RGB, np.uint8, {"tile": (64, 64), "overlap": 20, "tta": True}, "blended"),
        (RGB, np.uint16, {"tile": (96, 64)}, "exactly"),
    ],
)
def test_masks_are_those_of_torch(
    runs: dict[str, tuple[TrainRun, Path]], name: str, dtype: Any, options: dict[str, Any], told: str, tmp_path: Path
) -> None:
    run, file = runs[name]
    image, config = tmp_path / "image.tif", PredictConfig(probabilities=True, **options)
    tifffile.imwrite(image, pixels(301, 267, *([3] if name == RGB else []), dtype=dtype))
    info, engine = open_onnx(file)
    assert told in info.tiles.layout((301, 267), config.tile, config.overlap, tta=config.tta).explanation
    assert info.bytes_per_pixel > 0
    assert replace(info, source="", bytes_per_pixel=0) == replace(
        make_predictor(run, run.network("cpu"), config).info, source=""
    )
    (ours,) = plan_outputs([image], tmp_path / "onnx", info.target, config)
    (theirs,) = plan_outputs([image], tmp_path / "torch", info.target, config)
    Predictor(info, engine, config).predict(ours)
    make_predictor(run, run.network("cpu"), config).predict(theirs)
    assert ours.probabilities
    assert theirs.probabilities
    found, expected = (tifffile.imread(job.probabilities) for job in (ours, theirs) if job.probabilities)
    assert np.abs(found - expected).max() < 1e-5
    for mask, other in zip(ours.masks, theirs.masks, strict=True):
        assert (read_png(mask) == read_png(other)).mean() >= 0.99999


def read_png(path: Path) -> np.ndarray:
    return np.array(Image.open(path))


@pytest.mark.slow
def test_the_command_takes_a_file_and_imports_no_torch(runs: dict[str, tuple[TrainRun, Path]], tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "image.tif", pixels(40, 30))
    code = "import sys; from unetkit.cli import cli; cli(sys.argv[1:], standalone_mode=False)"
    code += "; print({'torch', 'timm', 'scipy', 'matplotlib'} & {*sys.modules})"
    words = ["predict", str(runs[GREY][1]), "image.tif", "--out", "masks", "--overlay", "--probabilities", "--check"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines() == ["1 of 1 image written to masks", "set()"], done.stderr
    assert {path.name for path in (tmp_path / "masks").iterdir()} == {
        "image.png",
        "image-overlay.png",
        "image-probabilities.tif",
    }
    for flag, value in (("--weights", "last"), ("--device", "cuda")):
        refused = CliRunner().invoke(cli, [*words[:2], str(tmp_path / "image.tif"), *words[3:], flag, value])
        assert flag in str(refused.exception)


def test_files_that_are_no_exported_network_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, folder = tmp_path / "text.onnx", tmp_path / "folder.onnx"
    text.write_text("no network")
    folder.mkdir()
    cut = write(graph(), tmp_path / "cut.onnx", INFO)
    cut.write_bytes(cut.read_bytes()[:60])
    for path, why in (
        (tmp_path / "none.onnx", "does not exist"),
        (folder, "is a folder"),
        (text, "cannot be opened as ONNX"),
        (cut, "cannot be opened as ONNX"),
        (write(graph(operator="Nonsense"), tmp_path / "operator.onnx", INFO), "Nonsense"),
        (write(graph(), tmp_path / "foreign.onnx", None), r"unetkit\.version.*unetkit export"),
    ):
        with pytest.raises(FileError, match=why):
            open_onnx(path)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(FileError, match=r"unetkit\[onnx\]"):
        open_onnx(text)


FIXED = TileRequirements(1, (32, 48), (32, 48))


@pytest.mark.parametrize(
    ("options", "changes", "why"),
    [
        ({"inputs": 2, "operator": "Add"}, {}, "inputs"),
        ({"dtype": TensorProto.FLOAT16}, {}, "float16"),
        ({"shape": ("B", 3, "H", "W"), "output": ("B", 3, "H", "W")}, {}, "3 channels.* 1"),
        ({"shape": ("B", 1, 32, 32), "output": ("B", 1, 32, 32)}, {}, "only 32x32.*other sizes"),
        ({"shape": ("B", 1, 32, 32), "output": ("B", 1, 32, 32)}, {"tiles": FIXED}, "only 32x32.* 32x48"),
        ({"shape": (4, 1, "H", "W"), "output": (4, 1, "H", "W")}, {}, "batches of 4"),
        ({}, {"target": Target("multiclass", ("a", "b", "c"))}, "describe 3 planes"),
    ],
)
def test_metadata_that_do_not_fit_the_graph_are_refused(
    options: dict[str, Any], changes: dict[str, Any], why: str, tmp_path: Path
) -> None:
    path = write(graph(**options), tmp_path / "model.onnx", replace(INFO, **changes))
    with pytest.raises(FileError, match=why):
        open_onnx(path)


def test_an_output_of_another_size_is_refused(tmp_path: Path) -> None:
    shrinking = replace(INFO, tiles=TileRequirements(1, None, (8, 8), (4, 4)))
    _, engine = open_onnx(write(graph(), tmp_path / "model.onnx", shrinking))
    with pytest.raises(FileError, match="12x12"):
        engine(np.zeros((1, 1, 16, 16), np.float32))


def test_a_fixed_size_and_a_batch_of_one_are_run_tile_by_tile(tmp_path: Path) -> None:
    model = graph((1, 1, 32, 48), (1, 1, 32, 48))
    info, engine = open_onnx(write(model, tmp_path / "model.onnx", replace(INFO, tiles=FIXED)))
    tifffile.imwrite(tmp_path / "image.tif", pixels(70, 60))
    config = PredictConfig(batch_size=4)
    (job,) = plan_outputs([tmp_path / "image.tif"], tmp_path / "masks", info.target, config)
    Predictor(info, engine, config).predict(job)
    expected = pixels(70, 60) / np.float32(255) > 0.5
    assert np.array_equal(read_png(job.masks[0]) == 1, expected)
    tall, wide = 32, 48
    assert engine(np.zeros((3, 1, tall, wide), np.float32)).shape == (3, 2, tall, wide)


def test_a_pass_that_memory_does_not_hold_is_refused_in_words() -> None:
    class Port:
        name, type, shape = "image", "tensor(float)", ["B", 1, "H", "W"]

    class Session:
        message = ""

        def get_inputs(self) -> list[Any]:
            return [Port()]

        get_outputs = get_inputs

        def run(self, names: list[str], values: dict[str, Any]) -> None:
            raise RuntimeError(self.message)

    session = Session()
    engine = OnnxEngine(session, INFO)
    for session.message in (
        "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Failed to allocate memory for requested buffer of size 99",
        "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Exception: std::bad_alloc",
    ):
        with pytest.raises(InputSizeError, match=r"2 of 16x8.*--tile"):
            engine(np.zeros((2, 1, 16, 8), np.float32))
    session.message = "[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Got invalid dimensions"
    with pytest.raises(FileError, match="fails on 16x8: Got invalid"):
        engine(np.zeros((2, 1, 16, 8), np.float32))
