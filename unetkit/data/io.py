"""Image and mask files: PNG, JPEG and TIFF as tensors and arrays.

C channels, H and W height and width.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from unetkit.data.tiff import read_tiff
from unetkit.errors import BadFile
from unetkit.foreign import one_line

#: Endings of the files that are read, in lower case.
ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
_TIFF = (".tif", ".tiff")
#: Modes of Pillow whose numbers are taken as they are.
_AS_IT_IS = ("1", "L", "I;16", "I;16B", "I", "F", "RGB")


class Pixels(NamedTuple):
    """A file's numbers: (H, W) or (H, W, C) in their own type, and the colours (N, 3) they stand for, if indexed."""

    values: np.ndarray
    palette: np.ndarray | None = None


def read_image(path: str | Path) -> Tensor:
    """An image (C, H, W) float32: 8-bit values / 255, 16-bit ones / 65535, others (signed, 32 bit, float) as they are.

    Alpha is left out; indexed colours become RGB; the orientation that a camera noted (EXIF) is applied.

    Raises:
        BadFile: it cannot be read.
    """
    return scaled(in_colours(read_pixels(path)))


def read_mask(path: str | Path) -> Pixels:
    """A mask's numbers, (H, W) integers or (H, W, 3) uint8 colours, and its palette if it is indexed.

    One bit is read as 0 and 255.

    Raises:
        BadFile: it cannot be read, or holds neither integers nor colours.
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
        raise BadFile(f"{path}: is no mask: it holds {what}; a mask has one plane of integers, or 8-bit RGB colours")
    return Pixels(values.astype(np.uint8) * 255 if values.dtype.kind == "b" else values, palette)


def read_pixels(path: str | Path) -> Pixels:
    """A file's numbers as they are stored, without alpha; of one bit as bool. Raises BadFile."""
    path = Path(path)
    if not path.is_file():
        raise BadFile(f"{path}: there is no such file")
    if path.suffix.lower() in _TIFF:
        return Pixels(*read_tiff(path))
    try:
        if _png_bits(path) == (16, True):
            return Pixels(_deep_colour(path))
        with Image.open(path) as image:
            return of_picture(image)
    except BadFile:
        raise
    except Image.DecompressionBombError as error:
        raise BadFile(f"{path}: has more pixels than Pillow reads (178,956,970); save it as TIFF") from error
    except UnidentifiedImageError as error:
        raise BadFile(f"{path}: is no image that can be read; PNG, JPEG and TIFF are") from error
    except Exception as error:  # Pillow and its decoders raise whatever they meet
        raise BadFile(f"{path}: cannot be read as an image: {one_line(error)}") from error


def of_picture(image: Image.Image) -> Pixels:
    """The numbers of a Pillow image."""
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode == "P":
        return Pixels(np.array(image), np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3))
    if image.mode == "LA":
        image = image.getchannel(0)
    values = np.array(image if image.mode in _AS_IT_IS else image.convert("RGB"))
    return Pixels(values.astype(values.dtype.newbyteorder("="), copy=False))


def in_colours(pixels: Pixels) -> np.ndarray:
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
        raise BadFile(f"{path}: {what}; pip install 'unetkit[tiff]', or save it as TIFF") from error
    values = np.asarray(png_decode(path.read_bytes()))
    colours = values[..., : {2: 1, 4: 3}.get(values.shape[-1])]  # without alpha
    return colours[..., 0] if colours.shape[-1] == 1 else colours
