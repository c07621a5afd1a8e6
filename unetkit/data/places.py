"""Where in a folder images, masks and instances lie, and the files there."""

from __future__ import annotations

from pathlib import Path

from unetkit.data.files import ENDINGS
from unetkit.errors import BadFile

SPLITS = ("train", "val", "test")
#: The name of a split that is not made yet.
HEAP = ""
#: Files by their path below a folder, without the ending.
Files = dict[str, Path]


def places(folder: Path) -> dict[str, dict[str, Path]]:
    """Where each split's images, masks and instances are."""
    kinds = ("images", "masks", "instances")
    if not folder.is_dir():
        raise BadFile(f"{folder}: there is no such folder")
    inside = {name: {kind: folder / name / kind for kind in kinds} for name in SPLITS}
    below = {name: {kind: folder / kind / name for kind in kinds} for name in SPLITS}
    if found := {name: place for name, place in inside.items() if place["images"].is_dir()}:
        return found
    if any(place["images"].is_dir() and place["masks"].is_dir() for place in below.values()):
        return {name: place for name, place in below.items() if place["images"].is_dir()}
    if not ((folder / "images").is_dir() and (folder / "masks").is_dir()):
        raise BadFile(
            f"{folder}: holds no images/ and masks/, itself or in train/, val/ and test/; put images into the one and"
            f" masks of the same names into the other"
        )
    return {HEAP: {kind: folder / kind for kind in kinds}}


def files(folder: Path, problems: list[str], notes: list[str]) -> Files:
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
        notes.append(f"{folder}: {many(len(others), 'file')} of other kinds left out, the first {others[0].name}")
    return found


def many(count: int, what: str) -> str:
    """1 image, 2 images."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
