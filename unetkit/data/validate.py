"""What `unetkit data check` tells: what was understood of a data set, and every problem with its file name."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from unetkit.data.datasets import named, open_data
from unetkit.data.folder import Entry, FolderDataset, FolderIndex, count_of, index_folder, read_instances
from unetkit.data.io import in_colours, read_pixels
from unetkit.data.mask_encoding import MaskEncoding, MaskScan, Progress, codes_in
from unetkit.data.splits import SplitConfig, group_keys
from unetkit.data.types import IGNORE, Colour, Dataset, DatasetSplits, Sample, Target
from unetkit.errors import UnetkitError


@dataclass
class ImageReport:
    """One image with its mask.

    Attributes:
        file: its path, or its name where it has no file of its own.
        split: that it is in.
        size: height and width; None where the image cannot be read.
        channels: of the image.
        numbers: their type, "uint8".
        digest: of the image's numbers.
        counts: pixels of each class or label.
        counted: pixels that count, of the mask or of each label's.
        ignored: pixels that do not.
        objects: instances in it; None where they are not known.
        problems: what is wrong, with file names.
    """

    file: str
    split: str
    size: tuple[int, int] | None = None
    channels: int = 0
    numbers: str = ""
    digest: str = ""
    counts: list[int] = field(default_factory=list)
    counted: int = 0
    ignored: int = 0
    objects: int | None = None
    problems: list[str] = field(default_factory=list)


def report_folder(found: FolderIndex, progress: Progress | None = None) -> list[ImageReport]:
    """Every image of a folder, read once more, in threads."""
    scans = {scan.path: scan for scan in found.scans}
    jobs = [(split, entry, scans, found) for split, entries in found.splits.items() for entry in entries]
    seen: list[ImageReport] = []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for one in pool.map(_of_entry, jobs):
            seen.append(one)
            if progress:
                progress(len(seen), len(jobs))
    return seen


def _of_entry(job: tuple[str, Entry, dict[Path, MaskScan], FolderIndex]) -> ImageReport:
    split, entry, scans, found = job
    seen = ImageReport(str(entry.image), split)
    try:
        _look(seen, in_colours(read_pixels(entry.image)))
    except UnetkitError as error:
        seen.problems.append(str(error))
    own = [scans.get(path) for path in entry.masks]
    _compare(seen, [scan for scan in own if scan])
    if found.meaning and all(own):
        yes = found.meaning.codes
        counts = [codes_in(scan, found.meaning.by_colour) for scan in own if scan]
        labels = found.meaning.target.kind == "multilabel"
        seen.counts = (
            [count.get(yes[-1], 0) for count in counts] if labels else [counts[0].get(code, 0) for code in yes]
        )
        seen.ignored = sum(count.get(code, 0) for count in counts for code in found.meaning.ignored)
        seen.counted = sum(counts[0].values()) - seen.ignored // len(counts)
    if entry.instances:
        _count(seen, entry.instances)
    return seen


def _look(seen: ImageReport, values: np.ndarray) -> None:
    seen.size, seen.channels = (values.shape[0], values.shape[1]), values.shape[2] if values.ndim == 3 else 1
    seen.numbers = str(values.dtype)
    digest = hashlib.sha256(repr(values.shape).encode())
    digest.update(np.ascontiguousarray(values).data)
    seen.digest = digest.hexdigest()
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        seen.problems.append(f"{seen.file}: holds NaN or infinity; training on it would end in NaN")


def _compare(seen: ImageReport, scans: Sequence[MaskScan]) -> None:
    for scan in scans:
        if seen.size and scan.size != seen.size:
            sizes = f"{scan.size[0]}x{scan.size[1]}, but its image {seen.file} is {seen.size[0]}x{seen.size[1]}"
            seen.problems.append(f"{scan.path}: is {sizes}")


def _count(seen: ImageReport, path: Path) -> None:
    try:
        labels = read_instances(path)
    except UnetkitError as error:
        seen.problems.append(str(error))
        return
    seen.objects = _objects(labels)
    if seen.size and labels.shape != seen.size:
        seen.problems.append(f"{path}: is {labels.shape[0]}x{labels.shape[1]}, but its image {seen.file} is not")


def report_dataset(data: DatasetSplits, progress: Progress | None = None) -> Iterator[ImageReport]:
    """Every sample of a set that has no folder of its own."""
    total, done = sum(map(len, data.splits.values())), 0
    for split, images in data.splits.items():
        for index in range(len(images)):
            yield _of_sample(images[index], split, data.target)
            done += 1
            if progress:
                progress(done, total)


def _of_sample(sample: Sample, split: str, target: Target) -> ImageReport:
    seen = ImageReport(sample.name, split)
    _look(seen, np.moveaxis(sample.image.numpy(), 0, -1))
    mask = sample.mask.numpy()
    planes = mask if target.kind == "multilabel" else [mask == index for index in range(len(target.names))]
    seen.counts = [int((plane == 1).sum()) for plane in planes]
    seen.ignored = int((mask == IGNORE).sum())
    seen.counted = mask[0].size - seen.ignored // len(mask) if mask.ndim == 3 else mask.size - seen.ignored
    seen.objects = None if sample.instances is None else _objects(sample.instances.numpy())
    return seen


def _objects(labels: np.ndarray) -> int:
    return len(np.unique(labels[labels != 0]))


def duplicates(seen: Sequence[ImageReport]) -> list[str]:
    """Images that stand in two splits."""
    alike: dict[str, dict[str, str]] = defaultdict(dict)
    for one in seen:
        if one.digest:
            alike[one.digest].setdefault(one.split, one.file)
    leaks = [[*files.values()] for files in alike.values() if len(files) > 1]
    return [f"{second}: is the same image as {first}, in another split: a leak" for first, second, *_ in leaks]


def groups_in_several_splits(found: FolderIndex, rules: SplitConfig) -> list[str]:
    """Groups that the folders' own splits tear apart."""
    if not rules.group_by:
        return []
    sides: dict[str, set[str]] = defaultdict(set)
    try:
        for split, entries in found.splits.items():
            for key in group_keys([entry.name for entry in entries], rules.group_by):
                sides[key].add(split)
    except UnetkitError as error:
        return [str(error)] if str(error) not in found.problems else []
    torn = {key: splits for key, splits in sides.items() if len(splits) > 1}
    return [f"group {key!r}: is in {' and '.join(sorted(splits))}: a leak" for key, splits in torn.items()]


#: What the types of an image's numbers are called.
_DEPTHS = {"bool": "1 bit", "uint8": "8 bit", "uint16": "16 bit"}


@dataclass(frozen=True)
class ClassReport:
    """A class or label: the share of the pixels that count which it has, and in how many images it occurs."""

    name: str
    colour: Colour
    share: float
    images: int


@dataclass
class DatasetReport:
    """What was understood, and what is wrong; `notes` are worth knowing and no mistakes."""

    said: str
    kind: str = ""
    class_encoding: str = ""
    classes: list[ClassReport] = field(default_factory=list)
    ignored: float = 0.0
    splits: dict[str, int] = field(default_factory=dict)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    channels: dict[str, int] = field(default_factory=dict)
    depths: dict[str, int] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)
    objects: int | None = None
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self)


def validate_folder(
    text: str, rules: SplitConfig, ignore: int | None = None, progress: Progress | None = None
) -> tuple[DatasetReport, list[Dataset], Target | None]:
    """A report on a folder or a named set, and what of it can be looked at.

    Raises:
        UnetkitError: there is nothing to understand.
    """
    report = DatasetReport(text)
    if named(text):
        data = open_data(
            text, seed=rules.seed, val_fraction=rules.val_fraction, group_by=rules.group_by, ignore_index=ignore
        )
        _fill(report, [*report_dataset(data, progress)], data.target)
        return report, [*data.splits.values()], data.target
    found = index_folder(Path(text), rules, ignore, None, progress)
    report.problems, report.notes = found.problems, found.layout.notes
    seen = report_folder(found, progress)
    target = found.meaning.target if found.meaning else None
    _fill(report, seen, target)
    report.class_encoding = _class_encoding(found)
    report.files = dict(Counter(Path(one.file).suffix.lower().removeprefix(".") for one in seen))
    report.problems += duplicates(seen) + groups_in_several_splits(found, rules)
    return report, _images(found, report), target


def _images(found: FolderIndex, report: DatasetReport) -> list[Dataset]:
    channels = int(next(iter(report.channels), "1"))
    return [FolderDataset(entries, found.meaning, channels) for entries in found.splits.values() if found.meaning]


def _class_encoding(found: FolderIndex) -> str:
    if found.meaning is None:
        return ""
    if found.meaning.target.kind == "multilabel":
        return "a folder a label"
    return "colours" if found.meaning.by_colour else f"numbers {_numbers(found.meaning)}"


def _numbers(meaning: MaskEncoding) -> str:
    codes = meaning.codes
    said = f"{codes[0]} to {codes[-1]}" if len(codes) > 2 else " and ".join(map(str, codes))
    ignored = ", ".join(map(str, meaning.ignored))
    return f"{said}; {ignored} counts nowhere" if ignored else said


def _fill(report: DatasetReport, seen: Sequence[ImageReport], target: Target | None) -> None:
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
    report.problems += [f"{one.file}: has {count_of(one.channels, 'channel')}, but most have {usual}" for one in odd]
    if len(report.depths) > 1:
        report.notes.append(f"images of {' and '.join(report.depths)} are mixed")


def _classes(report: DatasetReport, seen: Sequence[ImageReport], target: Target) -> None:
    counted, ignored = sum(one.counted for one in seen), sum(one.ignored for one in seen)
    for index, (name, colour) in enumerate(zip(target.names, target.colours, strict=True)):
        pixels = [one.counts[index] for one in seen]
        report.classes.append(ClassReport(name, colour, sum(pixels) / max(counted, 1), sum(map(bool, pixels))))
    report.ignored = ignored / max(counted + ignored, 1)
    first = 0 if target.kind == "multilabel" else 1
    empty = [one.file for one in seen if not any(one.counts[first:])]
    if empty:
        what = "no label" if first == 0 else f"nothing but {target.names[0]}"
        report.notes.append(f"{count_of(len(empty), 'mask')} of {len(seen)} with {what}, the first that of {empty[0]}")
    report.notes += [f"class {one.name} occurs nowhere" for one in report.classes if not one.images]


def pick_samples(splits: Sequence[Dataset], most: int) -> list[Sample]:
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
