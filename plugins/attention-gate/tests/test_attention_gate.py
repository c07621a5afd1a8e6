"""The gate against the paper's equation, pixel by pixel, and in a network."""

from __future__ import annotations

from itertools import product
from math import exp
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from unetkit_attention_gate.gate import AttentionGate

import unetkit
from unetkit.errors import OptionError


@pytest.mark.unetkit("attention-gate")
def test_conforms(unetkit_check: Any) -> None:
    unetkit_check()


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("x", "skip", "options", "expected"),
    [
        (6, 8, {}, 8 * 4 + (6 * 4 + 4) + (4 + 1)),
        (6, 1, {}, 1 + (6 + 1) + (1 + 1)),
        (6, 8, {"inner": 3}, 8 * 3 + (6 * 3 + 3) + (3 + 1)),
        (6, 8, {"norm": "batch"}, (8 * 4 + 8) + (6 * 4 + 8) + (4 + 2)),
    ],
)
def test_parameter_counts(x: int, skip: int, options: dict[str, Any], expected: int) -> None:
    gate = AttentionGate(x, skip, **options)
    assert count(gate) == expected
    assert gate.out_channels == x + skip


@torch.no_grad()
def test_each_pixel_is_that_of_the_papers_equation() -> None:
    torch.manual_seed(0)
    gate = AttentionGate(3, 4, inner=5).double()
    x, skip = torch.randn(2, 3, 2, 3).double(), torch.randn(2, 4, 2, 3).double()
    w_x, w_g, psi = (m.get_parameter("0.weight").flatten(1) for m in (gate.from_skip, gate.from_x, gate.psi))
    b_g, b_psi = gate.from_x.get_parameter("0.bias"), gate.psi.get_parameter("0.bias")
    alpha = gate.attention(x, skip)
    out = gate(x, skip)
    assert alpha.shape == (2, 1, 2, 3)
    for b, i, j in product(range(2), range(2), range(3)):
        s, g = skip[b, :, i, j], x[b, :, i, j]
        q = sum(psi[0, k] * max(0.0, float(w_x[k] @ s + w_g[k] @ g + b_g[k])) for k in range(5)) + b_psi
        expected = 1 / (1 + exp(-float(q)))
        assert alpha[b, 0, i, j].item() == pytest.approx(expected, abs=1e-12)
        torch.testing.assert_close(out[b, :, i, j], torch.cat([expected * s, g]))


def test_with_batch_norm_each_convolution_is_followed_by_one() -> None:
    gate = AttentionGate(3, 4, norm="batch").double().eval()
    state = gate.state_dict()
    for name, value in state.items():
        if value.is_floating_point():
            value.copy_(torch.rand_like(value) + (0.5 if "var" in name else 0))
    x, skip = torch.randn(2, 3, 5, 4).double(), torch.randn(2, 4, 5, 4).double()

    def linear(x: Tensor, name: str) -> Tensor:
        norm = (state[f"{name}.1.{n}"] for n in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(F.conv2d(x, state[f"{name}.0.weight"]), *norm)

    alpha = torch.sigmoid(linear(F.relu(linear(skip, "from_skip") + linear(x, "from_x")), "psi"))
    torch.testing.assert_close(gate(x, skip), torch.cat([alpha * skip, x], 1))


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize(("bias", "alpha"), [(200.0, 1), (-200.0, 0)])
def test_an_open_gate_is_concat_and_a_closed_one_hides_the_skip(norm: Any, bias: float, alpha: int) -> None:
    gate = AttentionGate(3, 4, norm=norm)
    nn.init.constant_(gate.psi[-1].get_parameter("bias"), bias)
    x, skip = torch.randn(2, 3, 5, 4), torch.randn(2, 4, 5, 4)
    assert torch.equal(gate(x, skip), torch.cat([alpha * skip, x], 1))


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_a_new_gate_lets_the_skip_pass(norm: Any) -> None:
    torch.manual_seed(0)
    gate = AttentionGate(64, 32, norm=norm)
    alpha = gate.attention(torch.randn(4, 64, 16, 16), torch.randn(4, 32, 16, 16))
    assert alpha.mean() > 0.9
    assert alpha.max() < 0.9999, "a saturated gate would not learn"


def test_after_bilinear_upsampling_the_gating_signal_is_the_papers_resampled() -> None:
    gate = AttentionGate(3, 4).double()
    coarse = torch.randn(1, 3, 4, 5).double()

    def up(x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2, mode="bilinear")

    torch.testing.assert_close(gate.from_x(up(coarse)), up(gate.from_x(coarse)))


def test_an_inner_width_below_one_is_refused() -> None:
    with pytest.raises(OptionError, match="inner=0 must be at least 1"):
        AttentionGate(3, 4, inner=0)
    with pytest.raises(OptionError, match=r"attention-gate:inner=0 at stages\.0 "):
        unetkit.build("plain:widths=[4,8]", fuse="attention-gate:inner=0")


def test_in_a_network_of_odd_sizes_every_gate_learns() -> None:
    line: dict[str, Any] = {"encoder": "plain:widths=[4,6,8]", "seed": 0}
    model, concat = unetkit.build(**line, fuse="attention-gate"), unetkit.build(**line)
    gates = [8 * 3 + 6 * 3 + 3 + 4, 6 * 2 + 4 * 2 + 2 + 3]  # the map's channels, then the skip's
    assert count(model) - count(concat) == sum(gates)
    out = model(torch.randn(2, 3, 13, 11))
    assert out.shape == (2, 2, 13, 11)
    out.square().mean().backward()
    for name, parameter in model.named_parameters():
        if ".fusion." in name:
            assert parameter.grad is not None, name
            assert parameter.grad.any(), name
