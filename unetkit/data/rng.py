"""Named streams of random numbers: what one thing draws moves nothing else.

So another encoder, whose initialisation draws more numbers, is shown the same samples, augmented alike, in the same
order; and a run that is resumed draws what it would have drawn.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def derive_seed(seed: int, *names: str | int) -> int:
    """A number of 63 bits from a seed and the names of a stream, such as ("augment", epoch, index)."""
    said = "\0".join(map(str, (seed, *names))).encode()
    return int.from_bytes(hashlib.sha256(said).digest()[:8]) >> 1


def numpy_rng(seed: int, *names: str | int) -> np.random.Generator:
    """NumPy's generator for a stream."""
    return np.random.default_rng(derive_seed(seed, *names))


def torch_rng(seed: int, *names: str | int) -> torch.Generator:
    """Torch's generator for a stream, on the CPU."""
    return torch.Generator().manual_seed(derive_seed(seed, *names))
