"""A folder of images and masks as a data set.

H and W height and width, L labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unetkit.data.codes import Told
from unetkit.data.files import read_image, read_mask
from unetkit.data.layout import Classes, Entry, Layout, find, read_classes
from unetkit.data.masks import Meaning, meaning_of
from unetkit.data.places import HEAP, many
from unetkit.data.sample import Data, Sample
from unetkit.data.scan import MOST, Progress, Scan, scan_all
from unetkit.data.split import Rules, split
from unetkit.data.target import Target
from unetkit.errors import BadFile, UnetkitError

#: What is done to training images of a folder unless something else is asked for.
AUGMENT = "hflip,scale,light"


@dataclass(frozen=True)
class Folder:
    """One split: images and masks, read when they are asked for."""

    entries: Sequence[Entry]
    meaning: Meaning
    channels: int

    @property
    def held(self) -> list[str]:
        """The names of its images."""
        return [entry.name for entry in self.entries]

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int, /) -> Sample:
        entry = self.entries[index]
        image = read_image(entry.image)
        if len(image) != self.channels:
            raise BadFile(f"{entry.image}: has {many(len(image), 'channel')}, but the first image has {self.channels}")
        planes = [fitting(self.meaning.read(path), path, image, entry) for path in entry.masks]
        mask = np.stack(planes) if self.meaning.target.kind == "multilabel" else planes[0]
        instances = None if entry.instances is None else read_instances(entry.instances)
        if instances is not None:
            fitting(instances, entry.instances, image, entry)
        return Sample(
            entry.name, image, torch.from_numpy(mask), None if instances is None else torch.from_numpy(instances)
        )


@dataclass
class Found:
    """What was understood of a folder, and what is wrong with it. `meaning` is None where no mask could be read."""

    layout: Layout
    splits: dict[str, list[Entry]]
    scans: list[Scan]
    meaning: Meaning | None
    problems: list[str] = field(default_factory=list)


def open_folder(
    text: str, rules: Rules, ignore: int | None = None, target: Target | None = None, progress: Progress | None = None
) -> Data:
    """A folder as a data set.

    Raises:
        BadFile: files do not belong together, or cannot be read as masks.
        BadOption: it cannot be split so.
    """
    found = look(Path(text), rules, ignore, target, progress)
    if found.problems or found.meaning is None:
        more = f" ({many(len(found.problems) - 1, 'more problem')})" if len(found.problems) > 1 else ""
        raise BadFile(f"{found.problems[0]}{more}; `unetkit data check {text}` lists all")
    channels = len(read_image(next(iter(found.splits.values()))[0].image))
    splits = {name: Folder((*entries,), found.meaning, channels) for name, entries in found.splits.items()}
    return Data(text, found.meaning.target, channels, splits, AUGMENT)


def look(
    folder: Path,
    rules: Rules,
    ignore: int | None = None,
    target: Target | None = None,
    progress: Progress | None = None,
) -> Found:
    """Find, scan and split; what is wrong is told, not raised. `target` says what the masks mean where that is known.

    Raises:
        BadFile: there is nothing to understand.
    """
    classes = Classes(target.names, target.colours) if target else read_classes(folder)
    layout = find(folder, classes.names if classes else ())
    told = Told(_fitting_labels(classes, layout), ignore, layout.labels, rest=target is not None)
    paths = [path for entries in layout.splits.values() for entry in entries for path in entry.masks]
    results = scan_all(paths, progress, max(MOST, len(classes.names) + 1 if classes else 0))
    scans = [result for result in results if isinstance(result, Scan)]
    problems = [*layout.problems, *(str(result) for result in results if isinstance(result, UnetkitError))]
    meaning = None
    if scans:
        meaning, wrong = meaning_of(scans, told)
        problems += wrong
    found = Found(layout, {name: [*entries] for name, entries in layout.splits.items()}, scans, meaning, problems)
    _split(found, rules, folder)
    return found


def _fitting_labels(classes: Classes | None, layout: Layout) -> Classes | None:
    """Classes that are known, if they may be these masks'; they order the labels of a multi-label set."""
    if classes and layout.labels and {*classes.names} != {*layout.labels}:
        said = f"the classes are {', '.join(classes.names)}, but masks/ has folders {', '.join(layout.labels)}"
        raise BadFile(f"{said}; name each label as its folder")
    return classes


def _split(found: Found, rules: Rules, folder: Path) -> None:
    """Make the splits that the folders do not say."""
    if rules.val is None:
        found.splits = {name or "all": entries for name, entries in found.splits.items() if entries}
        if not found.splits:
            found.problems.append(f"{folder}: there is no image with a mask")
        return
    whole = HEAP if HEAP in found.splits else "train"
    heap = found.splits.get(whole, [])
    if not heap:
        found.problems.append(f"{folder}: no image with a mask is left to train on")
    elif "val" not in found.splits:
        try:
            train, val = split([entry.name for entry in heap], rules)
        except UnetkitError as error:
            found.problems.append(str(error))
            return
        del found.splits[whole]
        made = {"train": [heap[index] for index in train], "val": [heap[index] for index in val]}
        found.splits = made | found.splits


def read_instances(path: Path) -> np.ndarray:
    """Labels of objects (H, W) int64, 0 the background. Raises BadFile."""
    values = read_mask(path).values
    if values.ndim != 2:
        raise BadFile(f"{path}: holds colours; instances are a plane of integers, 0 the background")
    return values.astype(np.int64)


def fitting(plane: np.ndarray, path: Path | None, image: Tensor, entry: Entry) -> np.ndarray:
    """A mask that has its image's height and width. Raises BadFile."""
    if plane.shape != image.shape[1:]:
        raise BadFile(f"{path}: {_size(plane.shape)}, but its image {entry.image.name} is {_size(image.shape[1:])}")
    return plane


def _size(shape: Sequence[int]) -> str:
    return f"{shape[0]}x{shape[1]}"
