"""Equality of two computations up to rounding, whatever the processor.

Two networks that compute the same add their sums in another order. By how much their outputs then differ in float32
depends on the vector units of the processor. In float64 the same networks differ 5e8 times less, so a fault shows.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

#: The largest relative difference of two float64 passes that compute the same. It was at most 2e-14 over networks of
#: smp and timm of 10 to 400 layers.
FLOAT64_TOLERANCE = 1e-10


def float32_tolerance(model: nn.Module) -> float:
    """Return the relative difference of two float32 passes that one rounding error in each layer explains."""
    layers = sum(1 for module in model.modules() if not [*module.children()])
    return torch.finfo(torch.float32).eps * max(layers, 16)


def difference_beyond_rounding(model: nn.Module, measure: Callable[[torch.dtype], float]) -> float:
    """Measure by how much two computations differ, and return 0 where rounding explains the difference.

    A difference in float32 that is above one rounding error for each layer is measured again in float64. If a layer
    computes in float32 whatever it is given, float64 proves nothing, and 8 rounding errors for each layer are allowed.

    Args:
        model: the network, whose layers are counted.
        measure: runs both computations in a dtype, each under `computes_in(dtype)`, and returns their largest relative
            difference.

    Returns:
        The relative difference, or 0.
    """
    difference = measure(torch.float32)
    if difference <= float32_tolerance(model):
        return 0.0
    try:
        wide = measure(torch.float64)
    except MemoryError:
        raise
    except Exception:  # whatever a layer raises when it is given float64
        return difference if difference > 8 * float32_tolerance(model) else 0.0
    return wide if wide > FLOAT64_TOLERANCE else 0.0


def computes_in(dtype: torch.dtype) -> AbstractContextManager[object]:
    """Return a context in which a float64 pass raises TypeError if an operation of it computes in a narrower type."""
    return _OnlyFloat64() if dtype == torch.float64 else nullcontext()


class _OnlyFloat64(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Raise TypeError where an operation returns narrower floats, since their rounding would show in float64, too."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.dtype != torch.float64:
                raise TypeError(f"{func} returns {tensor.dtype} in a float64 pass")
        return out
