"""Input sizes: what is named has passed, what is smallest is smallest, and a mistake is not taken for a size."""

from __future__ import annotations

import re
from itertools import count
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import unetkit
from unetkit.errors import BuildError, InputSizeError, UnetkitError
from unetkit.network import Network
from unetkit.summary.input_sizes import SizeSearch, smallest_side
from unetkit.tiling.requirements import find_tile_requirements


@given(st.data(), st.sampled_from([(4, 1), (6, 2), (16, 16), (32, 8)]))
def test_the_smallest_side_is_that_of_trying_every_side(data: st.DataObject, grid: tuple[int, int]) -> None:
    period, step = grid
    sides = st.integers(1, 3000)
    least = data.draw(st.lists(sides, min_size=period, max_size=period))
    every = [side for side in range(step, 2049, step) if side >= least[side % period]]
    assert smallest_side(lambda side: side >= least[side % period], period, step) == min(every, default=None)


class Strided(nn.Module):
    """An encoder of strides 2, 4 and 8 that rounds sides up, or takes multiples of 8 only."""

    def __init__(self, in_channels: int, *, multiple: int = 1) -> None:
        super().__init__()
        self.channels, self.strides, self.multiple = (2, 2, 2), (2, 4, 8), multiple
        self.convs = nn.ModuleList(nn.Conv2d(c, 2, 3, 2, 1) for c in (in_channels, 2, 2))

    def forward(self, x: Tensor) -> list[Tensor]:
        assert x.shape[-1] % self.multiple == x.shape[-2] % self.multiple == 0
        maps = [self.convs[0](x)]
        for conv in self.convs[1:]:
            maps.append(conv(maps[-1]))
        return maps


ENCODERS: list[Any] = [Strided, unetkit.PartSpec.of(Strided, {"multiple": 8}), "plain:widths=[2,2,2],padding=0"]


@pytest.mark.slow
@settings(max_examples=4)
@given(
    encoder=st.sampled_from(ENCODERS),
    align=st.sampled_from(["crop", "pad", "resize"]),
    up=st.sampled_from(["bilinear", "transposed:channels=keep", "transposed:kernel=3,channels=keep"]),
    block=st.sampled_from(["double:padding=0", "basic:padding=0", "bottleneck:padding=0"]),
    side=st.integers(1, 90),
)
def test_sizes_are_those_of_trying_every_size(encoder: Any, align: str, up: str, block: str, side: int) -> None:
    words: dict[str, Any] = {"align": align, "up": up, "block": block}
    model = unetkit.build(encoder, in_channels=1, widths=(2,) * 2 if "plain" in str(encoder) else None, **words).eval()

    def passes(size: int) -> bool:
        try:
            with torch.no_grad():
                model(torch.zeros(1, 1, size, size))
        except (RuntimeError, AssertionError, UnetkitError):
            return False
        return True

    every = [size for size in range(1, 120) if passes(size)]
    meta_model = unetkit.build(model.plan, device="meta").eval()
    assert SizeSearch(meta_model).smallest == every[0]
    search = SizeSearch(meta_model)
    every = [size for size in every if search.accepts((size, size), lossless=True)]
    below, above = [size for size in every if size < side], [size for size in every if size > side]
    expected = (side, side) if side in every else (below[-1], above[0]) if below else tuple(above[:2])
    assert SizeSearch(meta_model).nearest_sizes((side, side)) == tuple(dict.fromkeys((size, size) for size in expected))


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["test_vit", "dla34"])
def test_valid_blocks_leave_an_encoder_its_multiples(encoder: str) -> None:
    model = unetkit.build(encoder, block="double:padding=0", align="crop", device="meta")
    assert SizeSearch(model.eval()).smallest == 128
    with pytest.raises(InputSizeError, match=r"multiples of 32 .* 288x288 and 320x320"):
        unetkit.trace(model, 300)
    assert find_tile_requirements(model).least == (128, 128)


def test_valid_blocks_over_an_encoder_of_one_size_take_that_size_alone() -> None:
    class Fixed(Strided):
        def __init__(self, in_channels: int) -> None:
            super().__init__(in_channels)
            self.size = (96, 96)

    model = unetkit.build(Fixed, block="basic:padding=0", align="crop")
    assert unetkit.trace(model).minimum == 96
    assert model(torch.zeros(1, 3, 96, 96)).shape[-1] < 96
    with pytest.raises(InputSizeError, match="takes 96x96 only"):
        model(torch.zeros(1, 3, 40, 40))
    assert find_tile_requirements(model).shrinks > (0, 0)


class Fusion(nn.Module):
    """A fusion that concatenates; `passed` counts the passes of all of them."""

    passed = count()

    def __init__(self, x_channels: int, skip_channels: int) -> None:
        super().__init__()
        self.out_channels = x_channels
        self.conv = nn.Conv2d(x_channels + skip_channels, x_channels, 1)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        next(Fusion.passed)
        return self.conv(self.join(x, skip))  # type: ignore[no-any-return]

    def join(self, x: Tensor, skip: Tensor) -> Tensor:
        return torch.cat([x, skip], 1)


class Thrice(Fusion):
    def join(self, x: Tensor, skip: Tensor) -> Tensor:
        return torch.cat([x, skip, skip], 1)


class Asserting(Fusion):
    def join(self, x: Tensor, skip: Tensor) -> Tensor:
        assert x.shape[1] == 7, "seven channels"
        return super().join(x, skip)


class Misspelt(Fusion):
    def join(self, x: Tensor, skip: Tensor) -> Tensor:
        return super().join(x, skipp)  # type: ignore[name-defined] # noqa: F821


@pytest.mark.parametrize("fusion", [Thrice, Asserting, Misspelt])
@pytest.mark.parametrize("block", ["double", "double:padding=0"])
def test_a_mistake_is_told_after_a_few_passes_with_its_line(fusion: type[Fusion], block: str) -> None:
    Fusion.passed = count()
    shapes = r"stages\.0\.fusion\b.* gets \d+.*x16x16"
    with pytest.raises(BuildError, match=rf"--fuse <{fusion.__name__}>: .*{shapes}.* in {re.escape(__file__)}:\d+$"):
        unetkit.build("test_resnet", fuse=fusion, block=block, align="crop", device="meta")
    assert next(Fusion.passed) <= (10 if block == "double" else 45)


def test_a_size_that_a_window_needs_is_found() -> None:
    class Windows(Fusion):
        def join(self, x: Tensor, skip: Tensor) -> Tensor:
            assert x.shape[-1] % 7 == 0
            return super().join(x, skip)

    model = unetkit.build("plain:widths=[2,4,8]", fuse=Windows, device="meta")
    with pytest.raises(InputSizeError, match=r"252x252 and 280x280"):
        unetkit.trace(model)
    assert unetkit.trace(model, 280).minimum == 28


def test_a_mistake_in_training_alone_is_told_as_that() -> None:
    class Untrainable(Fusion):
        def join(self, x: Tensor, skip: Tensor) -> Tensor:
            return super().join(x[:, 1:] if self.training else x, skip)

    with pytest.raises(InputSizeError, match=r"in eval mode only; .*--fuse .*Untrainable"):
        unetkit.trace(unetkit.build("plain:widths=[2,4]", fuse=Untrainable, device="meta"))


class Item(Fusion):
    def join(self, x: Tensor, skip: Tensor) -> Tensor:
        return super().join(x * (1 + x.mean().item()), skip)


class Finite(Fusion):
    def join(self, x: Tensor, skip: Tensor) -> Tensor:
        assert torch.isfinite(x).all(), "not finite"
        return super().join(x, skip)


class Selects(Fusion):
    def join(self, x: Tensor, skip: Tensor) -> Tensor:
        assert x[x > 0].numel() >= 0
        return super().join(x, skip)


class Reads(Fusion):
    def join(self, x: Tensor, skip: Tensor) -> Tensor:
        x.detach().cpu().numpy()
        return super().join(x, skip)


@pytest.mark.parametrize("fusion", [Item, Finite, Selects, Reads])
@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_a_part_that_reads_values_is_traced_by_a_real_pass_of_a_small_input(fusion: type[Fusion], device: str) -> None:
    model = unetkit.build("plain:widths=[4,8]", fuse=fusion, device=device)
    traced, plain = unetkit.trace(model, 512), unetkit.trace(unetkit.build("plain:widths=[4,8]", fuse=Fusion), 64)
    assert re.search(rf"{fusion.__name__}> .* 64x64 .* 512x512", traced.notes[0])
    assert [(row.level, row.channels, row.height) for row in traced.rows] == [
        (row.level, row.channels, row.height) for row in plain.rows
    ]
    assert (traced.parameters, traced.macs) == (plain.parameters, plain.macs)
    assert traced.receptive_field.size is None
    assert str(traced.receptive_field).startswith(f"at least {plain.receptive_field} (because --fuse ")
    assert "reads values" in find_tile_requirements(model).explanation


def test_a_part_that_reads_values_and_fails_is_told() -> None:
    class Both(Item):
        def join(self, x: Tensor, skip: Tensor) -> Tensor:
            return super().join(x, skip)[:, 1:]

    with pytest.raises(InputSizeError, match=r"64x64 fails: --fuse .*Both.*channels"):
        unetkit.trace(unetkit.build("plain:widths=[4,8]", fuse=Both, device="meta"), 64)


def test_a_wrapper_as_encoder_is_told_what_it_lacks() -> None:
    class Wrapper(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Any:
            return self.inner(x)

    model: Network = unetkit.build("plain:widths=[4,8]")
    model.encoder = Wrapper(model.encoder)
    with pytest.raises(BuildError, match=r"model\.encoder is a Wrapper .* strides"):
        unetkit.trace(model)
    vars(model.encoder).update(channels=(4, 8), strides=(1, 2))
    assert unetkit.trace(model).rows
