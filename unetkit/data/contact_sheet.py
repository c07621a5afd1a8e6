"""Contact sheets: samples beside each other, each with its mask drawn over it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from unetkit.data.types import Sample, Target
from unetkit.data.visualize import overlay, to_rgb


def load_font(size: int) -> ImageFont.FreeTypeFont:
    """Load a font with Latin, Greek and Cyrillic letters in a size in pixels."""
    from matplotlib import get_data_path

    return ImageFont.truetype(str(Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), size)


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
