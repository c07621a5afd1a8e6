"""Export: files compute what the network does at every size, say all that a program must know, and never lie."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner, Result
from onnx import numpy_helper
from torch import Tensor, nn

import unetkit
from tests.predict.test_predictor import trained
from unetkit.cli import cli
from unetkit.data.types import Target
from unetkit.errors import ExportError, FileError, OptionError, UnetkitError
from unetkit.exporter.check import CHECK_KEY
from unetkit.exporter.export import ExportReport, verify
from unetkit.exporter.formats import Onnx, OpenVino, TorchProgram
from unetkit.plugins import load_parts
from unetkit.predict.model_info import ModelInfo
from unetkit.tiling.requirements import find_tile_requirements, full_size
from unetkit.utils.file_digest import DIGEST_KEY, PLACEHOLDER, insert_digest

SMALL = "plain:widths=[4,8]"


def build(**words: Any) -> nn.Module:
    return unetkit.build(words.pop("encoder", SMALL), in_channels=2, classes=3, seed=0, **words)


def outputs(model: nn.Module, images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return full_size(model, torch.from_numpy(images)).numpy()


def images(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, ExportReport]:
    """A network that is resized inside and returns logits at a stride, with the report of its export."""
    model = build(encoder="plain:widths=[4,8,8]", decode_to=2, logits="none").train()
    return model, unetkit.export(model, tmp_path_factory.mktemp("exported") / "model.onnx")


@pytest.mark.slow
def test_a_file_computes_what_the_network_does_at_every_size(exported: tuple[nn.Module, ExportReport]) -> None:
    model, report = exported
    assert model.training  # it is left as it was
    assert report.difference < 1e-5
    assert [one.shape[0] for one in report.comparisons] == [1, 1, 1, 2]
    run = Onnx().open(report.path)
    model.eval()
    for shape in ((1, 2, 1, 1), (3, 2, 17, 40), (2, 2, 64, 32), (1, 2, 33, 1)):
        x = images(*shape)
        np.testing.assert_allclose(run(x), outputs(model, x), atol=1e-5)
    model.train()


@pytest.mark.slow
def test_the_metadata_say_all_that_a_program_must_know(exported: tuple[nn.Module, ExportReport]) -> None:
    model, report = exported
    metadata = Onnx().read_metadata(report.path)
    info = ModelInfo.from_metadata(metadata, "model.onnx")
    assert info.tiles == find_tile_requirements(model)
    assert (info.channels, info.output, len(info.target.names)) == (2, "logits", 3)
    assert json.loads(metadata["model_type"]) == "Segmentor"
    assert json.loads(metadata["class_names"])["2"] == "class 2"
    assert json.loads(metadata["standardization_mean"]) == [0, 0]
    assert 0 <= json.loads(metadata["tiles_overlap"]) < 100
    data = report.path.read_bytes()
    assert b"site-packages" not in data  # nothing of the machine on which it was written
    sides = [dim.dim_param for dim in onnx.load(report.path).graph.input[0].type.tensor_type.shape.dim]
    assert sides == ["batch", "", "height", "width"]


@pytest.mark.slow
def test_verification_detects_every_change(exported: tuple[nn.Module, ExportReport], tmp_path: Path) -> None:
    _, report = exported
    assert verify(report.path).is_intact
    data, copy = report.path.read_bytes(), tmp_path / "model.onnx"
    for at in (len(data) // 2, len(data) - 10):
        copy.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises((ExportError, FileError)):
            verify(copy)
    model = onnx.load(report.path)  # whoever edits the weights can compute the digest again, but not the outputs
    weights = next(one for one in model.graph.initializer if one.name.endswith("head.conv.weight"))
    weights.raw_data = (2 * numpy_helper.to_array(weights)).astype(np.float32).tobytes()
    for entry in model.metadata_props:
        if entry.key == DIGEST_KEY:
            entry.value = PLACEHOLDER
    onnx.save(model, copy)
    assert insert_digest([copy])
    with pytest.raises(ExportError, match=r"its outputs differ by .* of their range"):
        verify(copy)
    without_digest = onnx.load(report.path)
    for kept in (model, without_digest):
        for entry in [*kept.metadata_props]:
            if entry.key == DIGEST_KEY or (kept is model and entry.key.startswith("unetkit.")):
                kept.metadata_props.remove(entry)
    onnx.save(without_digest, copy)
    with pytest.raises(ExportError, match="was changed after it was exported"):
        verify(copy)
    onnx.save(model, copy)
    with pytest.raises(FileError, match=rf"not exported by unetkit.* {CHECK_KEY}"):
        verify(copy)


def test_what_differs_is_not_kept_and_what_was_there_stays(tmp_path: Path) -> None:
    path = tmp_path / "new" / "model.pt2"
    with pytest.raises(ExportError, match=r"was not kept: for .*, its outputs differ by"):
        unetkit.export(build(), path, half=True, tolerance=1e-9, fixed_size=8)
    assert list(path.parent.iterdir()) == []
    path.write_text("before")

    class Interrupted(TorchProgram):
        def write(self, captured: Any, path: Path, metadata: Any) -> None:
            path.write_text("half")
            raise KeyboardInterrupt

    parts = load_parts(isolated=True)
    parts.formats.add("interrupted", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        unetkit.export(build(), path, format="interrupted", parts=parts, fixed_size=8)
    assert [(file.name, file.read_text()) for file in path.parent.iterdir()] == [("model.pt2", "before")]


class Deep(nn.Module):
    """A head with two predictions in training, of which a file has the first."""

    def __init__(self, in_channels: int, classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, classes, 1)

    def forward(self, x: Tensor) -> Any:
        return (self.conv(x), self.conv(x[..., ::2, ::2])) if self.training else self.conv(x)


@pytest.mark.parametrize(
    "form", [TorchProgram, pytest.param(OpenVino, marks=pytest.mark.slow)], ids=["torch", "openvino"]
)
def test_other_formats_are_checked_and_verified_alike(form: Any, tmp_path: Path) -> None:
    model, path = build(up="transposed", fuse="add", head=Deep).train(), tmp_path / f"model{form.suffix}"
    report = unetkit.export(model, path)
    assert report.difference < 1e-5
    x = images(2, 2, 19, 33)
    np.testing.assert_allclose(form().open(path)(x), outputs(model.eval(), x), atol=1e-5)
    assert verify(path).is_intact
    assert ModelInfo.from_metadata(form().read_metadata(path), "model").tiles == find_tile_requirements(model)
    assert {file.suffix for file in tmp_path.iterdir()} == {form.suffix, *getattr(form, "companions", ())}
    last = sorted(tmp_path.iterdir())[0]
    data = bytearray(last.read_bytes())
    data[len(data) // 2] ^= 1
    last.write_bytes(data)
    with pytest.raises((ExportError, FileError)):
        verify(path)


@pytest.mark.slow
def test_half_precision_has_half_the_size_and_float32_outside(tmp_path: Path) -> None:
    model = build(encoder="plain:widths=[16,32]").eval()
    half = unetkit.export(model, tmp_path / "half.onnx", half=True)
    weights = sum(len(one.raw_data) for one in onnx.load(half.path).graph.initializer)
    assert weights < 0.6 * sum(one.numel() * 4 for one in model.parameters())
    assert half.difference < 1e-2
    assert not half.cost  # there is no run to measure it on
    assert verify(half.path).tolerance == half.tolerance
    assert Onnx().open(half.path)(images(1, 2, 16, 16)).dtype == np.float32


@pytest.mark.slow
def test_a_fixed_size_is_the_only_one_that_is_taken(tmp_path: Path) -> None:
    report = unetkit.export(build(), tmp_path / "model.onnx", fixed_size=(16, 24), probabilities=True)
    assert "16x24 only" in report.sizes
    run = Onnx().open(report.path)
    np.testing.assert_allclose(run(images(3, 2, 16, 24)).sum(1), 1, rtol=1e-5)
    with pytest.raises(Exception, match="invalid dimensions"):
        run(images(1, 2, 16, 16))
    info = ModelInfo.from_metadata(Onnx().read_metadata(report.path), "model.onnx")
    assert (info.tiles.fixed, info.output) == ((16, 24), "probabilities")


class Scaled(nn.Module):
    """A block whose output is scaled by a function that the tests choose."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1)

    function: Callable[[Tensor], Tensor]

    def forward(self, x: Tensor) -> Tensor:
        return type(self).function(self.conv(x))


class Bessel(Scaled):
    function = staticmethod(torch.special.bessel_j0)


class Branch(Scaled):
    @staticmethod
    def function(x: Tensor) -> Tensor:
        return x * 2 if float(x.mean()) > 0 else x


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (Bessel, r"^stages\.0\.block \(Bessel\) at stride 1 uses the operator \S*bessel_j0, which"),
        (Branch, r"^stages\.0\.block \(Branch\) at stride 1 cannot be exported: .*\.item\(\)"),
    ],
)
def test_a_refusal_names_the_part_and_the_operator(
    block: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ExportError, match=message):
        unetkit.export(build(block=block), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr() == ("", "")  # exporters print their graphs


def called(*words: object) -> Result:
    return CliRunner().invoke(cli, ["export", *map(str, words)])


@pytest.mark.slow
def test_the_command_takes_classes_and_statistics_of_a_run_along(tmp_path: Path) -> None:
    target = Target("binary", ("ground", "Zellkern, groß"), ((1, 2, 3), (4, 5, 6)))
    run = trained(tmp_path / "run", target, channels=3)
    (tmp_path / "run" / "log.jsonl").write_text('{"epoch": 1, "miou": 0.5, "best": true}\n{"epoch": 2, "miou": 0.4}\n')
    path = tmp_path / "model.pt2"
    result = called(run.folder, "--out", path, "--probabilities")
    assert result.exit_code == 0, result.output
    for text in ("any size", "the smallest size", "1x3x1x1", "2x3x256x256"):
        assert text in result.output
    found = called("--verify", path, "--json")
    assert json.loads(found.output)["is_intact"]
    metadata = TorchProgram().read_metadata(path)
    info = ModelInfo.from_metadata(metadata, "model.pt2")
    assert (info.target, info.mean, info.std) == (target, run.mean, run.std)
    assert json.loads(metadata["unetkit.training"])["miou"] == 0.5
    x = images(1, 3, 20, 20)
    expected = 1 / (1 + np.exp(-outputs(run.network(), x)))
    np.testing.assert_allclose(TorchProgram().open(path)(x), expected, atol=1e-6)


REFUSED = [
    ("", "--out is missing"),
    ("--out m.onnx", "no network to export"),
    ("nosuch --out m.onnx", "such as --encoder resnet34"),
    (f"--encoder {SMALL} --out m.foo", "no format has this ending"),
    (f"--encoder {SMALL} --out .", "is a folder"),
    (f"--encoder {SMALL} --out m.pt2 --format onnx", r"files that end in \.onnx"),
    (f"--encoder {SMALL} --out m.onnx --format onyx", "did you mean onnx"),
    (f"--encoder {SMALL} --out m.onnx --format onnx:opset=12", "at least 18"),
    (
        f"--encoder {SMALL} --out m.onnx --fixed-size 8 --format onnx:opset=99",
        "cannot write this network with opset 99",
    ),
    (f"--encoder {SMALL} --out m.onnx --tolerance 0", "must be above 0"),
    (f"--encoder {SMALL} --out m.onnx --fixed-size 2x", "must be a number or HEIGHTxWIDTH"),
    (f"text.safetensors --encoder {SMALL} --out m.onnx", "leave one of them out"),
    ("text.safetensors --out m.onnx", "is not a .safetensors file"),
    ("--verify nosuch.onnx", "no such file"),
    ("--verify text.onnx", "is not an ONNX model"),
    ("--verify text.pt2", r"is not a program of torch\.export"),
    ("--verify text.xml", r"needs text\.bin beside it"),
    (f"--encoder {SMALL} --fixed-size 8 --out text.pt2/m.onnx", "cannot be written"),
]


@pytest.mark.parametrize(("line", "message"), REFUSED, ids=[line for line, _ in REFUSED])
def test_bad_input_is_refused_in_one_line(
    line: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("text.safetensors", "text.onnx", "text.pt2", "text.xml"):
        Path(name).write_text("no network, whatever its name says")
    before = sorted(tmp_path.iterdir())
    result = called(*line.split())
    assert isinstance(result.exception, UnetkitError)
    assert re.search(message, str(result.exception)), result.exception
    assert sorted(tmp_path.iterdir()) == before


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ExportError, match=r"pip install 'unetkit\[onnx\]'"):
        unetkit.export(build(), tmp_path / "model.onnx", fixed_size=8)
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="has no weights"):
        unetkit.export(build(device="meta"), tmp_path / "model.onnx")
    with pytest.raises(OptionError, match="is a folder"):
        unetkit.export(build(), tmp_path)
