"""What numbers mask files hold, counted once, in threads, without keeping the masks."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unetkit.data.files import Pixels, read_mask
from unetkit.data.target import Colour
from unetkit.errors import BadFile, UnetkitError

#: More distinct colours or numbers than this in one mask, and it was not drawn with classes in mind.
MOST = 64
#: Told how many files of how many are done.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Scan:
    """What a mask file holds.

    Attributes:
        path: of the file.
        size: height and width.
        counts: pixels of each number; of each colour, packed by `packed`, where the file holds RGB.
        rgb: whether it does.
        palette: the colours of those numbers, where it is indexed.
    """

    path: Path
    size: tuple[int, int]
    counts: dict[int, int]
    rgb: bool
    palette: dict[int, Colour]

    def by_colour(self) -> dict[int, int]:
        """Pixels of each packed colour: grey where there is no palette."""
        if self.rgb:
            return self.counts
        counts: dict[int, int] = {}
        for number, count in self.counts.items():
            colour = pack(self.palette[number]) if self.palette else number * 0x010101
            counts[colour] = counts.get(colour, 0) + count
        return counts


def scan_all(paths: Sequence[Path], progress: Progress | None = None, most: int = MOST) -> list[Scan | UnetkitError]:
    """Each file's scan, or why there is none, in order."""
    found: list[Scan | UnetkitError] = []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for result in pool.map(lambda path: _scan_or_error(path, most), paths):
            found.append(result)
            if progress:
                progress(len(found), len(paths))
    return found


def _scan_or_error(path: Path, most: int) -> Scan | UnetkitError:
    try:
        return scan(path, most)
    except UnetkitError as error:
        return error


def scan(path: Path, most: int = MOST) -> Scan:
    """Count what a mask file holds. Raises BadFile where it cannot be read, or holds more than `most` classes."""
    pixels = read_mask(path)
    rgb = pixels.values.ndim == 3
    numbers, counts = _counted(packed(pixels.values) if rgb else pixels.values)
    if len(numbers) > most:
        why = "a mask that was saved as JPEG, or resized smoothly, has lost its classes"
        objects = "" if rgb else "; numbers of objects belong into instances/"
        what = "colours" if rgb else "different numbers"
        raise BadFile(f"{path}: holds {len(numbers)} {what}, more than {most}; {why}{objects}")
    table = pixels.palette
    palette = {} if table is None else {n: _colour(table, n) for n in map(int, numbers)}
    height, width = pixels.values.shape[:2]
    found = dict(zip(map(int, numbers), map(int, counts), strict=True))
    return Scan(path, (height, width), found, rgb, palette)


def _counted(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if values.dtype == np.uint8:
        parts = np.array_split(values.ravel(), values.size // 2**20 + 1)  # it widens what it counts eightfold
        counts = np.sum([np.bincount(part, minlength=256) for part in parts], axis=0)
        return np.flatnonzero(counts), counts[counts > 0]
    return np.unique(values, return_counts=True)


def _colour(table: np.ndarray, number: int) -> Colour:
    red, green, blue = map(int, table[number]) if number < len(table) else (0, 0, 0)
    return red, green, blue


def packed(colours: np.ndarray) -> np.ndarray:
    """Colours (H, W, 3) as one number each (H, W): 0xRRGGBB."""
    wide = colours.astype(np.int32)
    return np.asarray(wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2])


def pack(colour: Colour) -> int:
    """One colour as 0xRRGGBB."""
    return colour[0] << 16 | colour[1] << 8 | colour[2]


def unpack(code: int) -> Colour:
    """The colour back."""
    return code >> 16, code >> 8 & 255, code & 255


def codes_of(pixels: Pixels, by_colour: bool) -> np.ndarray:
    """A mask's numbers (H, W), or its packed colours."""
    values, palette = pixels
    if not by_colour:
        return values if values.ndim == 2 else values[..., 0]
    if values.ndim == 3:
        return packed(values)
    if palette is None:
        return values.astype(np.int32) * 0x010101
    table = np.zeros((max(256, len(palette)), 3), np.uint8)
    table[: len(palette)] = palette
    return np.take(packed(table[None])[0], values)
