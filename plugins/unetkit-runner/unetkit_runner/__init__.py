"""Segments images of any size with a network that unetkit exported, without torch.

`unetkit_runner.load("model.onnx").predict(image)` returns the mask that `unetkit-run model.onnx` writes.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from unetkit.errors import UnetkitError

if TYPE_CHECKING:
    from unetkit_runner.model import Model

__all__ = ["UnetkitError", "load"]


def load(path: str | Path) -> Model:
    """Open a network that `unetkit export` wrote.

    Raises:
        UnetkitError: The file does not exist, is no ONNX file, or has no metadata of unetkit that fit it.
    """
    from unetkit_runner.model import Model  # `unetkit-run --help` needs neither NumPy nor ONNX Runtime

    return Model(path)
