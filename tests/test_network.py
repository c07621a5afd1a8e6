"""A built network in use: copied, compiled, exported, frozen, seeded, and at every size."""

from __future__ import annotations

import copy
import warnings
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.rounding import assert_equal_to_rounding
from unetkit import build
from unetkit.errors import BuildError, InputSizeError, OptionError, UnetkitError, UnknownNameError
from unetkit.network import Network
from unetkit.parts.fusions import Add, Concat, Max
from unetkit.utils.meta_shapes import MetaShapes

SMALL = ("plain:widths=[8,16,32]", "test_resnet")
PLAIN = SMALL[0]
ALIGNS = ("crop", "pad", "resize")
UPS = ("bilinear", "nearest", "transposed", "pixelshuffle")


@cache
def network(encoder: str, **words: Any) -> Network:
    return build(encoder, seed=0, **words).eval()


def image(height: int, width: int) -> Tensor:
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(height * 1000 + width))


def run(model: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        out = model(x)
    assert isinstance(out, Tensor)
    return out


@pytest.mark.parametrize("encoder", SMALL)
def test_a_deep_copy_is_equal_and_apart(encoder: str) -> None:
    model = build(encoder, seed=0).eval()
    twin = copy.deepcopy(model)
    x = image(45, 38)
    out = run(model, x)
    assert torch.equal(run(twin, x), out)
    assert twin.plan == model.plan
    nn.init.zeros_(next(twin.encoder.parameters()))
    assert torch.equal(run(model, x), out)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("encoder", "words", "backend"),
    [
        ("test_resnet:levels=3", {}, "eager"),
        # aot_eager runs what "eager" runs, and the decompositions of learned logits.
        ("plain:widths=[4,8]", {"logits": "transposed:channels=keep"}, "aot_eager"),
    ],
    ids=str,
)
def test_compiles_whole_and_for_every_size(encoder: str, words: dict[str, str], backend: str) -> None:
    torch._dynamo.reset()
    model = network(encoder, **words)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
    for size in ((64, 48), (45, 71)):
        assert_equal_to_rounding(run(compiled, image(*size)), run(model, image(*size)), model)


def exported(model: Network, least: int) -> nn.Module:
    """The model exported once, at an even size, for every height and width from `least` up."""
    # AUTO, since timm's pools with ceil_mode ask things of the size that are true, but that a solver cannot prove.
    dynamic = {2: torch.export.Dim.AUTO(min=least), 3: torch.export.Dim.AUTO(min=least)}
    program = torch.export.export(model, (image(64, 80),), dynamic_shapes=(dynamic,))
    return program.module()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("encoder", "words"),
    [
        ("plain:widths=[4,8]", {}),
        ("plain:widths=[4,8]", {"align": "crop", "up": "transposed"}),
        ("test_resnet:levels=3", {"align": "pad"}),
    ],
    ids=str,
)
def test_exports_once_for_every_size(encoder: str, words: dict[str, str]) -> None:
    model = network(encoder, **words)
    least = 40
    anywhere = exported(model, least)
    for size in ((64, 80), (40, 40), (45, 71), (97, 52)):
        assert_equal_to_rounding(run(anywhere, image(*size)), run(model, image(*size)), model)


def trace_graph(model: Network, x: Tensor) -> Any:
    return torch.jit.trace(model, x, check_trace=False)  # type: ignore[no-untyped-call]


TRACED: list[Any] = [
    (PLAIN, {"up": "transposed:kernel=3", "align": "crop/pad", "fuse": "add"}),
    (PLAIN, {"up": "pixelshuffle/nearest", "align": "resize", "fuse": "mean/max"}),
    (PLAIN, {"decode_to": 2, "logits": "transposed:channels=keep"}),
    ("plain:widths=[4,8],padding=0", {"block": "basic:padding=0", "align": "crop", "head": "conv-act-norm"}),
    *(
        pytest.param(encoder, words, marks=pytest.mark.slow)
        for encoder, words in [
            # Every upsampler and every align, in pairs that have something to do: for 45 x 71 the upsampler gives
            # 44 x 70 where the skip has 45 x 71. (Bilinear and nearest upsampling leaves `resize` nothing to do.)
            ("plain:widths=[4,8]", {"up": "bilinear", "align": "pad"}),
            ("plain:widths=[4,8]", {"up": "nearest", "align": "crop"}),
            ("plain:widths=[4,8]", {"up": "transposed", "align": "resize"}),
            ("plain:widths=[4,8]", {"up": "pixelshuffle", "align": "pad"}),
            *(("test_resnet", {"logits": logits}) for logits in ("none", "nearest", "transposed:channels=keep")),
            ("smp/resnet18", {}),
            ("test_vit", {}),
        ]
    ),
]


@pytest.mark.parametrize(("encoder", "words"), TRACED, ids=str)
def test_a_graph_of_torch_jit_trace_takes_every_size(encoder: str, words: dict[str, Any]) -> None:
    model = network(encoder, **words)
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        traced = trace_graph(model, image(64, 64))
    assert not [each for each in raised if "unetkit" in each.filename], "a size is compared or made a constant"
    for size in ((64, 64), (45, 71), (20, 96)):
        assert_equal_to_rounding(run(traced, image(*size)), run(model, image(*size)), model)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["unet", "unetplusplus", "fpn", "linknet", "manet", "pan", "pspnet", "deeplabv3plus", "upernet", "segformer"],
)
def test_models_of_smp_are_traced_by_torch_jit(name: str) -> None:
    model = build(model=f"smp/{name}", encoder="test_resnet", seed=0).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of smp's own decoders
        traced = trace_graph(model, image(64, 64))
    for size in ((64, 64), (45, 71)):
        assert_equal_to_rounding(run(traced, image(*size)), run(model, image(*size)), model)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch deprecates what TensorBoard uses
def test_tensorboard_draws_the_graph(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        writer.add_graph(network(PLAIN, align="crop"), image(33, 47))
    assert any(b"stages" in file.read_bytes() for file in tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("words", [{"up": "transposed:kernel=3", "align": "crop"}, {"align": "pad"}], ids=str)
def test_the_older_onnx_exporter_keeps_sizes_free(words: dict[str, str], tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    model, file = network("test_resnet", **words), tmp_path / "model.onnx"
    axes = {"x": {2: "height", 3: "width"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this exporter is deprecated
        torch.onnx.export(model, (image(64, 64),), file, dynamo=False, input_names=["x"], dynamic_axes=axes)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for size in ((64, 64), (45, 71), (20, 96)):
        (logits,) = session.run(None, {"x": image(*size).numpy()})
        assert_equal_to_rounding(torch.from_numpy(logits), run(model, image(*size)), model)


@pytest.mark.slow
def test_exports_with_named_dimensions() -> None:
    model = network("plain:widths=[4,8],padding=0", block="double:padding=0", up="transposed", align="crop")
    height, width = torch.export.Dim("height", min=44, max=2048), torch.export.Dim("width", min=44, max=2048)
    program = torch.export.export(model, (image(64, 80),), dynamic_shapes=({2: height, 3: width},))
    for size in ((64, 80), (44, 44), (45, 71), (97, 52)):
        assert_equal_to_rounding(run(program.module(), image(*size)), run(model, image(*size)), model)


@pytest.mark.parametrize("encoder", SMALL)
def test_channels_last_gives_equal_values(encoder: str) -> None:
    model = network(encoder)
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    x = image(45, 38)
    out = run(last, x.contiguous(memory_format=torch.channels_last))
    assert_equal_to_rounding(out, run(model, x), model)


def test_state_dict_keys_are_stable() -> None:
    model = build("plain:widths=[8,16]", up="transposed", block="double:norm=none")
    units = [f"encoder.levels.{level}.{unit}" for level in (0, 1) for unit in (0, 1)]
    norm = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    assert list(model.state_dict()) == [
        *(key for unit in units for key in (f"{unit}.conv.weight", *(f"{unit}.norm.{name}" for name in norm))),
        "stages.0.up.weight",
        "stages.0.up.bias",
        "stages.0.block.0.conv.weight",
        "stages.0.block.0.conv.bias",
        "stages.0.block.1.conv.weight",
        "stages.0.block.1.conv.bias",
        "head.conv.weight",
        "head.conv.bias",
    ]
    residual = build(PLAIN, fuse="add", block="basic", up="pixelshuffle", head="conv-act-norm")
    keys = {key.split(".", 2)[2] for key in residual.state_dict() if key.startswith("stages.0.")}
    assert {key.rsplit(".", 1)[0] for key in keys} == {
        "up.conv",
        "fusion.project_x",
        "block.units.0.conv",
        "block.units.0.norm",
        "block.units.1.conv",
        "block.units.1.norm",
    }
    assert [k for k in residual.state_dict() if k.startswith("head.") and k.endswith("weight")] == [
        "head.conv.weight",
        "head.norm.weight",
    ]


@pytest.mark.parametrize("encoder", SMALL)
def test_the_encoder_is_frozen_in_one_line(encoder: str) -> None:
    model = build(encoder)
    model.encoder.requires_grad_(False)
    model(image(64, 64).repeat(2, 1, 1, 1)).sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == name.startswith("encoder."), name
    groups: list[dict[str, Any]] = [
        {"params": model.encoder.parameters(), "lr": 1e-4},
        {"params": [*model.stages.parameters(), *model.head.parameters()]},
    ]
    optimizer = torch.optim.SGD(groups, lr=1e-2)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


def test_a_seed_fixes_the_weights_and_nothing_else() -> None:
    for encoder in SMALL:
        before = torch.get_rng_state()
        one, same, other = (build(encoder, seed=seed).state_dict() for seed in (1, 1, 2))
        assert torch.equal(torch.get_rng_state(), before)
        assert all(torch.equal(one[key], same[key]) for key in one)
        different = [key for key in one if not torch.equal(one[key], other[key])]
        assert {key for key in one if key.endswith("conv.weight")} <= set(different)


def test_without_a_seed_the_global_one_counts() -> None:
    made = []
    for _ in range(2):
        torch.manual_seed(7)
        made += [build(PLAIN).state_dict(), build(PLAIN).state_dict()]
    assert all(torch.equal(made[0][key], made[2][key]) for key in made[0])
    assert not torch.equal(made[0]["head.conv.weight"], made[1]["head.conv.weight"])


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(st.sampled_from(SMALL), st.sampled_from(ALIGNS), st.sampled_from(UPS), st.integers(1, 40), st.integers(1, 40))
def test_a_padded_network_takes_every_size(encoder: str, align: str, up: str, height: int, width: int) -> None:
    out = run(network(encoder, align=align, up=up), image(height, width))
    assert out.shape == (1, 2, height, width)
    assert out.isfinite().all()


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(("batch", "group", "instance", "layer", "none")), st.integers(1, 40), st.integers(1, 40))
def test_every_norm_takes_every_size(norm: str, height: int, width: int) -> None:
    model = network(f"plain:widths=[4,8,16],norm={norm}", block=f"basic:norm={norm}")
    out = run(model, image(height, width))
    assert out.shape == (1, 2, height, width)
    assert out.isfinite().all()


@pytest.mark.slow
@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from(("test_resnet", "plain:widths=[4,8,16,32]", "test_convnext")),
    st.sampled_from((1, 2, 4)),
    st.sampled_from((*UPS[:2], "bilinear:align_corners=true", "transposed:channels=keep", "pixelshuffle")),
    st.integers(1, 40),
    st.integers(1, 40),
)
def test_logits_reach_every_size(encoder: str, decode_to: int, logits: str, height: int, width: int) -> None:
    model = network(encoder, decode_to=decode_to, logits=logits)
    assert run(model, image(height, width)).shape == (1, 2, height, width)


@pytest.mark.parametrize("decode_to", [1, 2, 4])
@pytest.mark.parametrize("encoder", ["test_resnet", "plain:widths=[2,4,8,16]"])
def test_decodes_to_a_stride(encoder: str, decode_to: int) -> None:
    model = network(encoder, decode_to=decode_to, logits="none")
    assert model.stages[-1].stride == decode_to
    for size in ((64, 96), (24, 16), (8, 96)):  # the small ones are padded, and the output is cut back
        assert run(model, image(*size)).shape[2:] == (size[0] // decode_to, size[1] // decode_to)


@pytest.mark.parametrize("up", UPS)
def test_stages_beyond_the_shallowest_map_join_none(up: str) -> None:
    model = network("test_resnet", up=up)
    assert [stage.stride for stage in model.stages] == [16, 8, 4, 2, 1]
    assert [stage.get_submodule("up") is not None for stage in model.stages] == [True] * 5
    assert model.skips == (3, 2, 1, 0, None)
    last = model.stages[-1]
    assert all(part is None for part in (last.fusion, last.align))
    sizes: list[tuple[int, ...]] = []
    with last.register_forward_hook(lambda _, __, out: sizes.append(tuple(out.shape[2:]))):
        run(model, image(45, 71))
    assert sizes == [(45, 71)]


@pytest.mark.parametrize("encoder", SMALL)
def test_gradients_reach_every_parameter(encoder: str) -> None:
    model = build(encoder, up="transposed", fuse="add", logits="transposed:channels=keep")
    x = image(64, 96).repeat(2, 1, 1, 1)
    before = x.clone()
    out = model(x)
    (out * torch.randn_like(out)).sum().backward()
    assert torch.equal(x, before)
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(
    ("stride", "strides", "channels"), [(16, (2, 4, 8, 16), (64, 256, 512, 2048)), (8, (2, 4, 8), (64, 256, 2048))]
)
def test_dilation_in_place_of_stride(stride: int, strides: tuple[int, ...], channels: tuple[int, ...]) -> None:
    model = build(f"resnet50:output_stride={stride}", device="meta")
    assert tuple(model.encoder.strides) == strides
    with MetaShapes():
        maps = model.encoder(torch.empty(1, 3, 64, 96, device="meta"))
        out = model(torch.empty(1, 3, 71, 45, device="meta"))
    assert [tuple(m.shape) for m in maps] == [(1, c, 64 // s, 96 // s) for c, s in zip(channels, strides, strict=True)]
    dilations = {m.dilation[0] for m in model.encoder.modules() if isinstance(m, nn.Conv2d)}
    assert dilations == ({1, 2} if stride == 16 else {1, 2, 4})
    assert out.shape == (1, 2, 71, 45)


def test_an_encoder_without_dilation_says_so() -> None:
    with pytest.raises(BuildError, match=r"timm/vgg11 .* output_stride=16"):
        build("vgg11:output_stride=16", device="meta")
    with pytest.raises(OptionError, match=r"output_stride .* 8, 16, 32; got 4"):
        build("resnet50:output_stride=4", device="meta")


class Gated(nn.Module):
    """A fusion that is tried out before anyone packages it."""

    def __init__(self, x_channels: int, skip_channels: int, *, power: int = 1) -> None:
        super().__init__()
        self.out_channels = skip_channels
        self.gate = nn.Conv2d(x_channels, skip_channels, 1)
        self.power = power

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        out: Tensor = skip * self.gate(x).sigmoid() ** self.power
        return out


def test_a_part_may_be_a_class() -> None:
    model = build(PLAIN, fuse=Gated)
    assert all(isinstance(stage.fusion, Gated) for stage in model.stages)
    assert run(model.eval(), image(9, 13)).shape == (1, 2, 9, 13)
    assert "Gated" in str(model.plan)


def test_a_part_may_be_a_callable() -> None:
    def block(in_channels: int, out_channels: int, *, kernel: Literal[1, 3] = 3) -> nn.Module:
        return nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2)

    model = build(PLAIN, block=block, head=lambda i, o: nn.Conv2d(i, o, 5, padding=2))
    assert [type(stage.block) for stage in model.stages] == [nn.Conv2d, nn.Conv2d]
    assert run(model, image(9, 13)).shape == (1, 2, 9, 13)
    mixed = build(PLAIN, fuse=[Gated, "add"])
    assert [type(stage.fusion) for stage in mixed.stages] == [Gated, Add]


def test_a_level_may_have_its_own_word() -> None:
    model = build("plain:widths=[4,8,16,32]", fuse="add/max/concat", up="nearest/transposed/bilinear")
    assert [type(stage.fusion) for stage in model.stages] == [Add, Max, Concat]
    assert [type(stage.up).__name__ for stage in model.stages] == [
        "NearestUpsampler",
        "TransposedUpsampler",
        "BilinearUpsampler",
    ]
    assert run(model.eval(), image(20, 20)).shape == (1, 2, 20, 20)
    assert str(build("plain:widths=[4,8,16,32]", fuse="add/add/add").plan).endswith("--fuse add")


class Silent(nn.Module):
    """A fusion that does not say how many channels it gives."""

    def __init__(self, x_channels: int, skip_channels: int) -> None:
        super().__init__()


def broken(in_channels: int, out_channels: int) -> nn.Module:
    raise ZeroDivisionError("no such luck")


def nothing(in_channels: int, out_channels: int) -> None:
    return None


@pytest.mark.parametrize(
    ("words", "kind", "message"),
    [
        ({"fuse": "add/add/add"}, BuildError, r"--fuse gives 3 values, .* 2 levels .*\(at strides? 2, 1\)"),
        ({"up": ["nearest"] * 3}, BuildError, "--up gives 3 values, .*give one, or 2, "),
        ({"widths": (8,)}, BuildError, "--widths gives 1 value, .*give 2, "),
        ({"widths": "8,8,8"}, BuildError, "--widths gives 3 values, .* 2 levels"),
        ({"decode_to": 4}, BuildError, "--decode-to 4: must be below 4, .*plain"),
        ({"decode_to": 64}, BuildError, "--decode-to 64: must be below 4"),
        (
            {"fuse": Silent},
            BuildError,
            r"--fuse <Silent> at stages\.0 \(stride 2\) .*out_channels",
        ),
        ({"block": broken}, BuildError, r"at stages\.0 .* arguments 48, 16 failed: ZeroDivisionError: no such luck"),
        ({"block": nothing}, BuildError, r"--block <nothing> at stages\.0 .* type NoneType"),
        ({"logits": "transposed"}, BuildError, "--logits transposed: turns 2 channels.* into 1"),
        ({"classes": 0}, OptionError, "--classes: must be at least 1; got 0"),
        ({"in_channels": 0}, OptionError, "--in-channels: must be at least 1; got 0"),
        ({"fuse": "conkat"}, UnknownNameError, "conkat.*did you mean concat"),
        ({"up": "transposed:kernal=3"}, OptionError, "no option 'kernal' .did you mean kernel"),
        ({"up": "transposed:kernel=big"}, OptionError, "kernel must be an integer or none; got big"),
        ({"block": 3}, OptionError, "--block: 3 is not a part"),
    ],
)
def test_refusals(words: dict[str, Any], kind: type[UnetkitError], message: str) -> None:
    with pytest.raises(kind, match=message) as refusal:
        build(PLAIN, **words)
    assert "\n" not in str(refusal.value)


def test_a_size_that_is_said_and_does_not_pass_is_refused_at_build() -> None:
    with pytest.raises(InputSizeError, match=r"encoder\.levels\.4\.0\.conv, .* 512x2x2"):
        build(recipe="unet-2015", size=100, device="meta")


def test_a_fusion_that_cannot_join_is_refused_at_build_with_the_level_and_both_shapes() -> None:
    class Careless(nn.Module):
        def __init__(self, x_channels: int, skip_channels: int) -> None:
            super().__init__()
            self.out_channels = skip_channels

        def forward(self, x: Tensor, skip: Tensor) -> Tensor:
            return x + skip

    shapes = r"stages\.0\.fusion, which gets 16x256x256 and 8x256x256, combines maps of 8 and 16 channels"
    with pytest.raises(BuildError, match=rf"^--fuse <.*Careless>: {shapes} in .*test_network\.py:\d+$"):
        build("plain:widths=[8,16]", fuse=Careless)
    build("plain:widths=[8,8]", fuse=Careless)


def test_a_head_with_other_channels_than_classes_is_refused_at_build() -> None:
    def head(in_channels: int, classes: int) -> nn.Module:
        return nn.Conv2d(in_channels, 7, 1)

    with pytest.raises(BuildError, match=r" 2 channels.* 7$"):
        build("plain:widths=[4,8]", head=head)


def test_a_part_that_needs_values_is_built_unproven() -> None:
    class Curious(nn.Identity):
        def __init__(self, in_channels: int, out_channels: int) -> None:
            super().__init__()
            self.conv = nn.Conv2d(in_channels, out_channels, 1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.conv(x) * (2 if x.mean().item() > 0 else 1)
            return y

    model = build("plain:widths=[4,8]", block=Curious)
    assert model(torch.randn(1, 3, 8, 8)).shape == (1, 2, 8, 8)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["hrnet_w18_small", "dla34", "tresnet_m", "inception_v3", "inception_v4", "test_efficientnet", "resnetv2_18"],
)
def test_encoders_whose_maps_agree_only_at_multiples_are_padded_to_them(name: str) -> None:
    model = build(name, device="meta").eval()
    with torch.no_grad(), MetaShapes():
        for height, width in [(1, 1), (33, 65), (97, 131), (100, 100), (128, 96)]:
            assert model(torch.empty(1, 3, height, width, device="meta")).shape == (1, 2, height, width)


@pytest.mark.parametrize("recipe", ["unet-2015", "unet-same", "unet-relu-bn", "vgg16-unet", "resnet34-unet"])
@pytest.mark.parametrize("words", [{"decode_to": 2}, {"encoder": "resnet18"}, {"fuse": "add"}, {"classes": 5}])
def test_a_recipe_takes_one_word_more(recipe: str, words: dict[str, Any]) -> None:
    model = build(recipe=recipe, **words, device="meta")
    assert str(model.plan).startswith(f"--recipe {recipe} --")


def test_logits_that_overshoot_are_cut_at_the_far_end() -> None:
    model = build("test_resnet", decode_to=2, logits="transposed:channels=keep", seed=0).eval()
    x = torch.randn(1, 3, 45, 71)
    before: list[Tensor] = []
    assert model.logits is not None
    model.logits.register_forward_hook(lambda _module, _args, out: before.append(out))
    out = model(x)
    assert before[0].shape == (1, 2, 46, 72)
    assert torch.equal(out, before[0][..., :45, :71])


@pytest.mark.slow
def test_channels_last_maps_of_swin_are_read_the_right_way_round() -> None:
    model = build("swin_tiny_patch4_window7_224", device="meta").eval()
    with torch.no_grad(), MetaShapes():
        maps = model.encoder(torch.empty(1, 3, 224, 224, device="meta"))
    assert [tuple(m.shape[1:]) for m in maps] == [(96, 56, 56), (192, 28, 28), (384, 14, 14), (768, 7, 7)]


def test_lazy_layers_are_refused() -> None:
    with pytest.raises(BuildError, match="lazy"):
        build("plain:widths=[4,8]", block=lambda in_channels, out_channels: nn.LazyConv2d(out_channels, 1))


def test_parts_that_are_no_parts_are_refused() -> None:
    with pytest.raises(OptionError, match=r"unetkit\.load_parts\(plugins="):
        build("plain", parts=["file.py"])  # type: ignore[arg-type]


def test_a_part_that_gives_other_channels_than_it_declares_is_named() -> None:
    class Boastful(Concat):
        def __init__(self, x_channels: int, skip_channels: int) -> None:
            super().__init__(x_channels, skip_channels)
            self.out_channels = 7

    with pytest.raises(BuildError, match=r"^stages\.0\.fusion \(--fuse <.*Boastful>\) .*out_channels=7.* 24$"):
        build("plain:widths=[8,16]", fuse=Boastful)


def test_a_module_within_a_part_may_be_called_fuse() -> None:
    class Inside(nn.Module):
        def __init__(self, in_channels: int, out_channels: int) -> None:
            super().__init__()
            self.fuse = nn.Sequential(nn.Conv2d(in_channels, out_channels, 1))

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.fuse(x)
            return out

    assert build("plain:widths=[4,8]", block=Inside, size=16, device="meta").resolved_plan.size == (16, 16)


@pytest.mark.slow
def test_a_network_of_one_size_refuses_larger_inputs_exported_too() -> None:
    model = network("levit_128s:depth=[1,1,1],levels=2")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the biases that timm's model keeps as it runs
        program = exported(model, 40)
    x = torch.randn(1, 3, 97, 131)
    with torch.no_grad():
        assert_equal_to_rounding(program(x), model(x), model)
    for run in (program, model):
        with pytest.raises(Exception, match="224"):
            run(torch.randn(1, 3, 300, 400))
