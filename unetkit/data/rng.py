"""Named streams of random numbers, which do not influence each other.

Another encoder, whose initialization draws more numbers, therefore sees the same samples with the same augmentation in
the same order; and a resumed run draws the numbers that an uninterrupted run would have drawn.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def derive_seed(seed: int, *names: str | int) -> int:
    """Derive a 63-bit seed from a seed and the names of a stream, such as ("augment", epoch, index)."""
    key = "\0".join(map(str, (seed, *names))).encode()
    return int.from_bytes(hashlib.sha256(key).digest()[:8]) >> 1


def numpy_rng(seed: int, *names: str | int) -> np.random.Generator:
    """Create NumPy's generator for a stream."""
    return np.random.default_rng(derive_seed(seed, *names))


def torch_rng(seed: int, *names: str | int) -> torch.Generator:
    """Create torch's generator for a stream, on the CPU."""
    return torch.Generator().manual_seed(derive_seed(seed, *names))
