"""The files of a data folder: which are images, masks and instances of which split, and which belong together.

Files are matched by name before any of them is read. What lies in the folder and is not used is told.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from unetkit.data.io import ENDINGS
from unetkit.errors import FileError
from unetkit.utils.formatting import format_plural

#: The name of the split of files that are not yet divided.
UNSPLIT = ""
#: The names that folders of splits have in data sets, such as "valid" of Roboflow and "val2017" of COCO.
_SPLIT_NAMES = {
    "train": re.compile(r"train(ing)?(\d{4})?", re.IGNORECASE),
    "val": re.compile(r"(val(id(ation)?)?|dev)(\d{4})?", re.IGNORECASE),
    "test": re.compile(r"test(ing)?(\d{4})?", re.IGNORECASE),
}
#: The names that folders of each kind of files have, in lower case.
_KIND_NAMES = {
    "images": ("images", "image", "imgs", "img", "jpegimages"),
    "masks": (
        "masks",
        "mask",
        "labels",
        "label",
        "annotations",
        "segmentationclass",
        "ground_truth",
        "groundtruth",
        "gt",
    ),
    "instances": ("instances", "segmentationobject"),
}
#: Words by which masks, or images, are named in a folder that they share.
_MASK_WORDS = ("mask", "masks", "label", "labels", "gt", "seg", "segmentation", "annotation", "ann", "l")
_IMAGE_WORDS = ("image", "img", "im", "sat", "orig", "raw")
#: More files than this that lack the same are told in one line.
_MOST_LINES = 8

#: Files by their path below a folder, without the ending.
Files = dict[str, Path]


@dataclass(frozen=True)
class ImageEntry:
    """The files of one image.

    Attributes:
        name: the path of the image below its folder, without the ending.
        image: the image.
        masks: a mask, or a mask for each label; none if the instances are all that is known.
        instances: the numbers of objects, if there are any.
        objects: masks of one object each.
    """

    name: str
    image: Path
    masks: tuple[Path, ...] = ()
    instances: Path | None = None
    objects: tuple[Path, ...] = ()


@dataclass
class FolderLayout:
    """The matched files of a folder. `labels` are the folder names in masks/ of a multi-label data set, in order."""

    splits: dict[str, list[ImageEntry]] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class _SplitFiles:
    """The files of a split by kind, and the folders that they lie in."""

    folders: dict[str, Path]
    images: Files = field(default_factory=dict)
    masks: Files = field(default_factory=dict)
    instances: Files = field(default_factory=dict)

    @property
    def all_files(self) -> set[Path]:
        return {*self.images.values(), *self.masks.values(), *self.instances.values()}


def walk_files(folder: Path) -> Iterator[Path]:
    """Yield the files in a folder and its sub-folders in order, also through links; hidden ones are left out."""
    seen: set[Path] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = Path(place).resolve()
        if real in seen:  # a link to a folder above
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__MACOSX")
        yield from (Path(place, name) for name in sorted(files) if not name.startswith("."))


def _stem(path: Path) -> str:
    """Return a path without the ending, in one of the two ways in which Unicode writes accents; macOS has the other."""
    return unicodedata.normalize("NFC", path.with_suffix("").as_posix().removesuffix(".ome"))


def list_files(folder: Path, problems: list[str], notes: list[str]) -> Files:
    """List the readable files in a folder and its sub-folders by their path without the suffix."""
    found: Files = {}
    others = []
    for path in sorted(walk_files(folder)):
        if path.suffix.lower() not in ENDINGS:
            others.append(path)
            continue
        stem = _stem(path.relative_to(folder))
        if stem in found:
            problems.append(f"{path}: {found[stem].name} has the same name; keep one of them")
        found.setdefault(stem, path)
    if others:
        notes.append(f"{folder}: {format_plural(len(others), 'file')} of other types ignored, such as {others[0].name}")
    return found


def find_layout(folder: Path, order: tuple[str, ...] = ()) -> FolderLayout:
    """Match images, masks and instances by name. `order` is the order of the labels if they have these names.

    Raises:
        FileError: The folder does not exist, or contains no images and masks.
    """
    layout = FolderLayout()
    if found := _find_folder_per_image(folder):
        layout.splits = found
        return layout
    splits = {name: _list_split(folders, layout) for name, folders in find_folders(folder, layout.notes).items()}
    if not any(split.images for split in splits.values()):
        raise FileError(f"{folder}: contains no images; {' '.join(ENDINGS)} can be read")
    for split in splits.values():
        _pair_names(split, layout.notes)
    labels = _find_labels([*splits.values()])
    layout.labels = order if {*order} == {*labels} else labels
    for name, split in splits.items():
        if split.masks or split.instances or name in ("train", UNSPLIT):
            layout.splits[name] = _match_files(layout, split)
        elif split.images:
            layout.notes.append(f"{name}: ignored, because it has images but no masks")
    layout.notes += _note_unused(folder, splits)
    return layout


def find_folders(folder: Path, notes: list[str]) -> dict[str, dict[str, Path]]:
    """Find the folders of images, masks and instances of each split; notes tell of unusual names."""
    if not folder.is_dir():
        raise FileError(f"{folder}: the folder does not exist")
    here = _find_kinds(folder)
    below: dict[str, dict[str, Path]] = {}
    inside = {name: _find_kinds(place) for name, place in _find_splits(folder, notes)}
    if any("images" in kinds for kinds in inside.values()):
        found = {name: kinds for name, kinds in inside.items() if "images" in kinds}
    else:
        for kind, place in here.items():
            for name, part in _find_splits(place, notes if kind == "images" else []):
                below.setdefault(name, {})[kind] = part
        found = {name: kinds for name, kinds in below.items() if "images" in kinds}
        if not any({"masks", "instances"} & kinds.keys() for kinds in found.values()):
            found = {UNSPLIT: here} if "images" in here and {"masks", "instances"} & here.keys() else {}
    if not found:
        found = {UNSPLIT: {"images": folder, "masks": folder}} if _share_a_folder(folder) else {}
    if not found:
        raise FileError(
            f"{folder}: contains no images/ and masks/, neither directly nor in train/, val/ or test/; put images into "
            "one and masks with the same names into the other"
        )
    used = {part for kinds in found.values() for place in kinds.values() for part in (place, place.parent)}
    named = {place.name: kind for kinds in (here, *inside.values()) for kind, place in kinds.items() if place in used}
    notes += [f"{name}/ is taken for {kind}/" for name, kind in named.items() if name != kind]
    return found


def find_split(name: str) -> str:
    """Return the split that a folder of this name is for, or ""."""
    return next((split for split, rule in _SPLIT_NAMES.items() if rule.fullmatch(name)), "")


def _find_splits(folder: Path, notes: list[str]) -> list[tuple[str, Path]]:
    """Return the folders of splits in a folder; of several for one split, the one with the plain name."""
    places = sorted(place for place in folder.iterdir() if place.is_dir()) if folder.is_dir() else []
    found = []
    for name, rule in _SPLIT_NAMES.items():
        named = sorted((place for place in places if rule.fullmatch(place.name)), key=lambda place: place.name != name)
        if named:
            found.append((name, named[0]))
        if named and named[0].name != name:
            notes.append(f"{named[0].name}/ is taken for {name}/")
    return found


def _find_kinds(folder: Path) -> dict[str, Path]:
    """Return the folders of images, masks and instances in a folder; of several of one kind, the first in the list."""
    places = {place.name.lower(): place for place in sorted(folder.iterdir()) if place.is_dir()}
    return {
        kind: places[next(name for name in names if name in places)]
        for kind, names in _KIND_NAMES.items()
        if any(name in places for name in names)
    }


def _share_a_folder(folder: Path) -> bool:
    """Return whether a folder and its sub-folders contain images beside masks that are named by a word."""
    stems = {_stem(path.relative_to(folder)) for path in walk_files(folder) if path.suffix.lower() in ENDINGS}
    return bool(stems) and _split_by_word(stems) is not None


def _list_split(folders: dict[str, Path], layout: FolderLayout) -> _SplitFiles:
    split = _SplitFiles(folders)
    if folders["images"] == folders.get("masks"):  # images and masks share a folder
        files = list_files(folders["images"], layout.problems, layout.notes)
        pairs = _split_by_word({*files})
        prefix, suffix = pairs or ("", "")
        for stem, path in files.items():
            key = _strip(stem, prefix, suffix)
            (split.images if key is None else split.masks)[stem] = path
        return split
    for kind, place in folders.items():
        vars(split)[kind] = list_files(place, layout.problems, layout.notes)
    return split


def _split_by_word(stems: set[str]) -> tuple[str, str] | None:
    """Return the prefix and the suffix of the masks among these names, where every other name has such a mask."""
    for word, mark in product(_MASK_WORDS, "_-. "):
        for prefix, suffix in (("", f"{mark}{word}"), (f"{word}{mark}", "")):
            found = {key for stem in stems if (key := _strip(stem, prefix, suffix)) is not None}
            others = {stem for stem in stems if _strip(stem, prefix, suffix) is None}
            if found and len(found) >= len(others) and _find_affix(others, found) is not None:
                return prefix, suffix
    return None


def _strip(stem: str, prefix: str, suffix: str) -> str | None:
    """Return a path without a prefix and a suffix of its last part, or None if it does not have them."""
    place, slash, name = stem.rpartition("/")
    if not (name.lower().startswith(prefix.lower()) and name.lower().endswith(suffix.lower())):
        return None
    bare = name[len(prefix) : len(name) - len(suffix)]
    return place + slash + bare if bare and (prefix or suffix) else None


def _find_affix(stems: set[str], wanted: set[str]) -> tuple[str, str] | None:
    """Return the prefix and suffix that all names have beside the wanted ones; ("", "") if they have none."""
    if stems <= wanted or (stems & wanted and not wanted - stems):
        return "", ""
    for word, mark in product((*_MASK_WORDS, *_IMAGE_WORDS), "_-. "):
        for prefix, suffix in (("", f"{mark}{word}"), (f"{word}{mark}", "")):
            if stems and all(_strip(stem, prefix, suffix) in wanted for stem in stems):
                return prefix, suffix
    return None


def _pair_names(split: _SplitFiles, notes: list[str]) -> None:
    """Give masks the names of their images where all of them have a common prefix or suffix more, or images have."""
    for kind in ("masks", "instances"):
        files: Files = getattr(split, kind)
        if not files or {*files} & {*split.images} or not split.images:
            continue
        if any(stem.partition("/")[2] in split.images for stem in files):  # a folder for each label
            continue
        found = _common_affixes({*split.images}, {*files})
        if found is None:
            continue
        (image_prefix, image_suffix), (prefix, suffix) = found
        example = next(iter(files.values()))
        renamed = {_strip(stem, prefix, suffix) or stem: path for stem, path in files.items()}
        images = {_strip(stem, image_prefix, image_suffix) or stem: path for stem, path in split.images.items()}
        of = next((images[stem].name for stem, path in renamed.items() if path == example and stem in images), "")
        if of:
            notes.append(f"{kind} are matched with images by the rest of their names, such as {example.name} with {of}")
        vars(split)[kind], split.images = renamed, images


Affix = tuple[str, str]


def _common_affixes(images: set[str], others: set[str]) -> tuple[Affix, Affix] | None:
    """Return what the names of images, and those of masks, have beside a common part."""
    best: tuple[int, tuple[Affix, Affix]] | None = None
    for of_images, of_others in product(_list_affixes(images), _list_affixes(others)):
        keys = {_strip(stem, *of_images) if any(of_images) else stem for stem in images}
        matched = {_strip(stem, *of_others) if any(of_others) else stem for stem in others}
        if None in keys or None in matched:
            continue
        count = len(keys & matched)
        if count > len(others) / 2 and (best is None or count > best[0]):
            best = count, (of_images, of_others)
    return best[1] if best else None


def _list_affixes(stems: set[str]) -> list[Affix]:
    """List the prefixes and suffixes that all names have in common, shortest first, cut at separators."""
    names = sorted(stem.rpartition("/")[2] for stem in stems)
    prefix = _common_start(names)
    suffix = _common_start([name[::-1] for name in names])[::-1]
    if len(names) == 1:  # everything is common
        words = "|".join((*_MASK_WORDS, *_IMAGE_WORDS))
        before = re.match(rf"(?:{words})[_. -]", names[0], re.IGNORECASE)
        after = re.search(rf"[_. -](?:{words})$", names[0], re.IGNORECASE)
        prefix, suffix = before[0] if before else "", after[0] if after else ""
    starts = [prefix[: match.end()] for match in re.finditer(r"[_. -]", prefix)]
    ends = [suffix[match.start() :] for match in re.finditer(r"[_. -]", suffix)]
    return [("", ""), *((start, "") for start in starts), *(("", end) for end in reversed(ends))]


def _common_start(names: Sequence[str]) -> str:
    first, last = min(names), max(names)  # what these have in common, all have
    return first[: next((at for at, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))]


def _find_labels(splits: Sequence[_SplitFiles]) -> tuple[str, ...]:
    """Return the labels if masks are in a folder for each label; none if masks have the same paths as images."""
    if any(stem in split.images for split in splits for stem in split.masks):
        return ()
    pairs = {
        stem.partition("/")[0] for split in splits for stem in split.masks if stem.partition("/")[2] in split.images
    }
    return tuple(sorted(pairs))


def _match_files(layout: FolderLayout, split: _SplitFiles) -> list[ImageEntry]:
    """Return the images with all their masks; missing files become problems."""
    entries: list[ImageEntry] = []
    without_mask, without_instances = [], []
    left = {**split.masks}
    for stem, image in split.images.items():
        expected = ([f"{label}/{stem}" for label in layout.labels] or [stem]) if split.masks else []
        lacking = [name for name in expected if left.get(name) is None]
        own = tuple(left.pop(name) for name in expected if name in left)
        without_mask += [
            (image, f"has no mask {_place(split, 'masks')}{name}.*; add it, or remove the image") for name in lacking
        ]
        if not split.masks and not split.instances:
            without_mask.append((image, f"has no mask {_place(split, 'masks')}{stem}.*; add it, or remove the image"))
        elif split.instances and stem not in split.instances:
            what = f"{_place(split, 'instances')}{stem}.*"
            without_instances.append((image, f"has no {what}, which other images have; add it"))
        elif not lacking:
            entries.append(ImageEntry(stem, image, own, split.instances.get(stem)))
    without_image = [
        (path, f"this mask has no image {_place(split, 'images')}{_end(stem, layout)}.*; add it, or remove the mask")
        for stem, path in left.items()
    ]
    alone = [
        (path, "these instances have no image") for stem, path in split.instances.items() if stem not in split.images
    ]
    for lacking_files in (without_mask, without_instances, without_image, alone):
        layout.problems += _tell(lacking_files)
    return entries


def _tell(files: list[tuple[Path, str]]) -> list[str]:
    """Return a line for each file, or one for all if there are many."""
    if len(files) <= _MOST_LINES:
        return [f"{path}: {what}" for path, what in files]
    path, what = files[0]
    return [f"{path}: {what}; the same is true of {len(files) - 1:,} more files"]


def _place(split: _SplitFiles, kind: str) -> str:
    folder = split.folders.get(kind)
    return "" if folder is not None and folder == split.folders.get("images" if kind == "masks" else "") else f"{kind}/"


def _end(stem: str, layout: FolderLayout) -> str:
    return stem.partition("/")[2] if layout.labels and "/" in stem else stem


def _find_folder_per_image(folder: Path) -> dict[str, list[ImageEntry]]:
    """Return the images of a folder like that of the Data Science Bowl 2018, or nothing for any other.

    Each image has a folder with images/ and masks/, and a mask for each object. These folders may lie in folders of
    splits.
    """
    if not folder.is_dir():
        return {}
    places = dict(_find_splits(folder, [])) or {UNSPLIT: folder}
    found: dict[str, list[ImageEntry]] = {}
    for split, place in places.items():
        for one in sorted(path for path in place.iterdir() if path.is_dir() and not path.name.startswith(".")):
            kinds = _find_kinds(one)
            if not {"images", "masks"} <= kinds.keys() or any(
                rule.fullmatch(one.name) for rule in _SPLIT_NAMES.values()
            ):
                return {}
            images = [path for path in walk_files(kinds["images"]) if path.suffix.lower() in ENDINGS]
            objects = tuple(path for path in walk_files(kinds["masks"]) if path.suffix.lower() in ENDINGS)
            if len(images) != 1:
                return {}
            found.setdefault(split, []).append(ImageEntry(one.name, images[0], objects=objects))
    # A single folder is more likely a folder of images beside masks.
    return found if sum(map(len, found.values())) > 1 else {}


def _note_unused(folder: Path, splits: dict[str, _SplitFiles]) -> list[str]:
    """Note the images in the folder that are not used, by the folder that they lie in."""
    used: set[Path] = {path for split in splits.values() for path in split.all_files}
    roots = {root for split in splits.values() for root in split.folders.values()}
    left: dict[Path, list[Path]] = defaultdict(list)
    for path in walk_files(folder):
        if path.suffix.lower() in ENDINGS and path not in used and not any(root in path.parents for root in roots):
            left[path.parent].append(path)
    where = "outside of the folders of " + ("its splits" if UNSPLIT not in splits else "images/ and masks/")
    return [
        f"{place}: {format_plural(len(paths), 'image')} ignored {where}, such as {paths[0].name}"
        for place, paths in left.items()
    ]
