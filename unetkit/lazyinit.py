"""Random weights drawn once: a fill that another fill overwrites before anybody looks is never carried out.

Layers draw default weights when they are made, and models then draw their own over them; for a ResNet that is half of
the time that building takes. Under `drawn_once` a random fill waits until something reads the tensor, or the end.
Values have the same distributions; for a given seed they are always the same, but not those of an eager build.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

_aten = torch.ops.aten
_RANDOM = {_aten.uniform_.default, _aten.normal_.default}
_OVERWRITES = {*_RANDOM, _aten.zero_.default, _aten.fill_.Scalar, _aten.fill_.Tensor, _aten.copy_.default}


class _Waiting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps random fills until they are needed; others' operations see what an eager run would show them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.fills: dict[int, tuple[Any, Any, Any]] = {}  # storage -> the fill that waits, with its tensor alive

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _OVERWRITES and _whole(args[0]):
            self.fills.pop(_storage(args[0]), None)
            if func in _RANDOM and args[0].device.type == "cpu":  # elsewhere a fill costs next to nothing
                self.fills[_storage(args[0])] = func, args, kwargs
                return args[0]
        if self.fills and not _is_view(func):
            for tensor in tree_iter((args, kwargs)):
                if isinstance(tensor, Tensor):
                    self._carry_out(_storage(tensor))
        return func(*args, **kwargs)

    def _carry_out(self, storage: int) -> None:
        if storage in self.fills:
            func, args, kwargs = self.fills.pop(storage)
            func(*args, **kwargs)

    def finish(self) -> None:
        """Carry out what still waits, several at a time, each from a generator of its own.

        The generators are seeded in order from the one in force, so that the weights do not depend on timing.
        """
        fills = [*self.fills.values()]
        self.fills.clear()
        seeds = torch.randint(2**62, (len(fills),), device="cpu").tolist()
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            list(pool.map(_fill, fills, seeds))


@torch.no_grad()
def _fill(fill: tuple[Any, Any, Any], seed: int) -> None:
    func, args, kwargs = fill
    generator = torch.Generator().manual_seed(seed)
    func(*args, **{"generator": generator, **{k: v for k, v in kwargs.items() if v is not None}})


@contextmanager
def drawn_once() -> Iterator[None]:
    """Build models in here: their random weights are drawn once, at the latest on leaving."""
    waiting = _Waiting()
    with waiting:
        yield
    waiting.finish()


def _whole(tensor: Tensor) -> bool:
    """Whether a tensor is all of its memory, so that overwriting it leaves nothing of what was there."""
    return tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def _is_view(func: Any) -> bool:
    returns = func._schema.returns
    return not func._schema.is_mutable and bool(returns) and all(result.alias_info for result in returns)


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
