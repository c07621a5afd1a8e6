"""Whole models in place of parts: smp's architectures, built, traced, saved and padded as ours are."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
from torch import nn

import unetkit
from unetkit import Plan
from unetkit.errors import BuildError, OptionError, UnetkitError, UnknownNameError
from unetkit.network import WholeModel
from unetkit.plugins import load_parts
from unetkit.resolve import resolve
from unetkit.smp.catalog import smp_architecture_names, smp_class_name

ARCHITECTURES = tuple(smp.MODEL_ARCHITECTURES_MAPPING)
PARTS = load_parts(isolated=True)
#: The smallest encoder that each takes.
ENCODERS = {"dpt": "test_vit"}


@cache
def whole(name: str, **words: Any) -> Any:
    words = {"encoder": ENCODERS.get(name, "test_resnet"), "parts": PARTS, "seed": 0, **words}
    return unetkit.build(model=f"smp/{name}", **words).eval()


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_every_architecture_of_smp_is_listed() -> None:
    assert tuple(smp_architecture_names()) == ARCHITECTURES
    assert PARTS.models.names() == [f"smp/{name}" for name in ARCHITECTURES]
    assert {name: smp_class_name(name) for name in ARCHITECTURES} == {
        name: made.__name__ for name, made in smp.MODEL_ARCHITECTURES_MAPPING.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_each_is_what_smp_builds(name: str) -> None:
    encoder = ENCODERS.get(name, "test_resnet")
    ours = unetkit.build(model=f"smp/{name}", encoder=encoder, classes=4, in_channels=5, parts=PARTS).eval()
    make = smp.MODEL_ARCHITECTURES_MAPPING[name]
    extra = {"dynamic_img_size": True} if name == "dpt" else {}
    theirs = make(f"tu-{encoder}", encoder_weights=None, classes=4, in_channels=5, **extra).eval()
    theirs.load_state_dict(ours.model.state_dict())
    assert count(ours) == count(theirs)
    x = torch.randn(1, 5, 128, 160)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_each_takes_any_size_and_says_what_it_pads(name: str) -> None:
    model = whole(name)
    for size in ((97, 131), (33, 65), (64, 64)):
        with torch.no_grad():
            assert model(torch.randn(1, 3, *size)).shape == (1, 2, *size)
        traced = unetkit.trace(model, size)
        padded = model.padded_size(size)
        assert any("padded with zeros" in note for note in traced.notes) == (padded != size)
        assert (traced.rows[-1].height, traced.rows[-1].width) == size


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_trace_adds_up_and_says_where_maps_come_from(name: str) -> None:
    traced = unetkit.trace(whole(name), 64)
    assert traced.parameters == count(whole(name))
    assert traced.line == str(whole(name).plan)
    levels = [row.level for row in traced.rows]
    assert [level for level in levels if level.startswith("encoder.")]
    assert any(row.what.startswith("timm ") and "reduction" in row.what for row in traced.rows if row.side == "down")
    assert traced.rows[1].level == "encoder.0"
    assert "decoder" in levels
    assert traced.to_dict()["skips"] == ()


@pytest.mark.slow
def test_maps_have_the_parameters_of_their_own_layers() -> None:
    ours = {row.level: row.parameters for row in unetkit.trace(unetkit.build("resnet18", parts=PARTS), 64).rows}
    theirs = {row.level: row.parameters for row in unetkit.trace(whole("unet", encoder="resnet18"), 64).rows}
    assert [theirs[f"encoder.{i}"] for i in range(5)] == [ours[f"encoder.{i}"] for i in range(5)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unet", "fpn", "deeplabv3plus"])
def test_it_is_saved_and_loaded_with_the_same_values(name: str, tmp_path: Path) -> None:
    model, file, x = whole(name), tmp_path / "model.safetensors", torch.randn(1, 3, 65, 70)
    unetkit.save(model, file)
    loaded = unetkit.load(file, parts=PARTS).eval()
    assert isinstance(loaded, WholeModel)
    assert loaded.plan == model.plan
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), model(x), rtol=0, atol=0)
        torch.testing.assert_close(copy.deepcopy(model)(x), model(x), rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--model unetplusplus", "--model smp/unetplusplus"),
        ("--model smp/unet --encoder timm/resnet34", "--model smp/unet"),
        ("--model smp/unet:encoder=resnet18", "--model smp/unet --encoder resnet18"),
        ("--model smp/unet --encoder smp/resnet34", "--model smp/unet --encoder smp/resnet34"),
        ("--model smp/unet:encoder_depth=5,decoder_interpolation=nearest", "--model smp/unet"),
        (
            "--model smp/unet:decoder_channels=[64,32,16],encoder_depth=3 --classes 1",
            "--model 'smp/unet:decoder_channels=[64,32,16],encoder_depth=3' --classes 1",
        ),
    ],
)
def test_a_line_is_read_and_written_back(line: str, said: str) -> None:
    model = unetkit.build(Plan.parse(line), parts=PARTS, device="meta")
    assert str(model.plan) == said
    again = unetkit.build(Plan.parse(said), parts=PARTS, device="meta")
    assert (again.plan, again.built_shapes) == (model.plan, model.built_shapes)


@pytest.mark.slow
def test_encoders_of_smp_itself_are_told_from_timms() -> None:
    native = unetkit.build(model="smp/unet", encoder="smp/resnet18", parts=PARTS, device="meta")
    assert type(native.model.encoder).__name__ == "ResNetEncoder"
    assert {"smp's own, reduction 2", "smp's own, reduction 32"} <= {row.what for row in unetkit.trace(native, 64).rows}
    assert type(whole("unet").model.encoder).__name__ == "TimmUniversalEncoder"


@pytest.mark.slow
def test_what_smp_makes_of_values_is_built_on_meta_too() -> None:
    model = unetkit.build(model="smp/segformer", encoder="smp/mit_b0", parts=PARTS, device="meta")
    assert all(p.is_meta for p in model.parameters())
    assert unetkit.trace(model, 64).rows[-1].height == 64


@pytest.mark.parametrize(
    ("line", "error", "message"),
    [
        (
            "--model smp/unet --fuse add",
            BuildError,
            "--fuse describes a part of a U-Net",
        ),
        ("--model smp/unet --decode-to 2", BuildError, "--decode-to describes a part of a U-Net"),
        ("--model smp/unett", UnknownNameError, "'smp/unett' (did you mean smp/unet"),
        ("--model smp/unet:decoder_chanels=[1]", OptionError, "did you mean decoder_channels"),
        ("--model smp/unet:activation=sigmoid", OptionError, "unet has no option 'activation'"),
        ("--model smp/unet:encoder_depth=x", OptionError, "encoder_depth must be an integer; got x"),
    ],
)
def test_what_does_not_go_is_refused_before_torch_is_needed(line: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as refusal:
        resolve(Plan.parse(line), PARTS)
    assert message in str(refusal.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--model smp/unet --encoder plain", "plain is neither"),
        (
            "--model smp/unet --encoder resnet18:levels=4",
            "--model smp/unet:encoder_depth=...; leave levels out",
        ),
        ("--model smp/unet --encoder smp/resnet18:bogus=1", "bogus"),
        (
            "--model smp/unet:encoder_depth=4",
            "(Model depth is 4",
        ),
        ("--model smp/dpt --encoder smp/resnet18", "smp/dpt cannot be built with encoder resnet18"),
        (
            "--model smp/fpn:upsampling=2",
            "logits of 128x128 for an input of 256x256",
        ),
        (
            "--model smp/fpn:upsampling=8",
            "logits of 512x512 for an input of 256x256",
        ),
        ("--model smp/unet --encoder resnet18:bogus=none", "has no option 'bogus'"),
        ("--model smp/unet --encoder resnet18:num_classes=5", "--classes sets it"),
        ("--model smp/deeplabv3 --encoder resnet18:output_stride=8", "smp/deeplabv3:encoder_output_stride=..."),
        (
            "--model smp/unet --recipe unet-2015",
            "--recipe unet-2015 is a U-Net of parts",
        ),
        ("--model smp/unet:decoder_interpolation=bogus", "NotImplementedError"),
        ("--model smp/unet --pretrained weights.safetensors", "takes no weights file"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(line: str, message: str) -> None:
    with pytest.raises(UnetkitError) as refusal:
        unetkit.build(Plan.parse(line), parts=PARTS, device="meta")
    assert message in str(refusal.value)
    assert len(str(refusal.value).splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "encoder"),
    [("dpt", "vit_tiny_patch16_224"), ("unet", "efficientformerv2_s0")],
)
def test_a_size_that_is_said_goes_to_encoders_that_need_it(name: str, encoder: str) -> None:
    model = unetkit.build(model=f"smp/{name}", encoder=encoder, size=(97, 131), parts=PARTS, device="meta")
    assert (unetkit.trace(model).rows[-1].height, unetkit.trace(model).rows[-1].width) == (97, 131)
    assert max(model.padded_size((97, 131))) <= 192


@pytest.mark.slow
def test_what_was_built_before_changes_nothing() -> None:
    with pytest.raises(UnetkitError):
        unetkit.build(model="smp/pan:decoder_interpolation=bogus", encoder="test_resnet", parts=PARTS, device="meta")
    model = whole("pan", seed=1)
    assert model(torch.randn(1, 3, 33, 65)).shape == (1, 2, 33, 65)


def test_a_model_that_gives_no_tensor_is_refused() -> None:
    class Several(nn.Module):
        def __init__(self, in_channels: int, classes: int) -> None:
            super().__init__()
            self.conv = nn.Conv2d(in_channels, classes, 1)

        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            return [self.conv(x)]

    with pytest.raises(UnetkitError, match="gives a list"):
        unetkit.build(model=Several, parts=PARTS)


@pytest.mark.slow
def test_an_encoder_of_one_size_takes_others_where_timm_lets_it() -> None:
    encoder = "swin_tiny_patch4_window7_224:depths=[1,1,1,1]"
    model = unetkit.build(model="smp/upernet", encoder=encoder, parts=PARTS, device="meta")
    assert model.size is None
    assert [unetkit.trace(model, size).rows[-1].height for size in (224, 97, 448)] == [224, 97, 448]
