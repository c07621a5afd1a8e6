"""Heights and widths that stay symbolic under torch.compile and torch.export."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from unetkit.utils.formatting import Size


def size_of(x: Tensor) -> Size:
    """(B, C, H, W) -> (H, W)."""
    return x.shape[-2], x.shape[-1]


def is_same_size(a: Size, b: Size) -> bool:
    """Whether two sizes are equal; while a graph is captured, whether they are known to be.

    Asking a symbolic size whether it equals another would fix it to the example's, so there the answer may be False
    for sizes that turn out equal: only skip work that does nothing to equal sizes.
    """
    if torch.compiler.is_compiling():
        from torch.fx.experimental.symbolic_shapes import statically_known_true

        return statically_known_true(a[0] == b[0]) and statically_known_true(a[1] == b[1])
    return a == b


def crop_end(x: Tensor, size: Size) -> Tensor:
    """Cut what of (B, C, H, W) goes over a size, below and to the right; what is short stays so."""
    if not torch.compiler.is_compiling():
        return x[..., : size[0], : size[1]]
    # The convolution after a view would ask whether that is contiguous, and so fix its size. And a cut of what may be
    # nothing would ask whether it is, so one more is put on first.
    height, width = torch.sym_max(x.shape[-2] - size[0], 0), torch.sym_max(x.shape[-1] - size[1], 0)
    return F.pad(F.pad(x, [0, 1, 0, 1]), [0, -1 - cast(int, width), 0, -1 - cast(int, height)])


def pad_end(x: Tensor, size: Size) -> Tensor:
    """Put zeros below and to the right of (B, C, H, W), up to a size no smaller than its own."""
    height, width = size[0] - x.shape[-2], size[1] - x.shape[-1]
    if not torch.compiler.is_compiling():
        return F.pad(x, [0, width, 0, height])
    # A padding by what may be nothing would ask whether it is.
    return F.pad(F.pad(x, [0, width + 1, 0, height + 1]), [0, -1, 0, -1])


def at_full_size(logits: Tensor, stride: int) -> Tensor:
    """Logits (B, K, H / stride, W / stride) -> (B, K, H, W), resized bilinearly in float32, or float64 if they are."""
    if stride == 1:
        return logits
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.interpolate(exact, scale_factor=float(stride), mode="bilinear")


def mirror_indices(places: Tensor, length: int) -> Tensor:
    """Places along an axis, those beyond it mirrored at its ends, which are not repeated; as often as need be."""
    period = max(2 * (length - 1), 1)
    folded = places.remainder(period)
    return torch.minimum(folded, period - folded) if length > 1 else torch.zeros_like(places)


def crop_center(x: Tensor, size: Size) -> Tensor:
    """Cut (B, C, H, W) to a size no larger than its own; of an odd surplus the smaller half goes before."""
    height, width = x.shape[-2] - size[0], x.shape[-1] - size[1]
    top, left = height // 2, width // 2
    if torch.compiler.is_compiling():  # no view, as in crop_end
        return F.pad(x, [-left, left - width, -top, top - height])
    return x.narrow(-2, top, size[0]).narrow(-1, left, size[1])


def pad_center(x: Tensor, size: Size) -> Tensor:
    """Surround (B, C, H, W) with zeros to a size; of an odd number the smaller half goes before.

    Where it is larger than that it is cut, by the same rule.
    """
    if is_same_size(size_of(x), size):
        return x
    height, width = size[0] - x.shape[-2], size[1] - x.shape[-1]
    top, left = _half(height), _half(width)
    return F.pad(x, [left, width - left, top, height - top])


def _half(number: int) -> int:
    """Half of it, rounded towards zero, without asking a symbolic number for its sign."""
    return cast(int, torch.sym_max(number, 0) // 2 - torch.sym_max(-number, 0) // 2)
