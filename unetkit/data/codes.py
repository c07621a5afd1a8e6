"""Which of the numbers, or colours, that mask files hold stand for classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unetkit.data.layout import Classes
from unetkit.data.scan import Scan, pack, unpack
from unetkit.data.target import Colour

#: In a mask with class indices: this pixel counts nowhere, as in Pascal VOC; beside 0 alone it is the foreground.
VOID = 255


@dataclass(frozen=True)
class Told:
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


def needs_colour(scans: Sequence[Scan]) -> bool:
    """Whether masks differ by colour: RGB that is not all grey, or palettes that give one number two colours."""
    if any(len({*unpack(code)}) > 1 for scan in scans if scan.rgb for code in scan.counts):
        return True
    seen: dict[int, Colour] = {}
    return any(seen.setdefault(number, colour) != colour for scan in scans for number, colour in scan.palette.items())


def codes_in(scan: Scan, by_colour: bool) -> dict[int, int]:
    """Pixels of each code in a file."""
    if by_colour:
        return scan.by_colour()
    return {code & 255: count for code, count in scan.counts.items()} if scan.rgb else scan.counts


def present_in(scans: Sequence[Scan], by_colour: bool) -> dict[int, Path]:
    """Every code, and the first file that holds it."""
    found: dict[int, Path] = {}
    for scan in scans:
        for code in codes_in(scan, by_colour):
            found.setdefault(code, scan.path)
    return dict(sorted(found.items()))


Codes = tuple[tuple[int, ...], tuple[int, ...], list[str]]


def of_colours(present: dict[int, Path], told: Told) -> Codes:
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


def of_numbers(present: dict[int, Path], told: Told) -> Codes:
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


def mixed(scans: Sequence[Scan], codes: Sequence[int]) -> list[str]:
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
