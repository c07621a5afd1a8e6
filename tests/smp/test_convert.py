"""A trained U-Net of smp as one of ours: outputs equal in eval mode, its line, and what cannot be carried by name."""

from __future__ import annotations

import copy
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
from torch import nn

import unetkit
from unetkit.errors import BuildError
from unetkit.smp.convert import from_smp
from unetkit.utils.lazy_init import defer_init

#: smp's default decoder in our words.
AS_SMP = "--up nearest --head conv:kernel=3 --widths 256,128,64,32,16 --classes 1"


def trained(name: str = "tu-test_resnet", **words: Any) -> Any:
    """A U-Net of smp in eval mode, in which no norm is as it started."""
    with warnings.catch_warnings(), defer_init():  # a VGG draws a classifier that it then removes
        warnings.simplefilter("ignore")  # of names that smp gave up and still has
        model = smp.Unet(name, encoder_weights=None, **words).eval()
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.uniform_(-0.1, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    return model


def apart(theirs: nn.Module, ours: nn.Module, *size: int, in_channels: int = 3) -> float:
    """The largest difference of their outputs, as a share of the largest output; 0 where rounding explains it."""
    layers = sum(1 for module in theirs.modules() if not [*module.children()])
    for dtype, tolerance in ((torch.float32, torch.finfo(torch.float32).eps * layers), (torch.float64, 1e-9)):
        x = torch.rand(1, in_channels, *size, generator=torch.Generator().manual_seed(2)).to(dtype)
        wide = dtype == torch.float64
        one, other = (copy.deepcopy(model).to(dtype) if wide else model for model in (theirs, ours))
        with torch.no_grad():
            there: torch.Tensor = one(x)
            difference = float((other(x) - there).abs().max() / there.abs().max())
        if difference <= tolerance:
            return 0.0
    return difference


def run_out(*_: Any) -> None:
    raise MemoryError


def refusal(model: nn.Module) -> str:
    with pytest.raises(BuildError) as caught:
        from_smp(model)
    return str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "encoder"),
    [
        ("resnet18", "resnet18"),
        ("se_resnet50", "legacy_seresnet50"),
        ("mobileone_s4", "smp/mobileone_s4"),
        ("efficientnet-b0", "efficientnet-b0"),
        ("mit_b0", "mit_b0"),
        ("timm-skresnet18", "timm-skresnet18"),
        ("timm-regnetx_002", "regnetx_002"),
        ("tu-resnet18.a1_in1k", "resnet18.a1_in1k"),
        ("tu-test_convnext", "test_convnext"),
    ],
)
def test_it_gives_what_smps_gives(name: str, encoder: str) -> None:
    theirs = trained(name)
    ours = from_smp(theirs)
    assert str(ours.plan) == f"--encoder {encoder} {AS_SMP}"
    assert not ours.training
    # Where smp has a map at each stride, it takes odd sizes, too.
    for size in [(64, 96), *([(65, 33), (97, 131)] if name in ("resnet18", "efficientnet-b0") else [])]:
        assert apart(theirs, ours, *size) == 0, size


@pytest.mark.slow
@pytest.mark.parametrize("name", ["densenet121", "dpn68"])
def test_so_do_smps_own_dense_encoders(name: str) -> None:
    # Their deeper levels have the same layers, a hundred times over.
    theirs = trained(name, encoder_depth=3, decoder_channels=(32, 16, 8))
    ours = from_smp(theirs)
    line = AS_SMP.replace("256,128,64,32,16", "32,16,8")
    assert str(ours.plan) == f"--encoder smp/{name}:levels=3 {line}"
    assert apart(theirs, ours, 64, 96) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "tu-swin_tiny_patch4_window7_224",
            {"depths": (1, 1, 1, 1), "embed_dim": 24, "num_heads": (1, 2, 4, 8)},
        ),
        ("tu-tresnet_m", {"layers": (1, 1, 1, 1)}),
    ],
)
def test_so_do_encoders_that_take_few_sizes(name: str, words: dict[str, Any]) -> None:
    theirs = trained(name, **words)
    assert apart(theirs, from_smp(theirs), 224, 224) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words", "plan"),
    [
        ("tu-test_resnet", {"decoder_interpolation": "bilinear"}, "--encoder test_resnet --head conv:kernel=3"),
        ("tu-test_resnet", {"decoder_use_norm": False}, "--encoder test_resnet --up nearest --block double:norm=none"),
        (
            "tu-test_resnet",
            {"decoder_use_norm": "identity"},
            "--encoder test_resnet --up nearest --block double:norm=none",
        ),
        ("tu-test_resnet", {"decoder_use_norm": {"type": "batchnorm"}}, "--encoder test_resnet --up nearest --head"),
        (
            "tu-test_resnet",
            {"decoder_use_norm": {"type": "instancenorm", "affine": True}},
            "--encoder test_resnet --up nearest --block double:norm=instance --head",
        ),
        ("tu-test_convnext", {"drop_path_rate": 0.1}, "--encoder test_convnext:drop_path_rate=0.1 --up nearest"),
    ],
)
def test_what_smp_was_told_is_in_the_line(name: str, words: dict[str, Any], plan: str) -> None:
    theirs = trained(name, **words)
    ours = from_smp(theirs)
    assert str(ours.plan).startswith(plan)
    assert apart(theirs, ours, 64, 64) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "depth"),
    [("resnet18", 3), ("mit_b0", 4), ("efficientnet-b0", 4), ("tu-test_resnet", 4), ("tu-test_convnext", 3)],
)
def test_depth_channels_and_classes(name: str, depth: int) -> None:
    widths = (32, 24, 16, 8)[-depth:]
    theirs = trained(name, encoder_depth=depth, decoder_channels=widths, in_channels=4, classes=5)
    ours = from_smp(theirs)
    missing = 1 if name in ("mit_b0", "tu-test_convnext") else 0
    assert f":levels={depth - missing} " in str(ours.plan)
    assert "--in-channels 4 --classes 5" in str(ours.plan)
    assert apart(theirs, ours, 64, 64, in_channels=4) == 0


def test_an_output_stride_that_its_depth_does_not_reach() -> None:
    theirs = trained(encoder_depth=4, decoder_channels=(32, 24, 16, 8), output_stride=16)
    assert apart(theirs, from_smp(theirs), 64, 64) == 0


@pytest.mark.slow
def test_its_line_builds_it_and_a_file_keeps_it(tmp_path: Path) -> None:
    ours = from_smp(trained("mit_b0"))
    assert unetkit.build(unetkit.Plan.parse(str(ours.plan)), device="meta").plan == ours.plan
    unetkit.save(ours, tmp_path / "model.safetensors")
    loaded = unetkit.load(tmp_path / "model.safetensors").eval()
    assert apart(ours, loaded, 64, 64) == 0
    assert vars(ours.encoder)["weights_from"] == "an smp.Unet"


def test_the_two_share_no_memory_and_smps_is_left_as_it_was() -> None:
    theirs = trained().train()
    before, ours = copy.deepcopy(theirs.state_dict()), from_smp(theirs)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in theirs.state_dict().items())
    assert all(module.training for module in theirs.modules())
    assert all(module.training for module in ours.modules())


def test_random_numbers_go_on_as_if_nothing_was_built() -> None:
    theirs = trained()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    from_smp(theirs)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_are_kept(dtype: torch.dtype) -> None:
    theirs = trained().to(dtype)
    theirs.segmentation_head.float()
    ours = from_smp(theirs)
    assert {p.dtype for p in ours.encoder.parameters()} == {dtype}
    assert {p.dtype for p in ours.head.parameters()} == {torch.float32}


def test_what_is_frozen_stays_frozen() -> None:
    theirs = trained().train()
    theirs.encoder.eval().requires_grad_(False)  # as `freeze_encoder` of smp 0.6 does
    theirs.decoder.blocks[0].conv1[0].weight.requires_grad_(False)
    ours = from_smp(theirs)
    frozen = {name for name, parameter in ours.named_parameters() if not parameter.requires_grad}
    assert frozen == {
        *(f"encoder.{name}" for name, _ in ours.encoder.named_parameters()),
        "stages.0.block.0.conv.weight",
    }
    norms = [module for module in ours.encoder.modules() if isinstance(module, nn.modules.batchnorm._NormBase)]
    assert norms
    assert not any(norm.training for norm in norms)
    assert all(module.training for module in ours.stages.modules())


@pytest.mark.slow
def test_a_whole_model_and_a_compiled_one_are_looked_into() -> None:
    whole = unetkit.build(model="smp/unet", encoder="timm/test_resnet", classes=1).eval()
    ours = from_smp(whole)
    assert str(ours.plan) == f"--encoder test_resnet {AS_SMP}"
    assert apart(whole, ours, 64, 64) == 0
    compiled: Any = torch.compile(trained())
    assert apart(compiled._orig_mod, from_smp(compiled), 64, 64) == 0


def test_all_that_cannot_be_carried_is_named_at_once() -> None:
    message = refusal(
        trained(
            decoder_attention_type="scse",
            decoder_interpolation="bicubic",
            decoder_use_norm="layernorm",
            activation="sigmoid",
            aux_params={"classes": 3},
            output_stride=16,
        )
    )
    assert [re.split("[ ,]", one)[0] for one in message.partition("does not support ")[2].split("; ")] == [
        "decoder_attention_type=scse",
        "decoder_use_norm=layernorm",
        "decoder_interpolation=bicubic",
        "output_stride=16",
        "activation=sigmoid",
        "aux_params",
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words", "why"),
    [
        ("vgg11", {}, "the center block of a vgg encoder"),
        ("tu-vgg11", {}, "an encoder's full-resolution map that is not a skip"),
        ("tu-test_resnet", {"activation": nn.Sigmoid}, "activation=a callable"),
        (
            "tu-test_resnet",
            {"decoder_use_norm": {"type": "batchnorm", "eps": 0.001}},
            "decoder_use_norm={'type': 'batchnorm'",
        ),
    ],
)
def test_one_thing_that_cannot_be_carried(name: str, words: dict[str, Any], why: str) -> None:
    message = refusal(trained(name, **words))
    assert f" does not support {why}" in message


def test_a_change_after_building_is_found() -> None:
    theirs = trained()
    theirs.decoder.blocks[1].conv1[2] = nn.SiLU()
    assert "its decoder was changed" in refusal(theirs)
    theirs = trained()
    theirs.segmentation_head[0] = nn.Conv2d(16, 2, 1)
    assert "its segmentation_head was changed" in refusal(theirs)


@pytest.mark.slow
def test_a_change_that_no_layer_shows_is_found_by_running_it() -> None:
    theirs = trained()
    theirs.encoder.model.layer1.register_forward_hook(lambda _, __, out: 2 * out)
    message = refusal(theirs)
    assert "cannot be converted: --encoder " in message
    assert "outputs that differ " in message


@pytest.mark.slow
def test_an_output_that_is_the_same_at_every_pixel_proves_nothing() -> None:
    theirs = trained()
    nn.init.zeros_(theirs.segmentation_head[0].weight)
    assert "the same at every pixel; train it first" in refusal(theirs)


def test_memory_that_ran_out_is_no_reason_of_the_models() -> None:
    theirs = trained()
    theirs.encoder.register_forward_hook(run_out)
    with pytest.raises(MemoryError):
        from_smp(theirs)


def test_only_a_unet_of_smp() -> None:
    class Mine(smp.Unet):  # type: ignore[misc]
        pass

    linknet = smp.Linknet("tu-test_resnet", encoder_weights=None)
    for model, name in ((linknet, "Linknet"), (Mine("tu-test_resnet", encoder_weights=None), "Mine")):
        assert refusal(model).startswith(f"a {name} is not an smp.Unet")


def test_a_model_without_weights() -> None:
    with torch.device("meta"):
        theirs = smp.Unet("resnet18", encoder_weights=None)
    assert "meta device" in refusal(theirs)
