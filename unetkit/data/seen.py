"""What is to be seen of each image and its mask, for `unetkit data check`.

C channels, L labels, H and W height and width.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from unetkit.data.codes import codes_in
from unetkit.data.files import in_colours, read_pixels
from unetkit.data.folder import Found, read_instances
from unetkit.data.layout import Entry
from unetkit.data.sample import Data, Sample
from unetkit.data.scan import Progress, Scan
from unetkit.data.target import IGNORE, Target
from unetkit.errors import UnetkitError


@dataclass
class Seen:
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


def in_folder(found: Found, progress: Progress | None = None) -> list[Seen]:
    """Every image of a folder, read once more, in threads."""
    scans = {scan.path: scan for scan in found.scans}
    jobs = [(split, entry, scans, found) for split, entries in found.splits.items() for entry in entries]
    seen: list[Seen] = []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for one in pool.map(_of_entry, jobs):
            seen.append(one)
            if progress:
                progress(len(seen), len(jobs))
    return seen


def _of_entry(job: tuple[str, Entry, dict[Path, Scan], Found]) -> Seen:
    split, entry, scans, found = job
    seen = Seen(str(entry.image), split)
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


def _look(seen: Seen, values: np.ndarray) -> None:
    seen.size, seen.channels = (values.shape[0], values.shape[1]), values.shape[2] if values.ndim == 3 else 1
    seen.numbers = str(values.dtype)
    digest = hashlib.sha256(repr(values.shape).encode())
    digest.update(np.ascontiguousarray(values).data)
    seen.digest = digest.hexdigest()
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        seen.problems.append(f"{seen.file}: holds NaN or infinity; training on it would end in NaN")


def _compare(seen: Seen, scans: Sequence[Scan]) -> None:
    for scan in scans:
        if seen.size and scan.size != seen.size:
            sizes = f"{scan.size[0]}x{scan.size[1]}, but its image {seen.file} is {seen.size[0]}x{seen.size[1]}"
            seen.problems.append(f"{scan.path}: is {sizes}")


def _count(seen: Seen, path: Path) -> None:
    try:
        labels = read_instances(path)
    except UnetkitError as error:
        seen.problems.append(str(error))
        return
    seen.objects = _objects(labels)
    if seen.size and labels.shape != seen.size:
        seen.problems.append(f"{path}: is {labels.shape[0]}x{labels.shape[1]}, but its image {seen.file} is not")


def in_data(data: Data, progress: Progress | None = None) -> Iterator[Seen]:
    """Every sample of a set that has no folder of its own."""
    total, done = sum(map(len, data.splits.values())), 0
    for split, images in data.splits.items():
        for index in range(len(images)):
            yield _of_sample(images[index], split, data.target)
            done += 1
            if progress:
                progress(done, total)


def _of_sample(sample: Sample, split: str, target: Target) -> Seen:
    seen = Seen(sample.name, split)
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
