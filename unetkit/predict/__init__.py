"""Prediction of masks for images of any size, by tiles, and scores of a trained network.

`tiled` segments an image in memory; `unetkit predict` segments image files, including those larger than memory.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unetkit.tiling.sliding_window import tiled

_WHERE = {"tiled": "unetkit.tiling.sliding_window"}
__all__ = ["tiled"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)
