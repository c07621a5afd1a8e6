"""Image files as tensors, for comparison with what networks take."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from unetkit.data import io


def read_image(path: str | Path, nodata: float | None = None) -> Tensor:
    return torch.from_numpy(io.read_image(path, nodata))
