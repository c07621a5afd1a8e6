"""From the numbers of mask files to classes: what each means, and what none should hold.

H and W height and width, L labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unetkit.data.codes import Told, code_said, codes_in, mixed, needs_colour, of_colours, of_numbers, present_in
from unetkit.data.files import read_mask
from unetkit.data.scan import Scan, codes_of, unpack
from unetkit.data.target import IGNORE, Colour, Target
from unetkit.errors import BadFile


@dataclass(frozen=True)
class Meaning:
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
        """A mask file as classes (H, W) int64, IGNORE among them. Raises BadFile."""
        found = codes_of(read_mask(path), self.by_colour)
        table = np.array([*self.codes, *self.ignored])
        classes = np.array([*range(len(self.codes)), *(IGNORE for _ in self.ignored)])
        mask = _looked_up(found, table, classes) if found.dtype == np.uint8 else _searched(found, table, classes)
        if (strange := mask == _STRANGE).any():
            raise BadFile(f"{path}: {self.unexpected([int(found[strange][0])])}")
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


def meaning_of(scans: Sequence[Scan], told: Told) -> tuple[Meaning, list[str]]:
    """What masks mean, and what is wrong with them, a line a file."""
    by_colour = not told.labels and needs_colour(scans)
    present = present_in(scans, by_colour)
    if by_colour:
        codes, ignored, problems = of_colours(present, told)
    else:
        codes, ignored, problems = of_numbers(present, told)
        problems += mixed(scans, codes) if told.ignore is None else []
    meaning = Meaning(_target(scans, codes, told, by_colour), by_colour, codes, ignored)
    if len(codes) < 2 and not problems:
        problems = [
            f"{scans[0].path}: the masks hold one class only, {meaning.target.names[0]}; the background is one too"
        ]
    if not problems:
        known = {*codes, *ignored}
        strange = [(scan, codes_in(scan, by_colour).keys() - known) for scan in scans]
        problems = [f"{scan.path}: {meaning.unexpected([*rest])}" for scan, rest in strange if rest]
    return meaning, problems


def _target(scans: Sequence[Scan], codes: Sequence[int], told: Told, by_colour: bool) -> Target:
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


def _colours(scans: Sequence[Scan], codes: Sequence[int], by_colour: bool) -> list[Colour]:
    """The masks' own colours; none where an indexed PNG's palette does not tell all of them apart."""
    if by_colour:
        return [unpack(code) for code in codes]
    palette = {number: colour for scan in scans for number, colour in scan.palette.items()}
    colours = [palette[code] for code in codes if code in palette]
    return colours if len({*colours}) == len(codes) else []
