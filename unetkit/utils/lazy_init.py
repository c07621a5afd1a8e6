"""Draw random weights once: a random fill that is overwritten before it is read is never executed.

Layers draw default weights when they are created, and models then overwrite them with their own; for a ResNet that
takes half of the build time. Under `defer_init`, a random fill waits until the tensor is read, or until the end. The
distributions are the same. For a given seed the values are always the same, but differ from those of an eager build.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from threading import RLock
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode

_aten = torch.ops.aten
_RANDOM_FILLS = {_aten.uniform_.default, _aten.normal_.default}
_OVERWRITES = {*_RANDOM_FILLS, _aten.zero_.default, _aten.fill_.Scalar, _aten.fill_.Tensor, _aten.copy_.default}
#: What initialisations do to values, of which a tensor on the meta device has none. Its kernels are written in Python:
#: they would take half of the time of such a build.
_VALUE_CHANGES = {
    *_OVERWRITES,
    _aten.add_.Tensor,
    _aten.add_.Scalar,
    _aten.mul_.Tensor,
    _aten.mul_.Scalar,
    _aten.clamp_.default,
    _aten.erfinv_.default,
}


#: Held while the random state is replaced. Reentrant, because a part may build a seeded network within a seeded build.
_RNG_LOCK = RLock()


@contextmanager
def preserve_rng(*gpus: torch.device) -> Iterator[None]:
    """Restore the random state of the CPU and of the given GPUs at the end of the context.

    The random state belongs to the whole process, so several threads take turns in this context.
    """
    with _RNG_LOCK, torch.random.fork_rng(devices=gpus):
        yield


class _PendingFills(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Delays random fills until they are needed; other operations see what an eager run would show."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.fills: dict[int, tuple[Any, Any, Any]] = {}  # storage -> the fill that waits, with its tensor alive

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False, or torch would import its compiler at the first operation, which takes as long as torch."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _VALUE_CHANGES and args[0].is_meta and not any(isinstance(value, Tensor) for value in args[1:]):
            return args[0]
        target, sources = (args[0], args[1:]) if func in _OVERWRITES and _covers_storage(args[0]) else (None, args)
        if self.fills and not _is_view(func):
            for value in (*sources, *kwargs.values()):
                for item in value if isinstance(value, list | tuple) else (value,):
                    if isinstance(item, Tensor) and item.layout == torch.strided:
                        self._fill_now(_storage(item))
        if target is not None:
            self.fills.pop(_storage(target), None)
            if func in _RANDOM_FILLS and target.device.type == "cpu" and kwargs.get("generator") is None:
                # The fill belongs to the storage, not to the tensor, whose storage may change (`weight.data = ...`).
                self.fills[_storage(target)] = func, (target.detach(), *sources), kwargs
                return target
        return func(*args, **kwargs)

    def _fill_now(self, storage: int) -> None:
        if storage in self.fills:
            func, args, kwargs = self.fills.pop(storage)
            func(*args, **kwargs)

    def finish(self) -> None:
        """Execute all pending fills in several threads, each with its own generator.

        The generators are seeded in order from the current one, so that the weights do not depend on timing.
        """
        pieces = [piece for fill in self.fills.values() for piece in _split_fill(*fill)]
        self.fills.clear()
        if not pieces:
            return
        seeds = torch.randint(2**62, (len(pieces),), device="cpu").tolist()
        threads = min(torch.get_num_threads(), len(pieces))
        # One iterator for all threads, each of which takes the next piece: a future for each would cost as much as
        # drawing ten thousand values.
        todo = iter([*zip(pieces, seeds, strict=True)])
        if threads == 1:
            _fill_all(todo)
            return
        with ThreadPoolExecutor(threads) as pool:
            deque(pool.map(_fill_all, [todo] * threads), maxlen=0)


#: The number of values that a thread draws at a time: their memory fits a processor's cache.
_PIECE = 1 << 18


def _split_fill(func: Any, args: tuple[Any, ...], kwargs: Any) -> Iterator[tuple[Any, Any, Any]]:
    """Split the fill of a large tensor, so that threads share it."""
    for piece in args[0].view(-1).split(_PIECE):
        yield func, (piece, *args[1:]), kwargs


@torch.no_grad()
def _fill_all(todo: Iterator[tuple[tuple[Any, Any, Any], int]]) -> None:
    for (func, args, kwargs), seed in todo:
        func(*args, **{**kwargs, "generator": torch.Generator().manual_seed(seed)})


@contextmanager
def defer_init(*, discard: bool = False) -> Iterator[None]:
    """Draw the random weights of a model that is built in this context once, at the latest at its end.

    With `discard`, those that nothing has read by then are never drawn, for a model whose weights are not needed.

    An operation of torch that reads a weight sees what an eager build would show; another thread, or numpy on the same
    memory, does not. Tensors that are not plain ones (inference mode, fake tensors) are filled at once.
    """
    if torch.is_inference_mode_enabled() or _get_current_dispatch_mode() is not None:
        yield
        return
    waiting = _PendingFills()
    try:
        with waiting:
            yield
    finally:
        if discard:
            waiting.fills.clear()
        waiting.finish()


def _covers_storage(tensor: Tensor) -> bool:
    """Return whether a tensor covers its whole storage, so that overwriting it replaces all previous values."""
    plain = tensor.layout == torch.strided and tensor.is_contiguous()
    return plain and tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


@cache
def _is_view(func: Any) -> bool:
    returns = func._schema.returns
    return not func._schema.is_mutable and bool(returns) and all(result.alias_info for result in returns)


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
