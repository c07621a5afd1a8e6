"""Image and mask files: PNG, JPEG and TIFF as tensors and arrays.

C channels, H and W height and width.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tifffile
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from unetkit.errors import FileError
from unetkit.utils.isolation import one_line

#: What tifffile calls an extra channel that is alpha: associated or not.
_ALPHA = (1, 2)


def read_tiff(path: str | Path) -> tuple[np.ndarray, np.ndarray | None]:
    """The first image of a file: (H, W) or (H, W, C) as stored, without alpha; and its palette (N, 3), if it has one.

    Channels stand where the file says (OME, ImageJ, samples of a pixel), or else along the shortest side.

    Raises:
        FileError: it cannot be read, or holds a stack or a film.
    """
    try:
        with silence_tifffile(), tifffile.TiffFile(path) as file:
            check_holds(file, path)
            series, page = file.series[0], file.pages.first
            values, axes = series.asarray(), series.axes
            extra = page.extrasamples if "S" in axes else ()
            colours = page.colormap if page.photometric == tifffile.PHOTOMETRIC.PALETTE else None
        values = _channels_last(values, axes, path)
    except FileError:
        raise
    except Exception as error:  # tifffile and its codecs raise whatever they meet
        raise FileError(f"{path}: {describe_error(error)}") from error
    palette = None if colours is None else (colours.T >> 8).astype(np.uint8)
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    return _without_alpha(values, extra), palette


@contextmanager
def silence_tifffile() -> Iterator[None]:
    """Within, tifffile logs nothing: what it finds in a damaged file is said in our own line."""
    log = logging.getLogger("tifffile")
    was, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = was


def check_holds(file: tifffile.TiffFile, path: str | Path) -> None:
    """Raise FileError where a file holds no image."""
    if not len(file.series):
        raise FileError(f"{path}: cannot be read as TIFF: it holds no image")


def describe_error(error: Exception) -> str:
    """Why a file cannot be read, by what tifffile or a codec raised."""
    if isinstance(error, ImportError) or "imagecodecs" in str(error):
        return "its compression needs the package imagecodecs; pip install 'unetkit[tiff]'"
    return f"cannot be read as TIFF: {one_line(error)}"


def squeeze_axes(shape: tuple[int, ...], axes: str) -> tuple[tuple[int, ...], str]:
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
    shape, axes = squeeze_axes(values.shape, axes)
    try:
        place = channels_along(shape, axes)
    except ValueError as error:
        raise FileError(f"{path}: {error}") from error
    values = values.reshape(shape)
    return values if place is None else np.moveaxis(values, place, -1)


def _without_alpha(values: np.ndarray, extra: tuple[int, ...]) -> np.ndarray:
    if values.ndim == 2:
        return values
    kept = without_alpha(values.shape[-1], extra)
    if len(kept) < values.shape[-1]:
        values = values[..., kept]
    return values[..., 0] if len(kept) == 1 else values


#: Endings of the files that are read, in lower case.
ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
_TIFF = (".tif", ".tiff")
#: Modes of Pillow whose numbers are taken as they are.
_AS_IT_IS = ("1", "L", "I;16", "I;16B", "I", "F", "RGB")


class PixelArray(NamedTuple):
    """A file's numbers: (H, W) or (H, W, C) in their own type, and the colours (N, 3) they stand for, if indexed."""

    values: np.ndarray
    palette: np.ndarray | None = None


def read_image(path: str | Path) -> Tensor:
    """An image (C, H, W) float32: 8-bit values / 255, 16-bit ones / 65535, others (signed, 32 bit, float) as they are.

    Alpha is left out; indexed colours become RGB; the orientation that a camera noted (EXIF) is applied.

    Raises:
        FileError: it cannot be read.
    """
    return scaled(in_colours(read_pixels(path)))


def read_mask(path: str | Path) -> PixelArray:
    """A mask's numbers, (H, W) integers or (H, W, 3) uint8 colours, and its palette if it is indexed.

    One bit is read as 0 and 255.

    Raises:
        FileError: it cannot be read, or holds neither integers nor colours.
    """
    values, palette = read_pixels(path)
    if values.dtype.kind == "f" and np.array_equal(values, values.round()):
        values = values.astype(np.int64)
    if (
        values.dtype.kind not in "uib"
        or values.shape[2:] not in ((), (3,))
        or (values.ndim == 3 and values.itemsize > 1)
    ):
        what = f"{'x'.join(map(str, values.shape))} {values.dtype}"
        raise FileError(f"{path}: is no mask: it holds {what}; a mask has one plane of integers, or 8-bit RGB colours")
    return PixelArray(values.astype(np.uint8) * 255 if values.dtype.kind == "b" else values, palette)


def read_pixels(path: str | Path) -> PixelArray:
    """A file's numbers as they are stored, without alpha; of one bit as bool. Raises FileError."""
    path = Path(path)
    if not path.is_file():
        raise FileError(f"{path}: there is no such file")
    if path.suffix.lower() in _TIFF:
        return PixelArray(*read_tiff(path))
    try:
        if _png_bits(path) == (16, True):
            return PixelArray(_deep_colour(path))
        with Image.open(path) as image:
            return of_picture(image)
    except FileError:
        raise
    except Image.DecompressionBombError as error:
        raise FileError(f"{path}: has more pixels than Pillow reads (178,956,970); save it as TIFF") from error
    except UnidentifiedImageError as error:
        raise FileError(f"{path}: is no image that can be read; PNG, JPEG and TIFF are") from error
    except Exception as error:  # Pillow and its decoders raise whatever they meet
        raise FileError(f"{path}: cannot be read as an image: {one_line(error)}") from error


def of_picture(image: Image.Image) -> PixelArray:
    """The numbers of a Pillow image."""
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode == "P":
        return PixelArray(np.array(image), np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3))
    if image.mode == "LA":
        image = image.getchannel(0)
    values = np.array(image if image.mode in _AS_IT_IS else image.convert("RGB"))
    return PixelArray(values.astype(values.dtype.newbyteorder("="), copy=False))


def in_colours(pixels: PixelArray) -> np.ndarray:
    """The numbers of an image, (H, W) or (H, W, C): an indexed one's colours."""
    if pixels.palette is None:
        return pixels.values
    table = np.zeros((max(256, len(pixels.palette)), 3), np.uint8)
    table[: len(pixels.palette)] = pixels.palette
    return np.take(table, pixels.values, axis=0)


def scaled(values: np.ndarray) -> Tensor:
    """Numbers (H, W) or (H, W, C) as an image (C, H, W), by the rule of `read_image`."""
    planes = values[None] if values.ndim == 2 else np.moveaxis(values, -1, 0)
    image = np.ascontiguousarray(planes, dtype=np.float32)
    if values.dtype in (np.uint8, np.uint16):
        image /= np.float32(np.iinfo(values.dtype).max)
    return torch.from_numpy(image)


def _png_bits(path: Path) -> tuple[int, bool]:
    """Bits of a PNG's numbers, and whether it has more than one channel; (0, False) of what is no PNG."""
    with path.open("rb") as file:
        head = file.read(26)
    return (head[24], head[25] != 0) if head.startswith(b"\x89PNG\r\n\x1a\n") and len(head) == 26 else (0, False)


def _deep_colour(path: Path) -> np.ndarray:
    """A PNG of 16 bits and several channels, of which Pillow would read the upper eight."""
    try:
        from imagecodecs import png_decode
    except ImportError as error:
        what = "is a PNG of 16 bits and several channels, which needs the package imagecodecs"
        raise FileError(f"{path}: {what}; pip install 'unetkit[tiff]', or save it as TIFF") from error
    values = np.asarray(png_decode(path.read_bytes()))
    colours = values[..., : {2: 1, 4: 3}.get(values.shape[-1])]  # without alpha
    return colours[..., 0] if colours.shape[-1] == 1 else colours
