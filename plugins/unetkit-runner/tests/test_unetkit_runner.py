"""The runner gives the masks of `unetkit predict`, and its wheel needs neither unetkit nor torch."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tifffile
import unetkit_runner
from click.testing import CliRunner
from PIL import Image
from unetkit_runner.command import run as run_command

from tests.predict.onnx_files import INFO, graph, write
from tests.predict.test_predictor import pixels, trained
from unetkit.cli import cli
from unetkit.cli.predict import predict
from unetkit.data.types import Target
from unetkit.exporter.export import export
from unetkit.train.checkpoint import TrainRun

DISTRIBUTION = Path(__file__).parent.parent
PROJECT = DISTRIBUTION.parent.parent


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainRun, Path]:
    folder = tmp_path_factory.mktemp("run")
    run = trained(folder / "run", Target("multiclass", ("ground", "cell", "edge")), 3)
    return run, export(run, folder / "model.onnx").path


def read_png(path: Path) -> np.ndarray:
    return np.array(Image.open(path))


def test_the_command_has_the_options_of_predict() -> None:
    own = {param.name for param in run_command.params} - {"model", "verbose", "version"}
    assert own == {param.name for param in predict.params} - {"run", "weights", "engine", "device"}


@pytest.mark.parametrize("options", [["--tile", "64"], ["--tile", "64", "--overlap", "24", "--tta"]])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_masks_and_messages_are_those_of_predict(
    exported: tuple[TrainRun, Path], options: list[str], dtype: Any, tmp_path: Path
) -> None:
    image = tmp_path / "image.tif"
    tifffile.imwrite(image, pixels(201, 170, 3, dtype=dtype))
    grey = tmp_path / "grey.png"
    Image.fromarray(pixels(20, 20)).save(grey)
    words = [str(grey), str(image), "--overlay", *options]
    ours = CliRunner().invoke(run_command, [str(exported[1]), *words, "--out", str(tmp_path / "ours")])
    predict_words = ["predict", str(exported[0].folder), *words, "--engine", "torch"]
    theirs = CliRunner().invoke(cli, [*predict_words, "--out", str(tmp_path / "theirs")])
    assert ours.exit_code == theirs.exit_code == 1  # for the grey image
    assert "--channels rgb" in ours.stderr
    replaced = ours.output.replace("ours", "theirs").replace(str(exported[1]), str(exported[0].folder))
    assert replaced == theirs.output
    same = read_png(tmp_path / "ours" / "image.png") == read_png(tmp_path / "theirs" / "image.png")
    assert same.mean() >= 0.99999


def test_an_array_is_segmented_as_its_file(exported: tuple[TrainRun, Path], tmp_path: Path) -> None:
    image = pixels(90, 70, 3)
    image[:5, :7] = 255
    tifffile.imwrite(tmp_path / "image.tif", image)
    words = [str(exported[1]), str(tmp_path / "image.tif"), "--out", str(tmp_path), "--nodata", "255", "--tile", "64"]
    done = CliRunner().invoke(run_command, [*words, "--probabilities"])
    assert done.exit_code == 0, done.output
    model = unetkit_runner.load(exported[1])
    assert model.info.target.names == ("ground", "cell", "edge")
    mask = model.predict(image, nodata=255, tile=64)
    assert mask.dtype == np.int16
    assert (mask[:5, :7] == -1).all()
    assert np.array_equal(np.where(mask < 0, 255, mask), read_png(tmp_path / "image.png"))
    chances = model.probabilities(image, nodata=255, tile="64", batch_size=2)
    expected = tifffile.imread(tmp_path / "image-probabilities.tif")
    assert np.allclose(np.moveaxis(chances, 0, -1), expected, atol=1e-6, equal_nan=True)
    assert np.array_equal(model.predict(image[..., 0], channels="rgb"), model.predict(image[..., [0, 0, 0]]))
    for wrong, options, why in (
        (image[..., 0], {}, "the image: has 1 channel.*needs 3"),
        (image[None], {}, "uint8 of 1x90x70x3"),
        (np.array(["a"]), {}, "numbers"),
        (np.full((9, 9, 3), np.nan), {}, "NaN"),
        (image, {"tile": "x"}, "tile"),
        (image, {"batch_size": 0}, "batch-size"),
    ):
        with pytest.raises(unetkit_runner.UnetkitError, match=why):
            model.predict(wrong, **options)


@pytest.fixture(scope="module")
def hook() -> ModuleType:
    """The build hook, as a module."""
    spec = importlib.util.spec_from_file_location("hatch_build", DISTRIBUTION / "hatch_build.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def dependencies() -> set[str]:
    project = tomllib.loads((DISTRIBUTION / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [one for some in project["optional-dependencies"].values() for one in some]
    return {re.split("[>=]", one)[0] for one in (*project["dependencies"], *extras)}


WITHOUT = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("unetkit", "torch", "timm", "scipy", "matplotlib", "segmentation_models_pytorch"):
            raise ImportError(f"{name} is imported")
sys.meta_path.insert(0, Refuse())
sys.path.insert(0, sys.argv.pop(1))
from unetkit_runner.command import main
main()
"""


def test_the_copy_in_the_wheel_works_without_unetkit(
    hook: ModuleType, exported: tuple[TrainRun, Path], tmp_path: Path
) -> None:
    source, package = PROJECT / "unetkit", DISTRIBUTION / "unetkit_runner"
    modules = hook.collect_modules(source, package, dependencies())
    assert {"unetkit.tiling.layout", "unetkit.data.io", "unetkit.predict.predictor"} < {*modules}
    hook.write_copy(source, package, modules, tmp_path / "copy")
    for path in (tmp_path / "copy").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not (isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "unetkit")
    tifffile.imwrite(tmp_path / "image.tif", pixels(40, 30, 3))
    flags = ["--overlay", "--probabilities", "--tta", "--tile", "32", "--check", "--channels", "rgb"]
    for words, code, told in (
        (["image.tif", "--out", "masks", *flags], 0, "1 of 1 image written to masks"),
        (["image.tif", "--out", "masks", "--tile", "0"], 2, "Error: --tile 0: must"),
        (["image.tif"], 2, "`unetkit-run --help` describes"),
        (["none.tif", "--out", "masks"], 1, "does not exist"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", WITHOUT, str(tmp_path / "copy"), str(exported[1]), *words],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": ""},
        )
        assert done.returncode == code, done.stderr
        assert told in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
    assert read_png(tmp_path / "masks" / "image.png").shape == (40, 30)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("def f():\n    import torch\n", "line 6: imports torch"),
        ("from scipy.ndimage import label\n", "imports scipy"),
        ("from importlib import import_module\nimport_module('torch')\n", "line 6: import_module"),
        ("import unetkit.errors\n", "from unetkit.errors import"),
        ("from . import errors\n", "relative"),
    ],
)
def test_a_module_that_needs_more_than_the_dependencies_fails_the_build(
    hook: ModuleType, text: str, why: str, tmp_path: Path
) -> None:
    source, package = tmp_path / "unetkit", tmp_path / "unetkit_runner"
    for folder in (source / "data", package):
        folder.mkdir(parents=True)
    (source / "__init__.py").write_text('"""All."""\nimport torch\n')
    (source / "data" / "__init__.py").write_text('"""Data."""\nimport torch\n')
    (source / "errors.py").write_text("")
    light = "from typing import TYPE_CHECKING\nimport numpy\nif TYPE_CHECKING:\n    from torch import Tensor\n"
    (source / "data" / "io.py").write_text(light)
    (package / "__init__.py").write_text("def f():\n    from unetkit.data import io\n    from unetkit import errors\n")
    modules = hook.collect_modules(source, package, {"numpy"})
    assert {*modules} == {"unetkit.data.io", "unetkit.errors"}  # packages on the way are not run
    hook.write_copy(source, package, modules, tmp_path / "copy")
    copy = tmp_path / "copy" / "unetkit_runner"
    assert (copy / "_unetkit" / "data" / "__init__.py").read_text() == '"""Data."""\n'
    assert "    from unetkit_runner._unetkit.data import io\n" in (copy / "__init__.py").read_text()
    (source / "data" / "io.py").write_text(light + text)
    with pytest.raises(hook.CollectionError, match=f"io.py, .*{why}"):
        hook.collect_modules(source, package, {"numpy"})


@pytest.mark.slow
def test_a_fresh_installation_without_torch_runs(tmp_path: Path) -> None:
    uv = shutil.which("uv")
    if uv is None:
        pytest.skip("needs uv")

    def call(*words: str | Path, cwd: Path = PROJECT) -> subprocess.CompletedProcess[str]:
        clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
        return subprocess.run([*map(str, words)], cwd=cwd, env=clean, capture_output=True, text=True, check=False)

    build = (sys.executable, "-m", "hatchling", "build")
    assert call(*build, "-t", "sdist", "-d", tmp_path, cwd=DISTRIBUTION).returncode == 0
    (archive,) = tmp_path.glob("*.tar.gz")
    shutil.unpack_archive(archive, tmp_path, filter="data")
    done = call(*build, "-t", "wheel", "-d", tmp_path, cwd=tmp_path / archive.name.removesuffix(".tar.gz"))
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    venv = tmp_path / "venv"
    assert call(uv, "venv", "--quiet", "--python", sys.executable, venv).returncode == 0
    installed = call(uv, "pip", "install", "--quiet", "--python", venv, wheel)
    if installed.returncode:
        pytest.skip(f"the dependencies cannot be installed: {installed.stderr}")
    assert sum(path.stat().st_size for path in venv.rglob("*") if path.is_file()) < 250e6
    model = write(graph(), tmp_path / "model.onnx", INFO)
    Image.fromarray(pixels(50, 40)).save(tmp_path / "image.png")
    found = call(venv / "bin" / "unetkit-run", model, "image.png", "--out", "masks", "--check", cwd=tmp_path)
    assert (found.returncode, found.stdout) == (0, "1 of 1 image written to masks\n"), found.stderr
    assert np.array_equal(read_png(tmp_path / "masks" / "image.png") == 1, pixels(50, 40) / np.float32(255) > 0.5)
    code = (
        "import unetkit_runner as r, numpy as np; print(r.load('model.onnx').predict(np.zeros((4, 4), 'uint8')).sum())"
    )
    assert call(venv / "bin" / "python", "-c", code, cwd=tmp_path).stdout == "0\n"
