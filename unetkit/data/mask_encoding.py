"""From the numbers of mask files to classes: what each means, and what none should hold.

H and W height and width, L labels.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unetkit.data.io import PixelArray, read_mask
from unetkit.data.types import IGNORE, Colour, Target
from unetkit.errors import FileError, UnetkitError


@dataclass(frozen=True)
class Classes:
    """What `classes.txt` says: names in order, and the colours of all of them or of none."""

    names: tuple[str, ...]
    colours: tuple[Colour, ...] = ()


#: More distinct colours or numbers than this in one mask, and it was not drawn with classes in mind.
MOST = 64
#: Told how many files of how many are done.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class MaskScan:
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


def scan_all(
    paths: Sequence[Path], progress: Progress | None = None, most: int = MOST
) -> list[MaskScan | UnetkitError]:
    """Each file's scan, or why there is none, in order."""
    found: list[MaskScan | UnetkitError] = []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for result in pool.map(lambda path: _scan_or_error(path, most), paths):
            found.append(result)
            if progress:
                progress(len(found), len(paths))
    return found


def _scan_or_error(path: Path, most: int) -> MaskScan | UnetkitError:
    try:
        return scan(path, most)
    except UnetkitError as error:
        return error


def scan(path: Path, most: int = MOST) -> MaskScan:
    """Count what a mask file holds. Raises FileError where it cannot be read, or holds more than `most` classes."""
    pixels = read_mask(path)
    rgb = pixels.values.ndim == 3
    numbers, counts = _counted(packed(pixels.values) if rgb else pixels.values)
    if len(numbers) > most:
        why = "a mask that was saved as JPEG, or resized smoothly, has lost its classes"
        objects = "" if rgb else "; numbers of objects belong into instances/"
        what = "colours" if rgb else "different numbers"
        raise FileError(f"{path}: holds {len(numbers)} {what}, more than {most}; {why}{objects}")
    table = pixels.palette
    palette = {} if table is None else {n: _colour(table, n) for n in map(int, numbers)}
    height, width = pixels.values.shape[:2]
    found = dict(zip(map(int, numbers), map(int, counts), strict=True))
    return MaskScan(path, (height, width), found, rgb, palette)


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


def codes_of(pixels: PixelArray, by_colour: bool) -> np.ndarray:
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


#: In a mask with class indices: this pixel counts nowhere, as in Pascal VOC; beside 0 alone it is the foreground.
VOID = 255


@dataclass(frozen=True)
class MaskHints:
    """What is known of a set beside its files.

    Attributes:
        classes: their names and colours.
        ignore: the number that counts nowhere; where colours tell classes apart, its place among them.
        labels: of a multi-label set.
        rest: whether `classes` are those that are left without `ignore`, and not all.
    """

    classes: Classes | None = None
    ignore: int | None = None
    labels: tuple[str, ...] = ()
    rest: bool = False


def needs_colour(scans: Sequence[MaskScan]) -> bool:
    """Whether masks differ by colour: RGB that is not all grey, or palettes that give one number two colours."""
    if any(len({*unpack(code)}) > 1 for scan in scans if scan.rgb for code in scan.counts):
        return True
    seen: dict[int, Colour] = {}
    return any(seen.setdefault(number, colour) != colour for scan in scans for number, colour in scan.palette.items())


def codes_in(scan: MaskScan, by_colour: bool) -> dict[int, int]:
    """Pixels of each code in a file."""
    if by_colour:
        return scan.by_colour()
    return {code & 255: count for code, count in scan.counts.items()} if scan.rgb else scan.counts


def present_in(scans: Sequence[MaskScan], by_colour: bool) -> dict[int, Path]:
    """Every code, and the first file that holds it."""
    found: dict[int, Path] = {}
    for scan in scans:
        for code in codes_in(scan, by_colour):
            found.setdefault(code, scan.path)
    return dict(sorted(found.items()))


Codes = tuple[tuple[int, ...], tuple[int, ...], list[str]]


def of_colours(present: dict[int, Path], told: MaskHints) -> Codes:
    """The packed colours of classes, black first; those that count nowhere; and what is wrong."""
    known = told.classes
    codes = [*present]
    if known and known.colours:
        codes = [pack(colour) for colour in known.colours]
    elif known and len(known.names) != len(codes):
        said = f"the masks hold {len(codes)} colours, but {len(known.names)} classes are named"
        return (*codes,), (), [f"{said}; give each name its colour: NAME R G B"]
    if told.rest and told.ignore is not None:
        return (*codes,), (*sorted(present.keys() - {*codes}),)[:1], []
    ignored = () if told.ignore is None or told.ignore >= len(codes) else (codes[told.ignore],)
    return tuple(code for code in codes if code not in ignored), ignored, []


def of_numbers(present: dict[int, Path], told: MaskHints) -> Codes:
    """The numbers of classes; those that count nowhere; and what is wrong."""
    count = 2 if told.labels else len(told.classes.names) if told.classes else 0
    ignored = set() if told.ignore is None else {told.ignore}
    rest = present.keys() - ignored
    if rest <= {0, VOID} and VOID in rest and count in (0, 2):
        return (0, VOID), (*ignored,), []
    if VOID in rest and max(rest) == VOID and count <= VOID:
        ignored.add(VOID)
    rest -= ignored
    most = count + len(ignored) * told.rest if count else max([*rest, 1]) + 1
    codes = [code for code in range(most) if code not in ignored][: count or None]
    missing = [code for code in codes if code not in rest] if not count else []
    if missing and max([*rest, 0]) > 1:  # 0 or 1 alone is a set of nothing, or of nothing else
        return tuple(sorted(rest)), (*sorted(ignored),), [_gap(missing, max(rest), present)]
    return (*codes,), (*sorted(ignored),), []


def mixed(scans: Sequence[MaskScan], codes: Sequence[int]) -> list[str]:
    """Masks of 0 and 1 among masks of 0 and 255, which would count nowhere."""
    ones, voids = (
        [s.path for s in scans if code in s.counts and other not in s.counts] for code, other in ((1, 255), (255, 1))
    )
    if [*codes] != [0, 1] or not ones or not voids or any({1, 255} <= scan.counts.keys() for scan in scans):
        return []
    return [f"{voids[0]}: holds 0 and 255, but {ones[0]} 0 and 1; write all masks alike"]


def _gap(missing: list[int], most: int, present: dict[int, Path]) -> str:
    what = ", ".join(map(str, missing[:4])) + (", ..." if len(missing) > 4 else "")
    if 255 in present and 1 in missing:
        return f"{present[most]}: holds {most}, among masks of 0 and 255; threshold it to these two, as after a resize"
    return (
        f"{present[most]}: holds {most}, but no mask holds {what}; classes are numbers without gaps from 0 (or 0 and"
        f" 255); if some classes just never occur, name all {most + 1} in classes.txt"
    )


def code_said(code: int, by_colour: bool) -> str:
    """A code as people read it: 7, #ff0000."""
    return f"#{code:06x}" if by_colour else str(code)


@dataclass(frozen=True)
class MaskEncoding:
    """How a set's mask files are read.

    Attributes:
        target: what they mean.
        by_colour: whether colours tell classes apart, or numbers.
        codes: the number, or packed colour, of each class in order; of a multi-label set, of "no" and "yes".
        ignored: those that count nowhere.
    """

    target: Target
    by_colour: bool
    codes: tuple[int, ...]
    ignored: tuple[int, ...] = ()

    def read(self, path: Path) -> np.ndarray:
        """A mask file as classes (H, W) int64, IGNORE among them. Raises FileError."""
        found = codes_of(read_mask(path), self.by_colour)
        table = np.array([*self.codes, *self.ignored])
        classes = np.array([*range(len(self.codes)), *(IGNORE for _ in self.ignored)])
        mask = _looked_up(found, table, classes) if found.dtype == np.uint8 else _searched(found, table, classes)
        if (strange := mask == _STRANGE).any():
            raise FileError(f"{path}: {self.unexpected([int(found[strange][0])])}")
        return mask

    def unexpected(self, codes: Sequence[int]) -> str:
        """What is wrong with codes that are no class's."""
        what = ", ".join(code_said(code, self.by_colour) for code in sorted(codes)[:4])
        known = ", ".join(code_said(code, self.by_colour) for code in self.codes[:8])
        more = f" and {len(self.codes) - 8} more" if len(self.codes) > 8 else ""
        return f"holds {what}{', ...' if len(codes) > 4 else ''}, but classes are {known}{more}"


#: Stands for a number that is no class's.
_STRANGE = IGNORE - 1


def _looked_up(found: np.ndarray, table: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """The class of each number of 8 bits: quick, and no more memory than the result."""
    small = (table >= 0) & (table < 256)
    every = np.full(256, _STRANGE)
    every[table[small]] = classes[small]
    return np.asarray(every[found])


def _searched(found: np.ndarray, table: np.ndarray, classes: np.ndarray) -> np.ndarray:
    order = np.argsort(table)
    place = order[np.searchsorted(table, found, sorter=order).clip(max=len(table) - 1)]
    return np.where(table[place] == found, classes[place], _STRANGE)


def infer_encoding(scans: Sequence[MaskScan], told: MaskHints) -> tuple[MaskEncoding, list[str]]:
    """What masks mean, and what is wrong with them, a line a file."""
    by_colour = not told.labels and needs_colour(scans)
    present = present_in(scans, by_colour)
    if by_colour:
        codes, ignored, problems = of_colours(present, told)
    else:
        codes, ignored, problems = of_numbers(present, told)
        problems += mixed(scans, codes) if told.ignore is None else []
    meaning = MaskEncoding(_target(scans, codes, told, by_colour), by_colour, codes, ignored)
    if len(codes) < 2 and not problems:
        problems = [
            f"{scans[0].path}: the masks hold one class only, {meaning.target.names[0]}; the background is one too"
        ]
    if not problems:
        known = {*codes, *ignored}
        strange = [(scan, codes_in(scan, by_colour).keys() - known) for scan in scans]
        problems = [f"{scan.path}: {meaning.unexpected([*rest])}" for scan, rest in strange if rest]
    return meaning, problems


def _target(scans: Sequence[MaskScan], codes: Sequence[int], told: MaskHints, by_colour: bool) -> Target:
    known = told.classes
    if told.labels:
        return Target("multilabel", told.labels, known.colours if known else ())
    kept = [place for place in range(len(known.names)) if told.rest or place != told.ignore] if known else []
    if known and len(kept) == len(codes):
        names = [known.names[place] for place in kept]
        colours = [known.colours[place] for place in kept] if known.colours else _colours(scans, codes, by_colour)
    else:
        names, colours = _names(codes, by_colour), _colours(scans, codes, by_colour)
    return Target("binary" if len(codes) == 2 else "multiclass", (*names,), (*colours,))


def _names(codes: Sequence[int], by_colour: bool) -> list[str]:
    if len(codes) == 2:
        return ["background", "foreground"]
    names = [code_said(code, True) if by_colour else f"class {code}" for code in codes]
    return ["background" if code == 0 else name for code, name in zip(codes, names, strict=True)]


def _colours(scans: Sequence[MaskScan], codes: Sequence[int], by_colour: bool) -> list[Colour]:
    """The masks' own colours; none where an indexed PNG's palette does not tell all of them apart."""
    if by_colour:
        return [unpack(code) for code in codes]
    palette = {number: colour for scan in scans for number, colour in scan.palette.items()}
    colours = [palette[code] for code in codes if code in palette]
    return colours if len({*colours}) == len(codes) else []
