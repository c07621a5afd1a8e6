"""Count the MACs of every operation of a forward pass on meta tensors, and the memory that autograd keeps.

MACs are half of what `torch.utils.flop_counter` counts with its own formulas; bilinear and nearest resizing, norms and
activations count nothing there. Activation memory is the size of the tensors that autograd saves for the backward pass,
each storage once, without parameters and buffers; each is attributed to the operation that created it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

from unetkit.utils.meta_shapes import MetaShapes, makes_alias


class CostMeter(MetaShapes):
    """Counts operations in the order in which they run; `operations` is the index of the next one."""

    def __init__(self, given: Iterable[Tensor], left_out: Iterable[Tensor], *, has_values: bool = False) -> None:
        """Start counting.

        Args:
            given: tensors that exist before the first operation and whose memory counts (the input).
            left_out: parameters and buffers, whose memory does not count.
            has_values: whether the pass is one over tensors with values instead of meta tensors.
        """
        super().__init__(has_values=has_values)
        self.macs: list[int] = []
        self.saved: dict[int, tuple[int, int]] = {}  # storage -> (the operation that made it, bytes)
        self._creators: dict[int, int] = {storage_key(tensor): -1 for tensor in given}
        self._excluded = {storage_key(tensor) for tensor in left_out}
        self._saved_tensors: list[Tensor] = []  # a storage's address is its name only as long as it lives
        self._hooks = saved_tensors_hooks(self._save, lambda tensor: tensor)

    @property
    def operations(self) -> int:
        """The number of operations that have run."""
        return len(self.macs)

    def __enter__(self) -> CostMeter:
        self._hooks.__enter__()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._hooks.__exit__(*error)

    def creating_operation(self, tensor: Tensor) -> int:
        """Return the operation that created a tensor's memory; -1 if none did."""
        return self._creators.get(storage_key(tensor), -1)

    def saved_bytes(self, start: int, end: int) -> int:
        """Return the bytes that autograd keeps of the results of operations `start` to `end`."""
        return sum(size for made, size in self.saved.values() if start <= made < end)

    def _save(self, tensor: Tensor) -> Tensor:
        key = storage_key(tensor)
        if key not in self._excluded and key not in self.saved:
            self._saved_tensors.append(tensor)
            self.saved[key] = self._creators.get(key, -1), tensor.untyped_storage().nbytes()
        return tensor

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = super().__torch_dispatch__(func, types, args, kwargs)
        count = flop_registry.get(func.overloadpacket)
        self.macs.append(count(*args, **(kwargs or {}), out_val=out) // 2 if count else 0)
        if not makes_alias(func):  # a view or an operation in place gives memory that an earlier one made
            for tensor in tree_iter(out):
                if isinstance(tensor, Tensor):
                    self._creators[storage_key(tensor)] = len(self.macs) - 1
        return out


def storage_key(tensor: Tensor) -> int:
    """Return a key that tensors with shared memory have in common, as long as one of them exists."""
    return int(tensor.untyped_storage()._cdata)
