"""The receptive field of a network, read from autograd's graph: how many input pixels one output pixel depends on.

Each output pixel is followed back as an interval of rows and columns, exactly, through padding, strides and upsampling;
the field is the widest interval over all output pixels. As is usual, the statistics of norms do not count. An operation
that sees the whole map (attention, squeeze-and-excite) makes the field the whole image, and an operation that is not
known here makes it unknown.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

#: The lowest and the highest index that each output position depends on, as two arrays.
Interval = tuple[Any, Any]

_GLOBAL_POOLING = "the whole image (because of a global pooling or norm)"
_RESHAPE = "the whole image (because of a reshape of the map, as in attention)"


@dataclass(frozen=True)
class ReceptiveField:
    """The receptive field of an output pixel.

    Attributes:
        size: height and width in input pixels; None where the field is the whole image, or not known exactly.
        because: "" or, without a size, what the field is and why, in words.
    """

    size: tuple[int, int] | None
    because: str = ""

    def __str__(self) -> str:
        return f"{self.size[0]}x{self.size[1]}" if self.size else self.because


class _Untraceable(Exception):
    """An operation whose output pixels do not depend on an interval of rows or columns; the message says why."""


def receptive_field(output: Tensor, source: Tensor) -> ReceptiveField:
    """Measure the receptive field of an output on an input.

    Args:
        output: the last map (B, C, H, W) of a forward pass with grad.
        source: the input (B, C, H, W) of the pass, a leaf that requires grad.
    """
    try:
        rows = _measure_field(output, source, axis=-2)
        columns = _measure_field(output, source, axis=-1)
    except _Untraceable as error:
        return ReceptiveField(None, str(error))
    return ReceptiveField((rows, columns))


def _measure_field(output: Tensor, source: Tensor, axis: int) -> int:
    positions = np.arange(output.shape[axis])
    intervals: dict[Any, Interval] = {output.grad_fn: (positions, positions)}
    widest: Interval | None = None
    order = _sort_topologically(output.grad_fn)
    relevant = _nodes_computed_from(source, order)
    for node in order:
        if node not in relevant:
            continue
        interval = intervals.pop(node)
        if getattr(node, "variable", None) is source:
            widest = interval if widest is None else _hull(widest, interval)
            continue
        parent_interval = _step_back(node, interval, axis)
        for parent, _ in node.next_functions:
            if parent in relevant:
                known = intervals.get(parent)
                intervals[parent] = parent_interval if known is None else _hull(known, parent_interval)
    return 0 if widest is None else max(0, int((widest[1] - widest[0]).max()) + 1)


def _hull(a: Interval, b: Interval) -> Interval:
    return np.minimum(a[0], b[0]), np.maximum(a[1], b[1])


def _sort_topologically(root: Any) -> list[Any]:
    """Return every node of the graph, each before the nodes that it was computed from."""
    order: list[Any] = []
    visited: set[Any] = set()
    stack = [(root, False)]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
        elif node is not None and node not in visited:
            visited.add(node)
            stack.append((node, True))
            stack += [(parent, False) for parent, _ in node.next_functions]
    return order[::-1]


def _nodes_computed_from(source: Tensor, order: list[Any]) -> set[Any]:
    """Return the nodes that are computed from `source`; the others are arithmetic on weights."""
    relevant: set[Any] = set()
    for node in reversed(order):
        if getattr(node, "variable", None) is source or any(parent in relevant for parent, _ in node.next_functions):
            relevant.add(node)
    return relevant


def _step_back(node: Any, interval: Interval, axis: int) -> Interval:
    """Return the interval of a node's input from which an interval of its output is computed."""
    name = node.name().rstrip("0123456789")
    if name in _POINTWISE:
        return interval
    if name not in _INTERVAL_RULES:
        raise _Untraceable(f"unknown (because of the operation {name.removesuffix('Backward')})")
    return _INTERVAL_RULES[name](node, interval, axis)


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
    input_side, output_side = node._saved_self_sym_sizes[axis], node._saved_output_size[axis]
    if node._saved_align_corners:
        scale = (input_side - 1) / max(1, output_side - 1)
        low, high = (end * scale for end in interval)
    else:
        low, high = ((end + 0.5) * input_side / output_side - 0.5 for end in interval)
    return np.floor(low).astype(int), np.ceil(high).astype(int)


def _nearest(node: Any, interval: Interval, axis: int) -> Interval:
    input_side, output_side = node._saved_self_sym_sizes[axis], node._saved_output_size[axis]
    return interval[0] * input_side // output_side, interval[1] * input_side // output_side


def _shuffle(node: Any, interval: Interval, axis: int) -> Interval:
    return interval[0] // node._saved_upscale_factor, interval[1] // node._saved_upscale_factor


def _pad(node: Any, interval: Interval, axis: int) -> Interval:
    before = _to_signed(node._saved_pad)[2 * (-axis - 1)] if len(node._saved_pad) >= -2 * axis else 0
    return interval[0] - before, interval[1] - before


def _slice(node: Any, interval: Interval, axis: int) -> Interval:
    sizes = node._saved_self_sym_sizes
    if node._saved_dim % len(sizes) != len(sizes) + axis:
        return interval
    start = node._saved_start + (sizes[axis] if node._saved_start < 0 else 0)
    return interval[0] * node._saved_step + start, interval[1] * node._saved_step + start


def _reduction(node: Any, interval: Interval, axis: int) -> Interval:
    """Follow reductions and softmax, which keep rows and columns separate if they run over channels."""
    sizes = getattr(node, "_saved_self_sym_sizes", None)
    if sizes is None:
        saved = getattr(node, "_saved_self", None)
        sizes = (saved if saved is not None else node._saved_result).shape
    dims = getattr(node, "_saved_dim", None)
    dims = [dims] if isinstance(dims, int) else list(dims) if dims else list(range(len(sizes)))
    rows_and_columns = {len(sizes) - 2, len(sizes) - 1}
    if len(sizes) >= 4 and {dim % len(sizes) for dim in _to_signed(dims)} & rows_and_columns:
        raise _Untraceable(_GLOBAL_POOLING)
    return interval


def _to_signed(dims: Any) -> list[int]:
    """Return dimensions with their sign: autograd's graph holds negative numbers as unsigned ones."""
    return [dim - 2**64 if dim >= 2**63 else dim for dim in dims]


def _adaptive_pool(node: Any, interval: Interval, axis: int) -> Interval:
    input_side, output_side = node._saved_self.shape[axis], node._input_metadata[0].shape[axis]
    if output_side == 1:
        raise _Untraceable(_GLOBAL_POOLING)
    return interval[0] * input_side // output_side, -((-(interval[1] + 1) * input_side) // output_side) - 1


def _channel_operation(node: Any, interval: Interval, axis: int) -> Interval:
    """Follow concat, split and select, which keep rows and columns separate if they run along channels."""
    sizes = getattr(node, "_saved_self_sym_sizes", None) or node._input_metadata[0].shape
    dims = len(sizes)
    if dims >= 4 and _to_signed([node._saved_dim])[0] % dims not in range(1, dims - 2):
        raise _Untraceable(f"unknown (because of a {node.name().removesuffix('Backward0').lower()} of rows or columns)")
    return interval


def _permutation(node: Any, interval: Interval, axis: int) -> Interval:
    """Follow NCHW to NHWC and back, which keep the order of rows and columns."""
    if tuple(dim % 4 for dim in _to_signed(node._saved_dims)) in ((0, 1, 2, 3), (0, 2, 3, 1), (0, 3, 1, 2)):
        return interval
    raise _Untraceable(_RESHAPE)


def _unshuffle(node: Any, interval: Interval, axis: int) -> Interval:
    factor = node._saved_downscale_factor
    return interval[0] * factor, interval[1] * factor + factor - 1


def _bicubic(node: Any, interval: Interval, axis: int) -> Interval:
    low, high = _bilinear(node, interval, axis)
    return low - 1, high + 1


def _border_pad(node: Any, interval: Interval, axis: int) -> Interval:
    """Follow reflection and replication padding, as if away from the border."""
    before = _to_signed(node._saved_padding)[2 * (-axis - 1)]
    return interval[0] - before, interval[1] - before


def _view(node: Any, interval: Interval, axis: int) -> Interval:
    before, after = tuple(node._saved_self_sym_sizes), tuple(node._input_metadata[0].shape)
    if before == after or (before[-1] == after[-1] and {len(before), len(after)} == {2, 4}):
        return interval
    if min(len(before), len(after)) >= 4 and before[-2:] == after[-2:]:  # channels in groups
        return interval
    raise _Untraceable(_RESHAPE)


def _transposition(node: Any, interval: Interval, axis: int) -> Interval:
    """Follow a transposition that leaves rows and columns last, as a channel shuffle does."""
    dims = len(node._input_metadata[0].shape)
    if dims >= 4 and max(dim % dims for dim in _to_signed([node._saved_dim0, node._saved_dim1])) < dims - 2:
        return interval
    raise _Untraceable(_RESHAPE)


def _whole_image(cause: str) -> Callable[[Any, Interval, int], Interval]:
    def step(node: Any, interval: Interval, axis: int) -> Interval:
        raise _Untraceable(f"the whole image (because of {cause})")

    return step


#: Operations that compute each output pixel from the same pixel of the input, or from the statistics of a norm.
_POINTWISE_NAMES = """
    Abs Add Addcdiv Addcmul Addmm Alias Bernoulli Celu Clamp ClampMax ClampMin Clone Copy Cos CudnnBatchNorm Div Elu Erf
    Exp Expand Gelu Glu Hardsigmoid Hardswish Hardtanh LeakyRelu Lerp Log LogSigmoid Maximum Minimum Mish Mm Mul
    NativeBatchNorm NativeDropout NativeGroupNorm NativeLayerNorm Neg Pow Prelu PreluKernel Reciprocal Relu Relu6 Rsqrt
    Rsub Selu Sigmoid Silu Sin Softplus Sqrt Squeeze Sub T Tanh Threshold ToCopy Unsqueeze Where
"""
_POINTWISE = {f"{name}Backward" for name in _POINTWISE_NAMES.split()}
_REDUCTIONS = "Mean Sum Amax Amin Max Min Var Std Norm LinalgVectorNorm Softmax"
_INTERVAL_RULES: dict[str, Callable[[Any, Interval, int], Interval]] = {
    "ConvolutionBackward": _convolution,
    "MaxPool2DWithIndicesBackward": _pool,
    "AvgPool2DBackward": _pool,
    "AdaptiveAvgPool2DBackward": _adaptive_pool,
    "AdaptiveMaxPool2DBackward": _adaptive_pool,
    "UpsampleBilinear2DBackward": _bilinear,
    "UpsampleNearest2DBackward": _nearest,
    "UpsampleBicubic2DBackward": _bicubic,
    "PixelShuffleBackward": _shuffle,
    "PixelUnshuffleBackward": _unshuffle,
    "ConstantPadNdBackward": _pad,
    "ReflectionPad2DBackward": _border_pad,
    "ReplicationPad2DBackward": _border_pad,
    "SliceBackward": _slice,
    "CatBackward": _channel_operation,
    "SplitBackward": _channel_operation,
    "SplitWithSizesBackward": _channel_operation,
    "SelectBackward": _channel_operation,
    "PermuteBackward": _permutation,
    "TransposeBackward": _transposition,
    **{f"{name}Backward": _reduction for name in _REDUCTIONS.split()},
    "ViewBackward": _view,
    "UnsafeViewBackward": _view,
    "ReshapeAliasBackward": _view,
    "BmmBackward": _whole_image("attention"),
    "ScaledDotProductFlashAttentionForCpuBackward": _whole_image("attention"),
    "ScaledDotProductEfficientAttentionBackward": _whole_image("attention"),
    "RollBackward": _whole_image("attention over shifted windows"),
}
