"""What segmentation-models-pytorch asks of its models (its tests/models/base.py), asked of ours, and more of it.

It asks for other channels, classes and depths; sizes that no stride divides; the same shape after a file; compiling and
exporting. Here a file must give the same values to the bit, one exported program takes every batch, height and width
whether or not the example was padded, and the same networks are asked everything: convolutions, transformers, a recipe,
and whole models. Its classification head beside the logits is left out: no word says it. What a compiled, exported or
copied U-Net of each upsampler and alignment does is asked in test_network.py, of smp's architectures in test_models.py.
"""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unetkit
from tests.rounding import assert_equal_to_rounding
from unetkit import load_parts
from unetkit.errors import UnetkitError
from unetkit.network import Network
from unetkit.utils.meta_shapes import MetaShapes

NETWORKS = {
    "resnet": "--encoder test_resnet",
    "convnext": "--encoder test_convnext",
    "efficientnet": "--encoder test_efficientnet",
    "vit": "--encoder test_vit:depth=3",
    "mit": "--encoder smp/mit_b0:levels=3",
    "plain": "--encoder plain:widths=[8,16,32]",
    "recipe": "--recipe unet-bilinear",
    "unet": "--model smp/unet --encoder test_resnet",
    "fpn": "--model smp/fpn --encoder test_resnet",
    "deeplabv3plus": "--model smp/deeplabv3plus --encoder test_resnet",
    "segformer": "--model smp/segformer --encoder test_resnet",
}
#: The same with fewer levels: maps of an encoder, pools, or what smp calls depth.
SHALLOW = {
    "resnet": "--encoder test_resnet:levels=3",
    "convnext": "--encoder test_convnext:levels=3",
    "efficientnet": "--encoder test_efficientnet:levels=3",
    "vit": "--encoder test_vit:depth=3,levels=3",
    "mit": "--encoder smp/mit_b0:levels=2",
    "plain": "--encoder plain:depth=3,widths=[8,16,32,64]",
    "recipe": "--recipe unet-bilinear --encoder plain:depth=3,widths=[64,128,256,512] --widths 64,32,16",
    "unet": "--model smp/unet:encoder_depth=3,decoder_channels=[64,32,16] --encoder test_resnet",
    "fpn": "--model smp/fpn:encoder_depth=3,upsampling=1 --encoder test_resnet",
    "deeplabv3plus": "--model smp/deeplabv3plus:encoder_depth=4 --encoder test_resnet",
    "segformer": "--model smp/segformer:encoder_depth=3 --encoder test_resnet",
}
PARTS = load_parts(isolated=True)
every_network = pytest.mark.parametrize("name", NETWORKS)


@cache
def network(name: str) -> Network:
    return unetkit.build(unetkit.Plan.parse(NETWORKS.get(name, name)), seed=0, parts=PARTS).eval()


def image(batch: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(batch * 10**6 + height * 1000 + width)
    return torch.randn(batch, 3, height, width, generator=generator)


def run(model: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        out = model(x)
    assert isinstance(out, Tensor)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("name", SHALLOW)
def test_channels_classes_and_depth_are_as_they_are_said(name: str) -> None:
    plan = unetkit.Plan.parse(f"{SHALLOW[name]} --in-channels 1 --classes 7")
    model = unetkit.build(plan, parts=PARTS, device="meta")
    with MetaShapes():
        assert model(torch.empty(2, 1, 64, 96, device="meta")).shape == (2, 7, 64, 96)
    whole = unetkit.build(unetkit.Plan.parse(NETWORKS[name]), parts=PARTS, device="meta")
    assert sum(p.numel() for p in model.parameters()) != sum(p.numel() for p in whole.parameters())


@pytest.mark.slow
@every_network
def test_sizes_that_no_stride_divides_come_back(name: str) -> None:
    for height, width in ((64, 64), (67, 67), (71, 71), (67, 71)):
        out = run(network(name), image(1, height, width))
        assert out.shape == (1, 2, height, width)
        assert out.isfinite().all()


@every_network
def test_gradients_reach_every_parameter(name: str) -> None:
    model = copy.deepcopy(network(name)).train()
    out = model(image(2, 67, 71))
    (out * torch.randn_like(out)).mean().backward()
    assert [key for key, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.slow
@every_network
def test_a_file_gives_back_the_same_values(name: str, tmp_path: Path) -> None:
    model = copy.deepcopy(network(name))
    run(model.train(), image(2, 67, 71))  # moves what norms have counted
    unetkit.save(model, tmp_path / "model.safetensors")
    twin = unetkit.load(tmp_path / "model.safetensors", parts=PARTS)
    assert twin.plan == model.plan
    for size in ((64, 64), (67, 71)):
        assert torch.equal(run(twin.eval(), image(1, *size)), run(model.eval(), image(1, *size)))


def exported(model: Network, example: Tensor) -> nn.Module:
    """One program for every batch, height and width."""
    # From 64 up, where no map is of one pixel: torch.export takes such for a fixed size.
    any_size = {0: torch.export.Dim.AUTO(min=1), **dict.fromkeys((2, 3), torch.export.Dim.AUTO(min=64))}
    with torch.no_grad():
        return torch.export.export(model, (example,), dynamic_shapes=(any_size,)).module()


# test_network.py compiles and exports plain and ResNet encoders, the conformance checks more of timm's and smp's.
@pytest.mark.slow
def test_one_exported_program_takes_every_batch_and_size() -> None:
    model = network(SHALLOW["fpn"])
    program = exported(model, image(2, 96, 128))  # which needs no padding
    for shape in ((2, 96, 128), (1, 64, 65), (3, 67, 71), (2, 99, 135), (1, 128, 64)):
        x = image(*shape)
        assert_equal_to_rounding(run(program, x), run(model, x), model)


@pytest.mark.slow
def test_it_compiles_whole_and_for_every_size() -> None:
    torch._dynamo.reset()
    model = network(SHALLOW["unet"])
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="eager")
    for shape in ((2, 67, 71), (3, 96, 64)):
        x = image(*shape)
        assert_equal_to_rounding(run(compiled, x), run(model, x), model)


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:FutureWarning")
@pytest.mark.parametrize("name", ["plain", "unet"])
def test_script_is_refused_in_one_line(name: str) -> None:
    for model in (network(name), nn.Sequential(copy.deepcopy(network(name)), nn.Sigmoid())):
        with pytest.raises(UnetkitError, match=r"^torch\.jit\.script, .*torch\.export .*torch\.compile"):
            torch.jit.script(model)
