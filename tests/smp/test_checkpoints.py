"""Checkpoint folders of segmentation-models-pytorch, opened by `unetkit.load`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
from torch import nn

import unetkit
from tests.rounding import assert_equal_to_rounding
from unetkit.errors import FileError
from unetkit.plugins import load_parts

PARTS = load_parts(isolated=True)


def folder_of(model: Any, path: Path) -> Path:
    model.save_pretrained(str(path))
    return path


def trained(model: nn.Module) -> nn.Module:
    """With statistics that no fresh model has."""
    for name, buffer in model.named_buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5) if "var" in name else buffer.normal_()
    return model.eval()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "line"),
    [
        (
            lambda: smp.Unet("resnet18", encoder_weights=None, classes=3, in_channels=1),
            "--model smp/unet --encoder smp/resnet18 --in-channels 1 --classes 3",
        ),
        (
            lambda: smp.Unet("tu-test_resnet", encoder_weights=None, encoder_depth=3, decoder_channels=(32, 16, 8)),
            "--model 'smp/unet:decoder_channels=[32,16,8],encoder_depth=3' --encoder test_resnet --classes 1",
        ),
        (
            lambda: smp.Unet("tu-test_convnext", encoder_weights=None, drop_path_rate=0.1, classes=2),
            "--model smp/unet --encoder test_convnext:drop_path_rate=0.1",
        ),
        (
            lambda: smp.FPN("mit_b0", encoder_weights=None, decoder_merge_policy="cat", decoder_dropout=0.1),
            "--model smp/fpn:decoder_dropout=0.1,decoder_merge_policy=cat --encoder mit_b0 --classes 1",
        ),
        (
            lambda: smp.DeepLabV3Plus("tu-test_resnet", encoder_weights=None, encoder_output_stride=8),
            "--model smp/deeplabv3plus:encoder_output_stride=8 --encoder test_resnet --classes 1",
        ),
    ],
)
def test_a_folder_opens_as_the_whole_model_with_the_same_values(
    make: Callable[[], Any], line: str, tmp_path: Path
) -> None:
    theirs = trained(make())
    ours = unetkit.load(folder_of(theirs, tmp_path / "checkpoint"), parts=PARTS)
    assert str(ours.plan) == line
    assert ours.training
    x = torch.randn(1, ours.resolved_plan.in_channels, 64, 96)
    with torch.no_grad():
        assert_equal_to_rounding(ours.eval()(x), theirs(x), theirs)  # other strides, other sums
    unetkit.save(ours, tmp_path / "ours.safetensors")
    again = unetkit.load(tmp_path / "ours.safetensors", parts=PARTS).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(x), theirs(x), rtol=0, atol=0)


def test_the_trace_says_where_the_weights_are_from(tmp_path: Path) -> None:
    folder = folder_of(smp.Unet("tu-test_resnet", encoder_weights=None), tmp_path / "unet")
    assert unetkit.trace(unetkit.load(folder, parts=PARTS), 64).weights == str(folder)


def broken(folder: Path, **config: Any) -> Path:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    return folder


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"activation": "sigmoid"}, "its model has activation=sigmoid, but a network of unetkit gives logits alone"),
        ({"aux_params": {"classes": 2}}, "its model has aux_params={'classes': 2}"),
        ({"decoder_use_norm": {"type": "layernorm"}}, "no plan can have decoder_use_norm={'type': 'layernorm'}"),
        ({"_model_class": "Xnet"}, "names no architecture of smp"),
        ({"classes": 7}, "does not fit what its config.json builds here"),
        ({"encoder_name": "resnet19"}, "no encoder is called 'resnet19'"),
    ],
)
def test_what_cannot_be_opened_says_why(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = broken(folder_of(smp.Unet("tu-test_resnet", encoder_weights=None), tmp_path / "unet"), **config)
    with pytest.raises(unetkit.UnetkitError) as refusal:
        unetkit.load(folder, parts=PARTS)
    assert message in str(refusal.value)
    assert str(folder) in str(refusal.value)


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"without config\.json and model\.safetensors"):
        unetkit.load(tmp_path)
    folder = folder_of(smp.Unet("tu-test_resnet", encoder_weights=None), tmp_path / "unet")
    (folder / "model.safetensors").write_bytes(b"{}")
    with pytest.raises(FileError, match=r"model.safetensors cannot be read"):
        unetkit.load(folder)
