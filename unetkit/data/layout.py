"""A folder of images and masks: which file belongs to which, before any is read."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from unetkit.data.files import ENDINGS
from unetkit.data.places import HEAP, Files, files, places
from unetkit.data.target import Colour
from unetkit.errors import BadFile

CLASSES = "classes.txt"


@dataclass(frozen=True)
class Entry:
    """An image's files: one mask, or one a label."""

    name: str
    image: Path
    masks: tuple[Path, ...]
    instances: Path | None = None


@dataclass
class Layout:
    """What belongs together. `labels` are the folders' names in masks/ of a multi-label set, in order."""

    splits: dict[str, list[Entry]] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Classes:
    """What `classes.txt` says: names in order, and the colours of all of them or of none."""

    names: tuple[str, ...]
    colours: tuple[Colour, ...] = ()


def find(folder: Path, order: tuple[str, ...] = ()) -> Layout:
    """Match images, masks and instances by stem. `order` is that of the labels, if these are they.

    Raises:
        BadFile: there is no folder, or no images and masks in it.
    """
    layout = Layout()
    found = {name: _kinds(place, layout) for name, place in places(folder).items()}
    if not any(images for images, _, _ in found.values()):
        raise BadFile(f"{folder}: no images are in it; {' '.join(ENDINGS)} are read")
    labels = _labels([(images, masks) for images, masks, _ in found.values()])
    layout.labels = order if {*order} == {*labels} else labels
    for name, (images, masks, instances) in found.items():
        if masks or name in ("train", HEAP):
            layout.splits[name] = _matched(layout, images, masks, instances)
        elif images:
            layout.notes.append(f"{name}: left out, for it has images and no masks")
    return layout


def _kinds(place: dict[str, Path], layout: Layout) -> tuple[Files, Files, Files]:
    images, masks, instances = (
        files(place[kind], layout.problems, layout.notes) for kind in ("images", "masks", "instances")
    )
    return images, masks, instances


def _labels(splits: list[tuple[Files, Files]]) -> tuple[str, ...]:
    """The labels of a set whose masks lie in a folder a label; none where a mask's path is its image's."""
    if any(stem in images for images, masks in splits for stem in masks):
        return ()
    pairs = {stem.partition("/")[0] for images, masks in splits for stem in masks if stem.partition("/")[2] in images}
    return tuple(sorted(pairs))


def _matched(layout: Layout, images: Files, masks: Files, instances: Files) -> list[Entry]:
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


def _end(stem: str, layout: Layout) -> str:
    return stem.partition("/")[2] if layout.labels and "/" in stem else stem


def read_classes(folder: Path) -> Classes | None:
    """What `classes.txt` says: a line a class, `name` or `name R G B`; None where there is none.

    Raises:
        BadFile: it cannot be read, some lines alone give a colour, or a name or colour stands twice.
    """
    path = folder / CLASSES
    if not path.is_file():
        return None
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise BadFile(f"{path}: cannot be read as UTF-8 text: {error}") from error
    said = [re.fullmatch(r"(.*?)(?:\s+(\d+)[ ,]+(\d+)[ ,]+(\d+))?", line.strip()) for line in lines]
    found = [match.groups() for match in said if match and match.group(1) and not match.group(1).startswith("#")]
    names = tuple(name for name, *_ in found)
    colours = tuple((int(red), int(green), int(blue)) for _, red, green, blue in found if red)
    if colours and len(colours) != len(names):
        raise BadFile(
            f"{path}: {len(colours)} of {len(names)} lines give a colour; give each line one (R G B), or none"
        )
    if any(max(colour) > 255 for colour in colours):
        raise BadFile(f"{path}: a colour is three numbers from 0 to 255")
    for what, items in (("name", names), ("colour", colours)):
        if twice := [item for item in items if items.count(item) > 1]:
            raise BadFile(f"{path}: the {what} {twice[0]} stands twice")
    return Classes(names, colours) if names else None
