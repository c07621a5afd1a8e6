"""Heights and widths that remain symbolic under torch.compile, torch.export, and torch.jit.trace.

The older ONNX exporter and TensorBoard's add_graph use torch.jit.trace, in which a size is a tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.fx.experimental._config as export_config
import torch.nn.functional as F
from torch import Tensor

from unetkit.utils.formatting import Size
from unetkit.utils.integers import ceil_div


def size_of(x: Tensor) -> Size:
    """(B, C, H, W) -> (H, W)."""
    return x.shape[-2], x.shape[-1]


def strided_size(size: Size, stride: int) -> Size:
    """Return the size of the map at a stride, that of a strided convolution: rounded up."""
    return ceil_div(size[0], stride), ceil_div(size[1], stride)


def looks_like_nhwc(maps: Sequence[Tensor], channels: tuple[int, ...], input_size: Size) -> bool:
    """Return whether maps with wrong channels are explained by being of shape (B, H, W, C).

    Their last axis must have the expected channels, which may be by chance; so the sides must fit the shape of the
    input better when they are read from the second and third axis than when they are read from the last two.

    Args:
        maps: tensors with four axes.
        channels: the channels that are expected of each.
        input_size: height and width of the input of which they were computed.
    """
    height, width = input_size
    as_nhwc = sum(abs(x.shape[1] * width - x.shape[2] * height) for x in maps)
    as_nchw = sum(abs(x.shape[2] * width - x.shape[3] * height) for x in maps)
    return tuple(x.shape[3] for x in maps) == channels and as_nhwc < as_nchw


def is_tracing() -> bool:
    """Return whether torch.jit.trace captures a graph, in which a comparison of sizes would fix the example's."""
    return bool(torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]


def sym_max(a: int, b: int) -> int:
    """Return the larger of two sizes without comparing them, which would fix a symbolic size to the example's."""
    if is_tracing():
        surplus: Any = b - a
        return a + (surplus.clamp(min=0) if isinstance(surplus, Tensor) else max(surplus, 0))  # type: ignore[return-value]
    return cast(int, torch.sym_max(a, b))


def sym_min(a: int, b: int) -> int:
    """Return the smaller of two sizes without comparing them, which would fix a symbolic size to the example's."""
    if is_tracing():
        return a + b - sym_max(a, b)
    return cast(int, torch.sym_min(a, b))


def is_same_size(a: Size, b: Size) -> bool:
    """Return whether two sizes are equal; while a graph is captured, whether they are known to be equal.

    Comparing a symbolic size would fix it to the example's size. The result may therefore be False for sizes that turn
    out to be equal, so use it only to skip work that does not change equal sizes.
    """
    if torch.compiler.is_compiling():
        from torch.fx.experimental.symbolic_shapes import statically_known_true

        return statically_known_true(a[0] == b[0]) and statically_known_true(a[1] == b[1])
    return not is_tracing() and a == b


def has_free_sizes() -> bool:
    """Return whether torch.export captures a graph and keeps sizes symbolic where their values would be tested."""
    return torch.compiler.is_exporting() and cast(Any, export_config).backed_size_oblivious is True


def crop_end(x: Tensor, size: Size) -> Tensor:
    """Crop (B, C, H, W) at the bottom and the right to a size; smaller sides are unchanged."""
    if not torch.compiler.is_compiling() or has_free_sizes():
        return x[..., : size[0], : size[1]]
    # torch.export would by default fix the size for a convolution after a view, because it tests whether the view is
    # contiguous; and for a crop that may be empty, so one row and one column are added first.
    height, width = sym_max(x.shape[-2] - size[0], 0), sym_max(x.shape[-1] - size[1], 0)
    return F.pad(F.pad(x, [0, 1, 0, 1]), [0, -1 - width, 0, -1 - height])


def pad_end(x: Tensor, size: Size) -> Tensor:
    """Pad (B, C, H, W) with zeros at the bottom and the right to a size that is not smaller."""
    height, width = size[0] - x.shape[-2], size[1] - x.shape[-1]
    if is_tracing():
        # A traced network cannot refuse a larger input; it must not crop it either.
        height, width = sym_max(height, 0), sym_max(width, 0)
    if not torch.compiler.is_compiling() or has_free_sizes():
        return F.pad(x, [0, width, 0, height])
    # torch.export would by default fix the size for a padding that may be 0.
    return F.pad(F.pad(x, [0, width + 1, 0, height + 1]), [0, -1, 0, -1])


def resize_to_input(logits: Tensor, stride: int) -> Tensor:
    """Resize logits (B, K, H / stride, W / stride) to (B, K, H, W), bilinearly in at least float32."""
    if stride == 1:
        return logits
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.interpolate(exact, scale_factor=float(stride), mode="bilinear")


def crop_center(x: Tensor, size: Size) -> Tensor:
    """Crop (B, C, H, W) around the center to a size that is not larger; an odd surplus is cut one more at the end."""
    height, width = x.shape[-2] - size[0], x.shape[-1] - size[1]
    top, left = height // 2, width // 2
    if torch.compiler.is_compiling():  # no view, as in crop_end
        return F.pad(x, [-left, left - width, -top, top - height])
    if is_tracing():  # narrow would fix the size
        return x[..., top : top + size[0], left : left + size[1]]
    return x.narrow(-2, top, size[0]).narrow(-1, left, size[1])


def pad_center(x: Tensor, size: Size) -> Tensor:
    """Pad (B, C, H, W) with zeros around it to a size; an odd number is padded one more at the end.

    Larger sides are cropped with the same rule.
    """
    if is_same_size(size_of(x), size):
        return x
    height, width = size[0] - x.shape[-2], size[1] - x.shape[-1]
    top, left = _half(height), _half(width)
    return F.pad(x, [left, width - left, top, height - top])


def _half(number: int) -> int:
    """Return half of a number rounded towards zero, without testing the sign of a symbolic number."""
    return sym_max(number, 0) // 2 - sym_max(-number, 0) // 2
