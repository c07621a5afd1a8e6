"""Networks as plain Python files: what the files compute without unetkit, how they read, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import unetkit
from tests.ejection.lines import draw_networks
from tests.ejection.without_unetkit import compute
from unetkit.cli import cli
from unetkit.ejection.code import WIDTH
from unetkit.errors import BuildError, FileError, OptionError, UnetkitError
from unetkit.summary.forward_hooks import find_network
from unetkit.summary.input_sizes import SizeSearch
from unetkit.utils.modules import to_meta

RECIPES = [entry.qualified_name for entry in unetkit.list_parts("recipes")]

PLUGIN = '''# Copyright 2026 A. Author
# SPDX-License-Identifier: MIT

import math

import torch
import unetkit
from torch import Tensor, nn
from unetkit.errors import OptionError
from unetkit.utils.formatting import Size

_EPSILON = 1e-6


def _normalize(x: Tensor) -> Tensor:
    return x / (x.norm(dim=1, keepdim=True) / math.sqrt(x.shape[1]) + _EPSILON)


class Scaled(nn.Module):
    """A block that scales.

    Raises:
        OptionError: the gain is not positive.
    """

    def __init__(self, in_channels: int, out_channels: int, *, gain: float = 1) -> None:
        if gain <= 0:
            raise OptionError("gain must be above 0")
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1)
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * _normalize(self.conv(x))


class Nearby(nn.Module):
    """An upsampler that reaches any size."""

    def __init__(self, channels: int, scale: float) -> None:
        super().__init__()
        self.out_channels = channels

    def forward(self, x: Tensor, size: Size) -> Tensor:
        return torch.nn.functional.adaptive_max_pool2d(x, size)


class Middle(nn.Module):
    """An alignment that crops both maps."""

    def target_size(self, scaled: Size, skip: Size) -> Size:
        return scaled

    def forward(self, x: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        height = min(x.shape[-2], skip.shape[-2])
        width = min(x.shape[-1], skip.shape[-1])
        return x[..., :height, :width], skip[..., :height, :width]


class Edges(nn.Module):
    """A head of two outputs."""

    def __init__(self, in_channels: int, classes: int) -> None:
        super().__init__()
        self.mask = nn.Conv2d(in_channels, classes, 1)
        self.boundary = nn.Conv2d(in_channels, 1, 1)
        self.outputs = {"boundary": unetkit.Output("boundary", loss="bce")}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"mask": self.mask(x), "boundary": self.boundary(x)}


class Foreign(nn.Module):
    """A block that needs another library."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        from timm.layers import ConvNormAct

        self.conv = ConvNormAct(in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


@unetkit.hookimpl
def unetkit_register(parts):
    parts.blocks.add("scaled", Scaled)
    parts.blocks.add("foreign", Foreign)
    parts.upsamplers.add("nearby", Nearby)
    parts.aligns.add("middle", Middle)
    parts.heads.add("edges", Edges)
'''

#: How many random lines are tried.
SAMPLE = 10

#: Every recipe with few channels, and networks that a random line seldom gives.
CHOSEN = (
    "--recipe unet-2015 --encoder plain:widths=[4,8,16],norm=none,padding=0 --size 60",
    "--recipe unet-same --encoder plain:widths=[4,8,16],bias=true",
    "--recipe unet-bilinear --encoder plain:widths=[4,8,16],bias=true --widths 8,4",
    "--recipe unet-relu-bn --encoder plain:widths=[4,8,16],order=conv-act-norm,padding=0 --size 60",
    "--recipe vgg16-unet --encoder timm/vgg11:levels=5 --widths 8,8,4,4",
    "--recipe resnet34-unet --encoder timm/resnet34:channels=[8,8,16,16],layers=[1,1,1,1] --widths 8,8,8,4,4",
    "--recipe resnet101-unet --encoder timm/resnet101:channels=[8,8,16,16],layers=[1,1,1,1]",
    "--recipe unet-plus-plus --encoder nested:of='plain:widths=[4,8,16]'",
    "--encoder test_vit --size 70x90 --up transposed --head deep-supervision --widths 16,16,8,8,8",
    "--encoder vit_tiny_patch16_224:img_size=64,depth=2,embed_dim=24,num_heads=2,dynamic_img_size=false "
    "--fuse add --widths 24,16,8,8,8",
    "--encoder swin_tiny_patch4_window7_224:depths=[1,1],embed_dim=24,num_heads=[2,2] --decode-to 2 --logits none",
    "--encoder test_convnext --up transposed/pixelshuffle/carafe:compressed=4/dysample/transposed",
    "--encoder smp/resnet18:output_stride=16,levels=3",
    "--encoder plain:widths=[4,8] --block scaled:gain=2 --up nearby --align middle",
    "--encoder test_vit --head edges --widths 16,16,8,8 --decode-to 2",
)


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plugin") / "mine.py"
    path.write_text(PLUGIN)
    return path


@pytest.fixture(scope="module")
def ejected(tmp_path_factory: pytest.TempPathFactory, plugin: Path) -> dict[str, tuple[str, dict[str, str]]]:
    """Eject networks into a folder, and return what each computes, by the name of its file."""
    folder = tmp_path_factory.mktemp("ejected")
    parts = unetkit.load_parts([str(plugin)])
    chosen = ((line, unetkit.build(line, seed=0, parts=parts)) for line in CHOSEN)
    sample = draw_networks(Random(17))
    networks = [*chosen, *(next(sample) for _ in range(SAMPLE))]
    return {
        f"net{index}": (line, eject_and_run(network, folder / f"net{index}.py", parts))
        for index, (line, network) in enumerate(networks)
    } | {"": (str(folder), {})}


def eject_and_run(network: Any, path: Path, parts: Any = None) -> dict[str, str]:
    unetkit.eject(network, path, parts=parts)
    unetkit.save(network, path.with_suffix(".safetensors"))
    inner = find_network(network)
    side = (SizeSearch(to_meta(network).eval()).smallest if inner.valid else None) or max(32, inner.min_size)
    size = inner.size or (side + 2, side + 7)
    x = torch.rand(2, inner.resolved_plan.in_channels, *size, generator=torch.Generator().manual_seed(0))
    torch.save(x, path.with_suffix(".pt"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return compute(network, x)
    finally:
        torch.set_num_threads(threads)


def run_without_unetkit(folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield what each file of a folder computes in a process that cannot import unetkit."""
    command = [sys.executable, str(Path(__file__).with_name("without_unetkit.py")), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=500)
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        found = json.loads(line)
        yield found["name"], found["found"]


@pytest.mark.slow
def test_files_compute_the_same_without_unetkit(ejected: dict[str, tuple[str, dict[str, str]]]) -> None:
    folder = Path(ejected[""][0])
    found = dict(run_without_unetkit(folder))
    assert len(found) == len(CHOSEN) + SAMPLE
    for name, computed in found.items():
        line, expected = ejected[name]
        assert computed.keys() == expected.keys(), line
        assert [key for key in expected if computed[key] != expected[key]] == [], line


@pytest.mark.slow
def test_files_are_formatted(ejected: dict[str, tuple[str, dict[str, str]]]) -> None:
    folder = Path(ejected[""][0])
    files = [str(path) for path in folder.glob("*.py")]
    assert len(files) == len(CHOSEN) + SAMPLE
    for words in (["format", "--check"], ["format", "--check", "--line-length", "120"], ["check"]):
        done = subprocess.run(["ruff", words[0], "--isolated", *words[1:], *files], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_is_written(recipe: str, tmp_path: Path) -> None:
    assert any(f"--recipe {recipe} " in line for line in CHOSEN)  # what it computes is compared there
    network = unetkit.build(recipe=recipe, device="meta")
    unetkit.eject(network, tmp_path / "net.py")  # compares names and shapes
    lines = (tmp_path / "net.py").read_text().splitlines()
    assert len(lines) < 200
    assert all(len(line) <= WIDTH for line in lines[10:])


def write(line: str, folder: Path) -> str:
    unetkit.eject(unetkit.build(line, device="meta"), folder / "net.py")
    return (folder / "net.py").read_text()


def test_a_file_has_no_code_for_what_never_happens(tmp_path: Path) -> None:
    text = write("--encoder resnet34", tmp_path)
    assert len(text.splitlines()) < 150
    assert text.count("F.interpolate(") == 2  # with a skip and without
    assert text.count("class ") == 6
    for word in ("F.pad", "import unetkit", "crop", "Identity", "getattr"):
        assert word not in text
    for comment in ("# stages.0: 256 x 16 x 16", "encoder.4  512 x 8 x 8"):
        assert comment in text
    valid = write("--recipe unet-2015", tmp_path)
    assert "F.interpolate" not in valid
    assert "timm" not in valid
    padded = write("--encoder test_vit --decode-to 4", tmp_path)
    assert "-height % 32" in padded
    assert "if x.shape" not in padded


def test_a_network_starts_from_the_same_distribution(tmp_path: Path) -> None:
    line = "--encoder plain:widths=[4,8] --up transposed:init=bilinear --fuse attention-gate"
    ejected: dict[str, Any] = {}
    exec(write(line, tmp_path), ejected)
    ours, theirs = unetkit.build(line).state_dict(), ejected["build"]().state_dict()
    for name in ("stages.0.up.weight", "stages.0.up.bias", "stages.0.fusion.psi.0.bias"):
        assert torch.equal(ours[name], theirs[name])


@pytest.mark.slow
def test_an_image_that_is_too_small_or_too_large_is_refused(tmp_path: Path) -> None:
    small, fixed = dict[str, Any](), dict[str, Any]()
    exec(write("--encoder test_resnet", tmp_path), small)
    with pytest.raises(ValueError, match="at least 32"):
        small["build"]()(torch.rand(1, 3, 31, 40))
    exec(write("--encoder crossvit_9_240:img_size=240", tmp_path), fixed)
    with pytest.raises(ValueError, match="not 250x240"):
        fixed["build"]()(torch.rand(1, 3, 250, 240))


def test_source_of_a_plugin_keeps_its_licence(plugin: Path, tmp_path: Path) -> None:
    parts = unetkit.load_parts([str(plugin)])
    unetkit.eject("--encoder plain:widths=[4,8] --block scaled", tmp_path / "net.py", parts=parts)
    text = (tmp_path / "net.py").read_text()
    assert "Copyright 2026 A. Author" in text
    assert "SPDX-License-Identifier: MIT" in text
    assert "import math" in text
    assert "gain must be above 0" not in text  # the options of this network are right
    assert "OptionError" not in text
    installed = write("--encoder plain:widths=[4,8] --block double+scse", tmp_path)
    assert "unetkit-block-attention 0.1.0, Apache-2.0" in installed


class Local(nn.Identity):
    """A block that is given as a class."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1)
        self.settings = unetkit.Plan()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.conv(x)
        return out


def make_linear(in_channels: int, out_channels: int) -> nn.Module:
    return nn.Linear(in_channels, out_channels)


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (
            {"model": "smp/unet", "encoder": "smp/resnet18", "classes": 3},
            BuildError,
            r'Unet\("resnet18", .*classes=3\)',
        ),
        ({"model": "smp/unet", "encoder": "timm/resnet18"}, BuildError, r'Unet\("tu-resnet18"'),
        ({"encoder": "plain:widths=[4,8]", "block": "foreign"}, BuildError, r"Foreign.*mine\.py uses .*timm\.layers"),
        ({"encoder": "plain:widths=[4,8]", "block": Local}, BuildError, r"Local.*test_eject\.py uses unetkit"),
    ],
)
def test_what_cannot_be_written_is_refused(
    words: dict[str, Any], error: type[UnetkitError], message: str, plugin: Path, tmp_path: Path
) -> None:
    parts = unetkit.load_parts([str(plugin)])
    network = unetkit.build(**words, parts=parts, device="meta")
    with pytest.raises(error, match=message):
        unetkit.eject(network, tmp_path / "net.py", parts=parts)
    assert not (tmp_path / "net.py").exists()


def test_only_a_network_as_it_was_built_is_written(tmp_path: Path) -> None:
    network = unetkit.build("plain:widths=[4,8]")
    network.head.conv = nn.Conv2d(4, 3, 1)
    with pytest.raises(FileError, match=r"out_channels=3, and the plan builds 2"):
        unetkit.eject(network, tmp_path / "net.py")
    with pytest.raises(FileError, match="a Linear has no plan"):
        unetkit.eject(nn.Linear(2, 2), tmp_path / "net.py")
    with pytest.raises(OptionError, match="is not a model"):
        unetkit.eject(3, tmp_path / "net.py")
    with pytest.raises(OptionError, match="--pretrained"):
        unetkit.eject("--encoder resnet18 --pretrained", tmp_path / "net.py")
    assert list(tmp_path.iterdir()) == []


def test_a_model_is_left_as_it_was(tmp_path: Path) -> None:
    network = unetkit.build("plain:widths=[4,8]", seed=0)
    network.encoder.eval()
    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state = torch.random.get_rng_state()
    unetkit.eject(network, tmp_path / "net.py")
    assert network.training
    assert not network.encoder.training
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in network.state_dict().items())


def test_the_command_takes_options_a_file_or_a_run(tmp_path: Path) -> None:
    out, saved = tmp_path / "net.py", tmp_path / "a.safetensors"
    unetkit.save(unetkit.build("plain:widths=[4,8]", classes=3), saved)
    out.write_text("replaced")

    def run(*words: str) -> str:
        result = CliRunner().invoke(cli, ["eject", *words])
        return result.output if result.exit_code == 0 else f"refused: {result.exception or result.output}"

    assert "build() returns the network" in run("--encoder", "plain:widths=[4,8]", "--out", str(out))
    assert "class UNet" in out.read_text()
    assert f'load("{saved}") returns the network' in run(str(saved), "--out", str(out))
    assert f'load("{saved}").eval()' in out.read_text()
    for words, message in {
        (str(saved), "--classes", "2", "--out", str(out)): "--classes describes a model",
        ("--out", str(out)): "nothing says what the network is",
        (str(saved), "--out", str(tmp_path / "net.txt")): "ends in .py",
        (str(out), "--out", str(tmp_path / "b.py")): "is not a .safetensors file",
        (str(tmp_path), "--out", str(tmp_path / "b.py")): "is not a training run",
        ("--encoder", "resnet18", "--fuse", "ad", "--out", str(out)): "did you mean add",
    }.items():
        assert message in run(*words), words
