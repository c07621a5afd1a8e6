"""TIFF files of any number of channels, as their numbers.

Numbers are taken as they are stored: a file whose zero means white is not turned round, and no orientation is applied.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
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
        with quiet(), tifffile.TiffFile(path) as file:
            check_holds(file, path)
            series, page = file.series[0], file.pages.first
            values, axes = series.asarray(), series.axes
            extra = page.extrasamples if "S" in axes else ()
            colours = page.colormap if page.photometric == tifffile.PHOTOMETRIC.PALETTE else None
        values = _channels_last(values, axes, path)
    except BadFile:
        raise
    except Exception as error:  # tifffile and its codecs raise whatever they meet
        raise BadFile(f"{path}: {why(error)}") from error
    palette = None if colours is None else (colours.T >> 8).astype(np.uint8)
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    return _without_alpha(values, extra), palette


@contextmanager
def quiet() -> Iterator[None]:
    """Within, tifffile logs nothing: what it finds in a damaged file is said in our own line."""
    log = logging.getLogger("tifffile")
    was, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = was


def check_holds(file: tifffile.TiffFile, path: str | Path) -> None:
    """Raise BadFile where a file holds no image."""
    if not len(file.series):
        raise BadFile(f"{path}: cannot be read as TIFF: it holds no image")


def why(error: Exception) -> str:
    """Why a file cannot be read, by what tifffile or a codec raised."""
    if isinstance(error, ImportError) or "imagecodecs" in str(error):
        return "its compression needs the package imagecodecs; pip install 'unetkit[tiff]'"
    return f"cannot be read as TIFF: {one_line(error)}"


def squeezed(shape: tuple[int, ...], axes: str) -> tuple[tuple[int, ...], str]:
    """Sides and axes without those of length 1 beside the image's own."""
    kept = [(side, axis) for side, axis in zip(shape, axes, strict=True) if side > 1 or axis in "YX"]
    return tuple(side for side, _ in kept), "".join(axis for _, axis in kept)


def channels_along(shape: tuple[int, ...], axes: str) -> int | None:
    """Which of the squeezed axes channels stand along; None of a grey image.

    Raises:
        ValueError: it is a stack of images.
    """
    if len(shape) == 2:
        return None
    told = [axes.index(axis) for axis in "SC" if axis in axes]
    if len(shape) != 3 or (set(axes) & set("ZT") and not told):
        sides = "x".join(map(str, shape))
        raise ValueError(f"holds a stack of images ({axes} {sides}); write each plane to a file of its own")
    return told[0] if told else shape.index(min(shape))


def without_alpha(count: int, extra: tuple[int, ...]) -> list[int]:
    """The numbers of those of so many channels that are no alpha; `extra` is what tifffile says of the last ones."""
    first = count - len(extra)
    return [*range(first), *(first + place for place, kind in enumerate(extra) if int(kind) not in _ALPHA)]


def _channels_last(values: np.ndarray, axes: str, path: str | Path) -> np.ndarray:
    shape, axes = squeezed(values.shape, axes)
    try:
        place = channels_along(shape, axes)
    except ValueError as error:
        raise BadFile(f"{path}: {error}") from error
    values = values.reshape(shape)
    return values if place is None else np.moveaxis(values, place, -1)


def _without_alpha(values: np.ndarray, extra: tuple[int, ...]) -> np.ndarray:
    if values.ndim == 2:
        return values
    kept = without_alpha(values.shape[-1], extra)
    if len(kept) < values.shape[-1]:
        values = values[..., kept]
    return values[..., 0] if len(kept) == 1 else values
