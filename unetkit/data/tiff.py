"""TIFF files of any number of channels, as their numbers.

Numbers are taken as they are stored: a file whose zero means white is not turned round, and no orientation is applied.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile

from unetkit.errors import BadFile
from unetkit.foreign import one_line

#: What tifffile calls an extra channel that is alpha: associated or not.
_ALPHA = (1, 2)


def read_tiff(path: str | Path) -> tuple[np.ndarray, np.ndarray | None]:
    """The first image of a file: (H, W) or (H, W, C) as stored, without alpha; and its palette (N, 3), if it has one.

    Channels stand where the file says (OME, ImageJ, samples of a pixel), or else along the shortest side.

    Raises:
        BadFile: it cannot be read, or holds a stack or a film.
    """
    try:
        with tifffile.TiffFile(path) as file:
            series, page = file.series[0], file.pages.first
            values, axes = series.asarray(), series.axes
            extra = page.extrasamples if "S" in axes else ()
            colours = page.colormap if page.photometric == tifffile.PHOTOMETRIC.PALETTE else None
    except Exception as error:  # tifffile and its codecs raise whatever they meet
        raise BadFile(f"{path}: {_why(error)}") from error
    palette = None if colours is None else (colours.T >> 8).astype(np.uint8)
    values = _channels_last(values, axes, path)
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    return _without_alpha(values, extra), palette


def _why(error: Exception) -> str:
    if isinstance(error, ImportError) or "imagecodecs" in str(error):
        return "its compression needs the package imagecodecs; pip install 'unetkit[tiff]'"
    return f"cannot be read as TIFF: {one_line(error)}"


def _channels_last(values: np.ndarray, axes: str, path: str | Path) -> np.ndarray:
    while values.ndim > 2 and 1 in values.shape:
        place = values.shape.index(1)
        values, axes = values.squeeze(place), axes[:place] + axes[place + 1 :]
    if values.ndim == 2:
        return values
    if values.ndim != 3 or (set(axes) & set("ZT") and "S" not in axes and "C" not in axes):
        sides = "x".join(map(str, values.shape))
        raise BadFile(f"{path}: holds a stack of images ({axes} {sides}); write each plane to a file of its own")
    told = [axes.index(axis) for axis in "SC" if axis in axes]
    return np.moveaxis(values, told[0] if told else int(np.argmin(values.shape)), -1)


def _without_alpha(values: np.ndarray, extra: tuple[int, ...]) -> np.ndarray:
    if values.ndim == 2 or not any(int(kind) in _ALPHA for kind in extra):
        return values
    first = values.shape[-1] - len(extra)
    kept = [*range(first), *(first + place for place, kind in enumerate(extra) if int(kind) not in _ALPHA)]
    values = values[..., kept]
    return values[..., 0] if len(kept) == 1 else values
