"""PNG files written row by row, so that a mask of any size needs the memory of a few rows."""

from __future__ import annotations

import struct
import zlib
from typing import BinaryIO

import numpy as np

from unetkit.plan import Size

_GREY, _INDEXED = 0, 3


class PngRows:
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
