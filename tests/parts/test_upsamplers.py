"""Upsamplers: the sizes that they reach, and the transposed convolution that starts as bilinear interpolation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from unetkit import build
from unetkit.errors import BuildError, OptionError
from unetkit.parts.upsamplers import (
    BilinearUpsampler,
    NearestUpsampler,
    PixelShuffleUpsampler,
    TransposedUpsampler,
    bilinear_weight,
)

SIZE = (0, 0)  # what a learned upsampler is asked for does not matter


pytestmark = pytest.mark.usefixtures("float64")


def bilinear(x: Tensor, scale: int) -> Tensor:
    return F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False)


def inside(x: Tensor, scale: int) -> Tensor:
    """Without the border: the pixels whose centre lies outside that of the first or last pixel of the input."""
    n = scale // 2
    return x[..., n : x.shape[-2] - n, n : x.shape[-1] - n]


@pytest.mark.parametrize("scale", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("bias", [True, False])
def test_bilinear_start_is_bilinear_interpolation(scale: int, groups: int, bias: bool) -> None:
    up = TransposedUpsampler(4, scale, init="bilinear", channels="keep", groups=groups, bias=bias)
    assert up.kernel_size == (2 * scale - scale % 2,) * 2
    assert up.padding == ((up.kernel_size[0] - scale) // 2,) * 2
    x = torch.randn(2, 4, 7, 6)
    out, wanted = up(x, SIZE), bilinear(x, scale)
    assert out.shape == wanted.shape
    torch.testing.assert_close(inside(out, scale), inside(wanted, scale), atol=1e-5, rtol=0)
    if scale > 1:
        assert not torch.allclose(out[..., 0, :], wanted[..., 0, :], atol=1e-3), "the border fades to zero"


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("groups", [1, 2])
def test_with_fewer_channels_out_each_is_the_mean_of_those_that_fall_to_it(scale: int, groups: int) -> None:
    up = TransposedUpsampler(8, scale, init="bilinear", groups=groups)
    x = torch.randn(2, 8, 5, 5)
    means = torch.stack([x[:, 0:2].mean(1), x[:, 2:4].mean(1), x[:, 4:6].mean(1), x[:, 6:8].mean(1)], dim=1)
    torch.testing.assert_close(inside(up(x, SIZE), scale), inside(bilinear(means, scale), scale), atol=1e-5, rtol=0)


def test_an_odd_number_of_channels_falls_as_evenly_as_it_can() -> None:
    up = TransposedUpsampler(5, 2, init="bilinear")
    x = torch.randn(1, 5, 5, 5)
    means = torch.stack([x[:, 0:3].mean(1), x[:, 3:5].mean(1)], dim=1)
    torch.testing.assert_close(inside(up(x, SIZE), 2), inside(bilinear(means, 2), 2), atol=1e-5, rtol=0)


def test_with_more_channels_out_each_copies_the_one_that_it_falls_to() -> None:
    x = torch.randn(1, 2, 5, 5)
    out = F.conv_transpose2d(x, bilinear_weight(2, 4, 4), stride=2, padding=1)
    wanted = bilinear(x[:, [0, 0, 1, 1]], 2)
    torch.testing.assert_close(inside(out, 2), inside(wanted, 2), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("kernel", "factor", "centre"), [(1, 1, 0), (3, 2, 1), (4, 2, 1.5), (5, 3, 2), (8, 4, 3.5)])
def test_the_kernel_is_that_of_the_formula(kernel: int, factor: int, centre: float) -> None:
    weight = bilinear_weight(1, 1, kernel)
    assert weight.shape == (1, 1, kernel, kernel)
    for y in range(kernel):
        for x in range(kernel):
            wanted = (1 - abs(y - centre) / factor) * (1 - abs(x - centre) / factor)
            assert weight[0, 0, y, x].item() == pytest.approx(wanted, abs=1e-7)


@pytest.mark.parametrize(
    ("scale", "kernel", "exact", "padding"), [(3, 6, 5, 1), (2, 3, 4, 1), (2, 2, 4, 1), (4, 4, 8, 2)]
)
def test_a_kernel_that_cannot_be_exact_is_refused_with_the_one_that_is(
    scale: int, kernel: int, exact: int, padding: int
) -> None:
    with pytest.raises(
        OptionError, match=f"leave them out, which means kernel={exact}, padding={padding}, output_padding=0"
    ) as refusal:
        TransposedUpsampler(4, scale, kernel=kernel, init="bilinear")
    assert f"kernel={kernel}, " in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_padding_that_shifts_the_kernel_is_refused() -> None:
    with pytest.raises(OptionError, match="which means kernel=4, padding=1, output_padding=0"):
        TransposedUpsampler(4, 2, kernel=4, padding=0, init="bilinear")


def test_reset_parameters_starts_as_bilinear_again() -> None:
    up = TransposedUpsampler(4, 2, init="bilinear")
    start = up.weight.detach().clone()
    with torch.no_grad():
        nn.init.normal_(up.weight)
    up.reset_parameters()
    assert torch.equal(up.weight, start)
    assert up.bias is not None
    assert not up.bias.any()


def test_a_random_start_is_torchs_own() -> None:
    torch.manual_seed(3)
    ours = TransposedUpsampler(6, 2)
    torch.manual_seed(3)
    theirs = nn.ConvTranspose2d(6, 3, 2, stride=2)
    assert torch.equal(ours.weight, theirs.weight)
    x = torch.randn(1, 6, 3, 3)
    assert torch.equal(ours(x, SIZE), theirs(x))


@pytest.mark.slow
@given(st.integers(1, 9), st.integers(1, 5), st.integers(1, 12), st.integers(1, 12))
def test_transposed_gives_exactly_stride_times_the_size(kernel: int, stride: int, height: int, width: int) -> None:
    if stride == 1 and kernel % 2 == 0:  # no padding keeps the size there
        with pytest.raises(OptionError, match=f"kernel={kernel}, stride=1"):
            TransposedUpsampler(2, stride, kernel=kernel)
        return
    up = TransposedUpsampler(2, stride, kernel=kernel)
    assert up(torch.empty(1, 2, height, width), SIZE).shape == (1, 1, stride * height, stride * width)
    assert up.out_channels == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": 0}, "kernel=0"),
        ({"kernel": -2}, "kernel=-2"),
        ({"stride": 0}, "stride=0"),
        ({"stride": -1}, "stride=-1"),
        ({"padding": -1}, "padding=-1"),
        ({"output_padding": 2}, "output_padding=2"),
        ({"padding": 1}, "output_padding=2"),
    ],
)
def test_transposed_refuses_numbers_that_torch_cannot_take(options: dict[str, int], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        TransposedUpsampler(4, 2, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("channels", "groups"), [(1, 1), (6, 4), (4, 0), (6, 6)])
def test_transposed_refuses_groups_that_do_not_divide(channels: int, groups: int) -> None:
    with pytest.raises(BuildError, match=f"groups={groups} cannot map {channels} to"):
        TransposedUpsampler(channels, 2, groups=groups)


@given(st.tuples(st.integers(1, 8), st.integers(1, 8)), st.tuples(st.integers(1, 30), st.integers(1, 30)))
def test_interpolation_reaches_any_size(have: tuple[int, int], wanted: tuple[int, int]) -> None:
    x = torch.randn(1, 3, *have)
    for up in (BilinearUpsampler(3, 2), BilinearUpsampler(3, 1.5, align_corners=True), NearestUpsampler(3, 2)):
        out = up(x, wanted)
        assert out.shape == (1, 3, *wanted)
        assert out.isfinite().all()
        assert up.out_channels == 3
        assert not list(up.parameters())


def test_interpolation_is_torchs() -> None:
    x = torch.randn(1, 3, 4, 5)
    for corners in (False, True):
        wanted = F.interpolate(x, (9, 7), mode="bilinear", align_corners=corners)
        assert torch.equal(BilinearUpsampler(3, 2, align_corners=corners)(x, (9, 7)), wanted)
    assert torch.equal(NearestUpsampler(3, 2)(x, (8, 10)), x.repeat_interleave(2, 2).repeat_interleave(2, 3))


@pytest.mark.parametrize(("kernel", "channels", "out_channels"), [(1, "keep", 6), (3, "keep", 6), (3, "half", 3)])
@pytest.mark.parametrize("scale", [1, 2, 3])
def test_pixelshuffle(kernel: int, channels: str, out_channels: int, scale: int) -> None:
    up = PixelShuffleUpsampler(6, scale, kernel=kernel, channels=channels)  # type: ignore[arg-type]
    x = torch.randn(2, 6, 3, 4)
    out = up(x, SIZE)
    assert out.shape == (2, out_channels, 3 * scale, 4 * scale)
    assert up.out_channels == out_channels
    assert up.conv.weight.shape == (out_channels * scale**2, 6, kernel, kernel)
    for y in range(scale):  # channel c * n * n + y * n + x of the convolution is pixel (y, x) of channel c
        assert torch.equal(out[:, 0, y::scale, 0::scale], up.conv(x)[:, y * scale])


def test_pixelshuffle_refuses() -> None:
    for kernel in (0, 2, -1):
        with pytest.raises(OptionError, match=f"kernel={kernel} must be a positive odd number"):
            PixelShuffleUpsampler(4, 2, kernel=kernel)
    with pytest.raises(BuildError, match="cannot halve 1 channel; give channels=keep"):
        PixelShuffleUpsampler(1, 2, channels="half")


def test_a_scale_that_is_no_whole_number_is_refused() -> None:
    for made in (lambda: TransposedUpsampler(4, 1.5), lambda: PixelShuffleUpsampler(4, 1.5)):
        with pytest.raises(BuildError, match=r" by 1\.5.*bilinear or nearest"):
            made()


def test_a_bilinear_start_in_a_network() -> None:
    model = build("plain:widths=[4,8,16]", up="transposed:init=bilinear,channels=keep", seed=0)
    up = model.stages[0].get_submodule("up")
    assert isinstance(up, TransposedUpsampler)
    assert torch.equal(up.weight, bilinear_weight(16, 16, 4))
    with pytest.raises(OptionError, match=r"at stages\.0 \(stride 2\).*kernel=4"):
        build("plain:widths=[4,8,16]", up="transposed:init=bilinear,kernel=3")
