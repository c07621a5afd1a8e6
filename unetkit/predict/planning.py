"""Which image becomes which files: planned before anything is read, so that no two end at one place."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from unetkit.data.files import ENDINGS
from unetkit.data.pictures import VOID, label_paths
from unetkit.data.target import Target
from unetkit.errors import BadFile, BadOption


@dataclass(frozen=True)
class Job:
    """An image, and the files that are written of it: None for those that are not wanted."""

    image: Path
    masks: tuple[Path, ...]
    probabilities: Path | None = None
    overlay: Path | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """All that are written."""
        return (*self.masks, *(path for path in (self.probabilities, self.overlay) if path))


def planned(
    images: Iterable[Path], out: Path, target: Target, *, probabilities: bool = False, overlays: bool = False
) -> list[Job]:
    """What is to be done of images and of folders of images.

    Raises:
        BadFile: a folder holds no image.
        BadOption: two images would be written to one file, or one over an image; or there are more classes than the
            palette of a PNG holds.
    """
    if target.kind != "multilabel" and len(target.names) > VOID:
        raise BadOption(f"{len(target.names)} classes do not fit the palette of a PNG, which holds {VOID}")
    jobs = [_job(path, out / inside, target, probabilities, overlays) for path, inside in found(images).items()]
    places: dict[Path, Path] = {}
    for job in jobs:
        for file in map(Path.resolve, job.files):
            if (other := places.setdefault(file, job.image)) != job.image:
                raise BadOption(f"{other} and {job.image} would both be written to {file.name}; predict them apart")
    for job in jobs:
        if job.image.resolve() in places:
            raise BadOption(f"--out {out}: {job.image} would be overwritten; give another folder")
    return jobs


def found(images: Iterable[Path]) -> dict[Path, Path]:
    """Images, those in folders and their sub-folders included: each once, in the order they are named.

    With each goes the sub-folder that it lies in, which its files keep.
    """
    paths: dict[Path, tuple[Path, Path]] = {}
    for path in images:
        inside = [path]
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in ENDINGS and file.name[0] != ".")
            if not inside:
                raise BadFile(f"{path} holds no image: none of its files ends in {', '.join(ENDINGS)}")
        for file in inside:
            below = file.parent.relative_to(path) if path.is_dir() else Path()
            paths.setdefault(file.resolve(), (file, below))
    return dict(paths.values())


def _job(image: Path, out: Path, target: Target, probabilities: bool, overlays: bool) -> Job:
    mask, name = out / f"{image.stem}.png", image.stem
    masks = tuple(label_paths(mask, target)) if target.kind == "multilabel" else (mask,)
    chances = out / f"{name}-probabilities.tif" if probabilities else None
    return Job(image, masks, chances, out / f"{name}-overlay.png" if overlays else None)
