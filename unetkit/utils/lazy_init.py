"""Random weights drawn once: a fill that another fill overwrites before anybody looks is never carried out.

Layers draw default weights when they are made, and models then draw their own over them; for a ResNet that is half of
the time that building takes. Under `defer_init` a random fill waits until something reads the tensor, or the end.
Values have the same distributions; for a given seed they are always the same, but not those of an eager build.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import RLock
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode
from torch.utils._pytree import tree_iter

_aten = torch.ops.aten
_RANDOM = {_aten.uniform_.default, _aten.normal_.default}
_OVERWRITES = {*_RANDOM, _aten.zero_.default, _aten.fill_.Scalar, _aten.fill_.Tensor, _aten.copy_.default}


#: Held by whoever sets the random state aside. A part may build a seeded network within a seeded build.
_ASIDE = RLock()


@contextmanager
def preserve_rng(*gpus: torch.device) -> Iterator[None]:
    """Leave the random state of the cpu, and of the gpus that are drawn on, as it was.

    It belongs to the whole process: what several threads draw in here comes one after another.
    """
    with _ASIDE, torch.random.fork_rng(devices=gpus):
        yield


class _Waiting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps random fills until they are needed; others' operations see what an eager run would show them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.fills: dict[int, tuple[Any, Any, Any]] = {}  # storage -> the fill that waits, with its tensor alive

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        target, sources = (args[0], args[1:]) if func in _OVERWRITES and _whole(args[0]) else (None, args)
        if self.fills and not _is_view(func):
            for tensor in tree_iter((sources, kwargs)):
                if isinstance(tensor, Tensor) and tensor.layout == torch.strided:
                    self._carry_out(_storage(tensor))
        if target is not None:
            self.fills.pop(_storage(target), None)
            if func in _RANDOM and target.device.type == "cpu" and kwargs.get("generator") is None:
                # The memory is what waits, not the tensor, which may be given other memory (`weight.data = ...`).
                self.fills[_storage(target)] = func, (target.detach(), *sources), kwargs
                return target
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
    func(*args, **{**kwargs, "generator": generator})


@contextmanager
def defer_init() -> Iterator[None]:
    """Build a model in here: its random weights are drawn once, at the latest on leaving.

    What reads a weight through torch sees what an eager build would show it; another thread, or numpy on the same
    memory, does not. Where tensors are no plain ones (inference mode, fake tensors) nothing waits.
    """
    if torch.is_inference_mode_enabled() or _get_current_dispatch_mode() is not None:
        yield
        return
    waiting = _Waiting()
    try:
        with waiting:
            yield
    finally:
        waiting.finish()


def _whole(tensor: Tensor) -> bool:
    """Whether a tensor is all of its memory, so that overwriting it leaves nothing of what was there."""
    plain = tensor.layout == torch.strided and tensor.is_contiguous()
    return plain and tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def _is_view(func: Any) -> bool:
    returns = func._schema.returns
    return not func._schema.is_mutable and bool(returns) and all(result.alias_info for result in returns)


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
