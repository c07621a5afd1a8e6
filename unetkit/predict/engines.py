"""What runs a network for prediction: an engine takes tiles and returns probabilities, as NumPy arrays."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from unetkit.utils.formatting import Size


class Engine(Protocol):
    """A network that is ready to run."""

    def __call__(self, tiles: np.ndarray, /) -> np.ndarray:
        """Compute probabilities (B, L, H', W') of normalized tiles (B, C, H, W), float32.

        Raises:
            InputSizeError: Memory is not sufficient.
        """
        ...

    def explain_if_too_large(self, size: Size) -> str:
        """Explain why a single pass over an input of this size would need more memory than is free; "" if unknown."""
        ...
