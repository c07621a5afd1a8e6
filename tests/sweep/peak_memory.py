"""The peak memory of a run, measured on meta tensors, which need no memory."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from unetkit.utils.flops import storage_key


class PeakMemoryMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Context manager that measures the largest memory that computed tensors, including gradients, use at one time.

    Memory that a kernel uses only while it runs is not included.

    Attributes:
        peak_bytes: peak memory so far, in bytes.
    """

    def __init__(self, existing: Iterable[Tensor]) -> None:
        """Create the context manager.

        Args:
            existing: parameters and buffers, which are not counted.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak_bytes = 0
        self._current_bytes = 0
        self._existing = {storage_key(tensor) for tensor in existing}
        self._finalizers: dict[int, Any] = {}  # by storage: a weak reference with a callback for its deletion

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor):
                self._count(tensor)
        return out

    def _count(self, tensor: Tensor) -> None:
        key, storage = storage_key(tensor), tensor.untyped_storage()
        if key in self._existing or key in self._finalizers:
            return
        size = storage.nbytes()

        def on_delete(_: Any) -> None:
            self._current_bytes -= size
            del self._finalizers[key]

        self._finalizers[key] = weakref.ref(storage, on_delete)
        self._current_bytes += size
        self.peak_bytes = max(self.peak_bytes, self._current_bytes)
