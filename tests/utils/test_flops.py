"""Shapes that are computed without torch's meta kernels are those of torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from unetkit.utils.flops import CostMeter

pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


def assert_same(run: Callable[[Tensor], Any], x: Tensor) -> None:
    """Assert that an operation gives the same sizes, strides and dtypes with and without a meter, or fails in both."""

    def describe() -> Any:
        try:
            out = run(x)
        except RuntimeError:
            return "fails"
        return [(t.shape, t.stride(), t.dtype) for t in (out if isinstance(out, tuple) else (out,))]

    plain = describe()
    with CostMeter([x], []):
        assert describe() == plain


@given(
    conv=st.sampled_from([F.conv2d, F.conv_transpose2d]),
    kernel=pairs,
    stride=pairs,
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=pairs,
    groups=st.sampled_from([1, 2]),
    channels=st.sampled_from([4, 6]),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    channels_last=st.booleans(),
)
def test_convolutions(
    conv: Any, kernel: Any, groups: int, channels: int, size: Any, channels_last: bool, **options: Any
) -> None:
    weight = torch.empty(4, 4 // groups if conv is F.conv2d else 3, *kernel, device="meta")
    x = torch.empty(2, channels, *size, device="meta")
    x = x.to(memory_format=torch.channels_last) if channels_last else x
    assert_same(lambda x: conv(x, weight, groups=groups, **options), x)


@given(
    kernel_size=pairs,
    stride=st.none() | pairs,
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    ceil_mode=st.booleans(),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
)
def test_max_pools(size: Any, **options: Any) -> None:
    assert_same(lambda x: F.max_pool2d(x, **options), torch.empty(2, 3, *size, device="meta", requires_grad=True))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layer", [nn.GroupNorm(2, 6), nn.GroupNorm(6, 6), nn.BatchNorm2d(6)])
@pytest.mark.parametrize("channels_last", [True, False])
def test_norms(layer: nn.Module, training: bool, channels_last: bool) -> None:
    x = torch.empty(2, 6, 5, 3, device="meta")
    x = x.to(memory_format=torch.channels_last) if channels_last else x
    assert_same(layer.to("meta").train(training), x)


@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("other", [(2, 3, 5, 7), (2, 4, 5, 7), (2, 3, 5, 8), (3, 3, 5, 7)])
def test_concatenation(dim: int, other: tuple[int, ...]) -> None:
    x = torch.empty(2, 3, 5, 7, device="meta")
    assert_same(lambda x: torch.cat([x, torch.empty(other, device="meta")], dim), x)
    assert_same(lambda x: torch.cat([x, torch.empty(other, device="meta", dtype=torch.float64)], dim), x)


ACTIVATIONS = (nn.ReLU6, nn.Hardswish, nn.Hardsigmoid, nn.SiLU, nn.LeakyReLU, nn.ELU, nn.Mish)


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_activations_in_place(kind: Any) -> None:
    x = torch.empty(2, 3, 5, 4, device="meta", requires_grad=True)
    assert_same(lambda x: kind(inplace=True)(x * 2), x)
    with CostMeter([x], []) as meter:
        changed = x * 2
        assert kind(inplace=True)(changed) is changed
        assert changed._version == 1  # or autograd would not notice
        changed.sum().backward()
    assert x.grad is not None
    assert meter.macs.count(0) == len(meter.macs)
