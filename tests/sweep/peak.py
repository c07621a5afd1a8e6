"""How much memory a run takes at its height, found on meta tensors, which take none."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from unetkit.utils.flops import storage_key


class Peak(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches what is computed within: `bytes` is the most that results, gradients among them, held at one time.

    What a kernel takes for itself while it runs is not seen.
    """

    def __init__(self, existing: Iterable[Tensor]) -> None:
        """`existing`: parameters and buffers, which are there before."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0
        self._now = 0
        self._existing = {storage_key(tensor) for tensor in existing}
        self._alive: dict[int, Any] = {}  # storage -> what tells when it is gone

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor):
                self._see(tensor)
        return out

    def _see(self, tensor: Tensor) -> None:
        key, memory = storage_key(tensor), tensor.untyped_storage()
        if key in self._existing or key in self._alive:
            return
        size = memory.nbytes()

        def gone(_: Any) -> None:
            self._now -= size
            del self._alive[key]

        self._alive[key] = weakref.ref(memory, gone)
        self._now += size
        self.bytes = max(self.bytes, self._now)
