"""Models without weights: shapes and costs are had from meta tensors, which have a size and no memory."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import nn

from unetkit.errors import OptionError

M = TypeVar("M", bound=nn.Module)


def meta_copy(model: M) -> M:
    """A deep copy on the meta device; no weight is copied, and the model is left as it is."""
    memo: dict[int, Any] = {}
    for tensor in chain(model.parameters(), model.buffers()):
        empty = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    return copy.deepcopy(model, memo)


@contextmanager
def preserve_mode(model: nn.Module) -> Iterator[None]:
    """Put training and eval mode back as they were, module by module."""
    was = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in was:
            module.training = mode


def default_device(said: str | None) -> str:
    """A device that was named, or the GPU where there is one."""
    return said or ("cuda" if torch.cuda.is_available() else "cpu")


def check_device(device: Any) -> None:
    """Raise OptionError for a device that torch does not know or this machine has not."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        why = str(error).strip().split("\n")[0][:200]
        raise OptionError(f"device={device} cannot be used here ({why}); give another, such as cpu") from error
