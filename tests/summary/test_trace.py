"""The trace says what a real pass does."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

import unetkit
from unetkit.errors import InputSizeError, UnetkitError
from unetkit.summary.input_sizes import SizeSearch
from unetkit.summary.sanity_check import run_sanity_check
from unetkit.utils.formatting import format_bytes, format_count

NETWORKS: list[tuple[dict[str, Any], tuple[int, int]]] = [
    ({"encoder": "plain:widths=[8,16,32]"}, (32, 48)),
    ({"encoder": "plain:widths=[8,16,32],padding=0", "block": "double:padding=0", "align": "crop"}, (60, 76)),
    ({"encoder": "test_resnet", "fuse": "add", "up": "transposed"}, (64, 64)),
    ({"encoder": "test_convnext", "up": "pixelshuffle", "block": "bottleneck:dropout=0.1"}, (64, 96)),
    ({"encoder": "test_efficientnet", "decode_to": 4, "fuse": "mean", "up": "nearest"}, (97, 65)),
    ({"encoder": "resnet18", "align": "pad", "block": "preact:norm=group", "logits": "bilinear"}, (64, 64)),
]


@pytest.mark.slow
@pytest.mark.parametrize(("words", "size"), NETWORKS)
def test_figures_are_those_of_a_real_pass(words: dict[str, Any], size: tuple[int, int]) -> None:
    model = unetkit.build(**words).train()
    traced = unetkit.trace(model, size, batch=2)
    x = torch.randn(2, 3, *size)
    with FlopCounterMode(display=False) as counter:
        out = model(x)
    assert traced.macs == counter.get_total_flops() // 2
    assert traced.parameters == sum(p.numel() for p in model.parameters())
    assert (traced.rows[-1].channels, traced.rows[-1].height, traced.rows[-1].width) == tuple(out.shape[1:])
    assert traced.activation_bytes == saved_bytes(model, x)


def saved_bytes(model: nn.Module, x: torch.Tensor, *, grad: bool = True) -> int:
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        out = model(x.requires_grad_(grad))
    del out
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def test_rows_follow_the_network() -> None:
    model = unetkit.build("resnet18", fuse="add", decode_to=4, device="meta")
    traced = unetkit.trace(model, 64)
    assert [(row.level, row.step) for row in traced.rows] == [
        ("input", ""),
        *((f"encoder.{i}", "") for i in range(5)),
        *((f"stages.{i}", step) for i in range(3) for step in ("up", "align", "fusion", "block")),
        ("head", ""),
        ("logits", ""),
    ]
    assert traced.skips == ("encoder.3", "encoder.2", "encoder.1")
    by_level = {row.level: row for row in traced.rows}
    assert by_level["encoder.4"].what == "timm layer4, reduction 32"
    assert by_level["encoder.4"].parameters == sum(
        p.numel() for name, p in model.encoder.named_parameters() if "layer4" in name
    )
    assert by_level["head"].parameters == sum(p.numel() for p in model.head.parameters())
    assert by_level["logits"].what == "bilinear 16x16 to 64x64"


@pytest.mark.slow
def test_projections_crops_pads_and_resizes_are_spelled_out() -> None:
    def whats(size: int | tuple[int, int], **words: Any) -> str:
        return "\n".join(row.what for row in unetkit.trace(unetkit.build(**words, device="meta"), size).rows)

    assert "add skip 1024 and map 2048; project_x 1x1 conv 2048 to 1024" in whats(64, encoder="resnet50", fuse="add")
    assert "crop: skip 64x64 to 56x56" in whats(572, recipe="unet-2015")
    assert "pad: map 70x54 to 71x54" in whats((571, 433), recipe="unet-bilinear")
    assert "resize: map 6x6 to 7x7" in whats(14, encoder="plain:widths=[4,8,16]", up="transposed")


def test_a_sentence_says_more_than_one_word_for_levels() -> None:
    model = unetkit.build("plain:widths=[4,8,16]", fuse="add/concat", up="bilinear/nearest", device="meta")
    whats = [row.what for row in unetkit.trace(model, 16).rows if row.step in ("up", "fusion")]
    assert [what.split()[0] for what in whats] == ["bilinear", "add", "nearest", "concat"]


def test_tracing_leaves_the_model_as_it_was() -> None:
    model = unetkit.build("test_resnet", seed=1).eval()
    model.stages[0].train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    unetkit.trace(model, 64)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not model.training
    assert model.stages[0].training
    assert all(p.grad is None and p.device.type == "cpu" for p in model.parameters())


def test_the_table_and_the_data_say_the_same() -> None:
    traced = unetkit.trace(unetkit.build(recipe="unet-2015", device="meta"))
    text = str(traced)
    assert "--recipe unet-2015" in text
    assert "31,030,658" in text
    assert "388x388" in text
    assert "smallest input 188x188" in text
    data = json.loads(json.dumps(traced.to_dict()))
    assert data["totals"]["parameters"] == 31_030_658
    assert data["rows"][-1]["height"] == 388
    assert data["minimum"] == 188
    assert data["receptive_field"]["size"] == [204, 204]


def test_small_inputs_are_padded_and_said_to_be() -> None:
    traced = unetkit.trace(unetkit.build("plain:widths=[4,8]", device="meta"), 1)
    assert (traced.rows[-1].level, traced.rows[-1].height, traced.rows[-1].width) == ("output", 1, 1)
    assert any("padded with zeros to 2x2" in note for note in traced.notes)
    assert any("needs a batch of 2" in note for note in traced.notes)


@pytest.mark.slow
def test_a_size_that_does_not_pass_names_the_level_and_the_nearest_that_do() -> None:
    model = unetkit.build(recipe="unet-2015", device="meta")
    facts = r"^input size 100x100 .*encoder\.levels\.4\.0\.conv, .* 512x2x2; .* 188x188 and 204x204$"
    with pytest.raises(InputSizeError) as caught:
        unetkit.trace(model, 100)
    assert re.match(facts, str(caught.value))
    with pytest.raises(InputSizeError, match="188x572 and 204x572"):
        unetkit.trace(model, (60, 572))


@pytest.mark.slow
def test_a_decoder_level_that_breaks_is_named() -> None:
    model = unetkit.build("plain:widths=[4,8],padding=0", block="double:padding=0", align="crop", device="meta")
    least = SizeSearch(model).smallest
    assert least is not None
    with pytest.raises(InputSizeError, match=r"stages\.0\.block\.\d\.conv, a Conv2d "):
        unetkit.trace(model, least - 1)
    unetkit.trace(model, least)


@pytest.mark.slow
def test_an_odd_pool_in_a_valid_net_is_noted_with_sizes_that_lose_nothing() -> None:
    traced = unetkit.trace(unetkit.build(recipe="unet-2015", device="meta"), 573)
    (note,) = traced.notes
    for fact in ("encoder.pool", "569x569", "572x572 and 588x588"):
        assert fact in note


@pytest.mark.slow
def test_smallest_size_is_the_smallest() -> None:
    model = unetkit.build("plain:widths=[2,2,2],padding=0", block="double:padding=0", align="crop", in_channels=1)
    least = SizeSearch(unetkit.build(model.plan, device="meta")).smallest
    assert least == 44
    assert model(torch.zeros(1, 1, least, least)).shape[-1] > 0
    with pytest.raises(RuntimeError):
        model(torch.zeros(1, 1, least - 1, least - 1))
    assert SizeSearch(unetkit.build(model.plan, device="meta")).nearest_sizes((50, 50)) == ((48, 48), (52, 52))


def test_what_is_no_network_of_ours_is_refused() -> None:
    with pytest.raises(UnetkitError, match="a Linear contains no network"):
        unetkit.trace(nn.Linear(1, 1), 8)
    with pytest.raises(UnetkitError, match="must be at least 1"):
        unetkit.trace(unetkit.build("plain:widths=[2,4]", device="meta"), 0)


def test_half_precision_models_are_traced_in_their_own_type() -> None:
    model = unetkit.build("plain:widths=[4,8]", device="meta")
    single, half = unetkit.trace(model, 32), unetkit.trace(model.bfloat16(), 32)
    assert half.macs == single.macs
    assert half.activation_bytes < single.activation_bytes


def test_units_of_figures() -> None:
    assert [format_count(n) for n in (0, 999, 1000, 12_340, 1_234_567, 12_345_678_901)] == [
        "0",
        "999",
        "1 k",
        "12.3 k",
        "1.23 M",
        "12.3 G",
    ]
    assert [format_bytes(n) for n in (0, 1023, 1024, 1536, 3 * 2**30)] == ["0 B", "1023 B", "1 KiB", "1.5 KiB", "3 GiB"]


def test_check_reaches_every_parameter_and_restores_the_model() -> None:
    model = unetkit.build("test_resnet", seed=0).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = run_sanity_check(model, 64)
    assert result.passed
    assert str(result).startswith("check passed: 2x3x64x64 gives 2x2x64x64, ")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not model.training


def test_check_finds_what_is_not_reached_and_not_finite() -> None:
    class Forgetful(nn.Conv2d):
        def __init__(self, in_channels: int, out_channels: int) -> None:
            super().__init__(in_channels, out_channels, 1)
            self.forgotten = nn.Parameter(torch.zeros(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) / 0

    result = run_sanity_check(unetkit.build("plain:widths=[4,8]", block=Forgetful), 16)
    assert not result.passed
    assert result.unreached == ("stages.0.block.forgotten",)
    assert "FAILED" in str(result)
    assert "NOT all finite" in str(result)
    assert "do NOT reach stages.0.block.forgotten" in str(result)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_figures_do_not_depend_on_the_callers_grad_mode(context: Callable[[], Any]) -> None:
    model = unetkit.build("test_resnet", seed=1)
    expected = unetkit.trace(model, 64)
    with context():
        assert unetkit.trace(model, 64) == expected
        assert run_sanity_check(model, 64).passed


def test_frozen_layers_keep_nothing() -> None:
    model = unetkit.build("resnet18")
    whole = unetkit.trace(model, 64)
    model.encoder.requires_grad_(False)
    frozen = unetkit.trace(model, 64)
    assert frozen.activation_bytes == saved_bytes(model, torch.randn(1, 3, 64, 64), grad=False)
    assert frozen.activation_bytes < whole.activation_bytes
    assert (frozen.macs, frozen.parameters, frozen.receptive_field) == (
        whole.macs,
        whole.parameters,
        whole.receptive_field,
    )
    assert unetkit.trace(model.requires_grad_(False), 64).activation_bytes == 0


def test_a_block_that_two_levels_share_has_a_row_in_each() -> None:
    block = nn.Conv2d(12, 4, 1)

    def same(in_channels: int, out_channels: int) -> nn.Module:
        return block

    model = unetkit.build("plain:widths=[8,8,4]", block=same, widths=[4, 4], device="cpu")
    rows = {(row.level, row.step): row for row in unetkit.trace(model, 16).rows}
    assert [(rows[level, "block"].height, rows[level, "block"].macs) for level in ("stages.0", "stages.1")] == [
        (8, 12 * 4 * 64),
        (16, 12 * 4 * 256),
    ]


def test_a_batch_below_one_is_refused() -> None:
    with pytest.raises(UnetkitError, match="batch=0 must be at least 1"):
        unetkit.trace(unetkit.build("plain:widths=[2,4]", device="meta"), 8, batch=0)


def test_one_and_one_point_nought_are_not_confused() -> None:
    class Counting(nn.Conv2d):
        def __init__(self, in_channels: int, out_channels: int) -> None:
            super().__init__(in_channels, out_channels, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            whole, real = torch.full((4,), 1, device=x.device), torch.full((4,), 1.0, device=x.device)
            assert (whole.dtype, real.dtype) == (torch.int64, torch.float32)
            return super().forward(x)

    unetkit.trace(unetkit.build("plain:widths=[4,8]", block=Counting), 16)


def test_an_encoder_of_one_size_says_so() -> None:
    traced = unetkit.trace(unetkit.build("levit_128s", device="meta"))
    assert (traced.rows[0].height, traced.minimum, traced.maximum) == (224, 1, (224, 224))
    assert "largest 224x224" in str(traced)


def test_padding_alone_is_nothing_to_leave_out() -> None:
    model = unetkit.build("resnet18", block="double:padding=0", device="meta")
    assert not [note for note in unetkit.trace(model, 256).notes if "drops" in note]
