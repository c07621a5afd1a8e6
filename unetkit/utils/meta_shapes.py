"""Passes over meta tensors in a fraction of torch's time: shapes that were worked out once are known.

Torch's kernels for meta tensors are mostly written in Python.
"""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only


class MetaShapes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Gives the results of operations on meta tensors as torch does; deep networks repeat themselves.

    A tensor on another device that an operation combines with one on meta counts as one on meta. So what a part creates
    in a pass, and may keep for later ones, has values: under `torch.device("meta")` it would have none.
    """

    def __init__(self, *, has_values: bool = False) -> None:
        """Enter with `has_values` for a pass over tensors with values, whose operations all run."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.has_values = has_values
        self._output_shapes: dict[Any, Any] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False, or torch would import its compiler at the first operation, which takes as long as torch."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.has_values:
            return func(*args, **(kwargs or {}))
        if func in _IN_PLACE_ACTIVATIONS and args[0].is_meta and args[0].is_floating_point():
            return args[0]
        args, kwargs = (args, kwargs or {}) if func in _INDEXING else _all_on_meta(args, kwargs or {})
        return func(*args, **kwargs) if makes_alias(func) else self._run(func, args, kwargs)

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operation, or reuse its output shapes for the same arguments, as deep networks repeat themselves."""
        try:
            key = (func, _key_of(args), _key_of(tuple(kwargs.items())))
            known = self._output_shapes.get(key)
        except TypeError:  # an argument that cannot be hashed
            return func(*args, **kwargs)
        if known is None:
            shortcut = None if kwargs else _SHORTCUTS.get(func)
            out = shortcut(*args) if shortcut else None
            out = func(*args, **kwargs) if out is None else out
            with suppress(TypeError):  # a result on another device has values, which differ from call to call
                self._output_shapes[key] = _shape_of(out)
            return out
        return _empty_like_shape(known)


#: Operations that take indices on the CPU with every device; masks among them need their values.
_INDEXING = {torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default}


def _all_on_meta(args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Return the arguments of an operation, with every tensor on meta if one is."""
    on_meta, elsewhere = False, False
    for value in (*args, *kwargs.values()):
        for item in value if isinstance(value, list | tuple) else (value,):
            if isinstance(item, Tensor):
                on_meta, elsewhere = on_meta or item.is_meta, elsewhere or not item.is_meta
    if not (on_meta and elsewhere):
        return args, kwargs
    moved = tree_map_only(Tensor, lambda x: torch.empty_like(x, device="meta"), (args, kwargs))
    return moved[0], moved[1]


@cache
def makes_alias(func: Any) -> bool:
    """Return whether an operation changes or returns memory that it was given."""
    return func._schema.is_mutable or any(result.alias_info for result in func._schema.returns)


def _resize_shape(x: Tensor, size: Any, *rest: Any) -> Tensor:
    return x.new_empty((*x.shape[:2], *size))


def _norm_shape(
    x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, training: bool, *rest: Any
) -> tuple[Tensor, ...]:
    kept = x.shape[1] if training else 0
    same = x.new_empty(x.shape) if x.is_contiguous() else torch.empty_like(x)
    return same, x.new_empty(kept), x.new_empty(kept)


def _cat_shape(tensors: list[Tensor], dim: int = 0) -> Tensor | None:
    """Return the result for maps that fit together; None leaves all else to torch."""
    first = tensors[0]
    if first.ndim < 2 or not -first.ndim <= dim < first.ndim:
        return None
    dim %= first.ndim
    kinds = {(x.shape[:dim], x.shape[dim + 1 :], x.dtype) for x in tensors}
    layouts = {_layout(x) for x in tensors}
    if len(kinds) > 1 or None in layouts:
        return None
    shape = (*first.shape[:dim], sum(x.shape[dim] for x in tensors), *first.shape[dim + 1 :])
    layout = layouts.pop() if len(layouts) == 1 else torch.contiguous_format
    return torch.empty(shape, dtype=first.dtype, device=first.device, memory_format=layout)


def _layout(x: Tensor) -> torch.memory_format | None:
    """Return the order of elements in memory that torch reads off the strides (c10's `suggest_memory_format`)."""
    if x.ndim != 4:
        return torch.contiguous_format if x.ndim < 4 else None
    expected = 0
    for axis in (1, 3, 2, 0):
        if x.shape[axis] == 0 or x.stride(axis) < expected or (axis == 0 and expected == x.stride(1)):
            return torch.contiguous_format
        expected = x.stride(axis) * max(x.shape[axis], 1)
    return torch.channels_last if x.stride(1) else torch.contiguous_format


def _is_plain(x: Tensor) -> bool:
    """Return whether a tensor has the strides of a new one; `is_contiguous` ignores those of sides of 1."""
    expected = 1
    for size, stride in zip(reversed(x.shape), reversed(x.stride()), strict=True):
        if size == 0 or stride != expected:
            return False
        expected *= size
    return True


def _same_shape(x: Tensor) -> Tensor | None:
    """Return the result of an operation that keeps shape and dtype of a contiguous map of floating point numbers."""
    return x.new_empty(x.shape) if x.is_floating_point() and _is_plain(x) else None


def _pair_shape(x: Any, other: Any) -> Tensor | None:
    """Return the result of an operation on a map and a number, or on two maps, of which one may be broadcast."""
    if not isinstance(x, Tensor):
        return None
    if isinstance(other, int | float):
        return _same_shape(x)
    if not isinstance(other, Tensor) or other.dtype != x.dtype or not _is_plain(other) or not _is_plain(x):
        return None
    larger = x if x.numel() >= other.numel() else other
    sides = zip(x.shape, other.shape, larger.shape, strict=False)
    fits = x.ndim == other.ndim and all({a, b} <= {1, full} for a, b, full in sides)
    return _same_shape(larger) if fits else None


def _mean_shape(x: Tensor, dims: list[int] | None, keepdim: bool = False) -> Tensor | None:
    if not dims or not x.is_floating_point() or not _is_plain(x) or not all(-x.ndim <= dim < x.ndim for dim in dims):
        return None
    gone = {dim % x.ndim for dim in dims}
    if len(gone) < len(dims):
        return None
    sides = [1 if dim in gone else side for dim, side in enumerate(x.shape) if keepdim or dim not in gone]
    return x.new_empty(sides)


def _layer_norm_shape(x: Tensor, shape: list[int], weight: Any, bias: Any, eps: float) -> tuple[Tensor, ...] | None:
    kept = x.shape[: x.ndim - len(shape)]
    if not (shape and _is_plain(x)) or x.dtype != torch.float32 or [*x.shape[len(kept) :]] != [*shape]:
        return None
    if any(one is not None and (one.dtype != x.dtype or [*one.shape] != [*shape]) for one in (weight, bias)):
        return None
    moments = (*kept, *(1 for _ in shape))
    return x.new_empty(x.shape), x.new_empty(moments), x.new_empty(moments)


def _grid_sample_shape(x: Tensor, grid: Tensor, *rest: Any) -> Tensor | None:
    fits = x.ndim == grid.ndim == 4 and len(x) == len(grid) and grid.shape[3] == 2 and x.dtype == grid.dtype
    return x.new_empty((*x.shape[:2], *grid.shape[1:3])) if fits and _is_plain(x) else None


def _addmm_shape(bias: Tensor, x: Tensor, weight: Tensor) -> Tensor | None:
    fits = x.ndim == weight.ndim == 2 and x.shape[1] == weight.shape[0] and bias.shape == weight.shape[1:]
    return x.new_empty((len(x), weight.shape[1])) if fits and bias.dtype == x.dtype == weight.dtype else None


def _conv_shape(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
) -> Tensor | None:
    """Return the result of a two-dimensional convolution of a contiguous map; None leaves all else to torch."""
    takes, gives = (
        (weight.shape[0], weight.shape[1] * groups) if transposed else (weight.shape[1] * groups, len(weight))
    )
    fits = x.ndim == weight.ndim == 4 and x.shape[1] == takes and x.dtype == weight.dtype and x.is_contiguous()
    if not fits or {len(stride), len(padding), len(dilation), len(output_padding)} != {2}:
        return None
    sides = []
    for axis in (0, 1):
        side, reach = x.shape[2 + axis], dilation[axis] * (weight.shape[2 + axis] - 1) + 1
        if transposed:
            sides.append((side - 1) * stride[axis] - 2 * padding[axis] + reach + output_padding[axis])
        else:
            sides.append((side + 2 * padding[axis] - reach) // stride[axis] + 1)
    return x.new_empty((x.shape[0], gives, *sides)) if min(sides) > 0 else None


def _max_pool_shape(
    x: Tensor,
    kernel: list[int],
    stride: list[int] = [],  # noqa: B006  aten's own default
    padding: list[int] = [0, 0],  # noqa: B006
    dilation: list[int] = [1, 1],  # noqa: B006
    ceil_mode: bool = False,
) -> tuple[Tensor, Tensor] | None:
    """Return the result of a two-dimensional max pool of a contiguous map; None leaves all else to torch."""
    stride = stride or kernel
    if ceil_mode or x.ndim != 4 or not x.is_contiguous() or {len(kernel), len(stride), len(padding)} != {2}:
        return None
    if [*dilation] not in ([1], [1, 1]) or any(2 * p > k for p, k in zip(padding, kernel, strict=True)):
        return None
    moves = zip(x.shape[2:], kernel, stride, padding, strict=True)
    sides = [(side + 2 * p - k) // s + 1 for side, k, s, p in moves]
    shape = (*x.shape[:2], *sides)
    return (x.new_empty(shape), x.new_empty(shape, dtype=torch.int64)) if min(sides) > 0 else None


def _group_norm_shape(
    x: Tensor, weight: Any, bias: Any, n: int, channels: int, *rest: Any
) -> tuple[Tensor, ...] | None:
    groups = rest[1]
    if channels % groups or not x.is_contiguous():
        return None
    return x.new_empty(x.shape), x.new_empty((n, groups)), x.new_empty((n, groups))


#: Operations that torch decomposes on meta tensors, which takes tens of milliseconds for each call, or for which it
#: imports its compiler.
_SHORTCUTS: dict[Any, Any] = {
    torch.ops.aten.upsample_bilinear2d.default: _resize_shape,
    torch.ops.aten.upsample_nearest2d.default: _resize_shape,
    torch.ops.aten.native_batch_norm.default: _norm_shape,
    torch.ops.aten.native_group_norm.default: _group_norm_shape,
    torch.ops.aten.convolution.default: _conv_shape,
    torch.ops.aten.max_pool2d_with_indices.default: _max_pool_shape,
    torch.ops.aten.cat.default: _cat_shape,
    torch.ops.aten.native_layer_norm.default: _layer_norm_shape,
    torch.ops.aten.grid_sampler_2d.default: _grid_sample_shape,
    torch.ops.aten.addmm.default: _addmm_shape,
    torch.ops.aten.add.Tensor: _pair_shape,
    torch.ops.aten.sub.Tensor: _pair_shape,
    torch.ops.aten.mul.Tensor: _pair_shape,
    torch.ops.aten.div.Tensor: _pair_shape,
    torch.ops.aten.maximum.default: _pair_shape,
    torch.ops.aten.mean.dim: _mean_shape,
    torch.ops.aten.gelu.default: _same_shape,
    torch.ops.aten.relu.default: _same_shape,
    torch.ops.aten.sigmoid.default: _same_shape,
    torch.ops.aten.silu.default: _same_shape,
}


#: Operations that change the values of a tensor, of which one on meta has none. Torch decomposes each in milliseconds.
_IN_PLACE_ACTIVATIONS = {
    torch.ops.aten.clamp_.default,
    torch.ops.aten.elu_.default,
    torch.ops.aten.gelu_.default,
    torch.ops.aten.hardsigmoid_.default,
    torch.ops.aten.hardswish_.default,
    torch.ops.aten.hardtanh_.default,
    torch.ops.aten.leaky_relu_.default,
    torch.ops.aten.mish_.default,
    torch.ops.aten.sigmoid_.default,
    torch.ops.aten.silu_.default,
}


class _Shape(tuple[Any, ...]):
    """The size, stride and dtype of a meta tensor."""

    __slots__ = ()


def _shape_of(value: Any) -> Any:
    if isinstance(value, Tensor):
        if value.device.type != "meta":
            raise TypeError(value.device)
        return _Shape((value.shape, value.stride(), value.dtype))
    return tuple(map(_shape_of, value)) if isinstance(value, tuple | list) else value


def _key_of(value: Any) -> Any:
    """Return a key for the arguments that determine the output shapes; 1, 1.0 and True differ."""
    if isinstance(value, tuple | list):
        return tuple(map(_key_of, value))
    return _shape_of(value) if isinstance(value, Tensor) else (type(value), value)


def _empty_like_shape(shape: Any) -> Any:
    if isinstance(shape, _Shape):
        return torch.empty_strided(shape[0], shape[1], dtype=shape[2], device="meta")
    return tuple(map(_empty_like_shape, shape)) if isinstance(shape, tuple) else shape
