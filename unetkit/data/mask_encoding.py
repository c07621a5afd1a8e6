"""The encoding of masks: which numbers or colors in mask files stand for which classes, and which are errors.

Mask files are scanned once, in threads, to count their values; the masks are not kept. Shapes: H and W height and
width, L labels.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from unetkit.data.blended_masks import Blended, find_blended
from unetkit.data.io import PixelArray, read_mask
from unetkit.data.types import IGNORE, Colour, Target
from unetkit.errors import FileError, UnetkitError


@dataclass(frozen=True)
class Classes:
    """The content of `classes.txt`: the names in order, and the colors or the numbers of all classes or of none."""

    names: tuple[str, ...]
    colours: tuple[Colour, ...] = ()
    values: tuple[int, ...] = ()


#: A mask with more distinct colours or numbers than this does not encode classes.
MAX_VALUES = 64
#: Called with the number of files that are done and the number of all files.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class MaskScan:
    """The values in a mask file.

    Attributes:
        path: the path of the file.
        size: the height and width.
        counts: the number of pixels with each number or, in RGB files, with each color packed by `pack_colours`.
        rgb: whether the file contains RGB.
        palette: the colors of the numbers, if the file is indexed.
    """

    path: Path
    size: tuple[int, int]
    counts: dict[int, int]
    rgb: bool
    palette: dict[int, Colour]

    def by_colour(self) -> dict[int, int]:
        """The number of pixels with each packed color; grey without a palette."""
        if self.rgb:
            return self.counts
        counts: dict[int, int] = {}
        for number, count in self.counts.items():
            colour = pack(self.palette[number]) if self.palette else number * 0x010101
            counts[colour] = counts.get(colour, 0) + count
        return counts


def scan_masks(paths: Sequence[Path], progress: Progress | None = None) -> list[MaskScan | UnetkitError]:
    """Scan all files in order; a file that cannot be read gives its error."""
    found: list[MaskScan | UnetkitError] = []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for result in pool.map(_scan_or_error, paths):
            found.append(result)
            if progress:
                progress(len(found), len(paths))
    return found


def _scan_or_error(path: Path) -> MaskScan | UnetkitError:
    try:
        return scan_mask(path)
    except UnetkitError as error:
        return error


#: A file with more distinct colours or numbers than this is no mask, and they are not counted.
_MOST_COUNTED = 4096


def scan_mask(path: Path) -> MaskScan:
    """Count the values in a mask file. Raises FileError if it cannot be read, or contains thousands of values."""
    pixels = read_mask(path)
    rgb = pixels.values.ndim == 3
    numbers, counts = _count_values(pack_colours(pixels.values) if rgb else pixels.values)
    if len(numbers) > _MOST_COUNTED:
        raise FileError(_describe_many(MaskScan(path, (0, 0), dict.fromkeys(map(int, numbers), 1), rgb, {})))
    table = pixels.palette
    palette = {} if table is None else {n: _colour(table, n) for n in map(int, numbers)}
    height, width = pixels.values.shape[:2]
    found = dict(zip(map(int, numbers), map(int, counts), strict=True))
    return MaskScan(path, (height, width), found, rgb, palette)


def _describe_many(scan: MaskScan) -> str:
    why = "a mask that was saved as JPEG, or resized smoothly, has lost its classes"
    objects = "" if scan.rgb else "; numbers of objects belong into instances/"
    what = "colours" if scan.rgb else "different numbers"
    return f"{scan.path}: holds {len(scan.counts)} {what}, more than {MAX_VALUES}; {why}{objects}"


def _count_values(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if values.dtype == np.uint8:
        # In pieces, because np.bincount converts its input to integers of eight bytes.
        parts = np.array_split(values.ravel(), values.size // 2**20 + 1)
        counts = np.sum([np.bincount(part, minlength=256) for part in parts], axis=0)
        return np.flatnonzero(counts), counts[counts > 0]
    return np.unique(values, return_counts=True)


def _colour(table: np.ndarray, number: int) -> Colour:
    red, green, blue = map(int, table[number]) if number < len(table) else (0, 0, 0)
    return red, green, blue


def pack_colours(colours: np.ndarray) -> np.ndarray:
    """Pack colors (H, W, 3) into numbers (H, W): 0xRRGGBB."""
    wide = colours.astype(np.int32)
    return np.asarray(wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2])


def pack(colour: Colour) -> int:
    """Pack a color as 0xRRGGBB."""
    return colour[0] << 16 | colour[1] << 8 | colour[2]


def unpack(code: int) -> Colour:
    """Unpack a color from 0xRRGGBB."""
    return code >> 16, code >> 8 & 255, code & 255


def to_codes(pixels: PixelArray, by_colour: bool) -> np.ndarray:
    """Return the numbers (H, W) of a mask, or its packed colors."""
    values, palette = pixels.values, pixels.palette
    if not by_colour:
        return values if values.ndim == 2 else values[..., 0]
    if values.ndim == 3:
        return pack_colours(values)
    if palette is None:
        return values.astype(np.int32) * 0x010101
    table = np.zeros((max(256, len(palette)), 3), np.uint8)
    table[: len(palette)] = palette
    return np.take(pack_colours(table[None])[0], values)


#: In a mask with class indices, 255 marks ignored pixels, as in Pascal VOC; in a mask of 0 and 255, the foreground.
VOID = 255


@dataclass(frozen=True)
class MaskHints:
    """Knowledge about masks that does not come from the files.

    Attributes:
        classes: the names and colors of the classes.
        ignore_index: the number to ignore; if classes are encoded by colors, the position of the class.
        labels: the labels of a multi-label data set.
        classes_without_ignored: whether `classes` no longer contains the ignored class.
    """

    classes: Classes | None = None
    ignore_index: int | None = None
    labels: tuple[str, ...] = ()
    classes_without_ignored: bool = False


def differ_by_colour(scans: Sequence[MaskScan]) -> bool:
    """Return whether colors distinguish the masks.

    RGB that is not grey, or palettes with different colors for one number.
    """
    if any(len({*unpack(code)}) > 1 for scan in scans if scan.rgb for code in scan.counts):
        return True
    seen: dict[int, Colour] = {}
    return any(seen.setdefault(number, colour) != colour for scan in scans for number, colour in scan.palette.items())


def count_codes(scan: MaskScan, by_colour: bool) -> dict[int, int]:
    """Count the pixels with each code in a file."""
    if by_colour:
        return scan.by_colour()
    return {code & 255: count for code, count in scan.counts.items()} if scan.rgb else scan.counts


def first_file_of_codes(scans: Sequence[MaskScan], by_colour: bool) -> dict[int, Path]:
    """Return every code with the first file that contains it."""
    found: dict[int, Path] = {}
    for scan in scans:
        for code in count_codes(scan, by_colour):
            found.setdefault(code, scan.path)
    return dict(sorted(found.items()))


class FoundClasses(NamedTuple):
    """The codes of the classes and of ignored pixels, with problems and what else a user should know, a line each."""

    codes: tuple[int, ...]
    ignored: tuple[int, ...] = ()
    problems: Sequence[str] = ()
    notes: Sequence[str] = ()


def classes_of_colours(present: dict[int, Path], totals: dict[int, int], hints: MaskHints) -> FoundClasses:
    """Find the packed colors of the classes: black first or, of two without black, the one with more pixels."""
    known = hints.classes
    codes, notes = [*present], []
    if known and known.colours:
        codes = [pack(colour) for colour in known.colours]
    elif known and len(known.names) != len(codes):
        problem = f"the masks hold {len(codes)} colours, but there are names for {len(known.names)} classes"
        return FoundClasses((*codes,), (), [f"{problem}; give each class a colour in classes.txt: NAME R G B"])
    elif not known and len(codes) == 2 and 0 not in codes:
        codes.sort(key=lambda code: -totals[code])
        first, second = (format_code(code, True) for code in codes)
        notes = [f"{first} is taken for the background, since it has more pixels than {second}; classes.txt can say so"]
    if hints.classes_without_ignored and hints.ignore_index is not None:
        return FoundClasses((*codes,), (*sorted(present.keys() - {*codes}),)[:1])
    ignored = () if hints.ignore_index is None or hints.ignore_index >= len(codes) else (codes[hints.ignore_index],)
    return FoundClasses(tuple(code for code in codes if code not in ignored), ignored, [], notes)


#: Numbers that mean that a pixel is not labelled, beside others: the largest of 8, 16 and 32 bits.
_VOIDS = (VOID, 65535, 2**31 - 1, 2**32 - 1)
#: Evenly spread numbers, such as 0, 85, 170 and 255, are at least so far from each other, and at most so many.
_LEAST_STEP, _MOST_SPREAD = 8, 16
#: The least share of all pixels that each of them has; a few grey pixels between black and white are no class.
_LEAST_SHARE = 2e-3


def classes_of_numbers(present: dict[int, Path], totals: dict[int, int], hints: MaskHints) -> FoundClasses:
    """Find the numbers of the classes.

    Two numbers are binary. Negative numbers, and the largest of an integer type beside others, are ignored. Numbers
    from 0 without gaps, or few that are evenly spread, are classes; other numbers need a `classes.txt`.
    """
    said = set() if hints.ignore_index is None else {hints.ignore_index}
    if hints.classes and hints.classes.values:
        values = tuple(value for value in hints.classes.values if value not in said)
        void = {code for code in present.keys() - {*values} - said if code < 0 or code in _VOIDS}
        return FoundClasses(values, (*sorted(said | void),))
    count = 2 if hints.labels else len(hints.classes.names) if hints.classes else 0
    rest = present.keys() - said
    void = {code for code in rest if code < 0}
    rest -= void
    if count in (0, 2) and VOID in rest <= {0, VOID}:  # also where no mask shows the background
        return _found((0, VOID), said, void, present)
    if (len(rest) > 2 or count > 2) and max(rest, default=0) >= max(count, VOID):
        highest = max(rest)
        if highest in _VOIDS and (count or not _is_spread(rest)):
            void, rest = void | {highest}, rest - {highest}
    if count in (0, 2) and len(rest) == 2:
        return _found((*sorted(rest),), said, void, present)
    if count:
        usual = {*range(count + len(said) * hints.classes_without_ignored)} - said
        codes = usual if rest <= usual or len(rest) != len(usual) else rest
    else:
        usual = {*[code for code in range(max(len(rest), 2) + len(said)) if code not in said][: max(len(rest), 2)]}
        codes = usual if rest <= {0, 1} else rest  # a mask of 0 or of 1 alone shows only background, or only foreground
        rare = min((totals[code] for code in rest), default=0) < _LEAST_SHARE * sum(totals.values())
        if codes != usual and (rare or not _is_spread(rest)):
            return FoundClasses((*sorted(rest),), (*sorted(said | void),), [_describe_gap(rest, present, totals)])
    return _found((*sorted(codes),), said, void, present)


def _is_spread(numbers: set[int]) -> bool:
    steps = {second - first for first, second in pairwise(sorted(numbers))}
    few = 3 <= len(numbers) <= _MOST_SPREAD and min(numbers) == 0
    return few and min(steps) >= _LEAST_STEP and max(steps) - min(steps) <= 2


def _found(codes: tuple[int, ...], said: set[int], guessed: set[int], present: dict[int, Path]) -> FoundClasses:
    """Return the classes, with a note of what was guessed."""
    notes = []
    if unusual := guessed - {VOID}:
        what = ", ".join(map(str, sorted(unusual)))
        notes.append(f"{what} in masks, as in {present[min(unusual)]}, is ignored; classes.txt can make it a class")
    if codes not in ((0, 1), (0, VOID)) and codes != (*range(len(codes)),):
        notes.append(f"the numbers {', '.join(map(str, codes))} in masks are classes, in this order")
    return FoundClasses(codes, (*sorted(said | guessed),), [], notes)


def find_mixed_binary(scans: Sequence[MaskScan], codes: Sequence[int]) -> list[str]:
    """Report masks of 0 and 1 among masks of 0 and 255, whose 255 would be ignored."""
    ones, voids = (
        [s.path for s in scans if code in s.counts and other not in s.counts] for code, other in ((1, 255), (255, 1))
    )
    if [*codes] != [0, 1] or not ones or not voids or any({1, 255} <= scan.counts.keys() for scan in scans):
        return []
    return [f"{voids[0]}: holds 0 and 255, but {ones[0]} 0 and 1; use the same values in all masks"]


def _describe_gap(numbers: set[int], present: dict[int, Path], totals: dict[int, int]) -> str:
    some, odd = sorted(numbers), min(sorted(numbers, reverse=True), key=lambda code: totals[code])
    shown = ", ".join(map(str, some[:8])) + (f" and {len(some) - 8} more" if len(some) > 8 else "")
    return (
        f"{present[odd]}: holds {odd}; classes are numbers from 0 without gaps, but all masks hold {shown}; "
        "write a line NAME VALUE for each class into classes.txt, or give --ignore-index N for one that is no class"
    )


def _percent(share: float) -> str:
    return f"{share:.2%}" if share >= 1e-4 else "less than 0.01%"


def _describe_blend(found: Blended, present: dict[int, Path], by_colour: bool) -> str:
    """Say which codes lie between others along edges, and what to do."""
    path, what = present[found.codes[0]], "colours" if by_colour else "numbers"
    pure = ", ".join(format_code(code, by_colour) for code in found.pure[:6])
    pure += ", ..." if len(found.pure) > 6 else ""
    cause = "JPEG" if path.suffix.lower() in (".jpg", ".jpeg") else "smooth resizing or anti-aliasing"
    many = f"{len(found.codes)} {what} such as" if len(found.codes) > 1 else what.removesuffix("s")
    return (
        f"{path}: holds {many} {format_code(found.codes[0], by_colour)} between or next to {pure}, as {cause} leaves "
        f"them ({_percent(found.share)} of all pixels); set them to the nearest class, or name all in classes.txt"
    )


def format_code(code: int, by_colour: bool) -> str:
    """Format a code: 7, #ff0000."""
    return f"#{code:06x}" if by_colour else str(code)


@dataclass(frozen=True)
class MaskEncoding:
    """The reading of a data set's mask files.

    Attributes:
        target: what the masks mean.
        by_colour: whether classes are encoded by colors or by numbers.
        codes: the number or packed color of each class, in order; for multi-label masks those of "no" and "yes".
        ignored: the codes to ignore.
    """

    target: Target
    by_colour: bool
    codes: tuple[int, ...]
    ignored: tuple[int, ...] = ()

    def read(self, path: Path) -> np.ndarray:
        """Read a mask file as classes (H, W) int64, with IGNORE. Raises FileError."""
        found = to_codes(read_mask(path), self.by_colour)
        table = np.array([*self.codes, *self.ignored])
        classes = np.array([*range(len(self.codes)), *(IGNORE for _ in self.ignored)])
        mask = (
            _lookup_bytes(found, table, classes) if found.dtype == np.uint8 else _lookup_sorted(found, table, classes)
        )
        if (strange := mask == _STRANGE).any():
            raise FileError(f"{path}: {self.unexpected([int(found[strange][0])])}")
        return mask

    def unexpected(self, codes: Sequence[int]) -> str:
        """Describe codes that belong to no class."""
        what = ", ".join(format_code(code, self.by_colour) for code in sorted(codes)[:4])
        known = ", ".join(format_code(code, self.by_colour) for code in self.codes[:8])
        more = f" and {len(self.codes) - 8} more" if len(self.codes) > 8 else ""
        return f"holds {what}{', ...' if len(codes) > 4 else ''}, but classes are {known}{more}"


#: Marks a number that belongs to no class.
_STRANGE = IGNORE - 1


def _lookup_bytes(found: np.ndarray, table: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Look up the class of each 8-bit number; this is fast, and needs no more memory than the result."""
    small = (table >= 0) & (table < 256)
    every = np.full(256, _STRANGE)
    every[table[small]] = classes[small]
    return np.asarray(every[found])


def _lookup_sorted(found: np.ndarray, table: np.ndarray, classes: np.ndarray) -> np.ndarray:
    order = np.argsort(table)
    place = order[np.searchsorted(table, found, sorter=order).clip(max=len(table) - 1)]
    return np.where(table[place] == found, classes[place], _STRANGE)


def infer_encoding(scans: Sequence[MaskScan], hints: MaskHints) -> tuple[MaskEncoding | None, list[str], list[str]]:
    """Infer the encoding of masks; return it with the problems, a line for each file, and with notes.

    The encoding is None if the masks hold more values than classes that could be meant.
    """
    by_colour = not hints.labels and differ_by_colour(scans)
    present, totals = first_file_of_codes(scans, by_colour), count_all_codes(scans, by_colour)
    found = classes_of_colours(present, totals, hints) if by_colour else classes_of_numbers(present, totals, hints)
    codes, ignored, problems = found.codes, found.ignored, [*found.problems]
    if not by_colour and hints.ignore_index is None:
        problems += find_mixed_binary(scans, codes)
    counts_from_0 = not by_colour and codes == (*range(len(codes)),) and len(codes) <= MAX_VALUES
    too_many = _find_too_many(scans, hints, by_colour)
    blended = None if hints.classes or (counts_from_0 and not too_many) else _find_blends(present, totals, by_colour)
    if blended:
        codes, problems = tuple(sorted(blended.pure)), [_describe_blend(blended, present, by_colour)]
    elif too_many:
        return None, too_many, []
    meaning = MaskEncoding(_target(scans, codes, hints, by_colour), by_colour, codes, ignored)
    if len(codes) < 2 and not problems:
        problems = [
            f"{scans[0].path}: the masks contain only one class, {meaning.target.names[0]}; "
            "the background is also a class"
        ]
    if not problems:
        known = {*codes, *ignored}
        strange = [(scan, count_codes(scan, by_colour).keys() - known) for scan in scans]
        problems = [f"{scan.path}: {meaning.unexpected([*rest])}" for scan, rest in strange if rest]
    return meaning, problems, [*found.notes]


def count_all_codes(scans: Sequence[MaskScan], by_colour: bool) -> dict[int, int]:
    """Count the pixels with each code in all files."""
    totals: Counter[int] = Counter()
    for scan in scans:
        totals.update(count_codes(scan, by_colour))
    return dict(totals)


def _find_too_many(scans: Sequence[MaskScan], hints: MaskHints, by_colour: bool) -> list[str]:
    """Describe the masks with more values than classes that could be meant."""
    most = max(MAX_VALUES, len(hints.classes.names) + 1 if hints.classes else 0)
    return [_describe_many(scan) for scan in scans if len(count_codes(scan, by_colour)) > most]


def _find_blends(present: dict[int, Path], totals: dict[int, int], by_colour: bool) -> Blended | None:
    read = cache(lambda path: to_codes(read_mask(path), by_colour))
    return find_blended(totals, _MasksByCode(present, read), colours=by_colour)


class _MasksByCode(Mapping[int, np.ndarray]):
    """A mask that contains it, for each code; masks are read when they are needed."""

    def __init__(self, present: dict[int, Path], read: Callable[[Path], np.ndarray]) -> None:
        self._present, self._read = present, read

    def __getitem__(self, code: int) -> np.ndarray:
        return self._read(self._present[code])

    def __iter__(self) -> Iterator[int]:
        return iter(self._present)

    def __len__(self) -> int:
        return len(self._present)


def _target(scans: Sequence[MaskScan], codes: Sequence[int], hints: MaskHints, by_colour: bool) -> Target:
    known = hints.classes
    if hints.labels:
        return Target("multilabel", hints.labels, known.colours if known else ())
    kept = (
        [place for place in range(len(known.names)) if hints.classes_without_ignored or place != hints.ignore_index]
        if known
        else []
    )
    if known and len(kept) == len(codes):
        names = [known.names[place] for place in kept]
        colours = [known.colours[place] for place in kept] if known.colours else _colours(scans, codes, by_colour)
    else:
        names, colours = _names(codes, by_colour), _colours(scans, codes, by_colour)
    return Target("binary" if len(codes) == 2 else "multiclass", (*names,), (*colours,))


def _names(codes: Sequence[int], by_colour: bool) -> list[str]:
    if len(codes) == 2:
        return ["background", "foreground"]
    names = [format_code(code, True) if by_colour else f"class {code}" for code in codes]
    return ["background" if code == 0 else name for code, name in zip(codes, names, strict=True)]


def _colours(scans: Sequence[MaskScan], codes: Sequence[int], by_colour: bool) -> list[Colour]:
    """Return the colors of the classes in the masks.

    None if the palette of an indexed PNG does not distinguish all of them.
    """
    if by_colour:
        return [unpack(code) for code in codes]
    palette = {number: colour for scan in scans for number, colour in scan.palette.items()}
    colours = [palette[code] for code in codes if code in palette]
    return colours if len({*colours}) == len(codes) else []
