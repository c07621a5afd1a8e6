"""Blocks, units, fusions, aligns and heads, each against torch written out by hand."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.layers import create_act, create_act_layer
from torch import Tensor, nn

from unetkit import build
from unetkit.errors import OptionError
from unetkit.parts.aligns import Crop, Pad, Resize
from unetkit.parts.blocks import BasicBlock, Bottleneck, DoubleConv, PreActBlock
from unetkit.parts.conv_unit import _ACTS, ConvUnit, make_act, make_norm
from unetkit.parts.encoders.plain import PlainEncoder
from unetkit.parts.fusions import Add, Concat, Max, Mean
from unetkit.parts.heads import ConvActNormHead, ConvHead

ORDERS = ("conv-norm-act", "conv-act-norm", "norm-act-conv")
NORMS = ("batch", "group", "instance", "layer", "none")
BLOCKS: tuple[Callable[..., Any], ...] = (DoubleConv, BasicBlock, Bottleneck, PreActBlock)
#: Pixels that a block without padding takes off height and width.
TAKES = {DoubleConv: 4, BasicBlock: 4, Bottleneck: 2, PreActBlock: 4}


def make(block: Callable[..., Any], i: int = 4, o: int = 8, **options: Any) -> nn.Module:
    made = block(i, o, **options)
    assert isinstance(made, nn.Module)
    return made


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def units_of(block: nn.Module) -> list[nn.Module]:
    path = block.get_submodule("units") if isinstance(block, BasicBlock) else block
    return list(path.children())


@pytest.mark.parametrize(("block", "order", "norm"), [*product(BLOCKS, ORDERS, NORMS)])
def test_block(block: Callable[..., Any], order: str, norm: str) -> None:
    for padding, (i, o) in product((0, 1), ((4, 8), (8, 8), (6, 3))):
        module = make(block, i, o, order=order, norm=norm, padding=padding)
        assert bool(module.valid) == (padding == 0)
        x = torch.randn(2, i, 11, 9)
        before = x.clone()
        out = module(x)
        takes = 0 if padding else TAKES[type(module)]
        assert out.shape == (2, o, 11 - takes, 9 - takes)
        (out * torch.randn_like(out)).sum().backward()
        assert torch.equal(x, before), "the input is changed in place"
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize(("block", "order", "norm"), [*product(BLOCKS, ORDERS, NORMS)])
def test_layers_stand_in_the_promised_order(block: Callable[..., Any], order: str, norm: str) -> None:
    module = make(block, order=order, norm=norm)
    promised = [name for name in order.split("-") if name != "norm" or norm != "none"]
    units = [[name for name, _ in unit.named_children()] for unit in units_of(module)]
    last = promised
    if block is not DoubleConv and order == "conv-norm-act":  # the last activation comes after the sum
        last = promised[:-1]
        assert isinstance(module.get_submodule("act"), nn.ReLU)
    elif block is not DoubleConv:
        assert isinstance(module.get_submodule("act"), nn.Identity)
    assert units == [promised] * (len(units) - 1) + [last]
    assert len(units) == (3 if block is Bottleneck else 2)


@pytest.mark.parametrize(
    ("block", "channels", "options", "expected"),
    [
        (DoubleConv, (3, 8), {}, 3 * 8 * 9 + 16 + 8 * 8 * 9 + 16),
        (DoubleConv, (3, 8), {"bias": True}, 3 * 8 * 9 + 8 + 16 + 8 * 8 * 9 + 8 + 16),
        (DoubleConv, (3, 8), {"norm": "none"}, 3 * 8 * 9 + 8 + 8 * 8 * 9 + 8),
        (DoubleConv, (3, 8), {"norm": "none", "bias": False}, 3 * 8 * 9 + 8 * 8 * 9),
        (DoubleConv, (3, 8), {"order": "conv-act-norm"}, 3 * 8 * 9 + 8 + 16 + 8 * 8 * 9 + 8 + 16),
        (DoubleConv, (3, 8), {"order": "norm-act-conv"}, 6 + 3 * 8 * 9 + 16 + 8 * 8 * 9),
        (BasicBlock, (8, 8), {}, 2 * (8 * 8 * 9 + 16)),
        (BasicBlock, (4, 8), {}, 4 * 8 * 9 + 16 + 8 * 8 * 9 + 16 + 4 * 8 + 16),
        (BasicBlock, (4, 8), {"norm": "none", "bias": False}, 4 * 8 * 9 + 8 * 8 * 9 + 4 * 8),
        (BasicBlock, (4, 8), {"order": "conv-act-norm", "bias": True}, 4 * 8 * 9 + 24 + 8 * 8 * 9 + 24 + 4 * 8 + 8),
        (BasicBlock, (4, 8), {"order": "norm-act-conv", "norm": "none", "bias": False}, 4 * 8 * 9 + 8 * 8 * 9 + 4 * 8),
        (Bottleneck, (8, 16), {}, 8 * 4 + 8 + 4 * 4 * 9 + 8 + 4 * 16 + 32 + 8 * 16 + 32),
        (PreActBlock, (4, 8), {}, 8 + 4 * 8 * 9 + 16 + 8 * 8 * 9 + 4 * 8),
        (PreActBlock, (8, 8), {}, 2 * (16 + 8 * 8 * 9)),
    ],
)
def test_parameter_counts(
    block: Callable[..., Any], channels: tuple[int, int], options: dict[str, Any], expected: int
) -> None:
    assert count(make(block, *channels, **options)) == expected


def _unit(order: Any, norm: Any = "batch", *, padding: Any = 1, dropout: float = 0.0) -> nn.Sequential:
    return ConvUnit(order, norm, "relu", dropout, padding, None).make(3, 5)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("order", ORDERS)
def test_a_unit_is_its_layers_one_after_the_other(order: str, padding: int) -> None:
    unit = _unit(order, padding=padding)
    state = unit.state_dict()
    nn.init.normal_(state["norm.weight"])
    nn.init.normal_(state["norm.bias"])
    x = torch.randn(4, 3, 6, 6)

    def conv(x: Tensor) -> Tensor:
        return F.conv2d(x, state["conv.weight"], state.get("conv.bias"), padding=padding)

    def norm(x: Tensor) -> Tensor:
        mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
        weight, bias = state["norm.weight"][:, None, None], state["norm.bias"][:, None, None]
        out: Tensor = (x - mean) / (variance + 1e-5).sqrt() * weight + bias
        return out

    steps: dict[str, Callable[[Tensor], Tensor]] = {"conv": conv, "norm": norm, "act": F.relu}
    expected = x
    for step in order.split("-"):
        expected = steps[step](expected)
    torch.testing.assert_close(unit(x), expected)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_the_padding_mode_is_what_every_3x3_convolution_sees_beyond_the_border(mode: Any) -> None:
    x = torch.randn(2, 3, 6, 5)
    for block in (DoubleConv(3, 4, padding_mode=mode), PreActBlock(3, 4, padding_mode=mode)):
        convolutions = {m for m in block.modules() if isinstance(m, nn.Conv2d)}
        assert {m.padding_mode for m in convolutions if m.kernel_size == (3, 3)} == {mode}
        assert {m.padding_mode for m in convolutions if m.kernel_size == (1, 1)} <= {"zeros"}
        assert block(x).shape == (2, 4, 6, 5)
    first: Any = DoubleConv(3, 4, padding_mode=mode).get_submodule("0.conv")
    torch.testing.assert_close(first(x), F.conv2d(F.pad(x, (1, 1, 1, 1), mode=mode), first.weight))
    pixel = x[..., :1, :1]
    torch.testing.assert_close(first(pixel), F.conv2d(pixel.expand(2, 3, 3, 3), first.weight))
    with pytest.raises(OptionError, match=f"padding_mode={mode} has no effect with padding=0"):
        DoubleConv(3, 4, padding=0, padding_mode=mode)
    line = f"padding_mode={mode}"
    model = build(f"plain:widths=[4,8,8],{line}", block=f"double:{line}", device="meta")
    assert model.eval()(torch.rand(1, 3, 1, 1, device="meta")).shape == (1, 2, 1, 1)


@pytest.mark.parametrize(("order", "has_bias"), [(ORDERS[0], False), (ORDERS[1], True), (ORDERS[2], False)])
def test_a_convolution_has_a_bias_where_no_norm_makes_it_redundant(order: str, has_bias: bool) -> None:
    assert ("conv.bias" in _unit(order).state_dict()) is has_bias
    assert "conv.bias" in _unit(order, "none").state_dict()


@pytest.mark.usefixtures("float64")
def test_basic_block_by_hand() -> None:
    block = BasicBlock(3, 5).eval()
    state = block.state_dict()
    x = torch.randn(2, 3, 6, 6)

    def bn(x: Tensor, name: str) -> Tensor:
        return F.batch_norm(x, *(state[f"{name}.{n}"] for n in ("running_mean", "running_var", "weight", "bias")))

    path = F.relu(bn(F.conv2d(x, state["units.0.conv.weight"], padding=1), "units.0.norm"))
    path = bn(F.conv2d(path, state["units.1.conv.weight"], padding=1), "units.1.norm")
    shortcut = bn(F.conv2d(x, state["shortcut.conv.weight"]), "shortcut.norm")
    torch.testing.assert_close(block(x), F.relu(path + shortcut))


def test_a_valid_residual_block_crops_its_shortcut_from_the_centre() -> None:
    block = PreActBlock(3, 3, padding=0)
    for name, parameter in block.named_parameters():
        if name.endswith("conv.weight"):
            nn.init.zeros_(parameter)
    x = torch.randn(1, 3, 9, 8)
    assert torch.equal(block(x), x[..., 2:-2, 2:-2])


@pytest.mark.parametrize("block", BLOCKS)
def test_dropout_acts_in_training_only(block: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    module = make(block, 16, 16, norm="none", dropout=0.5)
    plain = make(block, 16, 16, norm="none")
    plain.load_state_dict(module.state_dict())
    x = torch.randn(1, 16, 6, 6)
    assert not torch.equal(module(x), module(x))
    assert torch.equal(module.eval()(x), plain(x))


def test_dropout_drops_whole_channels() -> None:
    torch.manual_seed(0)
    unit, x = _unit("conv-norm-act", "none", dropout=0.5), torch.randn(8, 3, 4, 4)
    dropped, whole = unit(x).flatten(0, 1), unit.eval()(x).flatten(0, 1)
    gone = [not bool(channel.any()) for channel in dropped]
    assert 0 < sum(gone) < len(gone)
    for channel, full, is_gone in zip(dropped, whole, gone, strict=True):
        assert is_gone or torch.equal(channel, 2 * full)


@pytest.mark.parametrize("share", [-0.1, 1.0, 2.0])
def test_dropout_that_is_no_share_is_refused(share: float) -> None:
    with pytest.raises(OptionError, match=r"dropout=.* must be at least 0 and below 1"):
        DoubleConv(4, 4, dropout=share)


@pytest.mark.parametrize("act", create_act._ACT_LAYER_DEFAULT)
def test_every_activation_of_timm_trains_in_every_order(act: str) -> None:
    for block, order, norm in product((DoubleConv, BasicBlock), ORDERS, ("batch", "none")):
        module = make(block, order=order, norm=norm, act=act)
        module(torch.randn(2, 4, 5, 5)).sum().backward()
        assert all(p.grad is not None for p in module.parameters())


def test_an_unknown_activation_is_refused_with_the_nearest() -> None:
    for name, near in (("rellu", "relu"), ("swich", "swish"), ("gello", "gelu")):
        with pytest.raises(OptionError, match=f"act={name}: .*did you mean .*{near}"):
            make_act(name)
    with pytest.raises(OptionError, match="act=: timm has no such activation"):
        make_act("")
    with pytest.raises(OptionError, match=r"--block double:act=rellu at stages\.0"):
        build("plain:widths=[4,8]", block="double:act=rellu")


@pytest.mark.usefixtures("float64")
def test_norms_are_what_they_say() -> None:
    x = torch.randn(2, 48, 5, 5) * 3 + 1
    cases = {
        "batch": F.batch_norm(x, None, None, training=True),
        "group": F.group_norm(x, 16),
        "instance": F.instance_norm(x),
        "none": x,
    }
    for norm, expected in cases.items():
        torch.testing.assert_close(make_norm(norm, 48)(x), expected)  # type: ignore[arg-type]
    layer = make_norm("layer", 48)(x)
    torch.testing.assert_close(layer.mean(1), torch.zeros(2, 5, 5))
    torch.testing.assert_close(layer.var(1, unbiased=False), torch.ones(2, 5, 5), atol=1e-4, rtol=0)


def test_plain_encoder() -> None:
    encoder = PlainEncoder(2, widths=(4, 6, 8))
    x = torch.randn(1, 2, 13, 10)
    before = x.clone()
    maps = encoder.eval()(x)
    assert [tuple(m.shape) for m in maps] == [(1, 4, 13, 10), (1, 6, 6, 5), (1, 8, 3, 2)]
    assert torch.equal(x, before)
    assert torch.equal(maps[1], encoder.levels[1](F.max_pool2d(maps[0], 2))), "a map is changed after it was given"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 0}, "depth=0 must be at least 1"),
        ({"widths": (8,)}, "must have at least two integers"),
        ({"widths": (8, 0)}, "must have at least two integers of at least 1"),
        ({"depth": 2, "widths": (8, 16)}, "depth=2 needs 3 widths, but .* has 2"),
    ],
)
def test_plain_encoder_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        PlainEncoder(3, **options)


def test_plain_encoder_defaults() -> None:
    with torch.device("meta"):
        assert PlainEncoder(3).channels == (64, 128, 256, 512, 1024)
        assert PlainEncoder(3, depth=2).channels == (64, 128, 256)
        assert PlainEncoder(3, depth=2).strides == (1, 2, 4)


def test_concat_puts_the_skip_first() -> None:
    x, skip = torch.randn(2, 3, 4, 4), torch.randn(2, 5, 4, 4)
    fuse = Concat(3, 5)
    assert fuse.out_channels == 8
    assert torch.equal(fuse(x, skip), torch.cat([skip, x], 1))
    assert count(fuse) == 0


@pytest.mark.parametrize(
    ("kind", "join"),
    [(Add, torch.add), (Mean, lambda a, b: (a + b) / 2), (Max, torch.maximum)],
)
def test_elementwise_fusions(kind: Callable[..., Any], join: Callable[[Tensor, Tensor], Tensor]) -> None:
    x, skip = torch.randn(2, 6, 4, 4), torch.randn(2, 6, 4, 4)
    kept = x.clone(), skip.clone()
    same = kind(6, 6)
    assert (count(same), same.out_channels) == (0, 6)
    assert torch.equal(same(x, skip), join(x, skip))
    assert torch.equal(same(x, skip), join(x, skip)), "the second use of a skip gives something else"
    assert torch.equal(x, kept[0])
    assert torch.equal(skip, kept[1])
    narrow_skip = kind(6, 4)
    assert (count(narrow_skip), narrow_skip.out_channels) == (6 * 4 + 4, 4)
    assert torch.equal(narrow_skip(x, skip[:, :4]), join(narrow_skip.project_x(x), skip[:, :4]))
    narrow_x = kind(4, 6)
    assert (count(narrow_x), narrow_x.out_channels) == (6 * 4 + 4, 4)
    assert torch.equal(narrow_x(x[:, :4], skip), join(x[:, :4], narrow_x.project_skip(skip)))


def _pixels(height: int, width: int) -> Tensor:
    return torch.arange(height * width, dtype=torch.float32).reshape(1, 1, height, width)


@pytest.mark.parametrize(("surplus", "before"), [(0, 0), (1, 0), (2, 1), (3, 1), (5, 2)])
def test_crop_takes_the_smaller_half_before(surplus: int, before: int) -> None:
    x, skip = torch.randn(1, 2, 4, 3), _pixels(4 + surplus, 3 + surplus)
    align = Crop()
    out, cut = align(x, skip)
    assert torch.equal(out, x)
    assert torch.equal(cut, skip[..., before : before + 4, before : before + 3])
    assert align.target_size((8, 6), (9, 7)) == (8, 6)


def test_crop_cuts_a_map_that_is_larger_than_the_skip() -> None:
    x, skip = _pixels(6, 3), _pixels(5, 8)
    out, cut = Crop()(x, skip)
    assert torch.equal(out, x[..., 0:5, :])
    assert torch.equal(cut, skip[..., 2:5])


@pytest.mark.parametrize(("missing", "before"), [(0, 0), (1, 0), (2, 1), (3, 1), (5, 2)])
def test_pad_puts_the_smaller_half_before(missing: int, before: int) -> None:
    x, skip = _pixels(4, 3) + 1, torch.randn(1, 2, 4 + missing, 3 + missing)
    align = Pad()
    out, kept = align(x, skip)
    assert kept is skip
    assert out.shape[2:] == skip.shape[2:]
    assert torch.equal(out[..., before : before + 4, before : before + 3], x)
    assert out.sum() == x.sum()
    assert align.target_size((8, 6), (9, 7)) == (8, 6)


def test_pad_cuts_a_map_that_is_larger_than_the_skip() -> None:
    x, skip = _pixels(5, 3), torch.randn(1, 2, 4, 6)
    out, _ = Pad()(x, skip)
    assert out.shape == (1, 1, 4, 6)
    assert torch.equal(out[..., 1:4], x[..., 0:4, :]), "of an odd surplus the smaller half goes before"


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
@pytest.mark.parametrize("size", [(4, 3), (5, 7), (9, 2)])
def test_resize(mode: Any, size: tuple[int, int]) -> None:
    x, skip = torch.randn(1, 2, 4, 3), torch.randn(1, 2, *size)
    align = Resize(mode=mode)
    out, kept = align(x, skip)
    assert kept is skip
    assert torch.equal(out, x if size == (4, 3) else F.interpolate(x, size, mode=mode))
    assert align.target_size((8, 6), (9, 7)) == (9, 7)


@pytest.mark.usefixtures("float64")
def test_heads() -> None:
    x = torch.randn(2, 6, 5, 4)
    head = ConvHead(6, 3)
    assert count(head) == 6 * 3 + 3
    weight, bias = head.parameters()
    assert torch.equal(head(x), F.conv2d(x, weight, bias))
    assert ConvHead(6, 3, kernel=3)(x).shape == (2, 3, 5, 4)
    full = ConvActNormHead(6, 3)
    assert count(full) == 6 * 3 + 3 + 6
    weight, bias, *_ = full.parameters()
    by_hand = F.batch_norm(F.relu(F.conv2d(x, weight, bias)), None, None, training=True)
    torch.testing.assert_close(full(x), by_hand)
    assert ConvActNormHead(6, 3, kernel=5, act="tanh", norm="none")(x).shape == (2, 3, 5, 4)


@pytest.mark.parametrize("head", [ConvHead, ConvActNormHead])
@pytest.mark.parametrize("kernel", [0, 2, -1])
def test_a_head_that_would_change_the_size_is_refused(head: Callable[..., Any], kernel: int) -> None:
    with pytest.raises(OptionError, match=f"kernel={kernel} must be a positive odd number"):
        head(4, 2, kernel=kernel)


def test_activations_that_need_no_timm_are_those_of_timm() -> None:
    for name, layer in _ACTS.items():
        theirs = create_act_layer(name, inplace=True)
        assert (type(theirs), theirs.inplace) == (layer, True)
