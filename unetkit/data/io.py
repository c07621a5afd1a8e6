"""Image and mask files: TIFF, PNG, JPEG, BMP, GIF and WebP as NumPy arrays.

TIFF files may have any number of channels. Their numbers are read as stored: neither an orientation nor a zero that
means white is applied. Pixels without data, as satellites leave beside their track, are NaN in images.
Shapes: C channels, H and W height and width.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tifffile
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from unetkit.errors import FileError
from unetkit.utils.formatting import format_plural
from unetkit.utils.isolation import one_line

#: tifffile's names of alpha channels.
_ALPHA = (1, 2)


class PixelArray(NamedTuple):
    """The numbers of a file, (H, W) or (H, W, C) in their own type.

    Attributes:
        values: the numbers.
        palette: the colors (N, 3) if they are indices.
        nodata: the number that the file declares to mean that there are no data (GDAL's tag of TIFF files).
    """

    values: np.ndarray
    palette: np.ndarray | None = None
    nodata: float | None = None


def read_tiff(path: str | Path) -> PixelArray:
    """Read the first image of a TIFF file as stored, without alpha.

    Channels are where the file declares them (OME, ImageJ, samples per pixel), otherwise along the shortest axis.

    Raises:
        FileError: The file cannot be read, or contains a stack or a film.
    """
    try:
        with silence_tifffile(), tifffile.TiffFile(path) as file:
            check_not_empty(file, path)
            series, page = file.series[0], file.pages.first
            values, axes = series.asarray(), series.axes
            extra = page.extrasamples if "S" in axes else ()
            colours = page.colormap if page.photometric == tifffile.PHOTOMETRIC.PALETTE else None
            nodata = declared_nodata(page)
        values = _channels_last(values, axes, path)
    except FileError:
        raise
    except Exception as error:  # tifffile and its codecs raise whatever they meet
        raise FileError(f"{path}: {describe_error(error)}") from error
    palette = None if colours is None else (colours.T >> 8).astype(np.uint8)
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    return PixelArray(_without_alpha(values, extra), palette, nodata)


_GDAL_NODATA = 42113


def declared_nodata(page: Any) -> float | None:
    """Return the number that a page of a TIFF file declares to mean that there are no data, or None."""
    text = page.tags.valueof(_GDAL_NODATA)
    return None if text is None else parse_nodata(str(text).strip(" \0"))


def parse_nodata(text: str) -> float | None:
    """Parse a number, nan or inf; None for a text that is none."""
    try:
        return float(text)
    except ValueError:
        return None


@contextmanager
def silence_tifffile() -> Iterator[None]:
    """Suppress tifffile's log messages about damaged files, which are reported in our own error."""
    log = logging.getLogger("tifffile")
    was, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = was


def check_not_empty(file: tifffile.TiffFile, path: str | Path) -> None:
    """Raise FileError if a file contains no image."""
    if not len(file.series):
        raise FileError(f"{path}: cannot be read as TIFF: it contains no image")


def describe_error(error: Exception) -> str:
    """Explain why a file cannot be read, from the exception of tifffile or a codec."""
    if isinstance(error, ImportError) or "imagecodecs" in str(error):
        return "its compression needs the package imagecodecs; pip install imagecodecs"
    return f"cannot be read as TIFF: {one_line(error)}"


def squeeze_axes(shape: tuple[int, ...], axes: str) -> tuple[tuple[int, ...], str]:
    """Remove axes of length 1, except those of height and width."""
    kept = [(side, axis) for side, axis in zip(shape, axes, strict=True) if side > 1 or axis in "YX"]
    return tuple(side for side, _ in kept), "".join(axis for _, axis in kept)


def channels_along(shape: tuple[int, ...], axes: str) -> int | None:
    """Return the index of the channel axis among the squeezed axes; None for a grey image.

    Raises:
        ValueError: The file contains a stack of images.
    """
    if len(shape) == 2:
        return None
    channel_axes = [axes.index(axis) for axis in "SC" if axis in axes]
    if len(shape) != 3 or (set(axes) & set("ZT") and not channel_axes):
        sides = "x".join(map(str, shape))
        raise ValueError(f"contains a stack of images ({axes} {sides}); write each plane to its own file")
    return channel_axes[0] if channel_axes else shape.index(min(shape))


def without_alpha(count: int, extra: tuple[int, ...]) -> list[int]:
    """Return the indices of the channels that are not alpha; `extra` is tifffile's description of the last channels."""
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


# Images of up to 178,956,970 pixels are read, and larger ones are an error: the warning for half as many says nothing.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
#: Suffixes of the files that can be read, in lower case.
ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp")
_TIFF = (".tif", ".tiff")
#: Modes of Pillow whose values need no conversion.
_AS_IT_IS = ("1", "L", "I;16", "I;16B", "I", "F", "RGB")


def read_image(path: str | Path, nodata: float | None = None) -> np.ndarray:
    """Read an image (C, H, W) as float32.

    8-bit values / 255, 16-bit values / 65535, others (signed, 32 bit, float) unchanged.

    Alpha is dropped, indexed colors become RGB, and the orientation that a camera stores (EXIF) is applied.

    Args:
        path: the path of the file.
        nodata: a stored number that means that there are no data, in addition to the one that a TIFF file declares. A
            pixel with it in any channel is NaN in all channels.

    Raises:
        FileError: The file cannot be read, or contains NaN or infinity that does not mean that there are no data.
    """
    pixels = read_pixels(path)
    values = apply_palette(pixels)
    return mark_missing(to_float_image(values), values, (nodata, pixels.nodata), path)


def read_mask(path: str | Path) -> PixelArray:
    """Read the numbers of a mask, (H, W) integers or (H, W, 3) uint8 colors, and its palette if it is indexed.

    A single bit is read as 0 and 255.

    Raises:
        FileError: The file cannot be read, or contains neither integers nor colors.
    """
    values, palette, _ = read_pixels(path)
    if values.dtype.kind == "f" and np.isfinite(values).all() and np.array_equal(values, values.round()):
        values = values.astype(np.int64)
    if (
        values.dtype.kind not in "uib"
        or values.shape[2:] not in ((), (3,))
        or (values.ndim == 3 and values.itemsize > 1)
    ):
        what = f"{'x'.join(map(str, values.shape))} {values.dtype}"
        what += " with NaN or infinity" if values.dtype.kind == "f" and not np.isfinite(values).all() else ""
        raise FileError(
            f"{path}: is not a mask: it contains {what}; a mask has one channel of integers, or 8-bit RGB colours"
        )
    return PixelArray(values.astype(np.uint8) * 255 if values.dtype.kind == "b" else values, palette)


_UNREADABLE = "is not a readable image; use PNG, JPEG, TIFF, BMP, GIF or WebP"


class ImageHeader(NamedTuple):
    """The size, channels and orientation of an image, as the beginning of its file says.

    Attributes:
        size: the height and width, as the image is read.
        channels: the number of channels, without alpha.
        orientation: how the stored image is turned to be read, such as "by 180 degrees"; "" if it is not.
    """

    size: tuple[int, int]
    channels: int
    orientation: str = ""


#: What the orientations of EXIF do to an image.
_ORIENTATIONS = {
    2: "mirrored",
    3: "turned by 180 degrees",
    4: "mirrored",
    5: "mirrored and turned by 90 degrees",
    6: "turned by 90 degrees",
    7: "mirrored and turned by 90 degrees",
    8: "turned by 90 degrees",
}
_CHANNELS = {"1": 1, "L": 1, "LA": 1, "I": 1, "I;16": 1, "I;16B": 1, "F": 1}


def read_header(path: str | Path) -> ImageHeader:
    """Read what the beginning of a file says about its image. Raises FileError."""
    path = Path(path)
    if not path.is_file():
        raise FileError(f"{path}: the file does not exist")
    try:
        if path.suffix.lower() in _TIFF:
            return _read_tiff_header(path)
        with Image.open(path) as image:
            turned = _ORIENTATIONS.get(image.getexif().get(ExifTags.Base.Orientation, 1), "")
            width, height = image.size if "90" not in turned else image.size[::-1]
            return ImageHeader((height, width), _CHANNELS.get(image.mode, 3), turned)
    except FileError:
        raise
    except UnidentifiedImageError as error:
        raise FileError(f"{path}: {_UNREADABLE}") from error
    except Exception as error:  # Pillow and tifffile raise whatever they meet
        raise FileError(f"{path}: cannot be read as an image: {one_line(error)}") from error


def _read_tiff_header(path: Path) -> ImageHeader:
    with silence_tifffile(), tifffile.TiffFile(path) as file:
        check_not_empty(file, path)
        series, page = file.series[0], file.series[0].keyframe
        shape, axes = squeeze_axes(series.shape, series.axes)
        try:
            place = channels_along(shape, axes)
        except ValueError as error:
            raise FileError(f"{path}: {error}") from error
        if page.photometric == tifffile.PHOTOMETRIC.PALETTE:
            return ImageHeader((shape[-2], shape[-1]), 3)
        sides = [side for at, side in enumerate(shape) if at != place]
        count = 1 if place is None else len(without_alpha(shape[place], page.extrasamples if "S" in axes else ()))
        return ImageHeader((sides[0], sides[1]), count)


def read_pixels(path: str | Path) -> PixelArray:
    """Read the numbers of a file as stored, without alpha; single bits are bool. Raises FileError."""
    path = Path(path)
    if not path.is_file():
        raise FileError(f"{path}: the file does not exist")
    if path.suffix.lower() in _TIFF:
        return read_tiff(path)
    try:
        if _png_bits(path) == (16, True):
            return PixelArray(_read_16bit_rgb(path))
        with Image.open(path) as image:
            return from_pillow(image)
    except FileError:
        raise
    except Image.DecompressionBombError as error:
        raise FileError(f"{path}: has more pixels than Pillow reads (178,956,970); save it as TIFF") from error
    except UnidentifiedImageError as error:
        raise FileError(f"{path}: {_UNREADABLE}") from error
    except Exception as error:  # Pillow and its decoders raise whatever they meet
        raise FileError(f"{path}: cannot be read as an image: {one_line(error)}") from error


def _alpha_shape(image: Image.Image) -> np.ndarray | None:
    """Return the alpha channel (H, W) of a drawing in one colour whose shape it is; None for any other image."""
    extremes: Any = image.getextrema()
    *colours, (low, high) = extremes
    return np.array(image.getchannel("A")) if low < high and all(a == b for a, b in colours) else None


def from_pillow(image: Image.Image) -> PixelArray:
    """Return the numbers of a Pillow image."""
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode in ("LA", "RGBA") and (shape := _alpha_shape(image)) is not None:
        return PixelArray(shape)
    if image.mode == "P":
        return PixelArray(np.array(image), np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3))
    if image.mode == "LA":
        image = image.getchannel(0)
    values = np.array(image if image.mode in _AS_IT_IS else image.convert("RGB"))
    return PixelArray(values.astype(values.dtype.newbyteorder("="), copy=False))


def apply_palette(pixels: PixelArray) -> np.ndarray:
    """Return the numbers of an image, (H, W) or (H, W, C); those of an indexed image are its colors."""
    if pixels.palette is None:
        return pixels.values
    table = np.zeros((max(256, len(pixels.palette)), 3), np.uint8)
    table[: len(pixels.palette)] = pixels.palette
    return np.take(table, pixels.values, axis=0)


def to_float_image(values: np.ndarray) -> np.ndarray:
    """Convert numbers (H, W) or (H, W, C) to an image (C, H, W), as `read_image` describes."""
    planes = values[None] if values.ndim == 2 else np.moveaxis(values, -1, 0)
    image = np.ascontiguousarray(planes, dtype=np.float32)
    if values.dtype in (np.uint8, np.uint16):
        image /= np.float32(np.iinfo(values.dtype).max)
    return image


#: What `--channels` converts images to, and the channels that they then have.
CONVERSIONS = {"grey": 1, "rgb": 3}
#: The shares of red, green and blue in the brightness of a pixel (ITU-R BT.601).
_LUMA = (0.299, 0.587, 0.114)


def convert_channels(image: np.ndarray, to: str, path: str | Path) -> np.ndarray:
    """Convert an image (C, H, W) of one or three channels to "grey" or "rgb"; "" leaves it as it is.

    Raises:
        FileError: It has another number of channels.
    """
    if not to or len(image) == CONVERSIONS[to]:
        return image
    if len(image) not in CONVERSIONS.values():
        raise FileError(f"{path}: has {len(image)} channels; --channels {to} converts images of 1 or 3 channels")
    if to == "rgb":
        return np.repeat(image, 3, axis=0)
    grey: np.ndarray = np.einsum("c,chw->hw", np.asarray(_LUMA, image.dtype), image)[None]
    return grey


def mark_missing(image: np.ndarray, values: np.ndarray, nodata: Iterable[float | None], path: str | Path) -> np.ndarray:
    """Set the pixels of an image (C, H, W) without data to NaN.

    Args:
        image: the image, which is changed.
        values: the numbers of the file that it was made of, (H, W) or (H, W, C).
        nodata: numbers that mean that there are no data; None for none.
        path: the path of the file, for the message.

    Raises:
        FileError: Another pixel is NaN or infinite.
    """
    missing = find_missing(values, nodata)
    finite = np.isfinite(image).all(0) if values.dtype.kind == "f" else np.ones((), bool)
    if not (finite | missing).all():
        count = int((~(finite | missing)).sum())
        raise FileError(
            f"{path}: contains NaN or infinity in {format_plural(count, 'pixel')}; "
            "if that means that there are no data, give --nodata nan, or --nodata inf"
        )
    if missing.any():
        image[:, np.broadcast_to(missing, image.shape[1:])] = np.nan
    return image


def known_values(pixels: PixelArray, nodata: float | None) -> np.ndarray:
    """Return the numbers of the pixels with data, (N,) or (N, C); those of an indexed image are its colors."""
    values = apply_palette(pixels)
    known: np.ndarray = values[np.broadcast_to(~find_missing(values, (nodata, pixels.nodata)), values.shape[:2])]
    return known


#: Beyond this, a number that means no data is compared as text prints it, with few digits: -3.4e38.
_HUGE = 1e30


def find_missing(values: np.ndarray, nodata: Iterable[float | None]) -> np.ndarray:
    """Return where the numbers (H, W) or (H, W, C) of a file mean that there are no data: (H, W), or False."""
    found = np.zeros((), bool)
    for number in nodata:
        if number is None:
            continue
        if np.isnan(number):
            same = np.isnan(values) if values.dtype.kind == "f" else np.zeros((), bool)
        elif _HUGE < abs(number) < np.inf:
            same = np.abs(values / number - 1) < 1e-2
        else:
            same = values == (np.float32(number) if values.dtype == np.float32 else number)
        found = found | (same.any(-1) if same.ndim == 3 else same)
    return found


def _png_bits(path: Path) -> tuple[int, bool]:
    """Return the bit depth of a PNG, and whether it has more than one channel; (0, False) for other files."""
    with path.open("rb") as file:
        head = file.read(26)
    return (head[24], head[25] != 0) if head.startswith(b"\x89PNG\r\n\x1a\n") and len(head) == 26 else (0, False)


def _read_16bit_rgb(path: Path) -> np.ndarray:
    """Read a 16-bit PNG with several channels, of which Pillow would read only the upper eight bits."""
    try:
        from imagecodecs import png_decode
    except ImportError as error:
        what = "is a PNG of 16 bits and several channels, which needs the package imagecodecs"
        raise FileError(f"{path}: {what}; pip install imagecodecs, or save it as TIFF") from error
    values = np.asarray(png_decode(path.read_bytes()))
    colours = values[..., : {2: 1, 4: 3}.get(values.shape[-1])]  # without alpha
    return colours[..., 0] if colours.shape[-1] == 1 else colours
