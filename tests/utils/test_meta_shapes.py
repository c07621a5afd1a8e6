"""Shapes that are worked out without torch are those of torch, in its order in memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from unetkit.utils.meta_shapes import MetaShapes

_aten = torch.ops.aten


def numbers(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.ones(shape, dtype=dtype, device="meta")


MAP = numbers(2, 8, 6, 4)
LAST = MAP.to(memory_format=torch.channels_last)
HALF = MAP.half()
PERMUTED = MAP.permute(0, 2, 3, 1)
CROPPED = numbers(2, 8, 9, 9)[..., :6, :4]
CROPPED_LAST = numbers(2, 8, 9, 9).to(memory_format=torch.channels_last)[..., :6, :4]
PIXEL = numbers(2, 8, 1, 1)
#: Sides of 1 and 0, of which `is_contiguous` says nothing.
PIXEL_LAST = PIXEL.to(memory_format=torch.channels_last)
GREY_LAST = numbers(2, 1, 6, 4).to(memory_format=torch.channels_last)
EMPTY_LAST = numbers(0, 8, 6, 4).to(memory_format=torch.channels_last)
GRID = numbers(2, 3, 5, 2)
VECTOR = numbers(8)


@pytest.mark.parametrize(
    ("operation", "given"),
    [
        (
            _aten.cat.default,
            [([one, other], 1) for one in (MAP, LAST, CROPPED) for other in (MAP, LAST, CROPPED, HALF)],
        ),
        (
            _aten.cat.default,
            [
                *(([PIXEL, PIXEL], 1), ([PIXEL, CROPPED[..., :1, :1]], 2), ([MAP, MAP], -1), ([GRID, GRID], 0)),
                *(([PIXEL, PIXEL_LAST], 1), ([PIXEL_LAST, PIXEL_LAST], 1), ([GREY_LAST, GREY_LAST], 1)),
                *(([one, one], 1) for one in (CROPPED, CROPPED_LAST, PERMUTED, EMPTY_LAST, MAP.expand(2, 8, 6, 4))),
                *(([one, one], 1) for one in (PIXEL.expand(2, 8, 6, 4), MAP[:, :1].expand(2, 8, 6, 4), GRID[..., :1])),
            ],
        ),
        (_aten.grid_sampler_2d.default, [(one, GRID, 0, 1, False) for one in (MAP, LAST, CROPPED)]),
        (
            _aten.native_layer_norm.default,
            [
                *((one, [8], VECTOR, VECTOR, 1e-6) for one in (PERMUTED, PERMUTED.contiguous())),
                (MAP, [6, 4], None, None, 1e-6),
                (PIXEL_LAST.permute(0, 2, 3, 1), [8], VECTOR, VECTOR, 1e-6),
                (numbers(2, 5, 8), [8], VECTOR, None, 1e-6),
            ],
        ),
        (_aten.addmm.default, [(VECTOR, numbers(3, 5), one) for one in (numbers(5, 8), numbers(8, 5).t())]),
        *(
            (
                operation,
                [
                    (one, other)
                    for one in (MAP, LAST, CROPPED, PIXEL, MAP[:, :1], MAP[:1])
                    for other in (MAP, LAST, CROPPED, HALF, PIXEL, PIXEL_LAST, numbers(2, 1, 6, 1), VECTOR[:4], 2, 0.5)
                ],
            )
            for operation in (_aten.add.Tensor, _aten.sub.Tensor, _aten.mul.Tensor, _aten.div.Tensor)
        ),
        (
            _aten.maximum.default,
            [(one, other) for one in (MAP, LAST, CROPPED, PIXEL) for other in (MAP, LAST, CROPPED, HALF, PIXEL)],
        ),
        (
            _aten.mean.dim,
            [
                *(
                    (one, dims, keep)
                    for one in (MAP, PIXEL_LAST)
                    for dims in ([2, 3], [1], [-1])
                    for keep in (True, False)
                ),
                *((MAP, None), (LAST, [2, 3], True), (CROPPED, [1], True)),
            ],
        ),
        *(
            (operation, [(one, one) for one in (PIXEL_LAST, GREY_LAST, EMPTY_LAST)])
            for operation in (_aten.add.Tensor, _aten.mul.Tensor)
        ),
        *(
            (operation, [(2, MAP), (0.5, LAST)])  # as torch hands numbers on
            for operation in (torch.add, torch.mul)
        ),
        (_aten.add.Tensor, [(numbers(2, 3, dtype=torch.int64), 0.5), (HALF, MAP), (HALF, True)]),
        *(
            (operation, [(one,) for one in (MAP, LAST, CROPPED, PERMUTED, HALF, PIXEL_LAST, GREY_LAST, EMPTY_LAST)])
            for operation in (_aten.gelu.default, _aten.relu.default, _aten.sigmoid.default, _aten.silu.default)
        ),
        (_aten.sigmoid.default, [(numbers(2, 3, dtype=torch.int64),)]),
    ],
    ids=lambda value: str(value) if isinstance(value, torch._ops.OpOverload) else "",
)
def test_results_are_those_of_torch(operation: Any, given: list[Any]) -> None:
    for args in given:
        with MetaShapes():
            first, again = operation(*args), operation(*args)
        expected = describe(operation(*args))
        assert describe(first) == expected, describe(args)
        assert describe(again) == expected, describe(args)


def describe(value: Any) -> Any:
    return tree_map_only(Tensor, lambda x: (tuple(x.shape), x.stride(), x.dtype, str(x.device)), value)


@pytest.mark.parametrize(
    ("operation", "args"),
    [
        (_aten.cat.default, ([MAP, PERMUTED], 1)),
        (_aten.cat.default, ([MAP, MAP], 4)),
        (_aten.native_layer_norm.default, (MAP, [], None, None, 1e-6)),
        (_aten.grid_sampler_2d.default, (MAP, numbers(3, 3, 5, 2), 0, 0, False)),
        (_aten.native_layer_norm.default, (MAP, [8], VECTOR, VECTOR, 1e-6)),
        (_aten.addmm.default, (VECTOR, numbers(3, 5), numbers(6, 8))),
        (_aten.add.Tensor, (MAP, PERMUTED)),
    ],
    ids=str,
)
def test_what_torch_refuses_is_refused(operation: Any, args: Any) -> None:
    with MetaShapes(), pytest.raises((RuntimeError, IndexError)):
        operation(*args)
