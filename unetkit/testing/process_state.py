"""Settings of the whole process, which a part must not change."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from unetkit.testing.catalog import Nonconformity

#: The name of each setting, and the functions that read and restore it.
_SETTINGS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "torch's default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "torch's default device": (torch.get_default_device, torch.set_default_device),
    "torch's number of threads": (torch.get_num_threads, torch.set_num_threads),
    "torch's gradient mode": (torch.is_grad_enabled, torch.set_grad_enabled),
    "torch's use of deterministic algorithms": (
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
            raise Nonconformity(
                f"it changes {' and '.join(changed)} for the whole process; leave these settings to the user"
            )
    finally:
        for name, (read, restore) in _SETTINGS.items():
            if read() != before[name]:
                restore(before[name])
        torch.set_default_dtype(dtype)
        random.setstate(states[0])
        np.random.set_state(states[1])
