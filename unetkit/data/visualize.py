"""Pictures for people: masks as files with a palette, overlays of masks on images, and contact sheets of samples.

Images and masks are NumPy arrays or tensors on the CPU. Shapes: C channels, L labels, H and W height and width.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFont

from unetkit.data.types import IGNORE, Sample, Target
from unetkit.errors import FileError, OptionError
from unetkit.utils.files import atomic_write

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


def load_font(size: int) -> ImageFont.FreeTypeFont:
    """Load a font with Latin, Greek and Cyrillic letters in a size in pixels."""
    from matplotlib import get_data_path

    return ImageFont.truetype(str(Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), size)


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
    try:
        with atomic_write(path) as temporary:
            picture.save(temporary, "PNG")
    except OSError as error:
        raise FileError(f"{path} cannot be written: {error.strerror or error}") from error


_SIDE, _GAP, _LINE = 240, 12, 20
_PAPER, _INK = (255, 255, 255), (32, 32, 32)
#: The number of pairs in a row.
_ACROSS = 2


def contact_sheet(samples: Sequence[Sample], target: Target) -> Image.Image:
    """Draw samples, two in a row: image and overlay side by side with the name above, and the legend below."""
    font = load_font(13)
    pairs = [_draw_sample(sample, target, font) for sample in samples]
    rows = [pairs[start : start + _ACROSS] for start in range(0, len(pairs), _ACROSS)]
    width = _ACROSS * (2 * _SIDE + 3 * _GAP) + _GAP
    legend = _legend(target, width - 2 * _GAP, font)
    heights = [max(pair.height for pair in row) + 2 * _GAP for row in rows]
    sheet = Image.new("RGB", (width, sum(heights) + legend.height + 2 * _GAP), _PAPER)
    top = _GAP
    for row, height in zip(rows, heights, strict=True):
        for place, pair in enumerate(row):
            sheet.paste(pair, (_GAP + place * (2 * _SIDE + 3 * _GAP), top))
        top += height
    sheet.paste(legend, (_GAP, top))
    return sheet


Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def _draw_sample(sample: Sample, target: Target, font: Font) -> Image.Image:
    """Draw the name of a sample above its image and its overlay."""
    step = max(1, max(sample.image.shape[1:]) // (2 * _SIDE))  # drawing a large image at full size would be slow
    image, mask = sample.image[:, ::step, ::step], sample.mask[..., ::step, ::step]
    plain = _fit_to_cell(Image.fromarray(to_rgb(image)))
    laid = _fit_to_cell(overlay(image, mask, target))
    pair = Image.new("RGB", (2 * _SIDE + _GAP, _LINE + plain.height), _PAPER)
    ImageDraw.Draw(pair).text((0, 0), _truncate(sample.name, pair.width, font), _INK, font)
    pair.paste(plain, (0, _LINE))
    pair.paste(laid, (plain.width + _GAP, _LINE))
    return pair


def _fit_to_cell(picture: Image.Image) -> Image.Image:
    """Scale a picture down to its cell; much smaller pictures are enlarged without smoothing."""
    scale = _SIDE / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX)


def _legend(target: Target, width: int, font: Font) -> Image.Image:
    """Draw a colored square before each name, in lines of a given width."""
    places, left, top = [], 0, 0
    for name in target.names:
        wide = int(font.getlength(_truncate(name, width, font))) + _LINE + 2 * _GAP
        if left and left + wide > width:
            left, top = 0, top + _LINE
        places.append((left, top))
        left += wide
    legend = Image.new("RGB", (width, top + _LINE), _PAPER)
    draw = ImageDraw.Draw(legend)
    for (x, y), name, colour in zip(places, target.names, target.colours, strict=True):
        draw.rectangle((x, y + 3, x + 12, y + 15), colour, _INK)
        draw.text((x + _LINE, y + 1), _truncate(name, width, font), _INK, font)
    return legend


def _truncate(name: str, width: int, font: Font) -> str:
    """Return the end of a name, as much of it as fits in one line."""
    cut = "".join(character if character.isprintable() else "?" for character in name)
    while font.getlength(cut) > width:
        cut = f"…{cut[2:]}"
    return cut
