"""A contact sheet: images, the same under the colours of their masks, and which colour is which class."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from unetkit.data.pictures import lettering, overlay, stretched
from unetkit.data.sample import Sample
from unetkit.data.target import Target

_SIDE, _GAP, _LINE = 240, 12, 20
_PAPER, _INK = (255, 255, 255), (32, 32, 32)
#: Pairs beside each other.
_ACROSS = 2


def contact_sheet(samples: Sequence[Sample], target: Target) -> Image.Image:
    """Samples two a row, image and overlay side by side with the name above, and the legend below."""
    font = lettering(13)
    pairs = [_pair(sample, target, font) for sample in samples]
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


def _pair(sample: Sample, target: Target, font: Font) -> Image.Image:
    """A sample's name, and under it the image and its overlay."""
    step = max(1, max(sample.image.shape[1:]) // (2 * _SIDE))  # a large image takes long to draw, to be made small
    image, mask = sample.image[:, ::step, ::step], sample.mask[..., ::step, ::step]
    plain = _small(Image.fromarray(stretched(image)))
    laid = _small(overlay(image, mask, target))
    pair = Image.new("RGB", (2 * _SIDE + _GAP, _LINE + plain.height), _PAPER)
    ImageDraw.Draw(pair).text((0, 0), _fitting(sample.name, pair.width, font), _INK, font)
    pair.paste(plain, (0, _LINE))
    pair.paste(laid, (plain.width + _GAP, _LINE))
    return pair


def _small(picture: Image.Image) -> Image.Image:
    """At most as large as its place; what is much smaller is enlarged without smoothing."""
    scale = _SIDE / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX)


def _legend(target: Target, width: int, font: Font) -> Image.Image:
    """A square of its colour before each name, in lines of a width."""
    places, left, top = [], 0, 0
    for name in target.names:
        wide = int(font.getlength(name)) + _LINE + 2 * _GAP
        if left and left + wide > width:
            left, top = 0, top + _LINE
        places.append((left, top))
        left += wide
    legend = Image.new("RGB", (width, top + _LINE), _PAPER)
    draw = ImageDraw.Draw(legend)
    for (x, y), name, colour in zip(places, target.names, target.colours, strict=True):
        draw.rectangle((x, y + 3, x + 12, y + 15), colour, _INK)
        draw.text((x + _LINE, y + 1), name, _INK, font)
    return legend


def _fitting(name: str, width: int, font: Font) -> str:
    """The end of a name, as much as there is room for."""
    cut = name
    while font.getlength(cut) > width:
        cut = f"…{cut[2:]}"
    return cut
