"""Both upsamplers against their papers' equations, pixel by pixel, their special cases, and in a network."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from math import floor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from unetkit_content_upsampling.carafe import CARAFE
from unetkit_content_upsampling.dysample import DySample

import unetkit
from unetkit.errors import BuildError, OptionError

SIZE = (0, 0)  # what a learned upsampler is asked for does not matter
SHAPES = ((7, 4), (1, 5), (1, 1))


@pytest.mark.slow
@pytest.mark.unetkit("content-upsampling")
def test_conforms(unetkit_check: Any) -> None:
    unetkit_check()


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def zeros(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def linear(convolution: nn.Conv2d, pixel: Tensor) -> Tensor:
    out = convolution.weight.flatten(1) @ pixel
    return out if convolution.bias is None else out + convolution.bias


@pytest.mark.parametrize(
    ("up", "expected"),
    [
        (CARAFE(6, 2), (6 * 64 + 64) + (64 * 9 + 1) * 2**2 * 5**2),
        (CARAFE(6, 4, kernel=3, encoder_kernel=1, compressed=8), (6 * 8 + 8) + (8 + 1) * 4**2 * 3**2),
        (DySample(8, 2), (8 + 1) * 2 * 4 * 2**2),
        (DySample(8, 4, dynamic=True), (8 + 1 + 8) * 2 * 4 * 4**2),
        (DySample(8, 2, style="pl"), (8 // 2**2 + 1) * 2 * 4),
        (DySample(32, 4, style="pl", dynamic=True), (32 // 4**2 * 2 + 1) * 2 * 4),
        (DySample(6, 2), (6 + 1) * 2 * 2 * 2**2),  # 4 groups do not divide 6 channels, 2 do
    ],
)
def test_parameter_counts(up: nn.Module, expected: int) -> None:
    assert count(up) == expected


@pytest.mark.parametrize("up", [CARAFE, DySample])
def test_each_gives_scale_times_the_map(up: Callable[..., Any]) -> None:
    for scale, channels, (height, width) in product((1, 2, 3, 4), (1, 3, 4), SHAPES):
        module = up(channels, scale)
        assert module.out_channels == channels
        out = module(torch.randn(2, channels, height, width), SIZE)
        assert out.shape == (2, channels, height * scale, width * scale)


def test_carafe_by_hand() -> None:
    torch.manual_seed(0)
    n, side, height, width = 2, 3, 3, 4
    up = CARAFE(2, n, kernel=side, compressed=4).double()
    x = torch.randn(2, 2, height, width).double()
    out = up(x, SIZE)
    logits = F.conv2d(F.conv2d(x, up.compress.weight, up.compress.bias), up.encode.weight, up.encode.bias, padding=1)
    for b, y, z in product(range(2), range(n * height), range(n * width)):
        position = y % n * n + z % n
        kernel = torch.softmax(logits[b, position :: n * n, y // n, z // n], dim=0)
        expected = torch.zeros(2).double()
        for index, (row, column) in enumerate(product((y // n - 1, y // n, y // n + 1), range(z // n - 1, z // n + 2))):
            if 0 <= row < height and 0 <= column < width:
                expected += kernel[index] * x[b, :, row, column]
        torch.testing.assert_close(out[b, :, y, z], expected)


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_carafe_with_all_weight_in_the_middle_repeats_each_pixel(scale: int) -> None:
    up = zeros(CARAFE(3, scale))
    middle = 12 * scale**2
    with torch.no_grad():
        up.get_parameter("encode.bias")[middle : middle + scale**2] = 1000
    x = torch.randn(2, 3, 6, 5)
    assert torch.equal(up(x, SIZE), x.repeat_interleave(scale, 2).repeat_interleave(scale, 3))


def test_carafe_with_equal_weights_is_a_mean_with_zeros_outside() -> None:
    x = torch.randn(2, 3, 6, 5).double()
    mean = F.avg_pool2d(x, 5, stride=1, padding=2)
    torch.testing.assert_close(zeros(CARAFE(3, 2).double())(x, SIZE), F.interpolate(mean, scale_factor=2))


def test_carafes_kernels_are_weights() -> None:
    kernels = CARAFE(3, 2).double().kernels(torch.randn(2, 3, 6, 5).double())
    assert kernels.shape == (2, 25, 12, 10)
    assert kernels.min() >= 0
    torch.testing.assert_close(kernels.sum(1), torch.ones(2, 12, 10).double())


def sampled(x: Tensor, row: float, column: float) -> Tensor:
    """(C, h, w) -> (C): bilinear interpolation at a point, which stops at the border; pixels stand at integers."""
    row, column = min(max(row, 0), x.shape[1] - 1), min(max(column, 0), x.shape[2] - 1)
    top, left = floor(row), floor(column)
    bottom, right = min(top + 1, x.shape[1] - 1), min(left + 1, x.shape[2] - 1)
    down, across = row - top, column - left
    above = (1 - across) * x[:, top, left] + across * x[:, top, right]
    below = (1 - across) * x[:, bottom, left] + across * x[:, bottom, right]
    return (1 - down) * above + down * below


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("style", ["lp", "pl"])
@pytest.mark.parametrize("scale", [2, 3])
def test_dysample_by_hand(scale: int, style: Any, dynamic: bool) -> None:
    torch.manual_seed(0)
    channels, groups, height, width = 18 if scale == 3 else 4, 2, 3, 2
    up = DySample(channels, scale, style=style, groups=groups, dynamic=dynamic).double()
    for parameter in up.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, channels, height, width).double()
    out = up(x, SIZE)
    for b, y, z in product(range(2), range(scale * height), range(scale * width)):
        # Channels fall to the positions within a pixel in turn, before the linear layers (pl) or after them (lp).
        mine = slice(y % scale * scale + z % scale, None, scale**2)
        pixel = x[b, :, y // scale, z // scale]
        pixel = pixel[mine] if style == "pl" else pixel
        offset = linear(up.offset, pixel)
        offset = 0.25 * offset if up.scope is None else 0.5 * torch.sigmoid(linear(up.scope, pixel)) * offset
        offset = offset if style == "pl" else offset[mine]
        right, down = offset.view(2, groups).tolist()
        row, column = (y + 0.5) / scale - 0.5, (z + 0.5) / scale - 0.5
        for g, members in enumerate(x[b].chunk(groups)):
            expected = sampled(members, row + down[g], column + right[g])
            torch.testing.assert_close(out[b, :, y, z].chunk(groups)[g], expected)


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_dysample_without_offsets_is_bilinear_interpolation(scale: int) -> None:
    up = zeros(DySample(4, scale).double())
    for shape in SHAPES:
        x = torch.randn(2, 4, *shape).double()
        wanted = F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False)
        torch.testing.assert_close(up(x, SIZE), wanted)


@pytest.mark.parametrize("options", [{}, {"style": "pl"}, {"dynamic": True}])
def test_dysample_starts_near_bilinear_interpolation(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    up, x = DySample(64, 2, **options), torch.randn(1, 64, 8, 8)
    assert 0 < up.offsets(x).abs().max() < 0.05
    wanted = F.interpolate(x, scale_factor=2, mode="bilinear")
    torch.testing.assert_close(up(x, SIZE), wanted, atol=0.1, rtol=0)


def test_a_dynamic_scope_starts_as_the_static_one() -> None:
    dynamic, static = DySample(8, 2, dynamic=True), DySample(8, 2)
    static.offset.load_state_dict(dynamic.offset.state_dict())
    x = torch.randn(1, 8, 4, 5)
    assert torch.equal(dynamic.offsets(x), static.offsets(x))


def test_dysample_moves_a_group_and_no_other() -> None:
    up, x = zeros(DySample(4, 2, groups=2).double()), torch.randn(1, 4, 5, 6).double()
    with torch.no_grad():
        up.get_parameter("offset.bias").view(2, 2, 4)[0, 1] = 4  # the second group, a pixel to the right
    still, moved = up(x, SIZE).chunk(2, dim=1)
    shifted = torch.cat([x[..., 1:], x[..., -1:]], dim=-1)
    torch.testing.assert_close(still, F.interpolate(x[:, :2], scale_factor=2, mode="bilinear"))
    wanted = F.interpolate(shifted[:, 2:], scale_factor=2, mode="bilinear")
    torch.testing.assert_close(moved[..., 1:], wanted[..., 1:])  # the first column comes from the left of that map


def test_dysample_knows_where_it_is_in_half_precision() -> None:
    up = zeros(DySample(4, 2)).bfloat16()
    x = torch.randn(1, 4, 1, 512).bfloat16()
    out = up(x, SIZE)
    assert out.dtype is torch.bfloat16
    wanted = F.interpolate(x.float(), scale_factor=2, mode="bilinear")
    torch.testing.assert_close(out.float(), wanted, atol=0, rtol=2**-8)


@pytest.mark.parametrize(("channels", "groups"), [(1, 1), (3, 1), (6, 2), (8, 4), (10, 2)])
def test_groups_that_do_not_divide_the_channels_give_way(channels: int, groups: int) -> None:
    assert DySample(channels, 2).groups == groups


@pytest.mark.parametrize("name", ["carafe", "dysample"])
def test_a_scale_that_is_not_whole_is_refused(name: str) -> None:
    with pytest.raises(BuildError, match=f"{name} .* by 1.5, .*bilinear or nearest"):
        {"carafe": CARAFE, "dysample": DySample}[name](4, 1.5)


@pytest.mark.parametrize(
    ("up", "options", "error", "message"),
    [
        (CARAFE, {"kernel": 4}, OptionError, "kernel=4 must be a positive odd number"),
        (CARAFE, {"encoder_kernel": 0}, OptionError, "encoder_kernel=0 must be a positive odd number"),
        (CARAFE, {"compressed": 0}, OptionError, "compressed=0 must be at least 1"),
        (DySample, {"groups": 0}, OptionError, "groups=0 must be at least 1"),
        (DySample, {"style": "pl"}, BuildError, "style=pl needs .* divisible by 4, not 6; use style=lp"),
    ],
)
def test_options_that_cannot_be_are_refused(
    up: Callable[..., Any], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        up(6, 2, **options)


@pytest.mark.parametrize("name", ["carafe", "dysample", "dysample:dynamic=true"])
def test_in_a_network_of_odd_sizes_every_upsampler_learns(name: str) -> None:
    model = unetkit.build("plain:widths=[4,6,8]", up=name, logits=name, seed=0)
    out = model(torch.randn(2, 3, 13, 11))
    assert out.shape == (2, 2, 13, 11)
    out.square().mean().backward()
    for parameter_name, parameter in model.named_parameters():
        if ".up." in parameter_name or parameter_name.startswith("logits."):
            assert parameter.grad is not None, parameter_name
            assert parameter.grad.any(), parameter_name
