"""Settings of the whole process, which a part must not change."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from unetkit.testing.catalog import Nonconformity

#: What each is called, how it is read, and how it is put back.
_SETTINGS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "torch's default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "torch's default device": (torch.get_default_device, torch.set_default_device),
    "torch's number of threads": (torch.get_num_threads, torch.set_num_threads),
    "whether torch records gradients": (torch.is_grad_enabled, torch.set_grad_enabled),
    "whether torch takes deterministic algorithms": (
        torch.are_deterministic_algorithms_enabled,
        torch.use_deterministic_algorithms,
    ),
}


@contextmanager
def preserve_process_state() -> Iterator[None]:
    """Restore settings and random states at the end of the context. Raises Nonconformity if a setting was changed.

    Within the context, torch computes in float32, whatever the user has set.
    """
    states = random.getstate(), np.random.get_state()
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    before = {name: read() for name, (read, _) in _SETTINGS.items()}
    try:
        with torch.random.fork_rng(devices=[]):
            yield
        if changed := [name for name, (read, _) in _SETTINGS.items() if read() != before[name]]:
            raise Nonconformity(f"it changes {' and '.join(changed)} for the whole process; leave that to its user")
    finally:
        for name, (read, put_back) in _SETTINGS.items():
            if read() != before[name]:
                put_back(before[name])
        torch.set_default_dtype(dtype)
        random.setstate(states[0])
        np.random.set_state(states[1])
