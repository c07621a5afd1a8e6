"""Pictures for people: masks as files with a palette, and overlays of masks on images.

Images and masks are NumPy arrays or tensors on the CPU. Shapes: C channels, L labels, H and W height and width.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from unetkit.data.types import IGNORE, Target
from unetkit.errors import OptionError
from unetkit.utils.files import write_requested_file

#: The index of IGNORE in mask files, and its colour, as in Pascal VOC.
VOID, VOID_COLOUR = 255, (224, 224, 192)


def to_rgb(image: ArrayLike) -> np.ndarray:
    """Convert an image (C, H, W) to 8-bit RGB (H, W, 3), with black at its 1st percentile and white at its 99th.

    The result is grey from one channel or the first of two, otherwise it has the first three channels.
    """
    channels = np.asarray(image, np.float32)
    shown = channels[:3] if len(channels) >= 3 else np.repeat(channels[:1], 3, axis=0)
    values = np.moveaxis(shown, 0, -1)
    sample = values[:: max(1, values.shape[0] // 512), :: max(1, values.shape[1] // 512)]
    finite = sample[np.isfinite(sample)]
    low, high = np.percentile(finite, (1, 99)) if finite.size else (0.0, 1.0)
    scaled: np.ndarray = (np.nan_to_num(values, nan=low) - low) * (255 / max(high - low, 1e-6))
    return scaled.clip(0, 255).round().astype(np.uint8)


def overlay(image: ArrayLike, mask: ArrayLike, target: Target, strength: float = 0.5) -> Image.Image:
    """Draw a mask (H, W) or (L, H, W) over an image (C, H, W) as RGB (H, W, 3).

    Background and IGNORE show the image. The colors of overlapping labels are mixed.
    """
    picture = to_rgb(image).astype(np.float32)
    planes = np.asarray(mask)
    first = 0 if planes.ndim == 3 else 1  # labels have no background
    colour, count = np.zeros_like(picture), np.zeros(picture.shape[:2], np.float32)
    for index in range(first, len(target.names)):
        here = planes[index] == 1 if planes.ndim == 3 else planes == index
        colour[here] += target.colours[index]
        count[here] += 1
    some = count > 0
    picture[some] = (1 - strength) * picture[some] + strength * colour[some] / count[some][:, None]
    return Image.fromarray(picture.round().astype(np.uint8))


def palette_bytes(target: Target) -> bytes:
    """Return the 768 bytes of a PNG palette: the colors of the classes, and that of VOID at its index."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(target.colours)] = target.colours
    table[VOID] = VOID_COLOUR
    return table.tobytes()


def write_mask(path: str | Path, mask: ArrayLike, target: Target) -> list[Path]:
    """Write a mask (H, W) as a PNG whose palette has the colors of the classes, with VOID for IGNORE; return its path.

    A multi-label mask (L, H, W) is written as a PNG of 0 and 255 for each label, NAME-LABEL.png next to `path`.

    Raises:
        FileError: The file cannot be written.
        OptionError: There are more than 255 classes, which no palette can hold.
    """
    path, values = Path(path), np.asarray(mask)
    if values.ndim == 3:
        paths = label_paths(path, target)
        for plane, where in zip(values, paths, strict=True):
            _save(Image.fromarray((plane == 1).astype(np.uint8) * 255), where)
        return paths
    if len(target.names) > VOID:
        raise OptionError(f"{path}: {len(target.names)} classes do not fit into the palette of a PNG, which has {VOID}")
    picture = Image.fromarray(np.where(values == IGNORE, VOID, values).astype(np.uint8))
    picture.putpalette(palette_bytes(target))
    _save(picture, path)
    return [path]


def label_paths(path: Path, target: Target) -> list[Path]:
    """Return the path that `write_mask` uses for each label.

    Characters that are unsafe in file names become `_`. A label whose file would then be that of another label, or that
    of another output such as the overlay, gets its number as well: `CD4_-2` for the second one.
    """
    plain: list[str] = []
    for number, name in enumerate(target.names, 1):
        safe = re.sub(r"[^\w.-]+", "_", name)
        taken = {other.casefold() for other in plain} | {*_OTHER_OUTPUTS}  # some disks do not distinguish capitals
        plain.append(f"{safe}-{number}" if safe.casefold() in taken else safe)
    return [path.with_name(f"{path.stem}-{name}.png") for name in plain]


#: What follows the name of an image in other files that `unetkit predict` writes.
_OTHER_OUTPUTS = ("overlay", "probabilities")


def _save(picture: Image.Image, path: Path) -> None:
    with write_requested_file(path) as temporary:
        picture.save(temporary, "PNG")
