"""One image after the other: read, passed by tiles, written; one that cannot be read costs a line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from unetkit.data.io import ENDINGS
from unetkit.data.types import Target
from unetkit.data.visualize import VOID, label_paths
from unetkit.errors import FileError, InputSizeError, OptionError, UnetkitError
from unetkit.predict.image_reader import ImageReader, open_image
from unetkit.predict.mask_writer import MaskWriter, OverlayWriter, write_probabilities
from unetkit.summary.trace import trace
from unetkit.tiling.layout import TileLayout, TileRequirements
from unetkit.tiling.requirements import find_tile_requirements
from unetkit.tiling.sliding_window import Pass, Source, Window, make_forward, windows
from unetkit.train.checkpoint import TrainRun
from unetkit.utils.files import atomic_write
from unetkit.utils.formatting import Size, format_bytes, format_size
from unetkit.utils.system import free_memory


@dataclass(frozen=True)
class PredictionJob:
    """An image, and the files that are written of it: None for those that are not wanted."""

    image: Path
    masks: tuple[Path, ...]
    probabilities: Path | None = None
    overlay: Path | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """All that are written."""
        return (*self.masks, *(path for path in (self.probabilities, self.overlay) if path))


def plan_outputs(
    images: Iterable[Path], out: Path, target: Target, *, probabilities: bool = False, overlays: bool = False
) -> list[PredictionJob]:
    """What is to be done of images and of folders of images.

    Raises:
        FileError: a folder holds no image.
        OptionError: two images would be written to one file, or one over an image; or there are more classes than the
            palette of a PNG holds.
    """
    if target.kind != "multilabel" and len(target.names) > VOID:
        raise OptionError(f"{len(target.names)} classes do not fit into the palette of a PNG, which has {VOID}")
    jobs = [_job(path, out / inside, target, probabilities, overlays) for path, inside in find_images(images).items()]
    places: dict[Path, Path] = {}
    for job in jobs:
        for file in map(Path.resolve, job.files):
            if (other := places.setdefault(file, job.image)) != job.image:
                raise OptionError(f"{other} and {job.image} would both be written to {file.name}; predict them apart")
    for job in jobs:
        if job.image.resolve() in places:
            raise OptionError(f"--out {out}: {job.image} would be overwritten; give another folder")
    return jobs


def find_images(images: Iterable[Path]) -> dict[Path, Path]:
    """Images, those in folders and their sub-folders included: each once, in the order they are named.

    With each goes the sub-folder that it lies in, which its files keep.
    """
    paths: dict[Path, tuple[Path, Path]] = {}
    for path in images:
        inside = [path]
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in ENDINGS and file.name[0] != ".")
            if not inside:
                raise FileError(f"{path} holds no image: none of its files ends in {', '.join(ENDINGS)}")
        for file in inside:
            below = file.parent.relative_to(path) if path.is_dir() else Path()
            paths.setdefault(file.resolve(), (file, below))
    return dict(paths.values())


def _job(image: Path, out: Path, target: Target, probabilities: bool, overlays: bool) -> PredictionJob:
    mask, name = out / f"{image.stem}.png", image.stem
    masks = tuple(label_paths(mask, target)) if target.kind == "multilabel" else (mask,)
    chances = out / f"{name}-probabilities.tif" if probabilities else None
    return PredictionJob(image, masks, chances, out / f"{name}-overlay.png" if overlays else None)


class TilingCheck:
    """The largest difference from what one pass over the whole image gives, and how often it decides otherwise.

    Where one pass cannot be had, `said` says so.
    """

    def __init__(self, fit: TileRequirements, network: nn.Module, passed: Pass, source: Source) -> None:
        self._most, self._otherwise, self._pixels, self._why = 0.0, 0, source.size[0] * source.size[1], ""
        self._whole = torch.empty(0)
        try:
            layout = fit.single_tile(source.size)
            if why := too_large(network, (layout.rows.whole + fit.shrinks[0], layout.columns.whole + fit.shrinks[1])):
                self._why = why
                return
            (found,) = windows(passed, source, layout)
            self._whole = found.values
        except UnetkitError as error:
            self._why = str(error)

    def add(self, window: Window, decide: Callable[[Tensor], Tensor]) -> None:
        """Compare the probabilities of a window (L, h, w)."""
        if self._why:
            return
        whole = self._whole[:, window.rows, window.columns]
        self._most = max(self._most, float((whole - window.values).abs().max()))
        other = (decide(whole[None]) != decide(window.values[None]))[0]
        self._otherwise += int((other.any(0) if other.ndim == 3 else other).sum())

    @property
    def said(self) -> str:
        """What came of it, in words."""
        if self._why:
            return f"not checked: {self._why}"
        share = f"{self._otherwise:,} of {self._pixels:,} pixels are decided otherwise"
        return f"probabilities differ by at most {self._most:.1e} from one pass over the whole image; {share}"


def too_large(network: nn.Module, size: Size) -> str:
    """Why one pass over an input of a size would take more memory than there is, or ""."""
    device = next(network.parameters()).device
    left = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()
    # What autograd would keep is more than what a pass without it holds at any time.
    needs = trace(network, size).activation_bytes
    if needs <= left:
        return ""
    return f"one pass may take {format_bytes(needs)}, and {format_bytes(left)} are free; check on a smaller image"


@dataclass(frozen=True)
class PredictConfig:
    """How images are passed.

    Attributes:
        tile: height and width of what is passed at a time; None lets the network decide.
        overlap: of tiles, which are then blended; None lets the network decide.
        batch_size: tiles a pass.
        tta: whether the mean is taken over the image and its mirror images.
        check: whether the result is compared with one pass over the whole image.
    """

    tile: Size | None = None
    overlap: int | None = None
    batch_size: int = 1
    tta: bool = False
    check: bool = False

    def __post_init__(self) -> None:
        if self.tile and min(self.tile) < 1:
            raise OptionError(f"--tile {format_size(self.tile)}: must be at least 1x1")
        if self.batch_size < 1 or (self.overlap is not None and self.overlap < 0):
            name, least = ("batch-size", 1) if self.batch_size < 1 else ("overlap", 0)
            raise OptionError(f"--{name} {getattr(self, name)}: must be at least {least}")


class NormalizedReader:
    """An image as the network takes it."""

    def __init__(self, picture: ImageReader, run: TrainRun) -> None:
        self._picture, self._run = picture, run
        self.size = picture.size

    def read(self, rows: slice, columns: slice) -> Tensor:
        return self._run.normalize(self._picture.read(rows, columns))


class PredictCallback:
    """What becomes of images as they are passed; this one keeps it to itself."""

    def begins(self, job: PredictionJob, picture: ImageReader, layout: TileLayout) -> None:
        """An image is open."""

    def passed(self, done: int, tiles: int) -> None:
        """So many of its tiles are done."""

    def ends(self, job: PredictionJob, checked: str) -> None:
        """Its files are written; what --check found, or ""."""

    def fails(self, job: PredictionJob, why: str) -> None:
        """It could not be done."""


class Predictor:
    """A trained network, ready for images.

    Args:
        run: what it was trained as.
        network: its network, in eval mode on its device.
        how: images are passed.
    """

    def __init__(self, run: TrainRun, network: nn.Module, how: PredictConfig) -> None:
        self.run, self.network, self.how = run, network, how
        self.fit = find_tile_requirements(network)
        first = next(network.parameters())
        self._passed = make_forward(network, first.device, first.dtype, run.target.probabilities, tta=how.tta)

    def predict(self, job: PredictionJob, tell: PredictCallback | None = None) -> None:
        """Write the files of an image, all of them or none.

        Raises:
            FileError: it cannot be read, has other channels than the network takes, or the files cannot be written.
            InputSizeError: no size of tile passes that is near it, or memory does not suffice for one.
        """
        with open_image(job.image) as picture:
            if picture.channels != self.run.channels:
                takes = f"{picture.channels} channels, and the network of {self.run.folder} takes {self.run.channels}"
                raise FileError(f"{job.image}: has {takes}; give images such as it was trained on")
            layout = self.fit.layout(picture.size, self.how.tile, self.how.overlap, tta=self.how.tta)
            tell = tell or PredictCallback()
            tell.begins(job, picture, layout)
            source = NormalizedReader(picture, self.run)
            check = TilingCheck(self.fit, self.network, self._passed, source) if self.how.check else None
            try:
                with torch.inference_mode():
                    self._write(job, picture, self._windows(source, layout, tell, check))
            except OSError as error:
                raise FileError(f"{job.image}: its files cannot be written: {error.strerror or error}") from error
            tell.ends(job, check.said if check else "")

    def _windows(
        self, source: Source, layout: TileLayout, tell: PredictCallback, check: TilingCheck | None
    ) -> Iterator[Window]:
        for done, window in enumerate(windows(self._passed, source, layout, self.how.batch_size), 1):
            if check:
                check.add(window, self.run.target.to_mask)
            yield window
            tell.passed(done, layout.tiles)

    def _write(self, job: PredictionJob, picture: ImageReader, found: Iterator[Window]) -> None:
        """Let each window pass all that is written of it."""
        with ExitStack() as stack:
            masks = MaskWriter(stack, job.masks, picture.size, self.run.target)
            laid = OverlayWriter(picture.size, self.run.target) if job.overlay else None
            found = self._decided(found, masks, laid)
            if job.probabilities:
                temporary = stack.enter_context(atomic_write(job.probabilities))
                write_probabilities(temporary, found, picture.size, len(self.run.target.names))
            for _ in found:
                pass
            masks.end()
            if laid and job.overlay:
                laid.write(job.overlay, picture)

    def _decided(self, found: Iterator[Window], masks: MaskWriter, laid: OverlayWriter | None) -> Iterator[Window]:
        for window in found:
            decided = self.run.target.to_mask(window.values[None])[0]
            masks.add(window, decided)
            if laid:
                laid.add(window, decided)
            yield window


def predict_all(
    predictor: Callable[[PredictionJob, PredictCallback], None], jobs: Iterable[PredictionJob], tell: PredictCallback
) -> int:
    """Do all that can be done; how many could not be."""
    failed = 0
    for job in jobs:
        try:
            predictor(job, tell)
        except FileError as error:
            failed += 1
            tell.fails(job, str(error))
        except InputSizeError as error:  # a smaller image may pass
            failed += 1
            tell.fails(job, f"{job.image}: {error}")
    return failed
