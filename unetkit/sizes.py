"""Heights and widths that stay symbolic under torch.compile and torch.export."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from unetkit.plan import Size


def size_of(x: Tensor) -> Size:
    """(B, C, H, W) -> (H, W)."""
    return x.shape[-2], x.shape[-1]


def same_size(a: Size, b: Size) -> bool:
    """Whether two sizes are equal; while a graph is captured, whether they are known to be.

    Asking a symbolic size whether it equals another would fix it to the example's, so there the answer may be False
    for sizes that turn out equal: only skip work that does nothing to equal sizes.
    """
    if torch.compiler.is_compiling():
        from torch.fx.experimental.symbolic_shapes import statically_known_true

        return statically_known_true(a[0] == b[0]) and statically_known_true(a[1] == b[1])
    return a == b


def crop_center(x: Tensor, size: Size) -> Tensor:
    """Cut (B, C, H, W) to a size no larger than its own; of an odd surplus the smaller half goes before."""
    height, width = size_of(x)
    x = x.narrow(-2, (height - size[0]) // 2, size[0])
    return x.narrow(-1, (width - size[1]) // 2, size[1])


def pad_center(x: Tensor, size: Size) -> Tensor:
    """Surround (B, C, H, W) with zeros to a size; of an odd number the smaller half goes before.

    Where it is larger than that it is cut, by the same rule.
    """
    if same_size(size_of(x), size):
        return x
    height, width = size[0] - x.shape[-2], size[1] - x.shape[-1]
    return F.pad(x, [width // 2, width - width // 2, height // 2, height - height // 2])
