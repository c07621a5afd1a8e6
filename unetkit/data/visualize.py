"""Pictures that people look at: masks as files with a palette, and masks laid over their images.

C channels, L labels, H and W height and width.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from PIL import Image, ImageFont
from torch import Tensor

from unetkit.atomic import written_whole
from unetkit.data.target import IGNORE, Target
from unetkit.errors import BadFile, BadOption

#: The index in mask files that stands for IGNORE, and its colour (Pascal VOC's).
VOID, VOID_COLOUR = 255, (224, 224, 192)


def stretched(image: Tensor) -> np.ndarray:
    """An image (C, H, W) as (H, W, 3) of 8 bit, black at its 1st percentile and white at its 99th.

    Grey from its one channel, the first of two, and else the first three.
    """
    shown = image[:3] if image.shape[0] >= 3 else image[:1].expand(3, -1, -1)
    values = np.moveaxis(shown.detach().cpu().float().numpy(), 0, -1)
    sample = values[:: max(1, values.shape[0] // 512), :: max(1, values.shape[1] // 512)]
    finite = sample[np.isfinite(sample)]
    low, high = np.percentile(finite, (1, 99)) if finite.size else (0.0, 1.0)
    scaled: np.ndarray = (np.nan_to_num(values, nan=low) - low) * (255 / max(high - low, 1e-6))
    return scaled.clip(0, 255).round().astype(np.uint8)


def overlay(image: Tensor, mask: Tensor, target: Target, strength: float = 0.5) -> Image.Image:
    """An image (C, H, W) under the colours of its mask (H, W) or (L, H, W), as RGB of H and W.

    The background stays as it is, and so does what is IGNORE. Where labels overlap their colours are mixed.
    """
    picture = stretched(image).astype(np.float32)
    planes = mask.detach().cpu().numpy()
    first = 0 if planes.ndim == 3 else 1  # labels have no background
    colour, count = np.zeros_like(picture), np.zeros(picture.shape[:2], np.float32)
    for index in range(first, len(target.names)):
        here = planes[index] == 1 if planes.ndim == 3 else planes == index
        colour[here] += target.colours[index]
        count[here] += 1
    some = count > 0
    picture[some] = (1 - strength) * picture[some] + strength * colour[some] / count[some][:, None]
    return Image.fromarray(picture.round().astype(np.uint8))


def lettering(size: int) -> ImageFont.FreeTypeFont:
    """A font that has Latin, Greek and Cyrillic letters, of so many pixels."""
    from matplotlib import get_data_path

    return ImageFont.truetype(str(Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), size)


def palette_bytes(target: Target) -> bytes:
    """The 768 bytes of a PNG's palette: the classes' colours, and that of VOID at its place."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(target.colours)] = target.colours
    table[VOID] = VOID_COLOUR
    return table.tobytes()


def write_mask(path: str | Path, mask: Tensor, target: Target) -> list[Path]:
    """Write a mask (H, W) as a PNG with the colours of its classes as palette, IGNORE as VOID; returns its path.

    A multi-label mask (L, H, W) becomes one PNG a label, of 0 and 255, at NAME-LABEL.png beside `path`.

    Raises:
        BadFile: it cannot be written.
        BadOption: more than 255 classes, which no palette holds.
    """
    path, values = Path(path), mask.detach().cpu().numpy()
    if values.ndim == 3:
        paths = label_paths(path, target)
        for plane, where in zip(values, paths, strict=True):
            _save(Image.fromarray((plane == 1).astype(np.uint8) * 255), where)
        return paths
    if len(target.names) > VOID:
        raise BadOption(f"{path}: {len(target.names)} classes do not fit the palette of a PNG, which holds {VOID}")
    picture = Image.fromarray(np.where(values == IGNORE, VOID, values).astype(np.uint8))
    picture.putpalette(palette_bytes(target))
    _save(picture, path)
    return [path]


def label_paths(path: Path, target: Target) -> list[Path]:
    """Where `write_mask` puts each label: its name, with what a file name should not hold replaced by `_`."""
    plain = [re.sub(r"[^\w.-]+", "_", name) for name in target.names]
    return [path.with_name(f"{path.stem}-{name}.png") for name in plain]


def _save(picture: Image.Image, path: Path) -> None:
    try:
        with written_whole(path) as temporary:
            picture.save(temporary, "PNG")
    except OSError as error:
        raise BadFile(f"{path} cannot be written: {error.strerror or error}") from error
