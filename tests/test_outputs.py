"""Networks with several outputs: what they return, what is refused, and how they are trained, scored and used."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from torch import Tensor, nn

import unetkit
from tests.train.example_sets import squares
from unetkit import Output, train
from unetkit.cli import cli
from unetkit.data.targets import Boundary
from unetkit.data.types import Target
from unetkit.errors import UnetkitError
from unetkit.network import prediction_of
from unetkit.summary.sanity_check import run_sanity_check
from unetkit.tiling.sliding_window import tiled
from unetkit.train.checkpoint import LOG, read_run
from unetkit.train.dataloader import Batch
from unetkit.train.losses import make_loss
from unetkit.train.outputs import OutputLoss, OutputTarget, find_target_mistake
from unetkit.train.step import loss_of
from unetkit.train.trainer import TrainCallback

SMALL = "plain:widths=[4,8],norm=none"
BINARY = Target("binary", ("background", "square"))
PARTS = unetkit.load_parts(isolated=True)


class Edges(nn.Module):
    """A head of two outputs, of which the prediction is not the first."""

    def __init__(self, in_channels: int, classes: int) -> None:
        super().__init__()
        self.mask = nn.Conv2d(in_channels, classes, 1)
        self.boundary = nn.Conv2d(in_channels, 1, 1)
        self.outputs: Any = {"boundary": Output("boundary:width=2", "bce", weight=0.5)}

    def forward(self, x: Tensor) -> Any:
        return {"boundary": self.boundary(x), "mask": self.mask(x)}


def build(head: Any = Edges, **words: Any) -> Any:
    return unetkit.build(SMALL, head=head, parts=PARTS, **{"seed": 0, "block": "double:norm=none", **words})


DEEP = "plain:widths=[4,8,16],norm=none"


@pytest.mark.parametrize(
    ("words", "size", "expected"),
    [
        ({}, (16, 24), (16, 24)),
        ({"encoder": DEEP}, (9, 17), (9, 17)),
        ({"encoder": DEEP, "decode_to": 2}, (3, 18), (3, 18)),  # padded and cropped
        ({"encoder": DEEP, "decode_to": 2, "logits": "none"}, (13, 18), (6, 9)),
        ({"encoder": DEEP, "decode_to": 2, "logits": "transposed:channels=keep"}, (16, 24), (16, 24)),
        ({"encoder": "plain:widths=[4,8],padding=0", "align": "crop"}, (32, 40), (20, 28)),
    ],
)
def test_in_training_it_returns_all_outputs_and_in_eval_the_prediction(
    words: dict[str, Any], size: tuple[int, int], expected: tuple[int, int]
) -> None:
    model: Any = unetkit.build(**{"encoder": SMALL, **words}, head=Edges, classes=3, parts=PARTS, seed=0)
    x = torch.randn(2, 3, *size)
    trained: Any = model(x)
    assert {name: tuple(out.shape) for name, out in trained.items()} == {
        "mask": (2, 3, *expected),
        "boundary": (2, 1, *expected),
    }
    assert [*trained] == ["mask", "boundary"]
    model.eval()
    with torch.no_grad():
        prediction, named = model(x), model.forward_outputs(x)
        assert torch.equal(prediction, named["mask"])
        assert torch.equal(prediction, model.forward_features(x)[0])
    assert [*named] == ["mask", "boundary"]


def test_without_names_there_is_one_output() -> None:
    model = build("conv").eval()
    x = torch.randn(1, 3, 8, 8)
    named = model.forward_outputs(x)
    assert [*named] == ["mask"]
    assert torch.equal(named["mask"], model(x))
    assert model.outputs == {}


def test_the_first_output_is_the_prediction_if_none_is_called_mask() -> None:
    class First(Edges):
        """The prediction has a name of its own."""

        def forward(self, x: Tensor) -> Any:
            return {"cells": self.mask(x), "boundary": self.boundary(x)}

    model = build(First)
    x = torch.randn(1, 3, 8, 8)
    assert torch.equal(prediction_of(model(x)), model(x)["cells"])
    assert model.eval()(x).shape == (1, 2, 8, 8)


class TwoMaps(nn.Module):
    """A whole model of two outputs, of which one has half the size."""

    outputs = {"center": Output("center")}
    multiple = 4

    def __init__(self, in_channels: int, classes: int) -> None:
        super().__init__()
        self.mask, self.center = nn.Conv2d(in_channels, classes, 1), nn.Conv2d(in_channels, 1, 1)

    def forward(self, x: Tensor) -> Any:
        return {"mask": self.mask(x), "center": self.center(x[..., ::2, ::2])}


def test_a_whole_model_has_named_outputs_too() -> None:
    model = unetkit.build(model=TwoMaps, parts=PARTS)
    x = torch.randn(1, 3, 9, 10)
    assert {name: tuple(out.shape) for name, out in model(x).items()} == {
        "mask": (1, 2, 9, 10),
        "center": (1, 1, 9, 10),
    }
    assert model.eval()(x).shape == (1, 2, 9, 10)
    [center] = unetkit.trace(model, 32).outputs
    assert (center.name, center.channels, center.height, center.width, center.target) == ("center", 1, 32, 32, "center")


def test_trace_check_and_tiles_take_it() -> None:
    model = build()
    traced = unetkit.trace(model, 32)
    [boundary] = traced.outputs
    assert (boundary.name, boundary.channels, boundary.target, boundary.weight) == (
        "boundary",
        1,
        "boundary:width=2",
        0.5,
    )
    assert "boundary:width=2" in str(traced)
    assert traced.to_dict()["outputs"][0]["loss"] == "bce"
    assert traced.rows[-1].channels == 2
    assert run_sanity_check(model, 16).passed
    image = torch.randn(3, 40, 48)
    torch.testing.assert_close(tiled(model, image), model.eval()(image[None])[0], atol=1e-5, rtol=0)


@pytest.mark.slow
def test_copies_compiles_and_exports() -> None:
    model = build()
    x = torch.randn(2, 3, 16, 24)
    compiled: Any = torch.compile(model, fullgraph=True, backend="eager")
    for ours, theirs in zip(compiled(x).values(), copy.deepcopy(model)(x).values(), strict=True):
        torch.testing.assert_close(ours, theirs)
    model.eval()
    exported = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(exported(x), model(x))


def head_with(declared: Any, returned: Any = None) -> Any:
    """A class of heads with these declared outputs; what it returns is a function of itself and its map."""

    class Odd(Edges):
        def __init__(self, in_channels: int, classes: int) -> None:
            super().__init__(in_channels, classes)
            self.outputs = declared

        def forward(self, x: Tensor) -> Any:
            return returned(self, x) if returned else super().forward(x)

    return Odd


def pair_in_training(head: Any, x: Tensor) -> Any:
    return (head.mask(x), head.boundary(x)) if head.training else head.mask(x)


OUTPUT = Output("boundary", "bce")
REFUSED = [
    (head_with({}), "output 'boundary' .* declares no target and loss"),
    (head_with({"edge": OUTPUT}), "output 'boundary' beside its prediction 'mask'"),
    (head_with({"boundary": OUTPUT, "edge": OUTPUT}), "declares the output 'edge', but returns only"),
    (head_with({"mask": OUTPUT}), "output 'mask', which is the prediction"),
    (head_with({"boundary": "bce"}), "expected a dict such as"),
    (head_with({"boundary": OUTPUT}, lambda head, x: head.mask(x)), "'boundary', but returns a Te"),
    (head_with({}, lambda head, x: {}), "gives no tensor"),
    (head_with({}, lambda head, x: {"mask": head.mask(x), "n": 3}), "not all of which are tensors"),
    (head_with({}, lambda head, x: (head.mask(x), head.mask(x))), "2 tensors"),
    (head_with({}, pair_in_training), r"2 outputs with 2, 1 channels .*a dict by name"),
    (head_with({"boundary": Output("edges")}), "output 'boundary': target edges: "),
    (
        head_with({"boundary": Output("boundary:wide=1")}),
        "output 'boundary': target boundary:wide=1: ",
    ),
    (head_with({"boundary": Output("boundary", "hinge")}), "output 'boundary': loss hinge: "),
    (head_with({"boundary": Output("boundary", "l1")}), "loss l1: compares numbers, "),
    (head_with({"boundary": Output("distance", "bce")}), "loss bce: compares classes, "),
    (head_with({"boundary": Output("boundary", "border")}), "border weights "),
    (head_with({"boundary": Output("boundary", weight=0)}), "for 'boundary'; expected .* above 0"),
    (head_with({"boundary": Output(Boundary)}), "for 'boundary'; expected .* as texts"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("head", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_does_not_fit_is_refused_at_the_door_with_the_heads_file(head: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UnetkitError, match=message) as refusal:
        train.run(
            unetkit.Plan.of(encoder=SMALL, head=head, classes=2),
            tmp_path / "run",
            data=squares(4),
            parts=PARTS,
            epochs=1,
        )
    assert not (tmp_path / "run").exists()
    assert "\n" not in str(refusal.value)
    if "tensor" not in message:
        assert Path(__file__).name in str(refusal.value)


def test_channels_must_be_those_of_the_target(tmp_path: Path) -> None:
    class Three(Edges):
        """Three channels for a boundary."""

        def __init__(self, in_channels: int, classes: int) -> None:
            super().__init__(in_channels, classes)
            self.boundary = nn.Conv2d(in_channels, 3, 1)

    plan = unetkit.Plan.of(encoder=SMALL, head=Three)
    with pytest.raises(UnetkitError, match=r"3 channels.* boundary:width=2 needs 1 or 2"):
        train.run(plan, tmp_path / "run", data=squares(4), parts=PARTS, epochs=1)
    (wrong,) = unetkit.trace(unetkit.build(plan, device="meta"), 16).outputs
    assert find_target_mistake([wrong], 1, PARTS).startswith("output 'boundary': it has 3 channels")
    assert find_target_mistake([replace(wrong, channels=1)], 4, PARTS) == ""
    assert "no target is called 'boundry'" in find_target_mistake([replace(wrong, target="boundry")], 1, PARTS)


def test_the_loss_is_the_weighted_sum_of_all_outputs() -> None:
    model, masks = build(classes=1), torch.randint(0, 2, (2, 16, 16))
    outputs = model(torch.randn(2, 3, 16, 16))
    target = OutputTarget("boundary:width=2", BINARY, PARTS)
    maps = torch.stack([Boundary(BINARY, width=2)(mask) for mask in masks])
    others = {"boundary": OutputLoss(target, make_loss("bce", target.maps, 1, PARTS), 0.5)}
    batch = Batch(["a", "b"], torch.empty(0), masks, None, {"boundary": maps})
    loss = make_loss("bce", BINARY, 1, PARTS)
    total, by_output = loss_of(outputs, batch, loss, model, others)
    expected = {
        name: F.binary_cross_entropy_with_logits(outputs[name][:, 0], truth.float(), reduction="none").mean((1, 2))
        for name, truth in (("mask", masks), ("boundary", maps))
    }
    assert [*by_output] == ["mask", "boundary"]
    for name, value in expected.items():
        torch.testing.assert_close(by_output[name], value)
    torch.testing.assert_close(total, expected["mask"] + 0.5 * expected["boundary"])


def test_further_predictions_in_a_tuple_are_trained_on_the_mask() -> None:
    model, masks = build("conv", classes=1), torch.randint(0, 2, (2, 16, 16))
    batch, loss = Batch(["a", "b"], torch.empty(0), masks, None, {}), make_loss("bce", BINARY, 1, PARTS)
    first, small = torch.randn(2, 1, 16, 16), torch.randn(2, 1, 8, 8)
    total, by_output = loss_of((first, small), batch, loss, model, {})
    values = [loss(first, masks), loss(F.interpolate(small, (16, 16), mode="bilinear"), masks)]
    torch.testing.assert_close(total, (values[0] + 0.5 * values[1]) / 1.5)
    assert by_output == {}


PLUGIN = '''
import torch
import unetkit
from torch import nn
from unetkit import Output
from unetkit.data.types import Target


class Edges(nn.Module):
    """The mask, its boundary and the distance to it.

    Args:
        weight: weight of the boundary's loss.
    """

    def __init__(self, in_channels: int, classes: int, *, weight: float = 0.5) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, classes + 2, 1)
        self.outputs = {"boundary": Output("line", "bce", weight), "distance": Output("distance")}

    def forward(self, x):
        boundary, distance, mask = self.conv(x).tensor_split((1, 2), 1)
        return {"mask": mask, "boundary": boundary, "distance": distance}


class Line:
    """Pixels of another class than their left neighbour."""

    def __init__(self, masks) -> None:
        self.maps = Target("binary", ("no", "yes"))

    def __call__(self, mask):
        return (mask != mask.roll(1, -1)).long()


class Cut(Line):
    """A map of the wrong size."""

    def __call__(self, mask):
        return mask[::2]


class Faulty(Edges):
    """A head with a target that is wrong."""

    def __init__(self, in_channels: int, classes: int) -> None:
        super().__init__(in_channels, classes)
        self.outputs = {"boundary": Output("cut", "bce"), "distance": Output("distance")}


@unetkit.hookimpl
def unetkit_register(parts):
    parts.heads.add("edges", Edges)
    parts.heads.add("faulty", Faulty)
    parts.targets.add("line", Line)
    parts.targets.add("cut", Cut)
'''


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("plugin") / "edges.py"
    path.write_text(PLUGIN)
    return str(path)


GIVEN: dict[str, Any] = {"data": "cells:count=6,val=2,test=1,size=32", "batch_size": 2, "epochs": 2, "device": "cpu"}
LINE = f"--encoder {SMALL} --head edges"


def log_of(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / LOG).read_text().splitlines()]
    return [{k: v for k, v in line.items() if "seconds" not in k} for line in lines if "epoch" in line]


class Interrupt(TrainCallback):
    """Ends the run within its second epoch."""

    def __init__(self) -> None:
        self.steps = 0

    def on_step_end(self, done: int, loss: float) -> None:
        self.steps += 1
        if self.steps == 5:
            raise KeyboardInterrupt


def test_a_run_trains_scores_predicts_and_resumes(plugin: str, tmp_path: Path) -> None:
    run = train.run(LINE, tmp_path / "a", plugins=[plugin], **GIVEN)
    lines = log_of(run.folder)
    for line in lines:
        losses = line["output_losses"]
        assert [*losses] == ["mask", "boundary", "distance"]
        assert line["loss"] == pytest.approx(losses["mask"] + 0.5 * losses["boundary"] + losses["distance"])
    assert read_run(run.folder).owners == {"edges": ""}
    with pytest.raises(KeyboardInterrupt):
        train.run(LINE, tmp_path / "b", plugins=[plugin], callback=Interrupt(), save_every=0, **GIVEN)
    train.resume(tmp_path / "b")
    assert log_of(tmp_path / "b") == lines
    parts = unetkit.load_parts([plugin])
    ours, theirs = (read_run(tmp_path / name).network(parts=parts).state_dict() for name in "ab")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    scores = CliRunner().invoke(cli, ["eval", str(run.folder), "--json"])
    assert json.loads(scores.output)["images"] == 1
    network = run.network(parts=parts)
    x = torch.randn(1, 1, 32, 32)
    assert network(x).shape == (1, 1, 32, 32)
    assert [*network.forward_outputs(x)] == ["mask", "boundary", "distance"]


def test_the_command_line_shows_each_outputs_loss(plugin: str, tmp_path: Path) -> None:
    words = ["--data", GIVEN["data"], "--epochs", "1", "--batch-size", "2", "--out", str(tmp_path / "a")]
    done = CliRunner().invoke(cli, ["--plugin", plugin, "train", *LINE.split(), *words])
    assert done.exit_code == 0, done.output
    for told in ("boundary: trained on line with bce, weight 0.5", "distance: trained on distance with mse, weight 1"):
        assert told in done.output
    assert "(mask " in done.output
    assert (tmp_path / "a" / "curves.png").stat().st_size > 0


def test_build_notes_what_no_training_takes(plugin: str, tmp_path: Path) -> None:
    assert "note:" not in CliRunner().invoke(cli, ["--plugin", plugin, "build", *LINE.split()]).output
    wrong = tmp_path / "wrong.py"
    wrong.write_text(PLUGIN.replace('Output("line"', 'Output("lines"'))
    shown = CliRunner().invoke(cli, ["--plugin", str(wrong), "build", *LINE.split()]).output
    assert "'boundary': no target is called 'lines'" in " ".join(shown.split())


def test_a_target_that_fails_ends_a_run_with_one_line(plugin: str, tmp_path: Path) -> None:
    with pytest.raises(UnetkitError, match=r"^target cut \(of edges\) .* int64 of 16x32; "):
        train.run(LINE.replace("edges", "faulty"), tmp_path / "a", plugins=[plugin], **GIVEN)


def test_targets_are_listed_without_an_option(plugin: str) -> None:
    assert "line" in CliRunner().invoke(cli, ["--plugin", plugin, "list", "targets"]).output
    assert "--target" not in CliRunner().invoke(cli, ["list"]).output
    assert "width" in CliRunner().invoke(cli, ["list", "targets", "boundary"]).output
