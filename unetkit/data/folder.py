"""A folder of images and masks as a data set.

The files of a folder are matched by name before any of them is read. Shapes: H and W height and width, L labels.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unetkit.data.io import ENDINGS, known_values, read_image, read_mask, read_pixels
from unetkit.data.mask_encoding import (
    Classes,
    MaskEncoding,
    MaskHints,
    MaskScan,
    Progress,
    infer_encoding,
    scan_masks,
)
from unetkit.data.splits import SplitConfig, split_names
from unetkit.data.statistics import find_far_value
from unetkit.data.types import DatasetSplits, Sample, Target, without_missing
from unetkit.errors import FileError, UnetkitError
from unetkit.utils.formatting import format_plural
from unetkit.utils.integers import ceil_div

SPLITS = ("train", "val", "test")
#: The name of the split of files that are not yet divided.
UNSPLIT = ""
#: Files by their path below a folder, without the ending.
Files = dict[str, Path]


def find_folders(folder: Path) -> dict[str, dict[str, Path]]:
    """Find the folders of images, masks and instances of each split."""
    kinds = ("images", "masks", "instances")
    if not folder.is_dir():
        raise FileError(f"{folder}: the folder does not exist")
    inside = {name: {kind: folder / name / kind for kind in kinds} for name in SPLITS}
    below = {name: {kind: folder / kind / name for kind in kinds} for name in SPLITS}
    if found := {name: place for name, place in inside.items() if place["images"].is_dir()}:
        return found
    if any(place["images"].is_dir() and place["masks"].is_dir() for place in below.values()):
        return {name: place for name, place in below.items() if place["images"].is_dir()}
    if not ((folder / "images").is_dir() and (folder / "masks").is_dir()):
        raise FileError(
            f"{folder}: contains no images/ and masks/, neither directly nor in train/, val/ or test/; put images into "
            "one and masks with the same names into the other"
        )
    return {UNSPLIT: {kind: folder / kind for kind in kinds}}


def list_files(folder: Path, problems: list[str], notes: list[str]) -> Files:
    """List the readable files in a folder and its sub-folders by their path without the suffix."""
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
        notes.append(f"{folder}: {format_plural(len(others), 'file')} of other types ignored, such as {others[0].name}")
    return found


CLASSES = "classes.txt"


@dataclass(frozen=True)
class ImageEntry:
    """The files of one image: a mask, or a mask for each label."""

    name: str
    image: Path
    masks: tuple[Path, ...]
    instances: Path | None = None


@dataclass
class FolderLayout:
    """The matched files of a folder. `labels` are the folder names in masks/ of a multi-label data set, in order."""

    splits: dict[str, list[ImageEntry]] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def find_layout(folder: Path, order: tuple[str, ...] = ()) -> FolderLayout:
    """Match images, masks and instances by name. `order` is the order of the labels if they have these names.

    Raises:
        FileError: The folder does not exist, or contains no images and masks.
    """
    layout = FolderLayout()
    found = {name: _list_kinds(place, layout) for name, place in find_folders(folder).items()}
    if not any(images for images, _, _ in found.values()):
        raise FileError(f"{folder}: contains no images; {' '.join(ENDINGS)} can be read")
    labels = _labels([(images, masks) for images, masks, _ in found.values()])
    layout.labels = order if {*order} == {*labels} else labels
    for name, (images, masks, instances) in found.items():
        if masks or name in ("train", UNSPLIT):
            layout.splits[name] = _match_files(layout, images, masks, instances)
        elif images:
            layout.notes.append(f"{name}: ignored, because it has images but no masks")
    return layout


def _list_kinds(place: dict[str, Path], layout: FolderLayout) -> tuple[Files, Files, Files]:
    images, masks, instances = (
        list_files(place[kind], layout.problems, layout.notes) for kind in ("images", "masks", "instances")
    )
    return images, masks, instances


def _labels(splits: list[tuple[Files, Files]]) -> tuple[str, ...]:
    """Return the labels if masks are in a folder for each label; none if masks have the same paths as images."""
    if any(stem in images for images, masks in splits for stem in masks):
        return ()
    pairs = {stem.partition("/")[0] for images, masks in splits for stem in masks if stem.partition("/")[2] in images}
    return tuple(sorted(pairs))


def _match_files(layout: FolderLayout, images: Files, masks: Files, instances: Files) -> list[ImageEntry]:
    """Return the images with all their masks; missing files become problems."""
    entries = []
    left = {**masks}
    for stem, image in images.items():
        expected = [f"{label}/{stem}" for label in layout.labels] or [stem]
        lacking = [name for name in expected if left.get(name) is None]
        own = tuple(left.pop(name) for name in expected if name in left)
        layout.problems += [f"{image}: has no mask masks/{name}.*" for name in lacking]
        if instances and stem not in instances:
            layout.problems.append(f"{image}: has no instances/{stem}.*, which other images have")
        elif not lacking:
            entries.append(ImageEntry(stem, image, own, instances.get(stem)))
    layout.problems += [f"{path}: this mask has no image images/{_end(stem, layout)}.*" for stem, path in left.items()]
    layout.problems += [
        f"{path}: these instances have no image" for stem, path in instances.items() if stem not in images
    ]
    return entries


def _end(stem: str, layout: FolderLayout) -> str:
    return stem.partition("/")[2] if layout.labels and "/" in stem else stem


def read_classes(folder: Path) -> Classes | None:
    """Read `classes.txt`; None if the file does not exist.

    It has a line `name`, `name R G B` or `name VALUE` for each class. Where names without their last number would not
    be distinct, as with "zone 1" and "zone 2", the number belongs to the name.

    Raises:
        FileError: The file cannot be read, only some lines have a color, or a name or color appears twice.
    """
    path = folder / CLASSES
    if not path.is_file():
        return None
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise FileError(f"{path}: cannot be read as UTF-8 text: {error}") from error
    matches = [re.fullmatch(r"(.*?)(?:\s+(\d+)[ ,]+(\d+)[ ,]+(\d+))?", line.strip()) for line in lines]
    found = [match.groups() for match in matches if match and match.group(1) and not match.group(1).startswith("#")]
    names = tuple(name for name, *_ in found)
    colours = tuple((int(red), int(green), int(blue)) for _, red, green, blue in found if red)
    if colours and len(colours) != len(names):
        raise FileError(
            f"{path}: {len(colours)} of {len(names)} lines have a colour; give every line a colour (R G B), or none"
        )
    if any(max(colour) > 255 for colour in colours):
        raise FileError(f"{path}: a colour must be three numbers from 0 to 255")
    names, values = _split_values(names) if not colours else (names, ())
    for what, items in (("name", names), ("colour", colours), ("value", values)):
        if twice := [item for item in items if items.count(item) > 1]:
            raise FileError(f"{path}: the {what} {twice[0]} appears twice")
    return Classes(names, colours, values) if names else None


def _split_values(names: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Split the lines of `classes.txt` into names and numbers, if all of them are `name VALUE`."""
    found = [re.fullmatch(r"(.*\S)\s+(-?\d+)", name) for name in names]
    bare = [match.group(1) for match in found if match]
    if len(bare) < len(names) or len({*bare}) < len(bare):
        return names, ()
    return (*bare,), tuple(int(match.group(2)) for match in found if match)


#: The default augmentation of training images from a folder.
AUGMENT = "hflip,scale,light"


@dataclass(frozen=True)
class FolderDataset:
    """One split of a folder; images and masks are read when they are needed."""

    entries: Sequence[ImageEntry]
    encoding: MaskEncoding
    channels: int
    nodata: float | None = None

    @property
    def sample_names(self) -> list[str]:
        """The names of the images."""
        return [entry.name for entry in self.entries]

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int, /) -> Sample:
        entry = self.entries[index]
        image = read_image(entry.image, self.nodata)
        if len(image) != self.channels:
            raise FileError(
                f"{entry.image}: has {format_plural(len(image), 'channel')}, but the first image has {self.channels}"
            )
        planes = [check_mask_size(self.encoding.read(path), path, image, entry) for path in entry.masks]
        mask = np.stack(planes) if self.encoding.target.kind == "multilabel" else planes[0]
        instances = None if entry.instances is None else read_instances(entry.instances)
        if instances is not None:
            check_mask_size(instances, entry.instances, image, entry)
        objects = None if instances is None else torch.from_numpy(instances)
        return without_missing(Sample(entry.name, image, torch.from_numpy(mask), objects))


@dataclass
class FolderIndex:
    """The interpretation of a folder, and its problems. `encoding` is None if no mask could be read."""

    layout: FolderLayout
    splits: dict[str, list[ImageEntry]]
    scans: list[MaskScan]
    encoding: MaskEncoding | None
    problems: list[str] = field(default_factory=list)


def open_folder(
    text: str,
    rules: SplitConfig,
    ignore: int | None = None,
    target: Target | None = None,
    progress: Progress | None = None,
    nodata: float | None = None,
) -> DatasetSplits:
    """Open a folder as a data set; `open_data` describes the arguments.

    Raises:
        FileError: Files do not match, or masks cannot be interpreted.
        OptionError: The folder cannot be split as requested.
    """
    found = index_folder(Path(text), rules, ignore, target, progress)
    if found.problems or found.encoding is None:
        more = f" ({format_plural(len(found.problems) - 1, 'more problem')})" if len(found.problems) > 1 else ""
        hint = (
            "" if found.problems and found.problems[0].startswith("--") else f"; `unetkit data check {text}` lists all"
        )
        raise FileError(f"{found.problems[0]}{more}{hint}")
    channels = len(read_image(next(iter(found.splits.values()))[0].image, nodata))
    splits = {
        name: FolderDataset((*entries,), found.encoding, channels, nodata) for name, entries in found.splits.items()
    }
    notes = [*found.layout.notes, *_note_far_values(splits.get("train"), nodata)]
    return DatasetSplits(text, found.encoding.target, channels, splits, AUGMENT, (*notes,))


#: The number of images in which numbers without data are looked for when a folder is opened.
_LOOKED_AT = 20


def _note_far_values(images: FolderDataset | None, nodata: float | None) -> list[str]:
    """Note the first training image with a number that may mean that there are no data."""
    entries = images.entries if images else ()
    for entry in entries[:: ceil_div(len(entries), _LOOKED_AT)] if entries else ():
        if far := find_far_value(known_values(read_pixels(entry.image), nodata)):
            return [f"{entry.image}: contains {far.describe()}"]
    return []


def index_folder(
    folder: Path,
    rules: SplitConfig,
    ignore: int | None = None,
    target: Target | None = None,
    progress: Progress | None = None,
) -> FolderIndex:
    """Find the files, scan the masks and split the images; problems are collected, not raised.

    `target` says what the masks mean, if that is known.

    Raises:
        FileError: The folder cannot be interpreted.
    """
    classes = Classes(target.names, target.colours) if target else read_classes(folder)
    layout = find_layout(folder, classes.names if classes else ())
    hints = MaskHints(
        _labels_from_classes(classes, layout), ignore, layout.labels, classes_without_ignored=target is not None
    )
    paths = [path for entries in layout.splits.values() for entry in entries for path in entry.masks]
    results = scan_masks(paths, progress)
    scans = [result for result in results if isinstance(result, MaskScan)]
    problems = [*layout.problems, *(str(result) for result in results if isinstance(result, UnetkitError))]
    meaning = None
    if scans:
        meaning, wrong, notes = infer_encoding(scans, hints)
        problems += wrong
        layout.notes += notes
    found = FolderIndex(layout, {name: [*entries] for name, entries in layout.splits.items()}, scans, meaning, problems)
    _split(found, rules, folder)
    return found


def _labels_from_classes(classes: Classes | None, layout: FolderLayout) -> Classes | None:
    """Return known classes if they fit these masks; they give the order of labels."""
    if classes and layout.labels and {*classes.names} != {*layout.labels}:
        raise FileError(
            f"the classes are {', '.join(classes.names)}, but the folders in masks/ are {', '.join(layout.labels)}; "
            "use the names of the folders"
        )
    return classes


def _split(found: FolderIndex, rules: SplitConfig, folder: Path) -> None:
    """Split the images that are not in folders of splits."""
    if rules.val_fraction is None:
        found.splits = {name or "all": entries for name, entries in found.splits.items() if entries}
        if not found.splits:
            found.problems.append(f"{folder}: no image has a mask")
        return
    split = UNSPLIT if UNSPLIT in found.splits else "train"
    heap = found.splits.get(split, [])
    if not heap:
        found.problems.append(f"{folder}: no image with a mask is left for training")
    elif "val" not in found.splits:
        try:
            train, val = split_names([entry.name for entry in heap], rules)
        except UnetkitError as error:
            found.problems.append(str(error))
            return
        del found.splits[split]
        made = {"train": [heap[index] for index in train], "val": [heap[index] for index in val]}
        found.splits = made | found.splits


def read_instances(path: Path) -> np.ndarray:
    """Read the numbers of objects (H, W) int64, with 0 for the background. Raises FileError."""
    values = read_mask(path).values
    if values.ndim != 2:
        raise FileError(
            f"{path}: contains colours; instances must be a single channel of integers, with 0 for the background"
        )
    return values.astype(np.int64)


def check_mask_size(plane: np.ndarray, path: Path | None, image: Tensor, entry: ImageEntry) -> np.ndarray:
    """Return a mask that has the height and width of its image. Raises FileError for any other."""
    if plane.shape != image.shape[1:]:
        raise FileError(f"{path}: {_size(plane.shape)}, but its image {entry.image.name} is {_size(image.shape[1:])}")
    return plane


def _size(shape: Sequence[int]) -> str:
    return f"{shape[0]}x{shape[1]}"
