"""The receptive field: how many input pixels one output pixel can depend on, read from autograd's graph.

Each output pixel is followed back as an interval of rows and columns, exactly, through padding, strides and
upsampling; the field is the widest interval over all output pixels. Statistics of norms are left out, as is
usual. An operation that looks at the whole map (attention, squeeze-and-excite) makes the field the whole
image, and one that is not known here makes it unknown.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

Interval = tuple[Any, Any]  # lowest and highest index, an array of output positions each


@dataclass(frozen=True)
class ReceptiveField:
    """Height and width in input pixels; None where it is the whole image or unknown, and what makes it so."""

    size: tuple[int, int] | None
    because: str = ""

    def __str__(self) -> str:
        return f"{self.size[0]}x{self.size[1]}" if self.size else self.because


class _NoInterval(Exception):
    """A step back that leads to no interval of rows or columns; says why."""


def receptive_field(output: Tensor, source: Tensor) -> ReceptiveField:
    """The field of `output` (B, C, H, W) on `source`, a leaf that requires grad.

    Args:
        output: the last map of a forward pass with grad.
        source: what it was computed from.
    """
    try:
        rows = _reach(output, source, axis=-2)
        columns = _reach(output, source, axis=-1)
    except _NoInterval as found:
        return ReceptiveField(None, str(found))
    return ReceptiveField((rows, columns))


def _reach(output: Tensor, source: Tensor, axis: int) -> int:
    positions = np.arange(output.shape[axis])
    reach: dict[Any, Interval] = {output.grad_fn: (positions, positions)}
    widest: Interval | None = None
    order = _topological(output.grad_fn)
    leading = _leading_to(source, order)
    for node in order:
        if node not in leading:
            continue
        interval = reach.pop(node)
        if getattr(node, "variable", None) is source:
            widest = interval if widest is None else _hull(widest, interval)
            continue
        below = _back(node, interval, axis)
        for parent, _ in node.next_functions:
            if parent in leading:
                reach[parent] = _hull(reach[parent], below) if parent in reach else below
    return 0 if widest is None else max(0, int((widest[1] - widest[0]).max()) + 1)


def _hull(a: Interval, b: Interval) -> Interval:
    return np.minimum(a[0], b[0]), np.maximum(a[1], b[1])


def _topological(root: Any) -> list[Any]:
    """Every node before the nodes that it was computed from."""
    order: list[Any] = []
    seen: set[Any] = set()
    stack = [(root, False)]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
        elif node is not None and node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack += [(parent, False) for parent, _ in node.next_functions]
    return order[::-1]


def _leading_to(source: Tensor, order: list[Any]) -> set[Any]:
    """The nodes that are computed from `source`; the rest is arithmetic on weights."""
    leading: set[Any] = set()
    for node in reversed(order):
        if getattr(node, "variable", None) is source or any(parent in leading for parent, _ in node.next_functions):
            leading.add(node)
    return leading


def _back(node: Any, interval: Interval, axis: int) -> Interval:
    """The interval of a node's input that an interval of its output is computed from."""
    name = node.name().rstrip("0123456789")
    if name in _POINTWISE:
        return interval
    if name not in _STEPS:
        raise _NoInterval(f"unknown (for the operation {name.removesuffix('Backward')})")
    return _STEPS[name](node, interval, axis)


def _pair(value: Any, axis: int) -> int:
    return int(value[axis] if len(value) > 1 else value[0])


def _convolution(node: Any, interval: Interval, axis: int) -> Interval:
    low, high = interval
    if not node._saved_stride:
        return interval
    stride, padding = _pair(node._saved_stride, axis), _pair(node._saved_padding, axis)
    span = _pair(node._saved_dilation, axis) * (node._saved_weight.shape[axis] - 1)
    if node._saved_transposed:
        return -((span - padding - low) // stride), (high + padding) // stride
    return low * stride - padding, high * stride - padding + span


def _pool(node: Any, interval: Interval, axis: int) -> Interval:
    kernel = _pair(node._saved_kernel_size, axis)
    stride = _pair(node._saved_stride, axis) if node._saved_stride else kernel
    padding, dilation = _pair(node._saved_padding, axis), getattr(node, "_saved_dilation", (1, 1))
    span = _pair(dilation, axis) * (kernel - 1)
    return interval[0] * stride - padding, interval[1] * stride - padding + span


def _bilinear(node: Any, interval: Interval, axis: int) -> Interval:
    inside, outside = node._saved_self_sym_sizes[axis], node._saved_output_size[axis]
    if node._saved_align_corners:
        scale = (inside - 1) / max(1, outside - 1)
        low, high = (end * scale for end in interval)
    else:
        low, high = ((end + 0.5) * inside / outside - 0.5 for end in interval)
    return np.floor(low).astype(int), np.ceil(high).astype(int)


def _nearest(node: Any, interval: Interval, axis: int) -> Interval:
    inside, outside = node._saved_self_sym_sizes[axis], node._saved_output_size[axis]
    return interval[0] * inside // outside, interval[1] * inside // outside


def _shuffle(node: Any, interval: Interval, axis: int) -> Interval:
    return interval[0] // node._saved_upscale_factor, interval[1] // node._saved_upscale_factor


def _pad(node: Any, interval: Interval, axis: int) -> Interval:
    before = _signed(node._saved_pad)[2 * (-axis - 1)] if len(node._saved_pad) >= -2 * axis else 0
    return interval[0] - before, interval[1] - before


def _slice(node: Any, interval: Interval, axis: int) -> Interval:
    sizes = node._saved_self_sym_sizes
    if node._saved_dim % len(sizes) != len(sizes) + axis:
        return interval
    start = node._saved_start + (sizes[axis] if node._saved_start < 0 else 0)
    return interval[0] * node._saved_step + start, interval[1] * node._saved_step + start


def _reduced(node: Any, interval: Interval, axis: int) -> Interval:
    """Reductions and softmax: over channels they leave rows and columns apart."""
    sizes = getattr(node, "_saved_self_sym_sizes", None)
    if sizes is None:
        known = getattr(node, "_saved_self", None)
        sizes = (known if known is not None else node._saved_result).shape
    dims = getattr(node, "_saved_dim", None)
    dims = [dims] if isinstance(dims, int) else list(dims) if dims else list(range(len(sizes)))
    rows_and_columns = {len(sizes) - 2, len(sizes) - 1}
    if len(sizes) >= 4 and {dim % len(sizes) for dim in _signed(dims)} & rows_and_columns:
        raise _NoInterval("the whole image (by a global pooling or norm)")
    return interval


def _signed(dims: Any) -> list[int]:
    """Autograd tells negative numbers as unsigned ones."""
    return [dim - 2**64 if dim >= 2**63 else dim for dim in dims]


def _adaptive(node: Any, interval: Interval, axis: int) -> Interval:
    inside, outside = node._saved_self.shape[axis], node._input_metadata[0].shape[axis]
    if outside == 1:
        raise _NoInterval("the whole image (by a global pooling or norm)")
    return interval[0] * inside // outside, -((-(interval[1] + 1) * inside) // outside) - 1


def _along(node: Any, interval: Interval, axis: int) -> Interval:
    """Concat, split and select: along channels they leave rows and columns apart."""
    sizes = getattr(node, "_saved_self_sym_sizes", None) or node._input_metadata[0].shape
    dims = len(sizes)
    if dims >= 4 and _signed([node._saved_dim])[0] % dims not in range(1, dims - 2):
        raise _NoInterval(f"unknown (for a {node.name().removesuffix('Backward0').lower()} of rows or columns)")
    return interval


def _permuted(node: Any, interval: Interval, axis: int) -> Interval:
    """NCHW to NHWC and back keep rows and columns in order."""
    if tuple(dim % 4 for dim in _signed(node._saved_dims)) in ((0, 1, 2, 3), (0, 2, 3, 1), (0, 3, 1, 2)):
        return interval
    raise _NoInterval("the whole image (by a reshape of the map, as attention makes)")


def _unshuffled(node: Any, interval: Interval, axis: int) -> Interval:
    factor = node._saved_downscale_factor
    return interval[0] * factor, interval[1] * factor + factor - 1


def _bicubic(node: Any, interval: Interval, axis: int) -> Interval:
    low, high = _bilinear(node, interval, axis)
    return low - 1, high + 1


def _border(node: Any, interval: Interval, axis: int) -> Interval:
    """Reflection and replication, away from the border."""
    before = _signed(node._saved_padding)[2 * (-axis - 1)]
    return interval[0] - before, interval[1] - before


def _view(node: Any, interval: Interval, axis: int) -> Interval:
    before, after = tuple(node._saved_self_sym_sizes), tuple(node._input_metadata[0].shape)
    if before == after or (before[-1] == after[-1] and {len(before), len(after)} == {2, 4}):
        return interval
    if min(len(before), len(after)) >= 4 and before[-2:] == after[-2:]:  # channels in groups
        return interval
    raise _NoInterval("the whole image (by a reshape of the map, as attention makes)")


def _swapped(node: Any, interval: Interval, axis: int) -> Interval:
    """A transposition that leaves rows and columns at the end, as in a shuffle of channels."""
    dims = len(node._input_metadata[0].shape)
    if dims >= 4 and max(dim % dims for dim in _signed([node._saved_dim0, node._saved_dim1])) < dims - 2:
        return interval
    raise _NoInterval("the whole image (by a reshape of the map, as attention makes)")


def _whole(what: str) -> Callable[[Any, Interval, int], Interval]:
    def step(node: Any, interval: Interval, axis: int) -> Interval:
        raise _NoInterval(f"the whole image (by {what})")

    return step


#: Each output pixel of these is computed from the same pixel of the input, or from statistics of norms.
_NAMES = """
    Abs Add Addcdiv Addcmul Addmm Alias Bernoulli Celu Clamp ClampMax ClampMin Clone Copy Cos CudnnBatchNorm Div Elu Erf
    Exp Expand Gelu Glu Hardsigmoid Hardswish Hardtanh LeakyRelu Lerp Log LogSigmoid Maximum Minimum Mish Mm Mul
    NativeBatchNorm NativeDropout NativeGroupNorm NativeLayerNorm Neg Pow Prelu PreluKernel Reciprocal Relu Relu6 Rsqrt
    Rsub Selu Sigmoid Silu Sin Softplus Sqrt Squeeze Sub T Tanh Threshold ToCopy Unsqueeze Where
"""
_POINTWISE = {f"{name}Backward" for name in _NAMES.split()}
_REDUCTIONS = "Mean Sum Amax Amin Max Min Var Std Norm LinalgVectorNorm Softmax"
_STEPS: dict[str, Callable[[Any, Interval, int], Interval]] = {
    "ConvolutionBackward": _convolution,
    "MaxPool2DWithIndicesBackward": _pool,
    "AvgPool2DBackward": _pool,
    "AdaptiveAvgPool2DBackward": _adaptive,
    "AdaptiveMaxPool2DBackward": _adaptive,
    "UpsampleBilinear2DBackward": _bilinear,
    "UpsampleNearest2DBackward": _nearest,
    "UpsampleBicubic2DBackward": _bicubic,
    "PixelShuffleBackward": _shuffle,
    "PixelUnshuffleBackward": _unshuffled,
    "ConstantPadNdBackward": _pad,
    "ReflectionPad2DBackward": _border,
    "ReplicationPad2DBackward": _border,
    "SliceBackward": _slice,
    "CatBackward": _along,
    "SplitBackward": _along,
    "SplitWithSizesBackward": _along,
    "SelectBackward": _along,
    "PermuteBackward": _permuted,
    "TransposeBackward": _swapped,
    **{f"{name}Backward": _reduced for name in _REDUCTIONS.split()},
    "ViewBackward": _view,
    "UnsafeViewBackward": _view,
    "ReshapeAliasBackward": _view,
    "BmmBackward": _whole("attention"),
    "ScaledDotProductFlashAttentionForCpuBackward": _whole("attention"),
    "ScaledDotProductEfficientAttentionBackward": _whole("attention"),
    "RollBackward": _whole("attention over shifted windows"),
}
