"""UNet++ against the paper: the grid of its Figure 1 written out, its parameter count, and a built network in use."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unetkit
from unetkit.errors import BuildError, OptionError, UnknownNameError
from unetkit.summary.sanity_check import run_sanity_check
from unetkit.testing import collect_part_checks, collect_plugin_checks
from unetkit.testing.runner import PendingCheck

PARTS = unetkit.load_parts(["nested-skips"], isolated=True)
SMALL = {
    "encoder": 'nested:of="plain:widths=[2,4,8,16,32],norm=none",block="double:norm=none"',
    "recipe": "unet-plus-plus",
    "widths": "16,8,4,2",
}


def build(encoder: Any = None, **words: Any) -> nn.Module:
    model: nn.Module = unetkit.build(encoder, parts=PARTS, seed=0, **words)
    return model


def small(**words: Any) -> nn.Module:
    return build(**{**SMALL, **words}).eval()


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


#: The checks of the plugin, those of the encoder with few channels: the default has nine million weights, and the
#: checks make it many times.
CHECKS = [
    *(each for each in collect_plugin_checks("nested-skips") if each.part != "encoder nested"),
    *collect_part_checks("encoder", 'nested:of="plain:widths=[4,8,16,32]"', parts=PARTS),
]


@pytest.mark.slow
@pytest.mark.parametrize("pending", CHECKS, ids=lambda each: f"{each.part.partition(':')[0]}: {each.check}")
def test_conforms(pending: PendingCheck) -> None:
    result = pending.run()
    if result.outcome == "skipped":
        pytest.skip(result.message)
    assert result.outcome != "failed", f"{result.full_message} (expected: {pending.title})\n{result.traceback}"


def test_the_checks_are_those_of_the_whole_plugin() -> None:
    every = [(each.part, each.check) for each in collect_plugin_checks("nested-skips")]
    assert sorted((each.part.partition(":")[0], each.check) for each in CHECKS) == sorted(every)


def grid(x: Tensor, state: dict[str, Tensor], depth: int) -> Tensor:
    """UNet++ as Figure 1 of the paper draws it: every node X(i,j) with i + j <= depth, column by column."""

    def double(prefix: str, x: Tensor) -> Tensor:
        for unit in ("0", "1"):
            weight, bias = state[f"{prefix}.{unit}.conv.weight"], state[f"{prefix}.{unit}.conv.bias"]
            x = F.relu(F.conv2d(x, weight, bias, padding=1))
        return x

    def up(prefix: str, x: Tensor, size: torch.Size) -> Tensor:
        x = F.conv_transpose2d(x, state[f"{prefix}.up.weight"], state[f"{prefix}.up.bias"], stride=2)
        return F.interpolate(x, size)  # nothing at even sizes

    node: dict[tuple[int, int], Tensor] = {}
    for i in range(depth + 1):
        node[i, 0] = double(f"encoder.encoder.levels.{i}", F.max_pool2d(node[i - 1, 0], 2) if i else x)
    for j in range(1, depth + 1):
        for i in range(depth + 1 - j):
            prefix = f"stages.{depth - 1 - i}" if i + j == depth else f"encoder.columns.{j - 1}.{i}"
            before = [node[i, k] for k in range(j)]
            below = up(prefix, node[i + 1, j - 1], before[0].shape[-2:])
            node[i, j] = double(f"{prefix}.block", torch.cat([*before, below], dim=1))
    return F.conv2d(node[0, depth], state["head.conv.weight"], state["head.conv.bias"])


@pytest.mark.parametrize("size", [(64, 48), (45, 71), (16, 17)])
def test_is_the_grid_of_the_paper(size: tuple[int, int]) -> None:
    model = small(classes=3).double()
    x = torch.randn(2, 1, *size).double()
    with torch.no_grad():
        expected = grid(x, model.state_dict(), 4)
        out = model(x)
    assert out.shape == (2, 3, *size)
    torch.testing.assert_close(out, expected)
    assert expected.std() > 1e-3, "too flat to tell networks apart"


def parameters(widths: tuple[int, ...], in_channels: int, classes: int, norm: bool) -> int:
    """From the paper's formula: X(i,j) convolves j + 1 maps of its width, one of them upsampled by a 2x2 kernel."""

    def conv(i: int, o: int) -> int:
        return 9 * i * o + (2 * o if norm else o)

    depth = len(widths) - 1
    first = sum(conv(i, o) + conv(o, o) for i, o in zip((in_channels, *widths), widths, strict=False))
    rest = 0
    for i in range(depth):
        for j in range(1, depth - i + 1):
            rest += 4 * widths[i + 1] * widths[i] + widths[i]
            rest += conv((j + 1) * widths[i], widths[i]) + conv(widths[i], widths[i])
    return first + rest + widths[0] * classes + classes


def test_the_recipe_has_the_parameters_of_the_paper() -> None:
    model = build(recipe="unet-plus-plus", device="meta")
    assert count(model) == parameters((32, 64, 128, 256, 512), 1, 1, norm=False) == 9_041_601
    assert f"{count(model) / 1e6:.2f}" == "9.04"
    assert str(unetkit.trace(model, 96).line) == "--recipe unet-plus-plus --seed 0"


@pytest.mark.parametrize(("widths", "in_channels", "classes"), [((4, 8, 16), 3, 2), ((2, 4, 8, 16, 32, 64), 1, 5)])
def test_parameter_counts(widths: tuple[int, ...], in_channels: int, classes: int) -> None:
    text = ",".join(map(str, widths))
    model = build(
        f'nested:of="plain:widths=[{text}]"',
        up="transposed",
        in_channels=in_channels,
        classes=classes,
        device="meta",
    )
    assert count(model) == parameters(widths, in_channels, classes, norm=True)


def test_declares_its_maps() -> None:
    encoder: Any = unetkit.make_part("encoder", "nested:of=test_resnet", 3, parts=PARTS).eval()
    assert encoder.channels == (32 * 4, 32 * 3, 48 * 2, 192, 96)
    assert encoder.strides == (2, 4, 8, 16, 32)
    assert encoder.source == (
        "timm act1, reduction 2, 3 nested nodes",
        "timm layer1, reduction 4, 2 nested nodes",
        "timm layer2, reduction 8, 1 nested node",
        "timm layer3, reduction 16",
        "timm layer4, reduction 32",
    )
    with torch.no_grad():
        maps = encoder(torch.randn(1, 3, 65, 96))
        inner = encoder.encoder(torch.randn(1, 3, 65, 96))
    assert [tuple(m.shape[1:]) for m in maps] == [
        (channels, *m.shape[2:]) for channels, m in zip(encoder.channels, inner, strict=True)
    ]


@pytest.mark.parametrize(
    ("of", "strides", "scales"),
    [
        ("test_convnext", (4, 8, 16, 32), [[2, 2], [2]]),
        ("test_resnet:output_stride=8", (2, 4, 8), [[2]]),
        ("plain:widths=[4,8]", (1, 2), []),
        ("jump", (1, 4, 12), [[4]]),
    ],
)
def test_follows_the_strides_of_any_encoder(of: str, strides: tuple[int, ...], scales: list[list[int]]) -> None:
    parts = unetkit.load_parts(["nested-skips"], isolated=True)
    parts.encoders.add("jump", Jump)
    model: Any = unetkit.build(f'nested:of="{of}"', parts=parts, classes=3).eval()
    assert model.strides == strides
    assert [[node.up.stride[0] for node in column] for column in model.encoder.columns] == scales
    with torch.no_grad():
        assert model(torch.randn(1, 3, 71, 96)).shape == (1, 3, 71, 96)


class Jump(nn.Module):
    """An encoder that declares no more than it must, at strides that are no powers of two."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.channels, self.strides = (4, 6, 8), (1, 4, 12)
        self.levels = nn.ModuleList(
            nn.Conv2d(i, o, 1, stride) for i, o, stride in ((in_channels, 4, 1), (4, 6, 4), (6, 8, 3))
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = [x]
        for level in self.levels:
            maps.append(level(maps[-1]))
        return maps[1:]


def test_two_levels_have_no_nodes_between() -> None:
    nested: Any = build('nested:of="plain:widths=[4,8]"').eval()
    plain: Any = build("plain:widths=[4,8]").eval()
    plain.encoder.load_state_dict(nested.encoder.encoder.state_dict())
    x = torch.randn(1, 3, 32, 33)
    with torch.no_grad():
        for ours, theirs in zip(nested.encoder(x), plain.encoder(x), strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("encoder", "error", "message"),
    [
        ('nested:of="plain:padding=0"', BuildError, "which nodes cannot fuse; use padding=1"),
        ('nested:block="double:padding=0"', BuildError, "a node must keep the size of its level; use padding=1"),
        ("nested:of=rasnet34", UnknownNameError, "did you mean"),
        ("nested:up=bilinaer", UnknownNameError, "did you mean"),
        ('nested:of="resnet18:pretrained=true"', OptionError, "leave pretrained out, and give --pretrained instead"),
        ('nested:of="plain:widht=3"', OptionError, "plain has no option 'widht'"),
        ("nested:pretrained=true", OptionError, "plain has no option 'pretrained'"),
    ],
)
def test_refuses_in_one_line(encoder: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as raised:
        build(encoder)
    assert "\n" not in str(raised.value)


@pytest.mark.slow
def test_weights_of_the_inner_encoder_are_loaded(tmp_path: Path) -> None:
    file = tmp_path / "weights of resnet.safetensors"
    state = timm.create_model("test_resnet").state_dict()
    safetensors.torch.save_file({name: torch.rand_like(t.float()) for name, t in state.items()}, file)
    ours: Any = build("nested:of=test_resnet", pretrained=str(file))
    theirs: Any = build("test_resnet", pretrained=str(file))
    assert ours.encoder.weights_from == str(file)
    inner = ours.encoder.encoder.state_dict()
    for name, tensor in theirs.encoder.state_dict().items():
        assert torch.equal(inner[name], tensor), name
    unetkit.save(ours, tmp_path / "model.safetensors")
    file.unlink()  # what was saved needs the file no more
    again = unetkit.load(tmp_path / "model.safetensors", parts=PARTS)
    assert torch.equal(again.state_dict()["encoder.encoder.model.conv1.0.weight"], inner["model.conv1.0.weight"])


def test_saves_loads_and_copies(tmp_path: Path) -> None:
    model = small()
    unetkit.save(model, tmp_path / "model.safetensors")
    loaded = unetkit.load(tmp_path / "model.safetensors", parts=PARTS).eval()
    x = torch.randn(1, 1, 45, 32)
    with torch.no_grad():
        expected = model(x)
        assert torch.equal(loaded(x), expected)
        assert torch.equal(copy.deepcopy(model)(x), expected)
    assert loaded.plan == model.plan


def test_is_made_on_meta() -> None:
    model = small(device="meta")
    assert {p.device.type for p in model.parameters()} == {"meta"}


@pytest.mark.slow
def test_compiles_and_exports_for_every_size() -> None:
    torch._dynamo.reset()
    # Three levels have a node between maps, and one that joins two nodes.
    model = small(
        encoder='nested:of="plain:widths=[2,4,8,16],norm=none",block="double:norm=none"', widths="8,4,2"
    ).double()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="eager")
    height, width = torch.export.Dim("height", min=32, max=512), torch.export.Dim("width", min=32, max=512)
    example = (torch.randn(1, 1, 48, 64).double(),)
    exported = torch.export.export(model, example, dynamic_shapes=({2: height, 3: width},)).module()
    for size in ((48, 64), (45, 71)):
        x = torch.randn(1, 1, *size).double()
        with torch.no_grad():
            expected = model(x)
            torch.testing.assert_close(compiled(x), expected)
            torch.testing.assert_close(exported(x), expected)


def test_gradients_reach_every_node() -> None:
    check = run_sanity_check(build('nested:of="plain:widths=[4,8,16,32]"'), 32)
    assert check.passed, check
    assert check.parameters == 2 * 3 * 4 + 3 * (2 + 6) + 3 * 6 + 2
