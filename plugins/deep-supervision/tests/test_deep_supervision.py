"""Deep supervision against its definition: a 1x1 convolution of each stage's map, resized by hand, in training only."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unetkit
from unetkit.errors import BuildError, OptionError, UnetkitError
from unetkit.summary.sanity_check import run_sanity_check

PARTS = unetkit.load_parts(["deep-supervision"], isolated=True)
SMALL = "plain:widths=[4,8,12,16,20]"  # four stages, of 16, 12, 8 and 4 channels


def build(encoder: Any = SMALL, head: str = "deep-supervision", **words: Any) -> Any:
    return unetkit.build(encoder, **{"head": head, "parts": PARTS, "seed": 0, "classes": 3, **words})


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.unetkit("deep-supervision")
def test_conforms(unetkit_check: Callable[[], None]) -> None:
    unetkit_check()


def lines(have: int, want: int) -> Tensor:
    """(want, have): how bilinear interpolation mixes a line of pixels, whose outer edges stay where they are."""
    mix = torch.zeros(want, have)
    for i in range(want):
        at = min(max((i + 0.5) * have / want - 0.5, 0.0), have - 1.0)
        low = min(int(at), have - 1)
        mix[i, low] += 1 - (at - low)
        mix[i, min(low + 1, have - 1)] += at - low
    return mix


def supervised(model: Any, x: Tensor, size: tuple[int, int]) -> list[Tensor]:
    """The auxiliary logits by definition, shallow to deep; `size` is what the U-Net pads the input to."""
    maps: list[Tensor] = []
    hooks = [stage.register_forward_hook(lambda _m, _i, out: maps.append(out)) for stage in model.stages]
    main = model.network(x)
    for hook in hooks:
        hook.remove()
    found = []
    for head, stage in zip(model.auxiliary, maps[-2::-1], strict=False):
        logits = torch.einsum("oi,bihw->bohw", head.weight[:, :, 0, 0], stage) + head.bias[:, None, None]
        rows, columns = lines(logits.shape[2], size[0]), lines(logits.shape[3], size[1])
        whole = torch.einsum("yh,bohw,xw->boyx", rows.to(logits), logits, columns.to(logits))
        found.append(whole[:, :, : main.shape[2], : main.shape[3]])
    return [main, *found]


@pytest.mark.parametrize(
    ("encoder", "words", "size", "padded", "out"),
    [
        (SMALL, {}, (32, 48), (32, 48), (32, 48)),
        (SMALL, {"align": "pad", "up": "transposed"}, (45, 39), (45, 39), (45, 39)),
        (SMALL, {}, (9, 17), (16, 17), (9, 17)),
        (SMALL, {"decode_to": 2, "logits": "none"}, (32, 48), (16, 24), (16, 24)),
        (SMALL, {"decode_to": 2, "logits": "none"}, (9, 17), (8, 8), (5, 8)),
        (SMALL, {"decode_to": 2}, (9, 17), (16, 17), (9, 17)),
        ("test_resnet", {}, (33, 64), (33, 64), (33, 64)),
    ],
)
def test_logits_are_those_of_the_definition(
    encoder: str, words: dict[str, Any], size: tuple[int, int], padded: tuple[int, int], out: tuple[int, int]
) -> None:
    model = build(encoder, **words).double()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eval()  # so that two passes agree
    x = torch.randn(2, 3, *size).double()
    with torch.no_grad():
        given, expected = model(x), supervised(model, x, padded)
    assert isinstance(given, tuple)
    assert [tuple(logits.shape) for logits in given] == [(2, 3, *out)] * len(expected)
    for ours, theirs in zip(given, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("words", "widths"),
    [
        ({}, [8, 12]),
        ({"head": "deep-supervision:levels=1"}, [8]),
        ({"head": "deep-supervision:levels=3"}, [8, 12, 16]),
        ({"decode_to": 2}, [12]),
        ({"decode_to": 4}, [16]),
        ({"widths": "7,6,5,4", "head": "deep-supervision:levels=3"}, [5, 6, 7]),
        ({"encoder": "test_resnet"}, [32, 32, 48]),
    ],
)
def test_heads_stand_on_the_stages_before_the_last(words: dict[str, Any], widths: list[int]) -> None:
    model = build(**words)
    plain = build(**{**words, "head": "conv"})
    assert [head.in_channels for head in model.auxiliary] == widths
    assert count(model) == count(plain) + sum((width + 1) * 3 for width in widths)
    assert len(model(torch.randn(2, 3, 64, 64))) == 1 + len(widths)


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ({"head": "deep-supervision:levels=4"}, BuildError, "levels=4 .* of which there are only 3; give levels=3"),
        ({"encoder": "plain:depth=1"}, BuildError, "stages before the last, and there are none; decode one level more"),
        ({"decode_to": 8}, BuildError, "there are none; decode one level more"),
        (
            {"head": "deep-supervision:levels=0"},
            OptionError,
            "must be at least 1; use --head conv for no deep supervis",
        ),
        ({"encoder": "plain:padding=0", "align": "crop"}, BuildError, "does not support valid .* use padding"),
        ({"block": "double:padding=0", "align": "crop"}, BuildError, "does not support valid convolutions"),
    ],
)
def test_refuses_in_one_line(words: dict[str, Any], error: type[UnetkitError], message: str) -> None:
    with pytest.raises(error, match=message) as raised:
        build(**words)
    assert "\n" not in str(raised.value)


def test_refuses_a_model_that_is_wrapped_already() -> None:
    class Other(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

    early = ModuleType("an_earlier_one")
    vars(early)["unetkit_wrap_model"] = unetkit.hookimpl(lambda plan: Other)
    parts = unetkit.load_parts([early, "deep-supervision"], isolated=True)
    with pytest.raises(BuildError, match="not a Other around it"):
        build(parts=parts)


def test_eval_gives_the_plain_network_and_no_more() -> None:
    model, plain = build().eval(), build(head="conv").eval()
    assert list(model.network.state_dict()) == list(plain.state_dict())
    for name, tensor in plain.state_dict().items():
        assert torch.equal(model.network.state_dict()[name], tensor), name
    called: list[nn.Module] = []
    for head in model.auxiliary:
        head.register_forward_hook(lambda module, _i, _o: called.append(module))
    x = torch.randn(1, 3, 45, 32)
    with torch.no_grad():
        assert torch.equal(model(x), plain(x))
    assert called == []


def test_an_auxiliary_loss_reaches_its_stage_and_what_is_below() -> None:
    model = build(head="deep-supervision:levels=3")
    model(torch.randn(2, 3, 32, 32))[2].sum().backward()  # of the second auxiliary head, on stages.1
    reached = [all(p.grad is not None for p in stage.parameters()) for stage in model.stages]
    untouched = [all(p.grad is None for p in stage.parameters()) for stage in model.stages]
    assert reached == [True, True, False, False]
    assert untouched == [False, False, True, True]
    assert all(p.grad is not None for p in model.encoder.parameters())
    assert model.head.conv.weight.grad is None


def test_check_and_trace_take_it() -> None:
    model = build()
    check = run_sanity_check(model, 32)
    assert check.passed, check
    assert check.output == (2, 3, 32, 32)
    seen = unetkit.trace(model, 32)
    assert seen.parameters == count(model)
    assert seen.line == f"--encoder '{SMALL}' --head deep-supervision --classes 3 --seed 0"
    assert seen.further == 2


def test_what_the_network_has_is_found_on_the_model() -> None:
    model = build()
    assert model.encoder is model.network.encoder
    assert model.stages is model.network.stages
    assert model.strides == (1, 2, 4, 8, 16)
    assert model.resolved_plan is model.network.resolved_plan
    assert model.plan == model.network.plan
    with pytest.raises(AttributeError, match="'UNet' object has no attribute 'decoder'"):
        model.decoder  # noqa: B018


def test_other_heads_are_left_alone() -> None:
    assert type(build(head="conv")).__name__ == "UNet"


def test_saves_loads_and_copies(tmp_path: Path) -> None:
    model = build()
    unetkit.save(model, tmp_path / "model.safetensors")
    loaded: Any = unetkit.load(tmp_path / "model.safetensors", parts=PARTS)
    copied = copy.deepcopy(model)
    copied.encoder.requires_grad_(False)
    assert all(p.requires_grad for p in model.parameters()), "a copy is on its own"
    assert loaded.plan == model.plan
    x = torch.randn(2, 3, 45, 32)
    with torch.no_grad():
        for again in (loaded, copied):
            for ours, theirs in zip(again(x), model(x), strict=True):
                assert torch.equal(ours, theirs)


def test_seeds_fix_the_auxiliary_heads() -> None:
    one, same, other = build(), build(), build(seed=1)
    weights = [model.auxiliary[0].weight for model in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_is_made_on_meta() -> None:
    assert {p.device.type for p in build(device="meta").parameters()} == {"meta"}


@pytest.mark.slow
def test_compiles_in_training_and_in_eval() -> None:
    torch._dynamo.reset()
    model = build("plain:widths=[4,8,16],norm=none", block="double:norm=none").double()
    compiled: Any = torch.compile(model, fullgraph=True, dynamic=True, backend="eager")
    for size in ((32, 48), (45, 39)):
        x = torch.randn(2, 3, *size).double()
        for ours, theirs in zip(compiled(x), model(x), strict=True):
            torch.testing.assert_close(ours, theirs)
        model.eval()
        torch.testing.assert_close(compiled(x), model(x))
        model.train()


@pytest.mark.slow
def test_exports_in_eval_for_every_size() -> None:
    model = build().eval().double()
    height, width = torch.export.Dim("height", min=32, max=512), torch.export.Dim("width", min=32, max=512)
    example = (torch.randn(1, 3, 48, 64).double(),)
    exported = torch.export.export(model, example, dynamic_shapes=({2: height, 3: width},)).module()
    for size in ((48, 64), (45, 71)):
        x = torch.randn(1, 3, *size).double()
        torch.testing.assert_close(exported(x), model(x))


def test_channels_last_gives_equal_values() -> None:
    model = build(block="double:norm=none").double()
    model.encoder.eval()
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 45, 32).double()
    for ours, theirs in zip(last(x.contiguous(memory_format=torch.channels_last)), model(x), strict=True):
        torch.testing.assert_close(ours, theirs)
