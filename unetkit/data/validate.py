"""The checks of `unetkit data check`: how a data set is interpreted, and every problem with its file name.

Images and masks are read once more, in threads; images that occur in two splits are found by a digest. Shapes: C
channels, L labels, H and W height and width.
"""

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

from unetkit.data.datasets import open_data
from unetkit.data.folder import (
    FolderDataset,
    FolderIndex,
    describe_absent,
    describe_ignored,
    describe_misfit,
    index_folder,
    note_orientations,
    read_instances,
    read_objects,
)
from unetkit.data.io import apply_palette, find_missing, known_values, read_header, read_pixels
from unetkit.data.layout import ImageEntry
from unetkit.data.mask_encoding import MaskEncoding, MaskScan, Progress, count_codes
from unetkit.data.sample_checks import find_sample_error
from unetkit.data.source import is_named_dataset
from unetkit.data.splits import SplitConfig, group_keys
from unetkit.data.statistics import FarValue, find_far_value, measure_statistics
from unetkit.data.types import IGNORE, Colour, Dataset, DatasetSplits, Sample, Target
from unetkit.errors import UnetkitError
from unetkit.registry import Parts
from unetkit.utils.formatting import format_plural


@dataclass
class ImageReport:
    """The properties and problems of one image with its mask.

    Attributes:
        file: the path, or the name of a sample without a file.
        split: the split of the image.
        size: the height and width; None if the image cannot be read.
        channels: the number of channels.
        numbers: the type of its numbers, such as "uint8".
        digest: a digest of the image's numbers.
        counts: the number of pixels of each class or label.
        counted: the number of pixels that are not ignored, in the mask or in that of each label.
        ignored: the number of ignored pixels.
        missing: the number of pixels without data.
        far: a number that may mean that there are no data.
        objects: the number of instances; None if unknown.
        orientation: how the image is turned, as its EXIF data say; "" if it is not.
        problems: the problems, with file names.
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
    missing: int = 0
    far: FarValue | None = None
    objects: int | None = None
    orientation: str = ""
    problems: list[str] = field(default_factory=list)


def report_folder(
    found: FolderIndex, nodata: float | None = None, progress: Progress | None = None
) -> list[ImageReport]:
    """Check every image of a folder in threads."""
    scans = {scan.path: scan for scan in found.scans}
    jobs = [(split, entry, scans, found, nodata) for split, entries in found.splits.items() for entry in entries]
    seen: list[ImageReport] = []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for one in pool.map(_report_entry, jobs):
            seen.append(one)
            if progress:
                progress(len(seen), len(jobs))
    return seen


def _report_entry(job: tuple[str, ImageEntry, dict[Path, MaskScan], FolderIndex, float | None]) -> ImageReport:
    split, entry, scans, found, nodata = job
    seen = ImageReport(str(entry.image), split)
    try:
        pixels = read_pixels(entry.image)
        _check_image(seen, apply_palette(pixels), (nodata, pixels.nodata))
        seen.far = find_far_value(known_values(pixels, nodata))
    except UnetkitError as error:
        seen.problems.append(str(error))
    own = [scans.get(path) for path in entry.masks]
    _compare_sizes(seen, entry, [scan for scan in own if scan])
    if found.encoding and own and all(own):
        yes = found.encoding.codes
        counts = [count_codes(scan, found.encoding.by_colour) for scan in own if scan]
        labels = found.encoding.target.kind == "multilabel"
        seen.counts = (
            [count.get(yes[-1], 0) for count in counts] if labels else [counts[0].get(code, 0) for code in yes]
        )
        seen.ignored = sum(count.get(code, 0) for count in counts for code in found.encoding.ignored)
        seen.counted = sum(counts[0].values()) - seen.ignored // len(counts)
    if entry.instances or entry.objects:
        _count_objects(seen, entry)
    return seen


def _check_image(seen: ImageReport, values: np.ndarray, nodata: Sequence[float | None]) -> None:
    seen.size, seen.channels = (values.shape[0], values.shape[1]), values.shape[2] if values.ndim == 3 else 1
    seen.numbers = str(values.dtype)
    digest = hashlib.sha256(repr(values.shape).encode())
    digest.update(np.ascontiguousarray(values).data)
    seen.digest = digest.hexdigest()
    missing = np.broadcast_to(find_missing(values, nodata), values.shape[:2])
    seen.missing = int(missing.sum())
    if values.dtype.kind == "f" and (count := int((~np.isfinite(values[~missing])).sum())):
        advice = "if they mean that there are no data, give --nodata nan, or --nodata inf"
        seen.problems.append(f"{seen.file}: contains NaN or infinity ({format_plural(count, 'number')}); {advice}")


def _compare_sizes(seen: ImageReport, entry: ImageEntry, scans: Sequence[MaskScan]) -> None:
    if seen.size:
        header = read_header(entry.image)
        seen.orientation = header.orientation
        seen.problems += filter(None, (describe_misfit(entry, header, [scan]) for scan in scans))


def _count_objects(seen: ImageReport, entry: ImageEntry) -> None:
    path = entry.instances or entry.objects[0]
    try:
        labels = read_instances(path) if entry.instances else read_objects(entry.objects)
    except UnetkitError as error:
        seen.problems.append(str(error))
        return
    seen.objects = _objects(labels)
    if seen.size and labels.shape != seen.size:
        seen.problems.append(f"{path}: is {labels.shape[0]}x{labels.shape[1]}, but its image {seen.file} is not")
    if not entry.masks:
        inside = int((labels > 0).sum())
        seen.counts, seen.counted = [labels.size - inside, inside], labels.size


def report_dataset(data: DatasetSplits, progress: Progress | None = None) -> Iterator[ImageReport]:
    """Check every sample of a data set that is not a folder."""
    total, done = sum(map(len, data.splits.values())), 0
    for split, images in data.splits.items():
        for index in range(len(images)):
            yield _report_sample(images[index], split, data)
            done += 1
            if progress:
                progress(done, total)


def _report_sample(sample: Sample, split: str, data: DatasetSplits) -> ImageReport:
    seen, target = ImageReport(sample.name, split), data.target
    if why := find_sample_error(sample, target, data.channels):
        seen.problems.append(f"{sample.name}: {why}")
        return seen
    _check_image(seen, np.moveaxis(sample.image.numpy(), 0, -1), ())
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
    """Report images that occur in two splits."""
    alike: dict[str, dict[str, str]] = defaultdict(dict)
    for one in seen:
        if one.digest:
            alike[one.digest].setdefault(one.split, one.file)
    leaks = [[*files.values()] for files in alike.values() if len(files) > 1]
    return [
        f"{second}: is the same image as {first}, in another split, which makes scores too high"
        for first, second, *_ in leaks
    ]


def groups_in_several_splits(found: FolderIndex, rules: SplitConfig) -> list[str]:
    """Report groups that are divided by the folders of splits."""
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
    return [
        f"group {key!r}: is in {' and '.join(sorted(splits))}, which makes scores too high"
        for key, splits in torn.items()
    ]


#: The displayed names of the number types of images.
_DEPTHS = {"bool": "1 bit", "uint8": "8 bit", "uint16": "16 bit"}


@dataclass(frozen=True)
class ClassReport:
    """A class or label with its share of the pixels that are not ignored, and the number of images that have it.

    `splits` is the number of images of each split that have it.
    """

    name: str
    colour: Colour
    share: float
    images: int
    splits: dict[str, int]


@dataclass
class DatasetReport:
    """The interpretation of a data set, and its problems; `notes` are worth knowing but are not problems.

    `range` is the range of the training images in the numbers of the files, and `missing` the share of pixels without
    data.
    """

    data: str
    kind: str = ""
    class_encoding: str = ""
    classes: list[ClassReport] = field(default_factory=list)
    ignored: float = 0.0
    splits: dict[str, int] = field(default_factory=dict)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    channels: dict[str, int] = field(default_factory=dict)
    depths: dict[str, int] = field(default_factory=dict)
    range: tuple[float, float] | None = None
    missing: float = 0.0
    files: dict[str, int] = field(default_factory=dict)
    objects: int | None = None
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON can hold it."""
        return asdict(self)


def validate_folder(
    text: str,
    rules: SplitConfig,
    ignore: int | None = None,
    nodata: float | None = None,
    progress: Progress | None = None,
    parts: Parts | None = None,
) -> tuple[DatasetReport, list[Dataset], Target | None]:
    """Check a folder or a named data set; return the report, the splits to draw samples of, and what the masks mean.

    Raises:
        UnetkitError: The data cannot be interpreted.
    """
    report = DatasetReport(text)
    if is_named_dataset(text, parts):
        data = open_data(
            text,
            seed=rules.seed,
            val_fraction=rules.val_fraction,
            group_by=rules.group_by,
            ignore_index=ignore,
            nodata=nodata,
            parts=parts,
        )
        _fill(report, [*report_dataset(data, progress)], data.target)
        if not report.problems:
            _describe_range(report, data.splits.get("train"))
        return report, [*data.splits.values()], data.target
    found = index_folder(Path(text), rules, ignore, None, progress)
    report.problems, report.notes = found.problems, found.layout.notes
    seen = report_folder(found, nodata, progress)
    target = found.encoding.target if found.encoding else None
    _fill(report, seen, target)
    report.class_encoding = _class_encoding(found)
    report.files = dict(Counter(Path(one.file).suffix.lower().removeprefix(".") for one in seen))
    report.problems += duplicates(seen) + groups_in_several_splits(found, rules)
    report.problems += _describe_far_values(seen, certain=True)
    report.notes += _describe_far_values(seen, certain=False)
    report.notes += note_orientations({one.file: one.orientation for one in seen})
    splits = _open_splits(found, report, nodata)
    if not report.problems:
        _describe_range(report, splits.get("train") or splits.get("all"))
    return report, [*splits.values()], target


def _open_splits(found: FolderIndex, report: DatasetReport, nodata: float | None) -> dict[str, Dataset]:
    channels = int(next(iter(report.channels), "1"))
    if found.encoding is None:
        return {}
    return {name: FolderDataset(entries, found.encoding, channels, nodata) for name, entries in found.splits.items()}


def _describe_far_values(seen: Sequence[ImageReport], *, certain: bool) -> list[str]:
    """Say of how many images a number may mean that there are no data, a line for each such number."""
    images: dict[float, list[ImageReport]] = defaultdict(list)
    for one in seen:
        if one.far and one.far.certain == certain:
            images[one.far.value].append(one)
    return [
        f"{ones[0].file}: contains {ones[0].far.describe() if ones[0].far else ''}"
        + (f" ({format_plural(len(ones) - 1, 'more image')})" if len(ones) > 1 else "")
        for ones in images.values()
    ]


#: The largest number of each type, by which values are divided.
_LARGEST = {"8 bit": 255, "16 bit": 65535}


def _describe_range(report: DatasetReport, images: Dataset | None) -> None:
    """Describe the range of the training images, in the numbers of the files."""
    if images is None or not len(images):
        return
    low, high = measure_statistics(images).range
    scale = _LARGEST.get(next(iter(report.depths)), 1) if len(report.depths) == 1 else 1
    report.range = min(low) * scale, max(high) * scale


def _class_encoding(found: FolderIndex) -> str:
    if found.encoding is None:
        return ""
    if found.encoding.target.kind == "multilabel":
        return "a folder a label"
    return "colours" if found.encoding.by_colour else f"numbers {_numbers(found.encoding)}"


def _numbers(meaning: MaskEncoding) -> str:
    codes = meaning.codes
    span = f"{codes[0]} to {codes[-1]}" if len(codes) > 2 else " and ".join(map(str, codes))
    ignored = ", ".join(map(str, meaning.ignored))
    return f"{span}; {ignored} is ignored" if ignored else span


def _fill(report: DatasetReport, seen: Sequence[ImageReport], target: Target | None) -> None:
    report.splits = dict(Counter(one.split for one in seen))
    readable = [one for one in seen if one.size]
    sizes = sorted({one.size for one in readable if one.size}, key=lambda size: (size[0] * size[1], size))
    report.sizes = [sizes[0], sizes[-1]] if sizes else []
    report.channels = {str(count): images for count, images in Counter(one.channels for one in readable).most_common()}
    report.depths = dict(Counter(_DEPTHS.get(one.numbers, one.numbers) for one in readable).most_common())
    pixels = sum(one.size[0] * one.size[1] for one in readable if one.size)
    report.missing = sum(one.missing for one in readable) / max(pixels, 1)
    known = [one.objects for one in seen if one.objects is not None]
    report.objects = sum(known) if known else None
    if target:
        report.kind = target.kind
        _classes(report, [one for one in seen if one.counts], target)
    report.problems += [problem for one in seen for problem in one.problems]
    usual = int(next(iter(report.channels), "0"))
    odd = [one for one in readable if one.channels != usual]
    report.problems += [
        f"{one.file}: has {format_plural(one.channels, 'channel')}, but most images have {usual}; "
        f"{'convert it, or give `unetkit train` --channels grey or rgb' if one.channels + usual == 4 else 'remove it'}"
        for one in odd
    ]
    if len(report.depths) > 1:
        report.notes.append(f"images of {' and '.join(report.depths)} are mixed")


def _classes(report: DatasetReport, seen: Sequence[ImageReport], target: Target) -> None:
    counted, ignored = sum(one.counted for one in seen), sum(one.ignored for one in seen)
    for index, (name, colour) in enumerate(zip(target.names, target.colours, strict=True)):
        pixels = [one.counts[index] for one in seen]
        splits = {split: sum(1 for one in seen if one.split == split and one.counts[index]) for split in report.splits}
        report.classes.append(ClassReport(name, colour, sum(pixels) / max(counted, 1), sum(map(bool, pixels)), splits))
    report.ignored = ignored / max(counted + ignored, 1)
    first = 0 if target.kind == "multilabel" else 1
    training = [one for one in seen if one.split == "train"]
    if first and training and not any(sum(one.counts) for one in training):
        report.problems.append(describe_ignored(report.data))
        return
    empty = [one.file for one in seen if not any(one.counts[first:])]
    if empty:
        what = "no label" if first == 0 else f"nothing but {target.names[0]}"
        report.notes.append(
            f"{format_plural(len(empty), 'mask')} of {len(seen)} with {what}, the first that of {empty[0]}"
        )
    never = [one.name for one in report.classes if not one.images]
    untrained = [one.name for one in report.classes if one.images and not one.splits.get("train", 1)]
    report.notes += describe_absent(never, "never occurs", "never occur")
    report.notes += describe_absent(untrained, "occurs in no training image", "occur in no training image")


def pick_samples(splits: Sequence[Dataset], most: int) -> list[Sample]:
    """Return up to `most` readable samples, evenly spaced over all splits."""
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
