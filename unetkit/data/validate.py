"""What `unetkit data check` tells: what was understood of a data set, and every problem with its file name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from unetkit.data.folder import Folder, Found, look
from unetkit.data.leaks import torn_groups, twins
from unetkit.data.masks import Meaning
from unetkit.data.opening import named, open_data
from unetkit.data.places import many
from unetkit.data.sample import Images, Sample
from unetkit.data.scan import Progress
from unetkit.data.seen import Seen, in_data, in_folder
from unetkit.data.split import Rules
from unetkit.data.target import Colour, Target
from unetkit.errors import UnetkitError

#: What the types of an image's numbers are called.
_DEPTHS = {"bool": "1 bit", "uint8": "8 bit", "uint16": "16 bit"}


@dataclass(frozen=True)
class Class:
    """A class or label: the share of the pixels that count which it has, and in how many images it occurs."""

    name: str
    colour: Colour
    share: float
    images: int


@dataclass
class Report:
    """What was understood, and what is wrong; `notes` are worth knowing and no mistakes."""

    said: str
    kind: str = ""
    told_apart: str = ""
    classes: list[Class] = field(default_factory=list)
    ignored: float = 0.0
    splits: dict[str, int] = field(default_factory=dict)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    channels: dict[str, int] = field(default_factory=dict)
    depths: dict[str, int] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)
    objects: int | None = None
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self)


def validate_folder(
    text: str, rules: Rules, ignore: int | None = None, progress: Progress | None = None
) -> tuple[Report, list[Images], Target | None]:
    """A report on a folder or a named set, and what of it can be looked at.

    Raises:
        UnetkitError: there is nothing to understand.
    """
    report = Report(text)
    if named(text):
        data = open_data(text, seed=rules.seed, val=rules.val, group=rules.group, ignore=ignore)
        _fill(report, [*in_data(data, progress)], data.target)
        return report, [*data.splits.values()], data.target
    found = look(Path(text), rules, ignore, None, progress)
    report.problems, report.notes = found.problems, found.layout.notes
    seen = in_folder(found, progress)
    target = found.meaning.target if found.meaning else None
    _fill(report, seen, target)
    report.told_apart = _told_apart(found)
    report.files = dict(Counter(Path(one.file).suffix.lower().removeprefix(".") for one in seen))
    report.problems += twins(seen) + torn_groups(found, rules)
    return report, _images(found, report), target


def _images(found: Found, report: Report) -> list[Images]:
    channels = int(next(iter(report.channels), "1"))
    return [Folder(entries, found.meaning, channels) for entries in found.splits.values() if found.meaning]


def _told_apart(found: Found) -> str:
    if found.meaning is None:
        return ""
    if found.meaning.target.kind == "multilabel":
        return "a folder a label"
    return "colours" if found.meaning.by_colour else f"numbers {_numbers(found.meaning)}"


def _numbers(meaning: Meaning) -> str:
    codes = meaning.codes
    said = f"{codes[0]} to {codes[-1]}" if len(codes) > 2 else " and ".join(map(str, codes))
    ignored = ", ".join(map(str, meaning.ignored))
    return f"{said}; {ignored} counts nowhere" if ignored else said


def _fill(report: Report, seen: Sequence[Seen], target: Target | None) -> None:
    report.splits = dict(Counter(one.split for one in seen))
    whole = [one for one in seen if one.size]
    sizes = sorted({one.size for one in whole if one.size}, key=lambda size: (size[0] * size[1], size))
    report.sizes = [sizes[0], sizes[-1]] if sizes else []
    report.channels = {str(count): images for count, images in Counter(one.channels for one in whole).most_common()}
    report.depths = dict(Counter(_DEPTHS.get(one.numbers, one.numbers) for one in whole).most_common())
    known = [one.objects for one in seen if one.objects is not None]
    report.objects = sum(known) if known else None
    if target:
        report.kind = target.kind
        _classes(report, [one for one in seen if one.counts], target)
    report.problems += [problem for one in seen for problem in one.problems]
    usual = int(next(iter(report.channels), "0"))
    odd = [one for one in whole if one.channels != usual]
    report.problems += [f"{one.file}: has {many(one.channels, 'channel')}, but most have {usual}" for one in odd]
    if len(report.depths) > 1:
        report.notes.append(f"images of {' and '.join(report.depths)} are mixed")


def _classes(report: Report, seen: Sequence[Seen], target: Target) -> None:
    counted, ignored = sum(one.counted for one in seen), sum(one.ignored for one in seen)
    for index, (name, colour) in enumerate(zip(target.names, target.colours, strict=True)):
        pixels = [one.counts[index] for one in seen]
        report.classes.append(Class(name, colour, sum(pixels) / max(counted, 1), sum(map(bool, pixels))))
    report.ignored = ignored / max(counted + ignored, 1)
    first = 0 if target.kind == "multilabel" else 1
    empty = [one.file for one in seen if not any(one.counts[first:])]
    if empty:
        what = "no label" if first == 0 else f"nothing but {target.names[0]}"
        report.notes.append(f"{many(len(empty), 'mask')} of {len(seen)} with {what}, the first that of {empty[0]}")
    report.notes += [f"class {one.name} occurs nowhere" for one in report.classes if not one.images]


def pick_samples(splits: Sequence[Images], most: int) -> list[Sample]:
    """Up to so many samples that can be read, from all splits, evenly."""
    places = [(images, index) for images in splits for index in range(len(images))]
    kept: list[Sample] = []
    step = max(1.0, len(places) / most)
    wanted = [places[int(number * step)] for number in range(min(most, len(places)))]
    for images, index in wanted:
        try:
            kept.append(images[index])
        except UnetkitError:
            continue
    return kept
