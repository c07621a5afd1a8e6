"""The recipes against the published figures and against independent networks with the same weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.parts import references
from tests.rounding import assert_equal_to_rounding
from unetkit import build
from unetkit.network import Network
from unetkit.parts.fusions import Concat
from unetkit.utils.lazy_init import defer_init, preserve_rng
from unetkit.utils.meta_shapes import MetaShapes

#: Odd sides, at which crops and alignments matter, and even ones for some.
VALID = ((203, 190),)
PADDED = ((71, 45),)


def layers(model: nn.Module) -> list[nn.Module]:
    """The modules with weights of their own, in the order in which the network has them."""
    return [m for m in model.modules() if next(m.parameters(recurse=False), None) is not None]


def copy_weights(ours: nn.Module, theirs: nn.Module) -> None:
    """Give each layer of `theirs` the state of the layer of `ours` at the same place; shapes must agree."""
    for mine, other in zip(layers(ours), layers(theirs), strict=True):
        assert isinstance(mine, type(other)), (mine, other)
        other.load_state_dict(mine.state_dict())


def randomise(model: nn.Module, x: Tensor) -> None:
    """Weights that keep the signal's size, and batch statistics and affine terms that matter."""
    for module in layers(model):
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, std=(2 / (module.weight[0].numel())) ** 0.5)
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.1)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            module.momentum = None  # the plain mean of what it sees
    if any(isinstance(module, nn.BatchNorm2d) for module in layers(model)):
        with torch.no_grad():
            model.train()(x)


def assert_equal_to(ours: Network, theirs: nn.Module, sizes: tuple[tuple[int, int], ...]) -> None:
    torch.manual_seed(0)
    channels = next(theirs.parameters()).shape[1]
    randomise(ours, torch.randn(1, channels, *sizes[0]))
    copy_weights(ours, theirs)
    for size in sizes:
        x = torch.randn(1, channels, *size)
        with torch.no_grad():
            mine, other = ours.eval()(x), theirs.eval()(x)
        assert mine.shape == other.shape
        assert other.std() > 0.1, "an output that says nothing"
        assert_equal_to_rounding(mine, other, ours)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "words", "reference", "sizes"),
    [
        ("unet-2015", {}, references.unet_2015, (*VALID, (188, 188))),
        ("unet-same", {}, references.unet_same, PADDED),
        ("unet-bilinear", {}, references.UnetBilinear, (*PADDED, (64, 64))),
        ("unet-relu-bn", {}, references.unet_relu_bn, VALID),
        ("vgg16-unet", {}, references.Vgg16Unet, PADDED),
        ("resnet34-unet", {}, references.Resnet34Unet, (*PADDED, (64, 64))),
        ("resnet101-unet", {}, lambda: references.Resnet101Unet("add"), PADDED),
        ("resnet101-unet", {"fuse": "concat"}, lambda: references.Resnet101Unet("concat"), PADDED),
    ],
)
def test_equals_the_independent_network(
    recipe: str, words: dict[str, Any], reference: Callable[[], nn.Module], sizes: tuple[tuple[int, int], ...]
) -> None:
    with preserve_rng(), defer_init(discard=True):  # its weights are replaced
        theirs = reference()
    assert_equal_to(build(recipe=recipe, **words), theirs, sizes)


@pytest.mark.parametrize(
    ("words", "count"),
    [
        ({"recipe": "unet-2015"}, 31_030_658),
        ({"recipe": "unet-2015", "in_channels": 1, "classes": 2}, 31_030_658),
        ({"recipe": "unet-same"}, 31_042_434),
        ({"recipe": "unet-same", "in_channels": 3, "classes": 2}, 31_043_586),
        ({"recipe": "unet-bilinear", "classes": 1}, 13_395_329),
        ({"recipe": "unet-bilinear"}, 13_395_394),
        ({"recipe": "unet-bilinear", "up": "transposed:channels=keep"}, 14_788_994),
        ({"recipe": "unet-relu-bn"}, 34_524_038),
    ],
)
def test_parameter_counts(words: dict[str, Any], count: int) -> None:
    assert sum(p.numel() for p in build(**words, device="meta").parameters()) == count


@pytest.mark.parametrize(
    "reference",
    [references.unet_2015, references.unet_same, references.unet_relu_bn, references.UnetBilinear],
)
def test_the_references_have_the_published_counts(reference: Callable[[], nn.Module]) -> None:
    with torch.device("meta"):
        count = sum(p.numel() for p in reference().parameters())
    assert count in (31_030_658, 31_042_434, 34_524_038, 13_395_394)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "channels", "size", "output"),
    [
        ("unet-2015", 1, (572, 572), (388, 388)),
        ("unet-relu-bn", 1, (572, 572), (388, 388)),
        ("unet-same", 1, (571, 433), (571, 433)),
        ("unet-bilinear", 3, (571, 433), (571, 433)),
        ("vgg16-unet", 3, (571, 433), (571, 433)),
        ("resnet34-unet", 3, (571, 433), (571, 433)),
        ("resnet101-unet", 3, (571, 433), (571, 433)),
    ],
)
def test_output_sizes(recipe: str, channels: int, size: tuple[int, int], output: tuple[int, int]) -> None:
    model = build(recipe=recipe, device="meta")
    with MetaShapes():
        assert model(torch.empty(2, channels, *size, device="meta")).shape == (2, 2, *output)


def test_every_size_of_the_original() -> None:
    model = build(recipe="unet-2015", device="meta")
    steps: list[str] = []

    def watch(module: nn.Module, what: str) -> None:
        def note(_: nn.Module, given: tuple[Tensor, ...], out: Any) -> None:
            if what == "crop":
                steps.append(f"crop {given[1].shape[-1]} to {out[1].shape[-1]}")
            else:
                steps.append(f"{what} {out.shape[1]}x{out.shape[2]}x{out.shape[3]}")

        module.register_forward_hook(note)

    for module in model.modules():
        kinds = {nn.ConvTranspose2d: "up", nn.Conv2d: "conv", nn.MaxPool2d: "pool", Concat: "concat"}
        for kind, what in kinds.items():
            if isinstance(module, kind):
                watch(module, what)
    for stage in model.stages:
        watch(stage.get_submodule("align"), "crop")
    with MetaShapes():
        model(torch.empty(1, 1, 572, 572, device="meta"))

    def convs(channels: int, *sizes: int) -> list[str]:
        return [f"conv {channels}x{size}x{size}" for size in sizes]

    assert steps == [
        *convs(64, 570, 568),
        "pool 64x284x284",
        *convs(128, 282, 280),
        "pool 128x140x140",
        *convs(256, 138, 136),
        "pool 256x68x68",
        *convs(512, 66, 64),
        "pool 512x32x32",
        *convs(1024, 30, 28),
        "up 512x56x56",
        "crop 64 to 56",
        "concat 1024x56x56",
        *convs(512, 54, 52),
        "up 256x104x104",
        "crop 136 to 104",
        "concat 512x104x104",
        *convs(256, 102, 100),
        "up 128x200x200",
        "crop 280 to 200",
        "concat 256x200x200",
        *convs(128, 198, 196),
        "up 64x392x392",
        "crop 568 to 392",
        "concat 128x392x392",
        *convs(64, 390, 388),
        *convs(2, 388),
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "strides", "channels"),
    [
        ("vgg16-unet", (1, 2, 4, 8, 16), (64, 128, 256, 512, 512)),
        ("resnet34-unet", (2, 4, 8, 16, 32), (64, 64, 128, 256, 512)),
        ("resnet101-unet", (2, 4, 8, 16, 32), (64, 256, 512, 1024, 2048)),
    ],
)
def test_encoder_maps(recipe: str, strides: tuple[int, ...], channels: tuple[int, ...]) -> None:
    encoder = build(recipe=recipe, device="meta").encoder
    assert encoder.strides == strides
    assert encoder.channels == channels
    with MetaShapes():
        maps = encoder(torch.empty(1, 3, 64, 96, device="meta"))
    assert [tuple(m.shape) for m in maps] == [(1, c, 64 // s, 96 // s) for c, s in zip(channels, strides, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize(("fuse", "joined"), [("add", (1024, 512, 256)), ("concat", (3072, 1024, 768))])
def test_resnet101_decodes_to_a_quarter(fuse: str, joined: tuple[int, ...]) -> None:
    model = build(recipe="resnet101-unet", fuse=fuse, device="meta")
    assert [stage.stride for stage in model.stages] == [16, 8, 4]
    assert tuple(stage.get_submodule("fusion").out_channels for stage in model.stages) == joined
    sizes: list[tuple[int, ...]] = []
    model.head.register_forward_hook(lambda _, __, out: sizes.append(tuple(out.shape[2:])))
    with MetaShapes():
        assert model(torch.empty(1, 3, 96, 64, device="meta")).shape == (1, 2, 96, 64)
    assert sizes == [(24, 16)]


def test_words_beside_a_recipe_override_it() -> None:
    model = build(recipe="unet-2015", widths=(4, 3, 2, 1), classes=5, device="meta")
    assert str(model.plan) == "--recipe unet-2015 --widths 4,3,2,1 --classes 5"
    assert model(torch.empty(1, 1, 188, 188, device="meta")).shape == (1, 5, 4, 4)
