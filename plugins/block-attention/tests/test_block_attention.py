"""Both blocks against their papers' equations, pixel by pixel, and in a network."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from math import exp
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from unetkit_block_attention.cbam import CBAM
from unetkit_block_attention.scse import SCSE

import unetkit
from unetkit.errors import BuildError, OptionError

BLOCKS: dict[str, Callable[..., Any]] = {"scse": SCSE, "cbam": CBAM}


@pytest.mark.slow
@pytest.mark.unetkit("block-attention")
def test_conforms(unetkit_check: Any) -> None:
    unetkit_check()


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def sigmoid(x: float) -> float:
    return 1 / (1 + exp(-x))


def mlp(layers: nn.Module, z: Tensor) -> Tensor:
    narrow, wide = (p.flatten(1) for p in layers.parameters())
    return wide @ (narrow @ z).clamp(min=0)


@pytest.mark.parametrize(
    ("block", "channels", "options", "expected"),
    [
        (SCSE, 8, {}, 8**2 + 8),  # the count of the paper
        (SCSE, 8, {"reduction": 4}, 2 * 8 * 2 + 8),
        (SCSE, 1, {}, 2 * 1 * 1 + 1),
        (CBAM, 64, {}, 2 * 64 * 4 + 2 * 49),
        (CBAM, 32, {}, 2 * 32 * 4 + 2 * 49),
        (CBAM, 3, {}, 2 * 3 * 3 + 2 * 49),
        (CBAM, 8, {"reduction": 2, "kernel": 3}, 2 * 8 * 4 + 2 * 9),
    ],
)
def test_parameter_counts(block: Callable[..., Any], channels: int, options: dict[str, Any], expected: int) -> None:
    assert count(block(channels, channels, **options)) == expected


@torch.no_grad()
@pytest.mark.parametrize("join", ["add", "max"])
def test_scse_by_hand(join: Any) -> None:
    torch.manual_seed(0)
    block, x = SCSE(4, 4, join=join).double(), torch.randn(2, 4, 3, 2).double()
    out, weights = block(x), block.pixels.weight.flatten()
    for b in range(2):
        channel = mlp(block.channels, x[b].mean((1, 2)))
        for c, i, j in product(range(4), range(3), range(2)):
            value = float(x[b, c, i, j])
            by_channel = value * sigmoid(float(channel[c]))
            by_pixel = value * sigmoid(float(weights @ x[b, :, i, j]))
            expected = by_channel + by_pixel if join == "add" else max(by_channel, by_pixel)
            assert out[b, c, i, j].item() == pytest.approx(expected, abs=1e-12)


@torch.no_grad()
def test_cbam_by_hand() -> None:
    torch.manual_seed(0)
    block, x = CBAM(6, 6, reduction=2, kernel=3).double(), torch.randn(2, 6, 4, 3).double()
    out, weight = block(x), block.pixels.weight[0]
    for b in range(2):
        channel = torch.sigmoid(mlp(block.channels, x[b].mean((1, 2))) + mlp(block.channels, x[b].amax((1, 2))))
        y = x[b] * channel[:, None, None]
        for i, j in product(range(4), range(3)):
            around = 0.0
            for n, m in product(range(3), range(3)):
                row, column = i + n - 1, j + m - 1
                if 0 <= row < 4 and 0 <= column < 3:
                    pixel = y[:, row, column]
                    around += float(weight[0, n, m] * pixel.mean() + weight[1, n, m] * pixel.max())
            torch.testing.assert_close(out[b, :, i, j], y[:, i, j] * sigmoid(around))


@pytest.mark.parametrize(("block", "share"), [(SCSE(4, 4), 1), (SCSE(4, 4, join="max"), 0.5), (CBAM(4, 4), 0.25)])
def test_without_weights_each_sigmoid_halves_the_map(block: nn.Module, share: float) -> None:
    for parameter in block.parameters():
        nn.init.zeros_(parameter)
    x = torch.randn(2, 4, 5, 3)
    assert torch.equal(block(x), share * x)


@pytest.mark.parametrize("block", BLOCKS.values())
def test_the_map_is_not_changed_in_place(block: Callable[..., Any]) -> None:
    x = torch.randn(2, 4, 5, 3)
    before = x.clone()
    block(4, 4)(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize(("name", "block"), BLOCKS.items())
def test_other_channels_are_refused_with_what_to_say_instead(name: str, block: Callable[..., Any]) -> None:
    with pytest.raises(BuildError, match=rf"{name} .* 8 to 4; .*double\+{name}"):
        block(8, 4)
    with pytest.raises(BuildError, match=rf"--block {name} at stages\.0 .*double\+{name}"):
        unetkit.build("plain:widths=[4,8]", block=name)


@pytest.mark.parametrize(
    ("block", "options", "message"),
    [
        (SCSE, {"reduction": 0}, "reduction=0 must be at least 1"),
        (CBAM, {"reduction": -1}, "reduction=-1 must be at least 1"),
        (CBAM, {"kernel": 4}, "kernel=4 must be a positive odd number"),
        (CBAM, {"kernel": -1}, "kernel=-1 must be a positive odd number"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    block: Callable[..., Any], options: dict[str, int], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        block(4, 4, **options)


@pytest.mark.parametrize(
    ("name", "expected"), [("scse", 6**2 + 6 + 4**2 + 4), ("cbam", 2 * 6 * 4 + 98 + 2 * 4 * 4 + 98)]
)
def test_in_a_network_after_another_block(name: str, expected: int) -> None:
    line: dict[str, Any] = {"encoder": "plain:widths=[4,6,8]", "seed": 0}
    model, plain = unetkit.build(**line, block=f"double+{name}"), unetkit.build(**line)
    assert count(model) - count(plain) == expected
    out = model(torch.randn(2, 3, 13, 11))
    assert out.shape == (2, 2, 13, 11)
    out.square().mean().backward()
    for parameter_name, parameter in model.stages.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.any(), parameter_name
