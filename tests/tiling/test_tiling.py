"""Tiles cover an image, and put together they are what one pass over the whole image gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import unetkit
from unetkit.errors import InputSizeError, OptionError
from unetkit.predict import tiled
from unetkit.tiling.layout import TileAxis, TileLayout, TileRequirements, blended_axis, exact_axis
from unetkit.tiling.requirements import find_tile_requirements, full_size
from unetkit.tiling.sliding_window import make_forward
from unetkit.tiling.stitching import InMemoryImage, iterate_windows
from unetkit.unet import UNet
from unetkit.utils.spatial import resize_to_input

sides = st.integers(1, 700)


def shares(axis: TileAxis) -> np.ndarray:
    """For each tile, its share in each pixel of the whole."""
    table = np.zeros((len(axis.starts), axis.total))
    for index, start in enumerate(axis.starts):
        table[index, start : start + axis.tile] = axis.weight(index)
    return table


@given(sides, st.integers(1, 16), st.integers(0, 40), st.integers(0, 40), st.integers(0, 3), st.integers(0, 9))
def test_exact_tiles_give_every_pixel_once_and_none_that_their_ends_reach(
    side: int, period: int, first: int, behind: int, steps: int, phase: int
) -> None:
    tile = first + behind + (1 + steps) * period + phase
    axis = exact_axis(side, tile, period, edge=(first, behind))
    table = shares(axis)
    assert set(np.unique(table)) <= {0, 1}
    assert (table.sum(0) == 1).all()
    assert axis.total >= side > axis.total - period
    assert (axis.total - tile) % period == 0
    for index, start in enumerate(axis.starts):
        assert start % period == 0
        taken = np.flatnonzero(table[index])
        assert start == 0 or taken[0] >= start + first
        assert start + axis.tile == axis.total or taken[-1] < start + axis.tile - behind


@given(sides, st.integers(1, 16), st.integers(1, 200), st.floats(0, 0.99))
def test_blended_tiles_have_shares_that_sum_to_one(side: int, period: int, tile: int, share: float) -> None:
    axis = blended_axis(side, tile, period, int(share * tile))
    table = shares(axis)
    assert (table >= 0).all()
    np.testing.assert_allclose(table.sum(0), 1, atol=1e-6)
    assert axis.total >= side
    gaps = np.diff(axis.starts)
    assert (gaps <= max(period, tile - int(share * tile))).all()


@given(st.integers(1, 200), st.integers(1, 16), st.integers(5, 100))
def test_what_is_known_is_known_in_order(side: int, period: int, tile: int) -> None:
    axis = blended_axis(side, tile, period, tile // 4)
    table = shares(axis)
    for index, (start, end) in enumerate(zip(axis.starts, axis.ends, strict=True)):
        assert not table[index + 1 :, start:end].any()
    assert axis.ends[-1] == axis.total


VALID = "plain:widths=[4,4,8],norm=none,padding=0"
SAME = "plain:widths=[4,8,8]"
#: Of the decoder of an encoder that is no plain one.
THIN = [8] * 5
#: Words of networks whose tiles are exact, a tile for each, and the size of an image.
EXACT: list[tuple[dict[str, Any], tuple[int, int], tuple[int, int]]] = [
    (
        {"recipe": "unet-2015", "encoder": "plain:widths=[4,4,4,8,8],norm=none,padding=0", "widths": [8, 4, 4, 4]},
        (236, 252),
        (130, 171),
    ),
    ({"recipe": "unet-relu-bn", "encoder": VALID, "widths": [4, 4]}, (120, 100), (150, 131)),
    ({"encoder": VALID, "block": "double:padding=0", "align": "crop", "up": "bilinear"}, (128, 100), (150, 131)),
    ({"encoder": "plain:widths=[4,8]"}, (64, 64), (150, 131)),
    ({"encoder": SAME, "up": "transposed:kernel=3", "decode_to": 2, "logits": "none"}, (128, 96), (150, 131)),
    ({"encoder": SAME, "up": "pixelshuffle", "align": "pad"}, (128, 96), (150, 131)),
    ({"encoder": SAME, "up": "nearest", "fuse": "add", "block": "basic"}, (128, 96), (150, 131)),
    ({"encoder": "test_resnet", "widths": THIN}, (704, 704), (900, 40)),
]
#: Words of networks whose tiles are not, and why.
BLENDED: list[tuple[dict[str, Any], str]] = [
    ({"encoder": "test_efficientnet", "widths": THIN}, "the whole image (because of a global pooling or norm)"),
    ({"encoder": "test_vit", "widths": THIN}, "the whole image (because of a reshape of the map, as in attention)"),
    ({"encoder": SAME, "up": "bilinear:align_corners=true"}, "an interpolation aligns corners"),
    ({"encoder": "plain:widths=[4,8],norm=group"}, "a norm takes its statistics from the whole image"),
    ({"encoder": "plain:widths=[4,8],norm=instance"}, "a norm takes its statistics from the whole image"),
    ({"encoder": "plain:widths=[4,8],padding=0"}, "maps are resized by a factor that is not an integer"),
    (
        {"encoder": "test_resnet", "widths": THIN},
        "a pixel depends on 359x359 pixels; --tile 704 would be exact",
    ),
]


def made(words: dict[str, Any], channels: int = 2) -> nn.Module:
    model = unetkit.build(**words, in_channels=channels, seed=0).double()
    for module in model.modules():  # not the norms of a network that has seen nothing
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(generator=torch.Generator().manual_seed(1))
            module.running_var.uniform_(0.5, 2, generator=torch.Generator().manual_seed(1))
    return model.eval()


def image(*size: int, channels: int = 2) -> Tensor:
    return torch.randn(channels, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def stitched(model: nn.Module, x: Tensor, layout: TileLayout, batch: int = 1) -> Tensor:
    result = torch.full((2, *x.shape[1:]), torch.nan, dtype=x.dtype)
    forward = make_forward(model, x.device, x.dtype)
    for window in iterate_windows(forward, InMemoryImage(x.numpy()), layout, batch):
        assert result[:, window.rows, window.columns].isnan().all()
        result[:, window.rows, window.columns] = torch.from_numpy(window.values)
    return result


@pytest.mark.slow
@pytest.mark.parametrize(("words", "tile", "size"), EXACT, ids=lambda value: str(value)[:60])
def test_tiles_are_what_one_pass_gives(words: dict[str, Any], tile: tuple[int, int], size: tuple[int, int]) -> None:
    model = made(words)
    asks, x = find_tile_requirements(model), image(*size)
    layout = asks.layout(size, tile)
    assert layout.tiles > 1
    assert "exactly" in layout.explanation
    found, whole = stitched(model, x, layout, batch=3), stitched(model, x, asks.single_tile(size))
    # Convolutions of other sizes may be summed in another order: no more than rounding in float64.
    assert float((found - whole).abs().max()) <= 1e-10 * float(whole.abs().max())


@pytest.mark.slow
@pytest.mark.parametrize("words", [words for words, _, _ in EXACT[:-1]], ids=lambda value: str(value)[:60])
def test_a_tiles_ends_reach_as_far_as_is_found(words: dict[str, Any]) -> None:
    model = made(words)
    asks = find_tile_requirements(model)
    assert asks.edge
    side = asks.least[0] + -(-60 // asks.period) * asks.period
    x = image(side + 2 * asks.period, side + 2 * asks.period)[None]
    inside = x[..., asks.period : asks.period + side, asks.period : asks.period + side]
    with torch.no_grad():
        large, small = full_size(model, x), full_size(model, inside)
    at = asks.period, asks.period + small.shape[-1]
    differs = (large[..., at[0] : at[1], at[0] : at[1]] - small).abs() > 1e-12
    rows, columns = (slice(asks.edge[0][i], small.shape[-1] - asks.edge[1][i]) for i in (0, 1))
    assert not differs[..., rows, columns].any()


@pytest.mark.slow
def test_a_mirrored_border_and_the_original_tile() -> None:
    model = unetkit.build(recipe="unet-2015", device="meta")
    asks = find_tile_requirements(model)
    assert (asks.shrinks, asks.least, asks.edge) == ((184, 184), (188, 188), ((0, 0), (0, 0)))
    rows = asks.layout((2000, 2000), (572, 572)).rows
    assert (rows.tile, rows.margin, rows.starts[1]) == (388, (92, 92), 384)
    assert rows.input_range(0) == (-92, 480)


@pytest.mark.slow
@pytest.mark.parametrize(("words", "why"), BLENDED, ids=lambda value: str(value)[:60])
def test_where_tiles_cannot_be_exact_they_are_blended_and_why_is_said(words: dict[str, Any], why: str) -> None:
    model = made(words)
    asks, x = find_tile_requirements(model), image(150, 131)
    layout = asks.layout((150, 131), (96, 96))
    assert "blended, since " in layout.explanation
    assert why in layout.explanation
    found = stitched(model, x, layout)
    assert found.isfinite().all()
    whole = stitched(model, x, asks.single_tile((150, 131)))
    assert float((found - whole).abs().mean()) < 0.5 * float(whole.std())


def test_an_overlap_that_is_asked_for_blends() -> None:
    model = made({"encoder": "plain:widths=[4,8]"})
    layout = find_tile_requirements(model).layout((150, 131), (64, 64), 16)
    assert layout.explanation.startswith("in tiles of 64x64 that overlap by 16x16, blended")
    assert layout.rows.starts == (0, 48, 86)
    with pytest.raises(OptionError, match=r"--overlap 64: .* 64x64"):
        find_tile_requirements(model).layout((150, 131), (64, 64), 64)


def test_a_network_of_one_size_gets_tiles_of_that_size_alone() -> None:
    fixed = TileRequirements(32, (64, 96), (64, 96), explanation="the network takes 64x96")
    layout = fixed.layout((100, 90))
    assert (layout.rows.tile, layout.columns.tile, layout.tiles) == (64, 96, 3)
    assert layout.explanation.endswith("blended, since the network takes 64x96")
    with pytest.raises(OptionError, match=r"--tile 64x64: .*64x96 only"):
        fixed.layout((100, 90), (64, 64))
    with pytest.raises(OptionError, match="a single pass cannot cover 100x90"):
        fixed.single_tile((100, 90))


@pytest.mark.slow
def test_a_fixed_encoder_is_passed_by_tiles() -> None:
    model = unetkit.build("test_vit", in_channels=2, widths=THIN, size=64, seed=0).double().eval()
    model.size = (64, 64)
    assert tuple(tiled(model, image(80, 60)).shape) == (2, 80, 60)


def test_an_image_of_modest_size_is_passed_at_once() -> None:
    asks = find_tile_requirements(unetkit.build(SAME, device="meta"))
    assert asks.layout((1000, 900)).tiles == 1
    assert asks.layout((1100, 900)).rows.tile == 512


@pytest.mark.slow
@pytest.mark.parametrize("words", [EXACT[0][0], EXACT[4][0]], ids=str)
def test_flips_of_tiles_are_flips_of_the_whole(words: dict[str, Any]) -> None:
    model, x = made(words), image(130, 171)
    found = tiled(model, x, tile=(252, 236) if "recipe" in words else (128, 96), tta=True)
    assert float((found - tiled(model, x, tile=(480, 480), tta=True)).abs().max()) < 1e-10
    assert float((found - tiled(model, x)).abs().max()) > 1e-6


def test_logits_at_a_stride_are_resized_in_float32_at_least() -> None:
    values = image(6, 5)[None]
    for kind in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        logits = values.to(kind)
        assert resize_to_input(logits, 1) is logits
        wanted = torch.float64 if kind == torch.float64 else torch.float32
        expected = nn.functional.interpolate(logits.to(wanted), size=(24, 20), mode="bilinear")
        torch.testing.assert_close(resize_to_input(logits, 4), expected)


def test_tiled_makes_what_then_makes_and_leaves_the_network_as_it_was() -> None:
    model = made({"encoder": "plain:widths=[4,8]"}).train()
    x = image(70, 33)
    found = tiled(model, x, tile=(48, 48), batch_size=4, then=lambda logits: logits.softmax(1))
    torch.testing.assert_close(found.sum(0), torch.ones(70, 33, dtype=torch.float64))
    assert model.training
    assert isinstance(model, UNet)
    assert not found.is_inference()


def test_a_tile_that_memory_does_not_hold_is_refused_in_words() -> None:
    class Hungry(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.is_meta:
                return x
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: ...")

    model = unetkit.build("plain:widths=[4,8]", in_channels=2, seed=0)
    model.head = nn.Sequential(model.head, Hungry())
    with pytest.raises(InputSizeError, match=r"not enough memory .* 1 of 64x64; .*--tile"):
        tiled(model, image(100, 100).float(), tile=(64, 64))


def test_values_that_are_no_numbers_stay_where_they_are() -> None:
    model, x = made({"encoder": "plain:widths=[4,8]"}), image(150, 131)
    x[:, 70, 60] = torch.nan
    found = tiled(model, x, tile=(64, 64)).isnan().any(0).nonzero()
    assert (found - torch.tensor([70, 60])).abs().max() <= 20
