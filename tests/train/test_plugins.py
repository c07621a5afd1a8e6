"""A plugin of one file that brings a loss, an augmentation, a dataset, an optimizer and a metric to a run."""

from __future__ import annotations

import json
import re
import sys
from bdb import BdbQuit
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import unetkit
from unetkit import bench, train
from unetkit.cli import cli
from unetkit.errors import OptionError, PluginError, UnknownNameError
from unetkit.testing import check_plugin
from unetkit.train.checkpoint import read_run
from unetkit.train.trainer import TrainCallback

PLUGIN = '''
from functools import partial

import torch
import unetkit
from unetkit.data.synthetic_cells import cells
from unetkit.train.losses import LossTerm, mean_per_image, nll
from unetkit.train.optim import OptimizerConfig


class Power(LossTerm):
    """A power of the negative log-likelihood.

    Args:
        power: exponent.
    """

    def __init__(self, target, activation, *, power: float = 1.0, share: float = 1.0) -> None:
        super().__init__(target, activation, share=share)
        self.power = power

    def __call__(self, logits, masks, borders):
        return mean_per_image(nll(logits, masks, self.activation) ** self.power, masks)


class Dim:
    """Darker images."""

    def __call__(self, pixels, draw):
        return pixels._replace(image=pixels.image * float(torch.rand((), generator=draw)))


def few_cells(*, count: int = 4):
    """A few small images.

    Args:
        count: training images.
    """
    return cells(count=count, val=2, test=1, size=32)


def rms(*, alpha: float = 0.9) -> OptimizerConfig:
    """RMSprop.

    Args:
        alpha: share of the mean of squares that is kept.
    """
    return OptimizerConfig(partial(torch.optim.RMSprop, alpha=alpha))


def convolutions(bench_model):
    """Convolutions of the network."""
    return sum(isinstance(module, torch.nn.Conv2d) for module in bench_model.model.modules())


@unetkit.hookimpl
def unetkit_register(parts):
    parts.losses.add("power", Power)
    parts.augmentations.add("dim", Dim)
    parts.datasets.add("few", few_cells)
    parts.optimizers.add("rms", rms)
    parts.metrics.add("convolutions", convolutions)
'''
LINE = "--encoder plain:widths=[4,8] --seed 0"
WORDS: dict[str, Any] = {
    "data": "few:count=3",
    "loss": "power:power=1.5+dice",
    "augment": "dim,hflip",
    "optimizer": "rms:alpha=0.8",
}


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plugin") / "mine.py"
    path.write_text(PLUGIN)
    return path


@pytest.fixture(scope="module")
def run(plugin: Path, tmp_path_factory: pytest.TempPathFactory) -> train.TrainRun:
    folder = tmp_path_factory.mktemp("runs") / "a"
    return train.run(LINE, folder, plugins=[str(plugin)], epochs=2, batch_size=2, **WORDS)


def command(*words: Any) -> str:
    done = CliRunner().invoke(cli, [*map(str, words)])
    assert done.exit_code == 0, done.exception
    return done.output


def test_a_run_uses_and_records_it(run: train.TrainRun) -> None:
    config = run.config
    assert (config.loss, config.augment, config.optimizer) == ("power:power=1.5+dice", "dim,hflip", "rms:alpha=0.8")
    assert config.data == "few:count=3"
    assert read_run(run.folder).owners == run.owners == {"mine": ""}
    assert json.loads((run.folder / "run.json").read_text())["owners"] == {"mine": ""}
    first = torch.load(run.folder / "state.pt", weights_only=True)["optimizer"]["state"][0]
    assert "square_avg" in first


def test_it_is_evaluated_and_resumed_with_the_plugin(run: train.TrainRun, tmp_path: Path) -> None:
    scores = json.loads(command("eval", run.folder, "--json"))
    assert (scores["split"], scores["images"], scores["data"]) == ("test", 1, "few:count=3")
    assert train.resume(run.folder).folder == run.folder  # it is finished, so nothing changes
    shared = PLUGIN.replace("    parts.metrics", "    # parts.metrics")  # metrics alone cannot share their names
    (other := tmp_path / "other.py").write_text(shared)
    scores = json.loads(command("--plugin", other, "eval", run.folder, "--json"))
    assert scores["data"] == "few:count=3"
    without = replace(run, folder=tmp_path, plugins=())
    without.write()
    with pytest.raises(PluginError, match=rf"{re.escape(str(tmp_path))} was trained with plugin mine"):
        train.resume(tmp_path)
    with pytest.raises(PluginError, match=r"without \.py: .*other\.py is plugin other"):
        without.prefer_plugins(unetkit.load_parts([other]))


def test_the_commands_know_its_names(plugin: Path, tmp_path: Path) -> None:
    for kind, name in {
        "losses": "power",
        "augment": "dim",
        "data": "few",
        "optimizer": "rms",
        "metric": "convolu",
    }.items():
        assert name in command("--plugin", plugin, "list", kind)
    assert "count" in command("--plugin", plugin, "list", "data", "few")
    assert "no problems" in command("--plugin", plugin, "data", "check", "few:count=2")
    command("--plugin", plugin, "data", "write", "few:count=2", "--out", tmp_path / "few")
    assert len([*(tmp_path / "few").rglob("images/*")]) == 5


@pytest.mark.slow
def test_it_is_benched(plugin: Path) -> None:
    [row] = bench.run([LINE], metrics=["convolutions"], plugins=[str(plugin)], size=[32], threads=1)
    assert row.values == {
        "convolutions": sum(isinstance(m, torch.nn.Conv2d) for m in unetkit.build("plain:widths=[4,8]").modules())
    }


@pytest.mark.slow
def test_it_conforms(plugin: Path) -> None:
    results = check_plugin(plugin)
    assert [str(r) for r in results if r.outcome == "failed"] == []
    assert {r.part for r in results} == {
        *("plugin", "loss power", "augmentation dim", "dataset few", "optimizer rms", "metric convolutions")
    }


REFUSED = [
    ({"loss": "powr"}, UnknownNameError, r"--loss powr: .*did you mean power"),
    ({"loss": "power:exponent=2"}, OptionError, "'exponent'; it has power, share"),
    ({"optimizer": "rms:alpha=x"}, OptionError, "--optimizer rms:alpha=x: "),
    ({"augment": "dim:by=2"}, OptionError, "dim has no options, so 'by' is not one"),
    ({"data": "few:count=0"}, OptionError, "cells: count must be at least 1; got 0"),
    ({"data": "fewe:count=1"}, UnknownNameError, "'fewe' .did you mean few"),
    ({"optimizer": "sgd:nesterov=true,momentum=0"}, OptionError, "nesterov needs a momentum above 0"),
    (
        {"optimizer": "sgd:momentum=1"},
        OptionError,
        "--optimizer sgd:momentum=1: ",
    ),
]


@pytest.mark.parametrize(("words", "kind", "message"), REFUSED, ids=[str(words) for words, _, _ in REFUSED])
def test_what_is_wrong_is_refused(
    plugin: Path, tmp_path: Path, words: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        train.run(LINE, tmp_path / "a", plugins=[str(plugin)], epochs=1, **{**WORDS, **words})
    assert not (tmp_path / "a").exists()


def test_sgd_trains_with_momentum(tmp_path: Path) -> None:
    run = train.run(
        LINE, tmp_path / "a", data="cells:count=2,val=1,test=0,size=32", optimizer="sgd:momentum=0.99", epochs=1, lr=0.1
    )
    assert run.config.optimizer == "sgd:momentum=0.99"
    state = torch.load(run.folder / "state.pt", weights_only=True)["optimizer"]
    assert "momentum_buffer" in state["state"][0]
    assert {group["momentum"] for group in state["param_groups"]} == {0.99}


WRONG = '''
import torch
import unetkit
from dataclasses import replace
from unetkit.data.augment import SampleTensors
from unetkit.data.synthetic_cells import cells
from unetkit.data.types import Sample
from unetkit.train.losses import LossTerm
from unetkit.train.optim import OptimizerConfig


class Scalar(LossTerm):
    """One value for the batch."""

    def __call__(self, logits, masks, borders):
        return logits.mean()


class Fails(LossTerm):
    """A mistake in its code."""

    def __call__(self, logits, masks, borders):
        return logits.reshape(3, 7)


class Halves:
    """An image of half the size."""

    def __call__(self, pixels, draw):
        return pixels._replace(image=pixels.image[:, ::2, ::2])


class Root:
    """The root of all values, some of which are below 0."""

    def __call__(self, pixels, draw):
        return pixels._replace(image=pixels.image**0.5)


class Bytes:
    """Masks of 0 and 255."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        name, image, mask, _ = self.images[index]
        return Sample(name, image, mask * 255)


def few():
    return cells(count=2, val=1, test=1, size=32)


def no_val():
    """No validation images."""
    return replace(few(), splits={"train": few().splits["train"], "validation": few().splits["val"]})


def bytes_():
    """Masks of 0 and 255."""
    return replace(few(), splits={name: Bytes(images) for name, images in few().splits.items()})


def three() -> OptimizerConfig:
    """No optimizer."""
    return OptimizerConfig(lambda groups: 3)


@unetkit.hookimpl
def unetkit_register(parts):
    parts.losses.add("scalar", Scalar)
    parts.losses.add("fails", Fails)
    parts.augmentations.add("halves", Halves)
    parts.augmentations.add("root", Root)
    parts.datasets.add("no-val", no_val)
    parts.datasets.add("bytes", bytes_)
    parts.optimizers.add("three", three)
'''


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"loss": "scalar"}, r"--loss scalar \(of wrong\) .* no dimensions; "),
        ({"loss": "bce+fails"}, r"--loss fails \(of wrong\) .*RuntimeError: shape"),
        ({"augment": "halves"}, r"--augment halves \(of wrong\): .*int64 of 32x32"),
        ({"augment": "root"}, r"--augment root \(of wrong\): .*not finite"),
        ({"data": "no-val"}, r"--data no-val \(of wrong\): .*'val'; .*train, validation\)"),
        ({"data": "bytes"}, r"first image of train: .* 0 to 255"),
        ({"optimizer": "three"}, r"--optimizer three: `create` returns an int"),
    ],
)
def test_what_is_wrong_in_a_plugin_ends_a_run_with_one_line(
    config: dict[str, str], message: str, tmp_path: Path
) -> None:
    (tmp_path / "wrong.py").write_text(WRONG)
    parts = unetkit.load_parts([tmp_path / "wrong.py"], isolated=True)
    given: dict[str, Any] = {"data": "cells:count=2,val=1,test=1,size=32", **config}
    with pytest.raises(PluginError, match=message) as refusal:
        train.run("--encoder plain:widths=[4,8]", tmp_path / "run", parts=parts, device="cpu", **given)
    assert len(str(refusal.value).splitlines()) == 1


def test_a_run_that_goes_on_with_another_code_of_a_plugin_says_so(tmp_path: Path) -> None:
    class Notes(TrainCallback):
        def on_step_end(self, done: int, loss: float) -> None:
            raise KeyboardInterrupt

        def on_note(self, note: str) -> None:
            notes.append(note)

    notes: list[str] = []
    file = tmp_path / "mine.py"
    file.write_text(PLUGIN)
    given: dict[str, Any] = {"data": "cells:count=2,val=1,test=1,size=32", "device": "cpu", "callback": Notes()}
    with pytest.raises(KeyboardInterrupt):
        train.run("--encoder plain:widths=[4,8]", tmp_path / "run", plugins=[str(file)], loss="power", **given)
    assert [*read_run(tmp_path / "run").code] == ["mine"]
    for edited in (False, True):
        if edited:
            file.write_text(f"{PLUGIN}# edited\n")
        with pytest.raises(KeyboardInterrupt):
            train.resume(tmp_path / "run", callback=Notes())
        assert [note for note in notes if "mine" in note] == notes
        assert len(notes) == edited


def test_a_runs_folder_has_the_whole_path_of_a_plugins_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(PLUGIN)
    monkeypatch.chdir(tmp_path)
    given: dict[str, Any] = {"data": "cells:count=2,val=1,test=1,size=32", "epochs": 1, "device": "cpu"}
    train.run("--encoder plain:widths=[4,8]", tmp_path / "run", plugins=["mine.py"], **given)
    assert read_run(tmp_path / "run").plugins == (str(tmp_path / "mine.py"),)


STOPS = """
import unetkit
from torch import nn

class Stops(nn.Conv2d):
    'A convolution with a breakpoint.'

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)

    def forward(self, x):
        breakpoint()
        return super().forward(x)

@unetkit.hookimpl
def unetkit_register(parts):
    parts.blocks.add("stops", Stops)
"""


def test_a_breakpoint_stops_in_the_training_and_not_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stops.py").write_text(STOPS)
    parts = unetkit.load_parts([tmp_path / "stops.py"], isolated=True)
    devices: list[str] = []

    def stop() -> None:
        devices.append(sys._getframe(1).f_locals["x"].device.type)
        if len(devices) == 3:
            raise BdbQuit

    monkeypatch.setattr(sys, "breakpointhook", stop)
    given: dict[str, Any] = {"data": "cells:count=2,val=1,test=0,size=32", "epochs": 2, "device": "cpu"}
    with pytest.raises(BdbQuit):
        train.run("--encoder plain:widths=[4,8] --block stops", tmp_path / "run", parts=parts, **given)
    assert devices == ["cpu"] * 3
    assert sys.breakpointhook is stop
    devices.clear()
    with pytest.raises(BdbQuit):  # a build has no training that could stop instead
        unetkit.build("plain:widths=[4,8]", block="stops+stops+stops", parts=parts, size=32)
    assert devices == ["meta"] * 3
