"""Write the masks, probabilities and overlay of an image while its windows arrive.

Masks are written row by row as PNG, so a mask of any size needs only the memory of a few rows. Shapes: L classes or
labels, H and W height and width of the image, h and w those of a window.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import numpy as np
import tifffile

from unetkit.data.types import IGNORE, Target
from unetkit.data.visualize import VOID, overlay, palette_bytes
from unetkit.predict.image_reader import ImageReader
from unetkit.tiling.stitching import Window
from unetkit.utils.files import atomic_write
from unetkit.utils.formatting import Size
from unetkit.utils.integers import ceil_div

_GREY, _RGB, _INDEXED = 0, 2, 3


class PngWriter:
    """A PNG with 8-bit numbers, without interlacing and filters (W3C, PNG specification, third edition).

    pypng writes as fast and as small, but pulls its rows from an iterator, while here rows come as windows arrive, for
    several files at a time.

    Args:
        file: the file, open for writing; it is not closed.
        size: the height and width.
        palette: the red, green and blue of each number; without a palette, the PNG is grey, or RGB.
        rgb: whether each pixel has three numbers.
    """

    def __init__(self, file: BinaryIO, size: Size, palette: bytes = b"", *, rgb: bool = False) -> None:
        self._file, self._size, self._written = file, size, 0
        kind = _INDEXED if palette else _RGB if rgb else _GREY
        self._packed = zlib.compressobj(6)
        file.write(b"\x89PNG\r\n\x1a\n")
        self._chunk(b"IHDR", struct.pack(">IIBBBBB", size[1], size[0], 8, kind, 0, 0, 0))
        if palette:
            self._chunk(b"PLTE", palette)

    def add(self, rows: np.ndarray) -> None:
        """Write the next rows, (h, W) or (h, W, 3) uint8."""
        rows = rows.reshape(rows.shape[0], -1)
        begun = np.zeros((rows.shape[0], 1 + rows.shape[1]), np.uint8)  # each row begins with its filter, none
        begun[:, 1:] = rows
        self._written += rows.shape[0]
        if data := self._packed.compress(begun.tobytes()):
            self._chunk(b"IDAT", data)

    def finish(self) -> None:
        """Write the end of the file after all rows."""
        if self._written != self._size[0]:
            raise ValueError(f"{self._written} of {self._size[0]} rows were written")
        self._chunk(b"IDAT", self._packed.flush())
        self._chunk(b"IEND", b"")

    def _chunk(self, kind: bytes, data: bytes) -> None:
        self._file.write(struct.pack(">I", len(data)) + kind)
        self._file.write(data)
        self._file.write(struct.pack(">I", zlib.crc32(data, zlib.crc32(kind))))


#: The longest side of an overlay, and the side of a tile of the probabilities' TIFF.
OVERLAY, TILE = 2048, 256
#: The number of rows of the image that are read at a time for an overlay.
_ROWS = 256


class RowBands:
    """Joins the windows of the same rows to a band."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._band = np.empty(0)

    def add(self, window: Window, values: np.ndarray) -> np.ndarray | None:
        """Add the values of a window, (..., h, w); return the band (..., h, W) when it is complete."""
        if window.columns.start == 0:
            self._band = np.empty((*values.shape[:-1], self._width), values.dtype)
        self._band[..., window.columns] = values
        return self._band if window.columns.stop == self._width else None


class MaskWriter:
    """The mask of an image as a PNG; multi-label masks as a PNG of 0 and 255 for each label.

    IGNORE, where the image has no data, is VOID or its colour, and 0 in masks of 0 and 255.

    Args:
        stack: closes the files, and moves them to their final names if no exception is raised.
        paths: one path, or one for each label.
        size: the height and width.
        target: what the masks mean.
        mask_format: "index", "binary" or "color"; see `unetkit.predict.config.PredictConfig`.
    """

    def __init__(
        self, stack: ExitStack, paths: tuple[Path, ...], size: Size, target: Target, mask_format: str = "index"
    ) -> None:
        files = [stack.enter_context(stack.enter_context(atomic_write(path)).open("wb")) for path in paths]
        self._labels = target.kind == "multilabel"
        self._binary, table = self._labels or mask_format == "binary", palette_bytes(target)
        self._colours = np.frombuffer(table, np.uint8).reshape(256, 3) if mask_format == "color" else None
        palette = table if mask_format == "index" and not self._labels else b""
        self._rows = [PngWriter(file, size, palette, rgb=self._colours is not None) for file in files]
        self._bands = RowBands(size[1])

    def add(self, window: Window, decided: np.ndarray) -> None:
        """Add the mask of a window: classes (h, w), or labels (L, h, w)."""
        planes = (decided == 1) * 255 if self._binary else np.where(decided == IGNORE, VOID, decided)
        band = self._bands.add(window, (planes if self._labels else planes[None]).astype(np.uint8))
        for rows, plane in zip(self._rows, () if band is None else band, strict=band is not None):
            rows.add(plane if self._colours is None else self._colours[plane])

    def finish(self) -> None:
        """Finish the files after all windows."""
        for rows in self._rows:
            rows.finish()


class OverlayWriter:
    """A subsampled mask of the image, so that no side of the overlay is longer than OVERLAY."""

    def __init__(self, size: Size, target: Target) -> None:
        self.step = ceil_div(max(size), OVERLAY)
        self.target, self.size = target, (ceil_div(size[0], self.step), ceil_div(size[1], self.step))
        planes = (len(target.names),) if target.kind == "multilabel" else ()
        self._mask = np.zeros((*planes, *self.size), np.int16)

    def add(self, window: Window, decided: np.ndarray) -> None:
        """Add the mask of a window: classes (h, w), or labels (L, h, w)."""
        top, left = -window.rows.start % self.step, -window.columns.start % self.step
        some = decided[..., top :: self.step, left :: self.step]
        row, column = (window.rows.start + top) // self.step, (window.columns.start + left) // self.step
        self._mask[..., row : row + some.shape[-2], column : column + some.shape[-1]] = some

    def write(self, path: Path, picture: ImageReader) -> None:
        """Draw the mask over the image, which is read again for this."""
        drawn = overlay(self._subsample(picture), self._mask, self.target)
        with atomic_write(path) as temporary:
            drawn.save(temporary, "PNG")

    def _subsample(self, picture: ImageReader) -> np.ndarray:
        height, width = picture.size
        rows = self.step * max(1, _ROWS // self.step)
        starts = range(0, height, rows)
        bands = (picture.read(slice(top, min(height, top + rows)), slice(0, width)) for top in starts)
        return np.concatenate([band[:, :: self.step, :: self.step].copy() for band in bands], 1)


def write_probabilities(path: Path, windows: Iterator[Window], size: Size, planes: int) -> None:
    """Write windows (L, h, w) to a BigTIFF (H, W, L) in float32 as they arrive, in tiles compressed by zlib."""
    shape = (*size, planes) if planes > 1 else size
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        file.write(
            _tiles(windows, size, planes),
            shape=shape,
            dtype=np.float32,
            tile=(TILE, TILE),
            compression="zlib",
            photometric="minisblack",
            planarconfig="contig" if planes > 1 else None,
            metadata={"axes": "YXS" if planes > 1 else "YX"},
            maxworkers=1,
        )


def _tiles(windows: Iterator[Window], size: Size, planes: int) -> Iterator[np.ndarray]:
    """Yield tiles (TILE, TILE, L) row by row; those at the ends are padded with zeros."""
    bands, waiting, done = RowBands(size[1]), np.empty((planes, 0, size[1]), np.float32), 0
    for window in windows:
        band = bands.add(window, window.values)
        if band is None:
            continue
        waiting, done = np.concatenate([waiting, band], 1), done + band.shape[1]
        while waiting.shape[1] >= TILE or (done == size[0] and waiting.shape[1]):
            yield from _merge_row(waiting[:, :TILE])
            waiting = waiting[:, TILE:]


def _merge_row(rows: np.ndarray) -> Iterator[np.ndarray]:
    planes, height, width = rows.shape
    for left in range(0, width, TILE):
        part = rows[:, :, left : left + TILE]
        tile = np.zeros((TILE, TILE, planes), np.float32)
        tile[:height, : part.shape[2]] = np.moveaxis(part, 0, -1)
        yield tile if planes > 1 else tile[..., 0]
