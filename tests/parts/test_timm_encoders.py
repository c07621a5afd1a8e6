"""Every timm model as an encoder: pyramids, sizes, options, strides, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import unetkit
from unetkit import build
from unetkit.errors import BuildError, InputSizeError, OptionError
from unetkit.parts.encoders.feature_pyramid import SimpleFeaturePyramid
from unetkit.parts.encoders.input_sizes import accepts, probe_sizes, search_size_limits
from unetkit.parts.encoders.timm import TimmEncoder
from unetkit.parts.encoders.timm_features import TimmSpec, read_feature_maps
from unetkit.utils.meta_shapes import MetaShapes


def on_meta(model: nn.Module, *size: int, channels: int = 3) -> Any:
    """One pass without weights, in eval mode."""
    with torch.no_grad(), torch.device("meta"), MetaShapes():
        return model.eval()(torch.empty(1, channels, *size))


def reporting(reductions: list[int]) -> Any:
    """What a feature network of timm's says of maps at these strides."""
    names = [*"abcdef"[: len(reductions)]]
    info = SimpleNamespace(
        reduction=lambda: reductions,
        channels=lambda: [1 + i for i in range(len(names))],
        module_name=lambda: names,
        out_indices=tuple(range(len(names))),
    )
    return SimpleNamespace(feature_info=info)


# Pyramids


def transposed(x: Tensor, layer: Any) -> Tensor:
    """A transposed convolution 2x2 of stride 2, pixel by pixel: each makes a square of four."""
    out = x.new_empty(x.shape[0], layer.weight.shape[1], 2 * x.shape[2], 2 * x.shape[3])
    for row in range(2):
        for column in range(2):
            taken = torch.einsum("bchw,co->bohw", x, layer.weight[:, :, row, column])
            out[:, :, row::2, column::2] = taken + layer.bias[:, None, None]
    return out


def normed(x: Tensor, layer: Any) -> Tensor:
    """A layer norm over channels."""
    mean = x.mean(1, keepdim=True)
    apart = (x - mean) / torch.sqrt(((x - mean) ** 2).mean(1, keepdim=True) + layer.eps)
    out: Tensor = apart * layer.weight[:, None, None] + layer.bias[:, None, None]
    return out


def convolved(x: Tensor, weight: Tensor) -> Tensor:
    """A convolution of odd kernel with zeros around, a shifted product for each of its places."""
    reach = weight.shape[2] // 2
    wide = torch.zeros(*x.shape[:2], x.shape[2] + 2 * reach, x.shape[3] + 2 * reach, dtype=x.dtype)
    wide[:, :, reach : reach + x.shape[2], reach : reach + x.shape[3]] = x
    out = torch.zeros(x.shape[0], weight.shape[0], *x.shape[2:], dtype=x.dtype)
    for row in range(weight.shape[2]):
        for column in range(weight.shape[3]):
            part = wide[:, :, row : row + x.shape[2], column : column + x.shape[3]]
            out += torch.einsum("bchw,oc->bohw", part, weight[:, :, row, column])
    return out


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def test_a_pyramid_is_that_of_the_paper() -> None:
    pyramid = SimpleFeaturePyramid(16, 16).double()
    for parameter in pyramid.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, 16, 4, 6, dtype=torch.float64)
    by_4, by_2, same, half = (list(level) for level in pyramid.levels)  # type: ignore[call-overload]
    wanted = [
        transposed(gelu(normed(transposed(x, by_4[0]), by_4[1])), by_4[3]),
        transposed(x, by_2[0]),
        x,
        x.unflatten(2, (2, 2)).unflatten(4, (3, 2)).amax((3, 5)),  # type: ignore[no-untyped-call]
    ]
    assert [y.shape[1:] for y in wanted] == [(4, 16, 24), (8, 8, 12), (16, 4, 6), (16, 2, 3)]
    for out, y, level in zip(pyramid(x), wanted, (by_4, by_2, same, half), strict=True):
        first, first_norm, second, second_norm = level[-4:]
        assert first.bias is None
        assert second.bias is None
        y = normed(convolved(normed(convolved(y, first.weight), first_norm), second.weight), second_norm)
        torch.testing.assert_close(out, y, atol=1e-9, rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "strides"),
    [
        ("test_vit", (4, 8, 16, 32)),
        ("vit_small_patch14_dinov2:depth=2", (7, 14, 28)),
        ("convmixer_768_32", (7, 14)),
        ("xcit_nano_12_p8_224:depth=2", (2, 4, 8, 16)),
        ("mixer_s32_224", (8, 16, 32, 64)),
        ("vit_small_r26_s32_224:depth=2", (8, 16, 32, 64)),
    ],
)
def test_one_stride_becomes_a_pyramid(name: str, strides: tuple[int, ...]) -> None:
    model = build(name, device="meta")
    assert model.strides == strides
    assert model.channels == (256,) * len(strides)
    side = 2 * strides[-1] if model.size is None else model.size[0]
    assert [tuple(x.shape) for x in on_meta(model.encoder, side, side)] == [
        (1, 256, side // stride, side // stride) for stride in strides
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "strides", "channels"),
    [
        ("crossvit_tiny_240", (12, 17), (96, 192)),
        ("levit_128s", (16, 32, 64), (128, 256, 384)),
        ("visformer_tiny", (8, 16, 32), (96, 192, 384)),
        ("cspdarknet53", (1, 2, 4, 8, 16, 32), (32, 64, 128, 256, 512, 1024)),
        ("swin_tiny_patch4_window7_224", (4, 8, 16, 32), (96, 192, 384, 768)),
    ],
)
def test_two_strides_and_more_are_the_models_own(
    name: str, strides: tuple[int, ...], channels: tuple[int, ...]
) -> None:
    model = build(name, device="meta")
    assert model.strides == strides
    assert model.channels == channels


def test_of_maps_with_one_stride_the_deepest_is_given() -> None:
    maps = read_feature_maps(TimmSpec("sequencer2d_s", 3), reporting([7, 14, 14]), None)
    assert (maps.strides, maps.channels, maps.selected) == ((7, 14), (1, 3), (0, 2))
    assert maps.source == ("timm a, reduction 7", "timm c, reduction 14")


def test_levels_count_from_the_shallowest() -> None:
    two = build("test_vit:levels=2", device="meta")
    assert two.strides == (4, 8)
    assert (two.min_size, two.multiple) == (16, 16)
    three = build("levit_128s:levels=2", device="meta")
    assert three.strides == (16, 32)
    with pytest.raises(BuildError, match=r"timm/test_vit .*levels=5 must be from 2 to 4"):
        build("test_vit:levels=5", device="meta")


def test_only_the_last_map_is_asked_for() -> None:
    encoder = TimmEncoder(3, "test_vit")
    x = torch.rand(1, 3, 160, 160)
    assert [tuple(y.shape) for y in encoder.model(x)] == [(1, 64, 10, 10)]


@pytest.mark.slow
def test_gradients_reach_a_pyramid_and_its_model() -> None:
    model = build("test_vit", seed=0)
    out = model(torch.randn(2, 3, 97, 131))
    assert out.shape == (2, 2, 97, 131)
    out.square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.slow
def test_maps_whose_sizes_timm_reads_from_values_pass_on_meta() -> None:
    model = build("gemma4_vit_167m", device="meta")
    assert model.strides == (4, 8, 16, 32)
    assert on_meta(model, 33, 65).shape == (1, 2, 33, 65)


# Sizes


@pytest.mark.parametrize("name", ["test_vit", "swin_tiny_patch4_window7_224", "test_resnet", "test_convnext"])
def test_at_its_own_size_an_encoder_gives_what_plain_timm_gives(name: str) -> None:
    encoder = TimmEncoder(3, name).eval()
    side = timm.get_pretrained_cfg(name).input_size[-1]
    plain = timm.create_model(name, features_only=True).eval()
    state = encoder.model.state_dict()
    assert not plain.load_state_dict(state, strict=False).unexpected_keys
    x = torch.randn(1, 3, side, side)
    with torch.no_grad():
        given, wanted = encoder.model(x), plain(x)
    for ours, theirs in zip(given, wanted[-len(given) :], strict=True):
        assert torch.equal(ours, theirs)


#: One a cause: positions, windows, blocks, one size, halving that rounds otherwise, space to depth, attention.
SIZES = {
    "test_vit": (32, 32, None),
    "swin_tiny_patch4_window7_224": (32, 32, None),
    "twins_svt_small": (32, 1, None),
    "halonet26t": (256, 256, None),
    "sam2_hiera_tiny": (32, 32, None),
    "tresnet_m": (32, 32, None),
    "lambda_resnet26t": (32, 32, None),
    "resnetaa34d": (32, 32, None),
    "hrnet_w18_small": (32, 32, None),
    "resnet18": (32, 1, None),
    "inception_v3": (96, 1, None),
    "nest_tiny": (1, 1, (224, 224)),
    "levit_128s": (1, 1, (224, 224)),
    "crossvit_tiny_240": (1, 1, (240, 240)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_odd_sizes_are_padded_to_what_the_encoder_takes(name: str) -> None:
    model = build(name, device="meta")
    assert (model.min_size, model.multiple, model.size) == SIZES[name]
    for size in ((97, 131), (33, 65)):
        assert on_meta(model, *size).shape == (1, 2, *size)


def test_a_multiple_is_believed_only_beyond_the_models_own_size() -> None:
    def windows(height: int, width: int) -> bool:
        return all(side // 32 <= 7 or side % 224 == 0 for side in (height, width))

    assert search_size_limits(windows, 32) == (224, 224)
    assert search_size_limits(lambda height, width: height == width == 224, 32) is None
    assert search_size_limits(lambda *_: False, 32) is None
    assert search_size_limits(lambda *_: True, 32) == (32, 1)
    assert search_size_limits(lambda *_: True, 32, aligned=True) == (32, 32)


def test_a_size_is_kept_only_where_one_passed() -> None:
    assert probe_sizes("one that is broken", nn.Linear(7, 7), 3, 16) == (16, 16)
    assert probe_sizes("one that is broken", nn.Conv2d(3, 1, 1), 3, 16) == (16, 1)


def test_memory_that_ran_out_says_nothing_of_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_out(*_: Any, **__: Any) -> None:
        raise MemoryError

    model = nn.Conv2d(3, 1, 1, device="meta")
    model.register_forward_hook(run_out)
    with pytest.raises(MemoryError):
        accepts(model, 3, 32, 32)
    monkeypatch.setattr(timm, "create_model", run_out)
    with pytest.raises(MemoryError):
        TimmSpec("test_resnet", 3).create()


def test_a_larger_image_than_the_one_size_is_refused_with_what_to_say() -> None:
    model = build("levit_128s", device="meta")
    with pytest.raises(InputSizeError, match=r"224x224, .* --size 300x400"):
        on_meta(model, 300, 400)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "built"),
    [
        ("levit_128s", (97, 131), (128, 192)),
        ("levit_128s", (300, 400), (320, 448)),
        ("nest_tiny", (97, 131), (144, 144)),
        ("convit_tiny", (97, 131), (160, 160)),
    ],
)
def test_a_model_of_one_size_is_built_for_another(name: str, size: tuple[int, int], built: tuple[int, int]) -> None:
    model = build(name, size=size, device="meta")
    assert model.size == built
    assert on_meta(model, *size).shape == (1, 2, *size)
    assert unetkit.Plan.parse(str(model.plan)) == model.plan


@pytest.mark.slow
def test_the_size_that_timm_builds_it_for_changes_nothing() -> None:
    assert build("levit_128s", size=224, device="meta").size == (224, 224)
    assert build("levit_128s:img_size=[128,128]", size=100, device="meta").size == (128, 128)


@pytest.mark.slow
def test_positions_are_made_for_the_size_that_is_said() -> None:
    model = build("test_vit", size=(97, 131), device="meta")
    positions = dict(model.encoder.named_parameters())["model.model.pos_embed"]
    assert positions.shape[1] == 8 * 10 + 1
    assert (model.min_size, model.multiple, model.size) == (32, 32, None)


@pytest.mark.slow
def test_a_model_that_cannot_change_says_which_sizes_it_takes() -> None:
    name = "efficientformer_l1:depths=[1,1,1,2]"
    assert build(name, size=(97, 131), device="meta").size == (224, 224)
    with pytest.raises(BuildError, match=r"takes 224x224 only, .* --size 224x224"):
        build(name, size=(300, 400), device="meta")


# Channels and weights


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("test_vit", 1),
        ("test_vit", 4),
        ("test_vit", 13),
        ("test_convnext", 1),
        ("test_efficientnet", 4),
        ("test_nfnet", 13),
        ("pvt_v2_b0", 1),
    ],
)
def test_any_number_of_channels_goes_in(name: str, channels: int) -> None:
    model = build(name, in_channels=channels, device="meta")
    assert on_meta(model, 33, 65, channels=channels).shape == (1, 2, 33, 65)


@pytest.mark.slow
@pytest.mark.parametrize("words", [{}, {"in_channels": 4}, {"size": 96}], ids=str)
def test_weights_of_a_vision_transformer_are_loaded(tmp_path: Path, words: dict[str, Any]) -> None:
    weights = timm.create_model("test_vit").state_dict()
    path = tmp_path / "weights.pth"
    torch.save(weights, path)
    model = build("test_vit", pretrained=path, **words)
    state = model.encoder.state_dict()
    for key in ("blocks.5.mlp.fc1.weight", "patch_embed.proj.bias", "cls_token"):
        assert torch.equal(state[f"model.model.{key}"], weights[key]), key
    assert state["model.model.patch_embed.proj.weight"].shape[1] == words.get("in_channels", 3)
    assert model(torch.rand(1, words.get("in_channels", 3), 97, 65)).isfinite().all()


# Strides


@pytest.mark.slow
@pytest.mark.parametrize("stride", [8, 16])
@pytest.mark.parametrize("name", ["resnet18", "test_convnext", "test_efficientnet", "mobilenetv3_small_050"])
def test_dilation_keeps_maps_no_coarser_than_asked(name: str, stride: int) -> None:
    model = build(f"{name}:output_stride={stride}", device="meta")
    assert model.strides[-1] == stride
    assert on_meta(model.encoder, 64, 96)[-1].shape[2:] == (64 // stride, 96 // stride)


@pytest.mark.parametrize("name", ["test_vit", "swin_tiny_patch4_window7_224", "densenet121", "levit_128s"])
def test_a_model_that_cannot_dilate_refuses_to(name: str) -> None:
    with pytest.raises(BuildError, match=rf"timm/{name} .* output_stride=16.*leave it out"):
        build(f"{name}:output_stride=16", device="meta")


def test_a_model_that_swallows_the_stride_in_silence_is_refused() -> None:
    with pytest.raises(BuildError, match=r"output_stride=16: .* stride 32"):
        read_feature_maps(TimmSpec("silent", 3, 16), reporting([4, 8, 32]), None)


# Options


@pytest.mark.slow
@pytest.mark.parametrize(
    ("encoder", "changed"),
    [
        ("test_convnext:drop_path_rate=0.1", ("DropPath", 0.1)),
        ("test_vit:drop_path_rate=0.1", ("DropPath", 0.1)),
        ("test_resnet:drop_path_rate=0.1", ("DropPath", 0.1)),
    ],
)
def test_options_of_timm_reach_the_model(encoder: str, changed: tuple[str, float]) -> None:
    model = build(encoder, device="meta")
    kind, most = changed
    assert max(vars(m)["drop_prob"] for m in model.modules() if type(m).__name__ == kind) == pytest.approx(most)
    assert str(model.plan) == f"--encoder {encoder}"
    assert unetkit.Plan.parse(str(model.plan)) == model.plan


@pytest.mark.slow
def test_options_that_need_each_other_are_taken_together() -> None:
    model = build("test_vit:class_token=false,global_pool=avg", device="meta")
    assert not any("cls_token" in name for name, _ in model.named_parameters())


def test_an_option_that_only_draws_other_weights_is_taken() -> None:
    plain, other = (build(encoder, seed=0) for encoder in ("test_vit", "test_vit:weight_init=jax"))
    name = "encoder.model.model.blocks.0.mlp.fc1.weight"
    assert not torch.equal(plain.state_dict()[name], other.state_dict()[name])


def test_a_transformer_of_two_blocks_gives_its_last_map() -> None:
    model = build("test_vit:depth=2", device="meta")
    assert model.strides == (4, 8, 16, 32)
    assert (model.min_size, model.multiple, model.size) == SIZES["test_vit"]
    assert on_meta(model, 33, 65).shape == (1, 2, 33, 65)
    with pytest.raises(BuildError, match="cannot be built with depth=0"):
        build("test_vit:depth=0", device="meta")


@pytest.mark.parametrize(
    "encoder",
    [
        "resnet18:stem_type=deep,stem_width=32",
        "resnet18:drop_rate=0.2",
        "test_vit:dynamic_img_size=true,img_size=[64,96]",
        "test_vit:patch_size=8",
        "test_byobnet:stem_chs=24",
        "nfnet_l0:alpha=0.3",
        "hrnet_w18_small:head_conv_bias=false",
        "test_efficientnet:bn_eps=0.001",
    ],
)
def test_options_of_constructors_of_every_shape_are_taken(encoder: str) -> None:
    """Named parameters, those that `**kwargs` lays over a configuration, and those that only a function reads."""
    plan = unetkit.Plan.parse(f"--encoder '{encoder}'")
    assert build(plan, device="meta").plan == plan


def test_an_option_that_no_signature_shows_reaches_the_model() -> None:
    model = build("test_efficientnet:bn_eps=0.125", device="meta")
    assert {m.eps for m in model.encoder.modules() if isinstance(m, nn.BatchNorm2d)} == {0.125}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        ("resnet18:drop_path=0.1", "'drop_path' .did you mean .*drop_path_rate"),
        ("test_vit:patchsize=8", "'patchsize' .did you mean patch_size"),
        ("test_byobnet:stem_chans=24", "'stem_chans' .did you mean .*stem_chs"),
        ("hrnet_w18_small:bogus=3", "timm/hrnet_w18_small has no option 'bogus'"),
        ("resnet18:bogus=none", "timm/resnet18 has no option 'bogus'"),
        ("test_byobnet:bogus=none", "timm/test_byobnet has no option 'bogus'"),
        ("hrnet_w18_small:bogus=none", "timm/hrnet_w18_small has no option 'bogus'"),
        ("resnet18:pretrained_filter_fn=3", "timm/resnet18 has no option 'pretrained_filter_fn'"),
        ("test_convnext:ls_init_value=none", "ls_init_value=none has no effect"),
        ("resnet18:drop_path_rate=high", "drop_path_rate must be a number; got high"),
        ("test_vit:img_size=[0,64]", "timm/test_vit: img_size=0x64 "),
        ("resnet18:img_size=[-5,10]", "timm/resnet18: img_size=-5x10 "),
        ("resnet18:in_chans=4", "in_chans, because --in-channels "),
        ("resnet18:num_classes=4", "num_classes, because --classes "),
        ("resnet18:out_indices=[1,2]", "out_indices, because levels "),
        ("resnet18:features_only=true", "features_only, because "),
    ],
)
def test_options_are_refused(encoder: str, message: str) -> None:
    with pytest.raises(OptionError, match=message) as refusal:
        build(encoder, device="meta")
    assert "\n" not in str(refusal.value)


def test_options_that_timm_cannot_build_with_are_refused() -> None:
    with pytest.raises(BuildError, match=r"cannot be built with class_token=False "):
        build("test_vit:class_token=false", device="meta")


# The trace


def test_the_trace_says_which_of_timms_modules_a_map_comes_from() -> None:
    rows = {row.level: row.what for row in unetkit.trace(build("test_resnet", device="meta"), 64).rows}
    assert rows["encoder.0"] == "timm act1, reduction 2"
    assert rows["encoder.3"] == "timm layer3, reduction 16"
    rows = {row.level: row.what for row in unetkit.trace(build("test_vit", device="meta"), 64).rows}
    assert [rows[f"encoder.{i}"] for i in range(4)] == [
        "timm blocks.5, reduction 16; 2 transposed convs",
        "timm blocks.5, reduction 16; transposed conv",
        "timm blocks.5, reduction 16",
        "timm blocks.5, reduction 16; max pool",
    ]
