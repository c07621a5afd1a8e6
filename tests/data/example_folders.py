"""Folders of images and masks, written for tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

#: Height and width of what is written.
SIZE = (12, 24)
RED, GREEN = (255, 0, 0), (0, 255, 0)
SPREAD = (0, 0, 0, *RED, *GREEN)


def noise(*shape: int, dtype: type[np.integer[Any]] = np.uint8, seed: int = 0) -> np.ndarray:
    """Numbers over the whole range of an integer type."""
    values = np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, endpoint=True)
    return values.astype(dtype)


def stripes(*values: int, dtype: type[np.generic] = np.uint8) -> np.ndarray:
    """A mask in which each value fills as many columns, side by side."""
    return np.repeat(np.array(values, dtype), SIZE[1] // len(values))[None].repeat(SIZE[0], 0)


def put(path: Path, values: np.ndarray, palette: Sequence[int] | None = None) -> Path:
    """Write numbers as the file that the ending says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tif":
        tifffile.imwrite(path, values)
        return path
    picture = Image.fromarray(values)
    if palette:
        picture.putpalette([*palette, *[0] * (768 - len(palette))])  # a short one would save fewer bits
    picture.save(path)
    return path


def made(
    folder: Path, masks: Mapping[str, np.ndarray], palette: Sequence[int] | None = None, ending: str = "png"
) -> Path:
    """A heap: images/ and masks/ with a grey image of its own for each mask."""
    for index, (name, mask) in enumerate(masks.items()):
        put(folder / "images" / f"{name}.png", noise(*SIZE, seed=index))
        put(folder / "masks" / f"{name}.{ending}", mask, palette)
    return folder
