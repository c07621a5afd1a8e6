"""What is written of an image, while its windows come: masks, probabilities, and the overlay at the end.

L classes or labels, H and W height and width, h and w those of a window.
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
import torch
from torch import Tensor

from unetkit.data.types import Target
from unetkit.data.visualize import overlay, palette_bytes
from unetkit.predict.image_reader import ImageReader
from unetkit.tiling.sliding_window import Window
from unetkit.utils.files import atomic_write
from unetkit.utils.formatting import Size

_GREY, _INDEXED = 0, 3


class PngWriter:
    """A PNG of one 8-bit number a pixel, without interlace or filters (W3C, PNG specification, third edition).

    Args:
        file: open for writing; is not closed.
        size: height and width.
        palette: red, green and blue of each number; grey without.
    """

    def __init__(self, file: BinaryIO, size: Size, palette: bytes = b"") -> None:
        self._file, self._size, self._written = file, size, 0
        self._packed = zlib.compressobj(6)
        file.write(b"\x89PNG\r\n\x1a\n")
        self._chunk(b"IHDR", struct.pack(">IIBBBBB", size[1], size[0], 8, _INDEXED if palette else _GREY, 0, 0, 0))
        if palette:
            self._chunk(b"PLTE", palette)

    def add(self, rows: np.ndarray) -> None:
        """The next rows, (h, W) uint8."""
        begun = np.zeros((rows.shape[0], 1 + rows.shape[1]), np.uint8)  # each row begins with its filter, none
        begun[:, 1:] = rows
        self._written += rows.shape[0]
        if data := self._packed.compress(begun.tobytes()):
            self._chunk(b"IDAT", data)

    def end(self) -> None:
        """Write what is left, when all rows are there."""
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
#: Rows that an overlay's image is read in.
_ROWS = 256


class RowBands:
    """Windows of the same rows, put side by side."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._band = np.empty(0)

    def add(self, window: Window, values: np.ndarray) -> np.ndarray | None:
        """Add what a window gave, (..., h, w); the band (..., h, W) when it is whole."""
        if window.columns.start == 0:
            self._band = np.empty((*values.shape[:-1], self._width), values.dtype)
        self._band[..., window.columns] = values
        return self._band if window.columns.stop == self._width else None


class MaskWriter:
    """The mask of an image as indexed PNG; of several labels one PNG each, of 0 and 255.

    Args:
        stack: what closes the files, and puts them in place if all went well.
        paths: one, or one a label.
        size: height and width.
        target: what the probabilities are of.
    """

    def __init__(self, stack: ExitStack, paths: tuple[Path, ...], size: Size, target: Target) -> None:
        files = [stack.enter_context(stack.enter_context(atomic_write(path)).open("wb")) for path in paths]
        self._labels = target.kind == "multilabel"
        self._rows = [PngWriter(file, size, b"" if self._labels else palette_bytes(target)) for file in files]
        self._bands = RowBands(size[1])

    def add(self, window: Window, decided: Tensor) -> None:
        """What was decided of a window: classes (h, w), or labels (L, h, w)."""
        values = decided.numpy().astype(np.uint8)
        band = self._bands.add(window, values * np.uint8(255) if self._labels else values[None])
        for rows, plane in zip(self._rows, () if band is None else band, strict=band is not None):
            rows.add(plane)

    def end(self) -> None:
        """All windows were added."""
        for rows in self._rows:
            rows.end()


class OverlayWriter:
    """The decided pixels of an image, every so manieth, so that an overlay has no side above OVERLAY."""

    def __init__(self, size: Size, target: Target) -> None:
        self.step = -(-max(size) // OVERLAY)
        self.target, self.size = target, (-(-size[0] // self.step), -(-size[1] // self.step))
        planes = (len(target.names),) if target.kind == "multilabel" else ()
        self._mask = torch.zeros(*planes, *self.size, dtype=torch.uint8)

    def add(self, window: Window, decided: Tensor) -> None:
        """What was decided of a window: classes (h, w), or labels (L, h, w)."""
        top, left = -window.rows.start % self.step, -window.columns.start % self.step
        some = decided[..., top :: self.step, left :: self.step]
        row, column = (window.rows.start + top) // self.step, (window.columns.start + left) // self.step
        self._mask[..., row : row + some.shape[-2], column : column + some.shape[-1]] = some

    def write(self, path: Path, picture: ImageReader) -> None:
        """Lay it over the picture, which is read again for it."""
        drawn = overlay(self._thinned(picture), self._mask, self.target)
        with atomic_write(path) as temporary:
            drawn.save(temporary, "PNG")

    def _thinned(self, picture: ImageReader) -> Tensor:
        height, width = picture.size
        rows = self.step * max(1, _ROWS // self.step)
        starts = range(0, height, rows)
        bands = (picture.read(slice(top, min(height, top + rows)), slice(0, width)) for top in starts)
        return torch.cat([band[:, :: self.step, :: self.step].clone() for band in bands], 1)


def write_probabilities(path: Path, windows: Iterator[Window], size: Size, planes: int) -> None:
    """Write windows (L, h, w) as they come to a BigTIFF (H, W, L) of float32, in tiles, compressed by zlib."""
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
    """Tiles (TILE, TILE, L) row by row, those at the end filled up with zeros."""
    bands, waiting, done = RowBands(size[1]), np.empty((planes, 0, size[1]), np.float32), 0
    for window in windows:
        band = bands.add(window, window.values.numpy())
        if band is None:
            continue
        waiting, done = np.concatenate([waiting, band], 1), done + band.shape[1]
        while waiting.shape[1] >= TILE or (done == size[0] and waiting.shape[1]):
            yield from _across(waiting[:, :TILE])
            waiting = waiting[:, TILE:]


def _across(rows: np.ndarray) -> Iterator[np.ndarray]:
    planes, height, width = rows.shape
    for left in range(0, width, TILE):
        part = rows[:, :, left : left + TILE]
        tile = np.zeros((TILE, TILE, planes), np.float32)
        tile[:height, : part.shape[2]] = np.moveaxis(part, 0, -1)
        yield tile if planes > 1 else tile[..., 0]
