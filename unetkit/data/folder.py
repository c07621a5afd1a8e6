"""A folder of images and masks as a data set.

H and W height and width, L labels.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unetkit.data.io import ENDINGS, read_image, read_mask
from unetkit.data.mask_encoding import (
    MOST,
    Classes,
    MaskEncoding,
    MaskHints,
    MaskScan,
    Progress,
    infer_encoding,
    scan_all,
)
from unetkit.data.splits import SplitConfig, split_names
from unetkit.data.types import DatasetSplits, Sample, Target
from unetkit.errors import FileError, UnetkitError

SPLITS = ("train", "val", "test")
#: The name of a split that is not made yet.
UNSPLIT = ""
#: Files by their path below a folder, without the ending.
Files = dict[str, Path]


def find_folders(folder: Path) -> dict[str, dict[str, Path]]:
    """Where each split's images, masks and instances are."""
    kinds = ("images", "masks", "instances")
    if not folder.is_dir():
        raise FileError(f"{folder}: there is no such folder")
    inside = {name: {kind: folder / name / kind for kind in kinds} for name in SPLITS}
    below = {name: {kind: folder / kind / name for kind in kinds} for name in SPLITS}
    if found := {name: place for name, place in inside.items() if place["images"].is_dir()}:
        return found
    if any(place["images"].is_dir() and place["masks"].is_dir() for place in below.values()):
        return {name: place for name, place in below.items() if place["images"].is_dir()}
    if not ((folder / "images").is_dir() and (folder / "masks").is_dir()):
        raise FileError(
            f"{folder}: holds no images/ and masks/, itself or in train/, val/ and test/; put images into the one and"
            f" masks of the same names into the other"
        )
    return {UNSPLIT: {kind: folder / kind for kind in kinds}}


def list_files(folder: Path, problems: list[str], notes: list[str]) -> Files:
    """The files in a folder and below it that may be read, by their path without the ending."""
    found: Files = {}
    others = []
    for path in sorted(folder.rglob("*")) if folder.is_dir() else []:
        inside = path.relative_to(folder)
        if any(part.startswith(".") for part in inside.parts) or path.is_dir():
            continue
        if path.suffix.lower() not in ENDINGS:
            others.append(path)
            continue
        stem = inside.with_suffix("").as_posix().removesuffix(".ome")
        if stem in found:
            problems.append(f"{path}: {found[stem].name} has the same name; keep one of them")
        found.setdefault(stem, path)
    if others:
        notes.append(f"{folder}: {count_of(len(others), 'file')} of other kinds left out, the first {others[0].name}")
    return found


def count_of(count: int, what: str) -> str:
    """1 image, 2 images."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


CLASSES = "classes.txt"


@dataclass(frozen=True)
class Entry:
    """An image's files: one mask, or one a label."""

    name: str
    image: Path
    masks: tuple[Path, ...]
    instances: Path | None = None


@dataclass
class FolderLayout:
    """What belongs together. `labels` are the folders' names in masks/ of a multi-label set, in order."""

    splits: dict[str, list[Entry]] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def find_layout(folder: Path, order: tuple[str, ...] = ()) -> FolderLayout:
    """Match images, masks and instances by stem. `order` is that of the labels, if these are they.

    Raises:
        FileError: there is no folder, or no images and masks in it.
    """
    layout = FolderLayout()
    found = {name: _kinds(place, layout) for name, place in find_folders(folder).items()}
    if not any(images for images, _, _ in found.values()):
        raise FileError(f"{folder}: no images are in it; {' '.join(ENDINGS)} are read")
    labels = _labels([(images, masks) for images, masks, _ in found.values()])
    layout.labels = order if {*order} == {*labels} else labels
    for name, (images, masks, instances) in found.items():
        if masks or name in ("train", UNSPLIT):
            layout.splits[name] = _matched(layout, images, masks, instances)
        elif images:
            layout.notes.append(f"{name}: left out, for it has images and no masks")
    return layout


def _kinds(place: dict[str, Path], layout: FolderLayout) -> tuple[Files, Files, Files]:
    images, masks, instances = (
        list_files(place[kind], layout.problems, layout.notes) for kind in ("images", "masks", "instances")
    )
    return images, masks, instances


def _labels(splits: list[tuple[Files, Files]]) -> tuple[str, ...]:
    """The labels of a set whose masks lie in a folder a label; none where a mask's path is its image's."""
    if any(stem in images for images, masks in splits for stem in masks):
        return ()
    pairs = {stem.partition("/")[0] for images, masks in splits for stem in masks if stem.partition("/")[2] in images}
    return tuple(sorted(pairs))


def _matched(layout: FolderLayout, images: Files, masks: Files, instances: Files) -> list[Entry]:
    """Images with all their masks; what lacks something is a problem."""
    entries = []
    left = {**masks}
    for stem, image in images.items():
        wanted = [f"{label}/{stem}" for label in layout.labels] or [stem]
        lacking = [name for name in wanted if left.get(name) is None]
        own = tuple(left.pop(name) for name in wanted if name in left)
        layout.problems += [f"{image}: has no mask masks/{name}.*" for name in lacking]
        if instances and stem not in instances:
            layout.problems.append(f"{image}: has no instances/{stem}.*, which other images have")
        elif not lacking:
            entries.append(Entry(stem, image, own, instances.get(stem)))
    layout.problems += [
        f"{path}: is a mask without an image images/{_end(stem, layout)}.*" for stem, path in left.items()
    ]
    layout.problems += [
        f"{path}: are instances without an image" for stem, path in instances.items() if stem not in images
    ]
    return entries


def _end(stem: str, layout: FolderLayout) -> str:
    return stem.partition("/")[2] if layout.labels and "/" in stem else stem


def read_classes(folder: Path) -> Classes | None:
    """What `classes.txt` says: a line a class, `name` or `name R G B`; None where there is none.

    Raises:
        FileError: it cannot be read, some lines alone give a colour, or a name or colour stands twice.
    """
    path = folder / CLASSES
    if not path.is_file():
        return None
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise FileError(f"{path}: cannot be read as UTF-8 text: {error}") from error
    said = [re.fullmatch(r"(.*?)(?:\s+(\d+)[ ,]+(\d+)[ ,]+(\d+))?", line.strip()) for line in lines]
    found = [match.groups() for match in said if match and match.group(1) and not match.group(1).startswith("#")]
    names = tuple(name for name, *_ in found)
    colours = tuple((int(red), int(green), int(blue)) for _, red, green, blue in found if red)
    if colours and len(colours) != len(names):
        raise FileError(
            f"{path}: {len(colours)} of {len(names)} lines give a colour; give each line one (R G B), or none"
        )
    if any(max(colour) > 255 for colour in colours):
        raise FileError(f"{path}: a colour is three numbers from 0 to 255")
    for what, items in (("name", names), ("colour", colours)):
        if twice := [item for item in items if items.count(item) > 1]:
            raise FileError(f"{path}: the {what} {twice[0]} stands twice")
    return Classes(names, colours) if names else None


#: What is done to training images of a folder unless something else is asked for.
AUGMENT = "hflip,scale,light"


@dataclass(frozen=True)
class FolderDataset:
    """One split: images and masks, read when they are asked for."""

    entries: Sequence[Entry]
    meaning: MaskEncoding
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
            raise FileError(
                f"{entry.image}: has {count_of(len(image), 'channel')}, but the first image has {self.channels}"
            )
        planes = [check_mask_size(self.meaning.read(path), path, image, entry) for path in entry.masks]
        mask = np.stack(planes) if self.meaning.target.kind == "multilabel" else planes[0]
        instances = None if entry.instances is None else read_instances(entry.instances)
        if instances is not None:
            check_mask_size(instances, entry.instances, image, entry)
        return Sample(
            entry.name, image, torch.from_numpy(mask), None if instances is None else torch.from_numpy(instances)
        )


@dataclass
class FolderIndex:
    """What was understood of a folder, and what is wrong with it. `meaning` is None where no mask could be read."""

    layout: FolderLayout
    splits: dict[str, list[Entry]]
    scans: list[MaskScan]
    meaning: MaskEncoding | None
    problems: list[str] = field(default_factory=list)


def open_folder(
    text: str,
    rules: SplitConfig,
    ignore: int | None = None,
    target: Target | None = None,
    progress: Progress | None = None,
) -> DatasetSplits:
    """A folder as a data set.

    Raises:
        FileError: files do not belong together, or cannot be read as masks.
        OptionError: it cannot be split so.
    """
    found = index_folder(Path(text), rules, ignore, target, progress)
    if found.problems or found.meaning is None:
        more = f" ({count_of(len(found.problems) - 1, 'more problem')})" if len(found.problems) > 1 else ""
        raise FileError(f"{found.problems[0]}{more}; `unetkit data check {text}` lists all")
    channels = len(read_image(next(iter(found.splits.values()))[0].image))
    splits = {name: FolderDataset((*entries,), found.meaning, channels) for name, entries in found.splits.items()}
    return DatasetSplits(text, found.meaning.target, channels, splits, AUGMENT)


def index_folder(
    folder: Path,
    rules: SplitConfig,
    ignore: int | None = None,
    target: Target | None = None,
    progress: Progress | None = None,
) -> FolderIndex:
    """Find, scan and split; what is wrong is told, not raised. `target` says what the masks mean where that is known.

    Raises:
        FileError: there is nothing to understand.
    """
    classes = Classes(target.names, target.colours) if target else read_classes(folder)
    layout = find_layout(folder, classes.names if classes else ())
    told = MaskHints(_fitting_labels(classes, layout), ignore, layout.labels, rest=target is not None)
    paths = [path for entries in layout.splits.values() for entry in entries for path in entry.masks]
    results = scan_all(paths, progress, max(MOST, len(classes.names) + 1 if classes else 0))
    scans = [result for result in results if isinstance(result, MaskScan)]
    problems = [*layout.problems, *(str(result) for result in results if isinstance(result, UnetkitError))]
    meaning = None
    if scans:
        meaning, wrong = infer_encoding(scans, told)
        problems += wrong
    found = FolderIndex(layout, {name: [*entries] for name, entries in layout.splits.items()}, scans, meaning, problems)
    _split(found, rules, folder)
    return found


def _fitting_labels(classes: Classes | None, layout: FolderLayout) -> Classes | None:
    """Classes that are known, if they may be these masks'; they order the labels of a multi-label set."""
    if classes and layout.labels and {*classes.names} != {*layout.labels}:
        said = f"the classes are {', '.join(classes.names)}, but masks/ has folders {', '.join(layout.labels)}"
        raise FileError(f"{said}; name each label as its folder")
    return classes


def _split(found: FolderIndex, rules: SplitConfig, folder: Path) -> None:
    """Make the splits that the folders do not say."""
    if rules.val_fraction is None:
        found.splits = {name or "all": entries for name, entries in found.splits.items() if entries}
        if not found.splits:
            found.problems.append(f"{folder}: there is no image with a mask")
        return
    whole = UNSPLIT if UNSPLIT in found.splits else "train"
    heap = found.splits.get(whole, [])
    if not heap:
        found.problems.append(f"{folder}: no image with a mask is left to train on")
    elif "val" not in found.splits:
        try:
            train, val = split_names([entry.name for entry in heap], rules)
        except UnetkitError as error:
            found.problems.append(str(error))
            return
        del found.splits[whole]
        made = {"train": [heap[index] for index in train], "val": [heap[index] for index in val]}
        found.splits = made | found.splits


def read_instances(path: Path) -> np.ndarray:
    """Labels of objects (H, W) int64, 0 the background. Raises FileError."""
    values = read_mask(path).values
    if values.ndim != 2:
        raise FileError(f"{path}: holds colours; instances are a plane of integers, 0 the background")
    return values.astype(np.int64)


def check_mask_size(plane: np.ndarray, path: Path | None, image: Tensor, entry: Entry) -> np.ndarray:
    """A mask that has its image's height and width. Raises FileError."""
    if plane.shape != image.shape[1:]:
        raise FileError(f"{path}: {_size(plane.shape)}, but its image {entry.image.name} is {_size(image.shape[1:])}")
    return plane


def _size(shape: Sequence[int]) -> str:
    return f"{shape[0]}x{shape[1]}"
