"""A folder of images and masks as a data set.

Shapes: H and W height and width, L labels.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unetkit.data.io import (
    CONVERSIONS,
    ImageHeader,
    convert_channels,
    known_values,
    read_header,
    read_image,
    read_mask,
    read_pixels,
)
from unetkit.data.layout import UNSPLIT, FolderLayout, ImageEntry, find_layout
from unetkit.data.mask_encoding import (
    Classes,
    MaskEncoding,
    MaskHints,
    MaskScan,
    Progress,
    count_codes,
    infer_encoding,
    scan_masks,
)
from unetkit.data.splits import SplitConfig, split_names
from unetkit.data.statistics import find_far_value
from unetkit.data.types import DatasetSplits, Sample, Target, without_missing
from unetkit.errors import FileError, UnetkitError
from unetkit.utils.formatting import format_plural
from unetkit.utils.integers import ceil_div
from unetkit.utils.parsing import describe_read_error

CLASSES = "classes.txt"


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
        raise FileError(f"{path}: {describe_read_error(error)}; save the file as UTF-8") from error
    matches = [re.fullmatch(r"(.*?)(?:\s+(\d+)[ ,]+(\d+)[ ,]+(\d+))?", line.strip()) for line in lines]
    found = [match.groups() for match in matches if match and match.group(1) and not match.group(1).startswith("#")]
    names = tuple(name for name, *_ in found)
    colours = tuple((int(red), int(green), int(blue)) for _, red, green, blue in found if red)
    if colours and len(colours) != len(names):
        raise FileError(
            f"{path}: {len(colours)} of {len(names)} lines have a colour; give every line a colour (R G B), or none"
        )
    if any(max(colour) > 255 for colour in colours):
        bright = next(number for number, colour in enumerate(colours) if max(colour) > 255)
        raise FileError(
            f"{path}: the colour of {names[bright]} is {' '.join(map(str, colours[bright]))}; "
            "give three numbers from 0 to 255"
        )
    names, values = _split_values(names) if not colours else (names, ())
    for what, items in (("name", names), ("colour", colours), ("value", values)):
        if twice := [item for item in items if items.count(item) > 1]:
            raise FileError(f"{path}: the {what} {twice[0]} appears twice; give each class another {what}")
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
    convert: str = ""

    @property
    def content_digest(self) -> str:
        """A digest of the sizes, the beginnings and the ends of all files."""
        digest = hashlib.sha256()
        for entry in self.entries:
            for path in (entry.image, *entry.masks, *([entry.instances] if entry.instances else []), *entry.objects):
                digest.update(_peek(path))
        return digest.hexdigest()[:12]

    @property
    def sample_names(self) -> list[str]:
        """The names of the images."""
        return [entry.name for entry in self.entries]

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int, /) -> Sample:
        entry = self.entries[index]
        image = torch.from_numpy(convert_channels(read_image(entry.image, self.nodata), self.convert, entry.image))
        if len(image) != self.channels:
            raise FileError(_describe_channels(entry.image, len(image), self.channels))
        planes = [check_mask_size(self.encoding.read(path), path, image, entry) for path in entry.masks]
        instances = None if entry.instances is None else read_instances(entry.instances)
        if entry.objects:
            instances = read_objects(entry.objects)
        if instances is not None:
            check_mask_size(instances, entry.instances or entry.objects[0], image, entry)
        if not planes:
            if instances is None:  # an image without objects, among others that have some
                instances = np.zeros(image.shape[1:], np.int64)
            mask = np.minimum(instances, 1)
        else:
            mask = np.stack(planes) if self.encoding.target.kind == "multilabel" else planes[0]
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
    convert: str = "",
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
    headers = _read_headers(found)
    channels = CONVERSIONS.get(convert) or headers[next(iter(found.splits.values()))[0].image].channels
    _check_headers(found, headers, channels, text, convert)
    splits = {
        name: FolderDataset((*entries,), found.encoding, channels, nodata, convert)
        for name, entries in found.splits.items()
    }
    notes = [
        *found.layout.notes,
        *_note_absent(found, text),
        *note_orientations({str(path): header.orientation for path, header in headers.items()}),
        *_note_far_values(splits.get("train"), nodata),
    ]
    is_split = "val" in found.layout.splits
    return DatasetSplits(text, found.encoding.target, channels, splits, AUGMENT, (*notes,), is_split)


def split_again(data: DatasetSplits, rules: SplitConfig) -> DatasetSplits:
    """Return the data of an opened folder that has no split of its own with another split, without reading it again.

    Args:
        data: what `open_folder` returned.
        rules: the rules of the new split.
    """
    opened = [images for name, images in data.splits.items() if name in ("train", "val")]
    first = opened[0]
    if data.is_split or not isinstance(first, FolderDataset):
        return data
    entries = sorted((entry for images in opened for entry in images.entries), key=lambda entry: entry.image)  # type: ignore[attr-defined]
    parts = zip(("train", "val"), split_names([entry.name for entry in entries], rules), strict=True)
    made = {name: replace(first, entries=tuple(entries[index] for index in indices)) for name, indices in parts}
    return replace(data, splits={**data.splits, **made})


#: The number of bytes at each end of a file that its digest is of; reading whole files would take as long as an epoch.
_PEEKED = 4096


def _peek(path: Path) -> bytes:
    """Return the size of a file, its beginning and its end. Raises FileError."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            begin = file.read(_PEEKED)
            file.seek(max(0, size - _PEEKED))
            return b"%d " % size + begin + file.read(_PEEKED)
    except OSError as error:
        raise FileError(f"{path}: cannot be read: {error.strerror or error}") from error


def _read_headers(found: FolderIndex) -> dict[Path, ImageHeader]:
    """Read the headers of all images in threads. Raises FileError for one that cannot be read."""
    paths = [entry.image for entries in found.splits.values() for entry in entries]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return dict(zip(paths, pool.map(read_header, paths), strict=True))


def _check_headers(
    found: FolderIndex, headers: dict[Path, ImageHeader], channels: int, text: str, convert: str
) -> None:
    """Raise FileError for the first image that does not have the size of its mask, or the channels of the others."""
    scans = {scan.path: scan for scan in found.scans}
    for entries in found.splits.values():
        for entry in entries:
            header = headers[entry.image]
            if why := describe_misfit(entry, header, [scans[path] for path in entry.masks if path in scans]):
                raise FileError(f"{why}; `unetkit data check {text}` lists all")
            if header.channels != channels and not (convert and header.channels in CONVERSIONS.values()):
                raise FileError(_describe_channels(entry.image, header.channels, channels))


_SIZE_ADVICE = "; give a mask of the image's size"


def describe_misfit(entry: ImageEntry, header: ImageHeader, masks: Sequence[MaskScan]) -> str:
    """Say in words that a mask does not have the size of its image; "" if all have it."""
    for mask in masks:
        if mask.size == header.size:
            continue
        turned = mask.size == header.size[::-1] and "90" in header.orientation
        why = (
            f" after it is {header.orientation}, as its EXIF orientation says, while the mask fits the stored pixels; "
            "remove the orientation from the image, or turn the mask"
        )
        sizes = f"is {_size(mask.size)}, but its image {entry.image.name} is {_size(header.size)}"
        return f"{mask.path}: {sizes}{why if turned else _SIZE_ADVICE}"
    return ""


def _describe_channels(path: Path, has: int, others: int) -> str:
    advice = f"; --channels {'grey' if others == 1 else 'rgb'} converts" if {has, others} == {1, 3} else ""
    return f"{path}: has {format_plural(has, 'channel')}, but the first image has {others}{advice}"


def note_orientations(orientations: Mapping[str, str]) -> list[str]:
    """Note images that are turned without a change of size, whose masks may have been drawn on the stored pixels.

    `orientations` says of each file how its image is turned.
    """
    turned = [path for path, how in orientations.items() if how and "90" not in how]
    if not turned:
        return []
    what = orientations[turned[0]]
    more = f" ({format_plural(len(turned) - 1, 'more image')})" if len(turned) > 1 else ""
    return [f"{turned[0]}: is {what}, as its EXIF orientation says; its mask must be, too{more}"]


def describe_absent(names: Sequence[str], one: str, several: str) -> list[str]:
    """Say in one line what classes do not do: that class car never occurs, or that classes car and bus never occur."""
    if len(names) < 2:
        return [f"class {name} {one}" for name in names]
    shown = ", ".join(names[:_MOST_NAMES]) + (
        f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    )
    return [f"classes {shown} {several}"]


_MOST_NAMES = 8


def describe_ignored(text: str) -> str:
    """Say that no training mask of the data has a class."""
    return f"{text}: all pixels of the training masks are ignored; give masks with classes"


def _note_absent(found: FolderIndex, text: str) -> list[str]:
    """Note classes that no training mask contains. Raises FileError if all training pixels are ignored."""
    encoding, scans = found.encoding, {scan.path: scan for scan in found.scans}
    if encoding is None or encoding.target.kind == "multilabel" or "train" not in found.splits:
        return []
    masks = [scans[path] for entry in found.splits["train"] for path in entry.masks if path in scans]
    present = {code for scan in masks for code in count_codes(scan, encoding.by_colour)}
    absent = [name for name, code in zip(encoding.target.names, encoding.codes, strict=True) if code not in present]
    if masks and len(absent) == len(encoding.codes):
        raise FileError(describe_ignored(text))
    elsewhere = describe_absent(absent, "occurs in no training mask", "occur in no training mask")
    return elsewhere if masks else []


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
    if not paths and any(layout.splits.values()):
        names, colours = (classes.names, classes.colours) if classes else (("background", "object"), ())
        if len(names) != 2:
            raise FileError(f"{folder}: instances alone have two classes, but {', '.join(names)} are {len(names)}")
        meaning = MaskEncoding(Target("binary", names, colours), by_colour=False, codes=(0, 1))
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


def read_objects(paths: Sequence[Path]) -> np.ndarray:
    """Read masks of one object each as the numbers of objects (H, W) int64. Raises FileError."""
    found: np.ndarray | None = None
    for number, path in enumerate(paths, 1):
        values = read_mask(path).values
        inside = values > 0 if values.ndim == 2 else values.any(-1)
        if found is None:
            found = np.zeros(inside.shape, np.int64)
        if inside.shape != found.shape:
            sizes = f"is {_size(inside.shape)}, but {paths[0].name} is {_size(found.shape)}"
            raise FileError(f"{path}: {sizes}; give all objects of an image one size")
        found[inside] = number
    return np.zeros((0, 0), np.int64) if found is None else found


def check_mask_size(plane: np.ndarray, path: Path | None, image: Tensor, entry: ImageEntry) -> np.ndarray:
    """Return a mask that has the height and width of its image. Raises FileError for any other."""
    if plane.shape != image.shape[1:]:
        sizes = f"is {_size(plane.shape)}, but its image {entry.image.name} is {_size(image.shape[1:])}"
        raise FileError(f"{path}: {sizes}{_SIZE_ADVICE}")
    return plane


def _size(shape: Sequence[int]) -> str:
    return f"{shape[0]}x{shape[1]}"
