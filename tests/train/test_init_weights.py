"""Training that starts from earlier weights, and what of an encoder is frozen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import segmentation_models_pytorch as smp
import timm
import torch
from torch import Tensor, nn

import unetkit
from tests.train.example_sets import squares
from unetkit import train
from unetkit.errors import BuildError, FileError, OptionError
from unetkit.network import list_loaded
from unetkit.parts.encoders.plain import PlainEncoder
from unetkit.summary.forward_hooks import find_network
from unetkit.train.checkpoint import HEADER, STATE
from unetkit.train.init_weights import load_init_weights
from unetkit.train.optim import adamw
from unetkit.train.trainer import TrainCallback

SMALL = "plain:widths=[4,8,8]"
QUICK: dict[str, Any] = {"epochs": 1, "batch_size": 4, "preview_every": 0, "device": "cpu"}


def built(seed: int = 1, encoder: str = SMALL, **words: Any) -> Any:
    return unetkit.build(encoder, seed=seed, in_channels=1, classes=1, **words)


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    return [name for name in one if name in other and torch.equal(one[name], other[name])]


def prefixed(prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in built().state_dict().items()}


@pytest.mark.parametrize(
    "content",
    [
        prefixed(""),
        prefixed("module."),
        {"epoch": 3, "state_dict": prefixed("model._orig_mod."), "loss": 0.5},
        {"model": prefixed("_orig_mod.module."), "optimizer": {"state": {}}},
        {"state_dict": prefixed("model.") | {"criterion.weight": torch.ones(2)}},
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_state_dict_is_loaded_whatever_wrapped_the_model(tmp_path: Path, content: Any, wrapped: bool) -> None:
    torch.save(content, tmp_path / "a.pt")
    head = {"head": "deep-supervision"} if wrapped else {}
    model = built(2, **head)
    left = load_init_weights(model, tmp_path / "a.pt")
    assert set(left.values()) <= {"not in the file", "not in the network"}
    assert {name for name in left if "criterion" not in name and "auxiliary" not in name} == set()
    network = find_network(model)
    assert len(equal(prefixed(""), network.state_dict())) == len(prefixed(""))
    assert network.loaded == ("",)


def test_files_of_all_kinds_and_the_folder_of_a_run(tmp_path: Path) -> None:
    source = built()
    unetkit.save(source, tmp_path / "best.safetensors")
    safetensors.torch.save_file(source.state_dict(), tmp_path / "plain.safetensors")
    torch.save(source.state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for path in (tmp_path, tmp_path / "best.safetensors", tmp_path / "plain.safetensors", tmp_path / "old.pth"):
        model = built(2)
        assert load_init_weights(model, path) == {}
        assert len(equal(source.state_dict(), model.state_dict())) == len(source.state_dict())


def test_other_classes_and_channels_are_listed_and_what_was_drawn_is_not_frozen(tmp_path: Path) -> None:
    torch.save(built().state_dict(), tmp_path / "a.pt")
    model: Any = unetkit.build(SMALL, in_channels=3, classes=4, seed=2)
    left = load_init_weights(model, tmp_path / "a.pt")
    first = "encoder.levels.0.0.conv.weight"
    assert left == {
        first: "4x1x3x3 in the file, 4x3x3x3 in the network",
        "head.conv.weight": "1x4x1x1 in the file, 4x4x1x1 in the network",
        "head.conv.bias": "1 in the file, 4 in the network",
    }
    frozen = {id(parameter) for parameter in model.pretrained_parameters()}
    trained = [name for name, p in model.named_parameters() if id(p) not in frozen]
    assert [name for name in trained if name.startswith("encoder")] == [first]
    assert model.encoder.levels[1] in model.pretrained_modules()
    assert model.encoder.levels[0][0].norm in model.pretrained_modules()


def test_weights_of_a_library_fit_its_part_of_the_encoder(tmp_path: Path) -> None:
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "vit.pt")
    model: Any = unetkit.build("test_vit")
    load_init_weights(model, tmp_path / "vit.pt")
    assert {id(p) for p in model.pretrained_parameters()} == {id(p) for p in model.encoder.model.parameters()}
    torch.save(smp.Unet("resnet18", encoder_weights=None).state_dict(), tmp_path / "smp.pt")
    whole: Any = unetkit.build(model="smp/unet", encoder="smp/resnet18")
    left = load_init_weights(whole, tmp_path / "smp.pt")
    assert list(left) == ["model.segmentation_head.0.weight", "model.segmentation_head.0.bias"]
    assert {id(p) for p in whole.pretrained_parameters()} == {id(p) for p in whole.model.encoder.parameters()}


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (None, "cannot be read"),
        (b"text", "is neither"),
        ({"epoch": 1}, "contains no state_dict"),
        (nn.Linear(2, 2), r"contains more than tensors .*nn\.modules\.linear\.Linear; save"),
        (timm.create_model("test_resnet").state_dict(), "fits the network"),
        (
            {"head.conv.weight": torch.zeros(2, 3)},
            r"head\.conv\.weight is 2x3 in the file and 1x\d+x1x1 in the network",
        ),
    ],
)
def test_what_cannot_be_loaded_is_refused_in_one_line(tmp_path: Path, content: Any, named: str) -> None:
    path = tmp_path / "a.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(FileError, match=named) as caught:
        load_init_weights(built(), path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_damaged_file_of_ours_is_refused(tmp_path: Path) -> None:
    unetkit.save(built(), tmp_path / "a.safetensors")
    data = bytearray((tmp_path / "a.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "a.safetensors").write_bytes(data)
    with pytest.raises(FileError, match="changed after it was saved"):
        load_init_weights(built(), tmp_path / "a.safetensors")


def test_the_largest_modules_without_new_tensors_are_listed() -> None:
    model = built()
    assert list_loaded(model, []) == ("",)
    assert list_loaded(model, model.state_dict()) == ()
    new = "encoder.levels.0.0.norm.bias"
    loaded = list_loaded(model, [new, "encoder.levels.1.0.norm.num_batches_tracked"])
    assert "stages" in loaded
    assert "encoder.levels.1" in loaded
    covered = {name for name in model.state_dict() if any(name == one or name.startswith(f"{one}.") for one in loaded)}
    assert model.state_dict().keys() - covered <= {new, "encoder.levels.0.0.norm.num_batches_tracked"}


# What is frozen


class Stop(TrainCallback):
    """Interrupts a run after some steps."""

    def __init__(self, after: int) -> None:
        self.after = after

    def on_step_end(self, done: int, loss: float) -> None:
        self.after -= 1
        if not self.after:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_a_run_from_other_weights_freezes_only_these_and_remembers_them_when_resumed(tmp_path: Path) -> None:
    weights = tmp_path / "vit.pt"
    torch.save(timm.create_model("test_vit", in_chans=1).state_dict(), weights)
    line = "--encoder test_vit --widths 8,8,8,8,8 --size 32 --seed 3"
    options = {**QUICK, "epochs": 2, "init_weights": weights, "freeze_encoder": 1, "lr": 0.01}
    whole = train.run(line, tmp_path / "whole", data=squares(8), **options)
    with pytest.raises(KeyboardInterrupt):
        train.run(line, tmp_path / "cut", data=squares(8), callback=Stop(1), save_every=0.0, **options)
    begun: Any = unetkit.build("test_vit", widths=(8,) * 5, size=32, seed=3, in_channels=1, classes=1)
    left = load_init_weights(begun, weights)
    header = json.loads((tmp_path / "cut" / HEADER).read_text())
    assert header["not_loaded"] == left
    assert header["config"]["init_weights"] == str(weights)
    weights.unlink()  # resuming does not read it
    torch.testing.assert_close(
        train.read(tmp_path / "cut").network(weights="last").state_dict(), begun.state_dict(), rtol=0, atol=0
    )
    resumed = train.resume(tmp_path / "cut", data=squares(8))
    one, other = (torch.load(run.folder / STATE, weights_only=True)["model"] for run in (whole, resumed))
    assert len(equal(one, other)) == len(one)


@pytest.mark.slow
def test_a_frozen_encoder_rests_where_it_was_loaded_and_new_layers_train(tmp_path: Path) -> None:
    torch.save(timm.create_model("test_vit", in_chans=1).state_dict(), tmp_path / "vit.pt")
    line = f"--encoder test_vit --size 32 --seed 3 --pretrained {tmp_path / 'vit.pt'}"
    run = train.run(line, tmp_path / "a", data=squares(8), freeze_encoder="all", **QUICK)
    begun: Any = unetkit.build(
        "test_vit", size=32, seed=3, in_channels=1, classes=1, pretrained=str(tmp_path / "vit.pt")
    )
    assert run.loaded == begun.loaded == ("encoder.model",)
    before, after = begun.encoder.state_dict(), run.network(weights="last").encoder.state_dict()
    changed = before.keys() - equal(before, after)
    assert changed == {name for name, _ in begun.encoder.named_parameters() if name.startswith("pyramid")}
    optimizer = adamw().make_optimizer(begun, 0.5)
    rates = {id(p): group["highest"] for group in optimizer.param_groups for p in group["params"]}
    assert {rates[id(p)] for p in begun.encoder.model.parameters()} == {0.05}
    assert {rates[id(p)] for p in begun.encoder.pyramid.parameters()} == {0.5}


def test_a_whole_model_rests_in_its_encoder_alone() -> None:
    model: Any = unetkit.build(model="smp/unet", encoder="timm/resnet18", pretrained=True, device="meta")
    assert {id(p) for p in model.pretrained_parameters()} == {id(p) for p in model.model.encoder.parameters()}
    assert model.pretrained_modules() == [model.model.encoder]
    assert unetkit.build(SMALL).pretrained_parameters() == []
    assert unetkit.build(SMALL).pretrained_modules() == []


def test_a_part_that_is_no_module_is_refused() -> None:
    class Encoder(PlainEncoder):
        weights_from, pretrained_part = "afar", "body"

    with pytest.raises(BuildError, match="Encoder declares pretrained_part='body'"):
        unetkit.build(Encoder)


def test_a_loaded_network_rests_in_all_of_its_encoder(tmp_path: Path) -> None:
    unetkit.save(unetkit.build("test_vit"), tmp_path / "a.safetensors")
    model: Any = unetkit.load(tmp_path / "a.safetensors")
    assert len(model.pretrained_parameters()) == len(list(model.encoder.parameters()))
    assert model.pretrained_modules() == [model.encoder]


def test_random_weights_are_not_frozen(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="encoder are random; give --pretrained"):
        train.run(f"--encoder {SMALL}", tmp_path / "a", data=squares(8), freeze_encoder=1, **QUICK)
    assert not (tmp_path / "a").exists()
