"""The receptive field read from the graph is the one that poking the input finds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unetkit
from unetkit.summary.receptive_field import receptive_field


def poked_field(model: nn.Module, channels: int, side: int, period: int) -> int:
    """The widest run of input rows that change an output row, over output rows around the centre.

    All weights are positive, so that no influence cancels, and pools are averages, so that none is masked.
    """
    width = side if side > 128 else 16  # rows are poked whole, and valid convolutions need a square
    pokes = torch.eye(side, dtype=torch.float64)[:, None, :, None].expand(side, channels, side, width)
    with torch.no_grad():
        still = model(torch.zeros_like(pokes[:1]))
        # Every influence is far above this share of the output; another batch's rounding is far below.
        changed = (model(pokes) - still).abs().amax(dim=(1, 3)) > 1e-10 * still.max()  # poked row, output row
    middle = (changed.shape[1] - period) // 2
    reached: list[list[int]] = [changed[:, middle + phase].nonzero().flatten().tolist() for phase in range(period)]
    return max(max(rows) - min(rows) + 1 for rows in reached)


def made_positive(model: nn.Module) -> nn.Module:
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.MaxPool2d):
                pool = nn.AvgPool2d(child.kernel_size, child.stride, child.padding)
                setattr(module, name, pool)
    for parameter in model.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    return model.double().eval()


CASES: list[tuple[dict[str, Any], int]] = [
    ({"encoder": "plain:widths=[2,2,2],norm=none", "block": "double:norm=none", "up": "nearest"}, 96),
    ({"encoder": "plain:widths=[2,2,2],norm=none", "block": "double:norm=none", "up": "transposed"}, 96),
    ({"encoder": "plain:widths=[2,2,2],norm=none", "block": "double:norm=none", "up": "transposed:kernel=3"}, 96),
    ({"encoder": "plain:widths=[2,2,2],norm=none", "block": "double:norm=none", "up": "bilinear"}, 96),
    ({"encoder": "plain:widths=[2,2,2],norm=none", "block": "double:norm=none", "up": "pixelshuffle"}, 96),
    (
        {
            "encoder": "plain:widths=[2,2,2],norm=none",
            "block": "double:norm=none",
            "up": "bilinear:align_corners=true",
        },
        128,
    ),
    (
        {
            "encoder": "plain:widths=[2,2,2,2],norm=none,padding=0",
            "block": "double:norm=none,padding=0",
            "up": "transposed",
            "align": "crop",
        },
        180,
    ),
    ({"encoder": "plain:widths=[2,2,2],norm=none", "block": "basic:norm=none", "up": "nearest", "align": "pad"}, 97),
]


@pytest.mark.slow
@pytest.mark.parametrize(("words", "side"), CASES)
def test_field_is_what_poking_the_input_finds(words: dict[str, Any], side: int) -> None:
    model = unetkit.build(**words, in_channels=1, classes=1, widths=[2] * (3 if "2,2,2,2" in words["encoder"] else 2))
    expected = poked_field(made_positive(model), 1, side, period=side // 4)
    size = unetkit.trace(model, side).receptive_field.size
    assert size == (expected, expected)


def test_field_of_the_original_is_204_at_its_widest_phase() -> None:
    # Down to the bottom 140; the 4, 3 and so on coarse pixels under a row of fine ones make up the rest.
    model = unetkit.build(recipe="unet-2015", device="meta")
    assert unetkit.trace(model, 572).receptive_field.size == (204, 204)


@pytest.mark.slow
def test_global_pooling_makes_it_the_whole_image() -> None:
    class Squeeze(nn.Module):
        def __init__(self, in_channels: int, out_channels: int) -> None:
            super().__init__()
            self.conv = nn.Conv2d(in_channels, out_channels, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.conv(x)
            return y * y.mean(dim=(-2, -1), keepdim=True)

    model = unetkit.build("plain:widths=[4,8]", block=Squeeze, device="meta")
    field = unetkit.trace(model, 32).receptive_field
    assert field.size is None
    assert str(field) == "the whole image (because of a global pooling or norm)"


def test_rectangles_and_single_layers() -> None:
    x = torch.empty(1, 1, 40, 40, device="meta", requires_grad=True)
    for layer, expected in [
        (nn.Conv2d(1, 1, (5, 3)), (5, 3)),
        (nn.Conv2d(1, 1, 3, dilation=4), (9, 9)),
        (nn.Conv2d(1, 1, 3, stride=2), (3, 3)),
        (nn.MaxPool2d(3, 2, 1), (3, 3)),
        (nn.ConvTranspose2d(1, 1, 4, 2, 1), (2, 2)),
        (nn.Identity(), (1, 1)),
        (nn.Upsample(scale_factor=2, mode="bilinear"), (2, 2)),
    ]:
        out = layer.to("meta")(x) + 0
        assert receptive_field(out, x).size == expected, layer


UNKNOWN_OR_WHOLE = [
    (lambda x: x * x.norm(dim=(-2, -1), keepdim=True), "the whole image (because of a global pooling or norm)"),
    (lambda x: x * x.var(dim=(2, 3), keepdim=True), "the whole image (because of a global pooling or norm)"),
    (lambda x: x * x.amax(dim=(2, 3), keepdim=True), "the whole image (because of a global pooling or norm)"),
    (lambda x: x.softmax(dim=2), "the whole image (because of a global pooling or norm)"),
    (lambda x: x * F.adaptive_avg_pool2d(x, 1), "the whole image (because of a global pooling or norm)"),
    (lambda x: x.flatten(2), "the whole image (because of a reshape of the map, as in attention)"),
    (lambda x: x.transpose(2, 3), "the whole image (because of a reshape of the map, as in attention)"),
    (lambda x: x.view(1, 2, 1, 16, 16).softmax(dim=3), "the whole image (because of a global pooling or norm)"),
    (
        lambda x: x.view(1, 2, 1, 16, 16).transpose(2, 3),
        "the whole image (because of a reshape of the map, as in attention)",
    ),
    (lambda x: x.cumsum(dim=2), "unknown (because of the operation Cumsum)"),
    (lambda x: x.flip(2), "unknown (because of the operation Flip)"),
    (lambda x: torch.cat(x.chunk(2, dim=2)[::-1], dim=2), "unknown (because of a cat of rows or columns)"),
]


@pytest.mark.parametrize(("operation", "expected"), UNKNOWN_OR_WHOLE)
def test_what_is_not_followed_is_said_not_to_be(operation: Callable[[Tensor], Tensor], expected: str) -> None:
    x = torch.empty(1, 2, 16, 16, device="meta", requires_grad=True)
    assert str(receptive_field(operation(x * 1), x)) == expected


FOLLOWED = [
    (lambda x: x.softmax(dim=1), 1),
    (lambda x: x * x.mean(dim=1, keepdim=True), 1),
    (lambda x: torch.cat(x.split(1, dim=1), dim=1), 1),
    (lambda x: F.pixel_unshuffle(x, 2), 2),
    (lambda x: F.avg_pool2d(F.pad(x, [1, 2, 3, 4]), 3), 3),
    (lambda x: F.avg_pool2d(F.pad(x, [1, 2, 3, 4], mode="reflect"), 3), 3),
    (lambda x: x + F.pad(x[:, :, 3:, 2:], [0, 2, 0, 3]), 4),
    (lambda x: x[..., ::2, ::2] + F.avg_pool2d(x, 2), 2),
    (lambda x: F.adaptive_avg_pool2d(x, 8), 2),
    (lambda x: F.avg_pool2d(F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True), 3, 1), 3),
    (lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"), 4),
    (lambda x: x.permute(0, 2, 3, 1).permute(0, 3, 1, 2), 1),
    (lambda x: F.avg_pool2d(x.view(1, 2, 2, 16, 16).transpose(1, 2).reshape(1, 4, 16, 16), 3), 3),
    (lambda x: x.view(1, 2, 2, 16, 16).softmax(dim=2).view(1, 4, 16, 16), 1),
]


@pytest.mark.parametrize(("operation", "rows"), FOLLOWED)
def test_rows_are_followed_through(operation: Callable[[Tensor], Tensor], rows: int) -> None:
    x = torch.empty(1, 4, 16, 16, device="meta", requires_grad=True)
    size = receptive_field(operation(x * 1), x).size
    assert size is not None
    assert size[0] == rows


def test_pads_that_cut_are_followed() -> None:
    x = torch.empty(1, 1, 16, 16, device="meta", requires_grad=True)
    assert receptive_field(F.avg_pool2d(F.pad(x * 1, [-1, 2, -3, 1]), 3), x).size == (3, 3)
