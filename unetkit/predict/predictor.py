"""Predict one image after the other: plan the files, read, process by tiles, and write.

All files are planned before anything is read, so that no two images are written to the same file. An image that cannot
be read is reported in one line, and the others are still processed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unetkit.data.io import CONVERSIONS, ENDINGS, convert_channels, mark_missing, read_header, to_float_image
from unetkit.data.layout import walk_files
from unetkit.data.types import IGNORE, Target
from unetkit.data.visualize import VOID, label_paths
from unetkit.errors import FileError, InputSizeError, OptionError, UnetkitError
from unetkit.predict.config import PredictConfig
from unetkit.predict.engines import Engine
from unetkit.predict.image_reader import ImageReader, WholeImage, open_image
from unetkit.predict.mask_writer import MaskWriter, OverlayWriter, write_probabilities
from unetkit.predict.model_info import ModelInfo
from unetkit.tiling.layout import TileLayout
from unetkit.tiling.stitching import Pass, Source, Window, average_over_flips, iterate_windows, join_windows
from unetkit.utils.files import atomic_write
from unetkit.utils.formatting import format_plural
from unetkit.utils.integers import ceil_div


@dataclass(frozen=True)
class PredictionJob:
    """An image and the files to write for it; None for files that are not requested."""

    image: Path
    masks: tuple[Path, ...]
    probabilities: Path | None = None
    overlay: Path | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """Return all files that are written."""
        return (*self.masks, *(path for path in (self.probabilities, self.overlay) if path))


def plan_outputs(
    images: Iterable[Path],
    out: Path,
    target: Target,
    config: PredictConfig | None = None,
) -> list[PredictionJob]:
    """Plan the files for images and for folders of images. Files in `out` are outputs, and not read.

    Raises:
        FileError: A folder contains no image.
        OptionError: Two images have the same output file, an output would overwrite an image, `out` is a file, there
            are more classes than a PNG palette can hold, or the masks cannot have this format.
    """
    config = config or PredictConfig()
    if config.format == "binary" and target.kind == "multiclass":
        raise OptionError(f"--format binary: the masks have {len(target.names)} classes; give index or color")
    if config.format not in (None, "binary") and target.kind == "multilabel":
        raise OptionError(f"--format {config.format}: each label has a mask of its own, of 0 and 255; leave it out")
    if target.kind != "multilabel" and len(target.names) > VOID:
        raise OptionError(f"{len(target.names)} classes do not fit into the palette of a PNG, which has {VOID}")
    if out.exists() and not out.is_dir():
        raise OptionError(f"--out {out}: is a file; give a folder")
    jobs = [_plan_job(path, out / inside, target, config) for path, inside in find_images(images, out).items()]
    places: dict[Path, Path] = {}
    for job in jobs:
        for file in map(Path.resolve, job.files):
            if (other := places.setdefault(file, job.image)) != job.image:
                raise OptionError(
                    f"{other} and {job.image} would both be written to {file.name}; predict them separately"
                )
    for job in jobs:
        if len({*map(Path.resolve, job.files)}) < len(job.files):
            raise OptionError(f"{job.image}: two of its outputs would be written to one file; rename a label")
        if job.image.resolve() in places:
            raise OptionError(f"--out {out}: {job.image} would be overwritten; give another folder")
    return jobs


def find_images(images: Iterable[Path], out: Path | None = None) -> dict[Path, Path]:
    """Return the images, including those in folders and their sub-folders, each once and in the given order.

    A folder `out` inside of these folders is left out, so that a prediction may be repeated.

    Each comes with the sub-folder that it lies in, which is also used for its outputs.
    """
    paths: dict[Path, tuple[Path, Path]] = {}
    for path in images:
        inside = [path]
        if path.is_dir():
            left_out = out.resolve() if out and out.resolve() != path.resolve() else None
            inside = sorted(
                file
                for file in walk_files(path)
                if file.suffix.lower() in ENDINGS and left_out not in file.resolve().parents
            )
            if not inside:
                raise FileError(f"{path} contains no image: no file name ends in {', '.join(ENDINGS)}")
        for file in inside:
            below = file.parent.relative_to(path) if path.is_dir() else Path()
            paths.setdefault(file.resolve(), (file, below))
    return dict(paths.values())


def _plan_job(image: Path, out: Path, target: Target, config: PredictConfig) -> PredictionJob:
    mask, name = out / f"{image.stem}.png", image.stem
    masks = tuple(label_paths(mask, target)) if target.kind == "multilabel" else (mask,)
    chances = out / f"{name}-probabilities.tif" if config.probabilities else None
    return PredictionJob(image, masks, chances, out / f"{name}-overlay.png" if config.overlay else None)


def count_passes(jobs: Iterable[PredictionJob], info: ModelInfo, config: PredictConfig) -> int:
    """Return the number of passes through the network that images need, from the beginnings of their files."""
    count = 0
    for job in jobs:
        try:
            layout = info.tiles.layout(read_header(job.image).size, config.tile, config.overlap, tta=config.tta)
        except UnetkitError:  # it is reported when its turn comes
            continue
        count += ceil_div(layout.tiles, config.batch_size)
    return count * (4 if config.tta else 1)


class TilingCheck:
    """The largest difference from a single pass over the whole image, and the number of pixels with another class.

    If a single pass is impossible, `summary` says why.
    """

    def __init__(self, info: ModelInfo, engine: Engine, passed: Pass, source: Source) -> None:
        self._most, self._otherwise, self._pixels, self._why = 0.0, 0, source.size[0] * source.size[1], ""
        self._whole, self._to_mask, tiles = np.empty(0), info.to_mask, info.tiles
        try:
            layout = tiles.single_tile(source.size)
            if why := engine.explain_if_too_large(
                (layout.rows.total + tiles.shrinks[0], layout.columns.total + tiles.shrinks[1])
            ):
                self._why = why
                return
            (found,) = iterate_windows(passed, source, layout)
            self._whole = found.values
        except UnetkitError as error:
            self._why = str(error)

    def add(self, window: Window) -> None:
        """Compare the probabilities of a window (L, h, w)."""
        if self._why:
            return
        whole = self._whole[:, window.rows, window.columns]
        self._most = max(self._most, float(np.abs(whole - window.values).max()))
        other = self._to_mask(whole) != self._to_mask(window.values)
        self._otherwise += int((other.any(0) if other.ndim == 3 else other).sum())

    @property
    def summary(self) -> str:
        """The result as text."""
        if self._why:
            return f"not checked: {self._why}"
        share = f"{self._otherwise:,} of {self._pixels:,} pixels have another class"
        return f"probabilities differ by at most {self._most:.1e} from a single pass over the whole image; {share}"


class NormalizedReader:
    """An image, normalized as the network expects it, which remembers where it has no data."""

    def __init__(self, picture: ImageReader, info: ModelInfo, convert: str, name: Path | str) -> None:
        self._picture, self._info, self._convert, self.name = picture, info, convert, name
        self._missing: list[tuple[slice, slice, np.ndarray]] = []
        self.size = picture.size

    def read(self, rows: slice, columns: slice) -> np.ndarray:
        image = convert_channels(self._picture.read(rows, columns), self._convert, self.name)
        if (missing := np.isnan(image[0])).any():
            self._missing.append((rows, columns, missing))
        return self._info.normalize(image)

    def take_missing(self, window: Window) -> np.ndarray | None:
        """Return where a window has no data, (h, w), or None for nowhere.

        Windows must be taken in their order, from the top down, after they were read; what lies above is forgotten.
        """
        self._missing = [one for one in self._missing if one[0].stop > window.rows.start]
        if not self._missing:
            return None
        found = np.zeros(window.values.shape[-2:], bool)
        for rows, columns, missing in self._missing:
            top, bottom = max(rows.start, window.rows.start), min(rows.stop, window.rows.stop)
            left, right = max(columns.start, window.columns.start), min(columns.stop, window.columns.stop)
            if top < bottom and left < right:
                found[
                    top - window.rows.start : bottom - window.rows.start,
                    left - window.columns.start : right - window.columns.start,
                ] |= missing[top - rows.start : bottom - rows.start, left - columns.start : right - columns.start]
        return found


#: What messages call an image that is from no file.
_IN_MEMORY = "the image"


class PredictCallback:
    """The base class of callbacks for the progress of prediction; its methods do nothing."""

    def on_image_begin(self, job: PredictionJob, picture: ImageReader, layout: TileLayout) -> None:
        """Called when an image was opened."""

    def on_tile_end(self, done: int, tiles: int) -> None:
        """Called with the number of tiles that are done."""

    def on_image_end(self, job: PredictionJob, checked: str) -> None:
        """Called when the files of an image are written, with the result of --check or ""."""

    def on_image_error(self, job: PredictionJob, why: str) -> None:
        """Called when an image could not be processed."""


class Predictor:
    """A network, ready to predict images.

    Args:
        info: what prediction must know of the network.
        engine: what runs it.
        config: how images are processed.
    """

    def __init__(self, info: ModelInfo, engine: Engine, config: PredictConfig) -> None:
        self.info, self.engine, self.config = info, engine, config
        self._passed: Pass = average_over_flips(engine) if config.tta else engine

    def predict(self, job: PredictionJob, callback: PredictCallback | None = None) -> None:
        """Write the files of an image, either all of them or none.

        Raises:
            FileError: The image cannot be read, has the wrong number of channels, or the files cannot be written.
            InputSizeError: The network accepts no tile near the requested size, or memory is not sufficient for one.
        """
        with open_image(job.image, self._nodata) as picture:
            source, layout = self._prepare(picture, job.image)
            callback = callback or PredictCallback()
            callback.on_image_begin(job, picture, layout)
            check = TilingCheck(self.info, self.engine, self._passed, source) if self.config.check else None
            try:
                self._write(job, picture, self._windows(source, layout, callback.on_tile_end, check))
            except OSError as error:
                raise FileError(f"{job.image}: its files cannot be written: {error.strerror or error}") from error
            callback.on_image_end(job, check.summary if check else "")

    def predict_array(self, values: np.ndarray) -> np.ndarray:
        """Compute the probabilities of an image in memory.

        Args:
            values: the numbers of an image file, (H, W) or (H, W, C), in their own type.

        Returns:
            (L, H, W) float32, by class or label; NaN where the image has no data.

        Raises:
            FileError: The image has the wrong number of channels, or contains NaN or infinity.
            InputSizeError: The network accepts no tile near the requested size, or memory is not sufficient for one.
            OptionError: The values are no image.
        """
        values = np.asarray(values)
        if values.ndim not in (2, 3) or not values.size or values.dtype.kind not in "buif":
            shape = "x".join(map(str, values.shape)) or "no dimensions"
            raise OptionError(f"{_IN_MEMORY} is {values.dtype} of {shape}; give numbers (H, W) or (H, W, C)")
        image = mark_missing(to_float_image(values), values, (self._nodata,), _IN_MEMORY)
        source, layout = self._prepare(WholeImage(image), _IN_MEMORY)
        return join_windows(self._windows(source, layout), source.size)

    def to_mask(self, probabilities: np.ndarray) -> np.ndarray:
        """Convert probabilities (L, H, W) to a mask, as `ModelInfo.to_mask` does, with IGNORE where they are NaN."""
        mask = self.info.to_mask(probabilities)
        if (missing := np.isnan(probabilities[0])).any():
            mask[..., missing] = IGNORE
        return mask

    @property
    def _nodata(self) -> float | None:
        return self.info.nodata if self.config.nodata is None else self.config.nodata

    def _prepare(self, picture: ImageReader, name: Path | str) -> tuple[NormalizedReader, TileLayout]:
        """Check the channels of an image, and divide it into tiles."""
        convert = self.config.channels or self.info.conversion
        is_converted = convert and picture.channels in CONVERSIONS.values()
        if (CONVERSIONS[convert] if is_converted else picture.channels) != self.info.channels:
            raise FileError(f"{name}: {self._describe_channels(picture.channels)}")
        layout = self.info.tiles.layout(picture.size, self.config.tile, self.config.overlap, tta=self.config.tta)
        return NormalizedReader(picture, self.info, convert, name), layout

    def _describe_channels(self, has: int) -> str:
        needs = self.info.channels
        what = f"has {format_plural(has, 'channel')}, but the network of {self.info.source} needs {needs}"
        advice = "give images like those that it was trained on"
        if {has, needs} == {1, 3}:
            advice = f"--channels {'grey' if needs == 1 else 'rgb'} converts"
        return f"{what}; {advice}"

    def _windows(
        self,
        source: NormalizedReader,
        layout: TileLayout,
        on_tile_end: Callable[[int, int], None] = lambda done, tiles: None,
        check: TilingCheck | None = None,
    ) -> Iterator[Window]:
        """Yield the probabilities of each window, which are NaN where the image has no data."""
        for done, window in enumerate(iterate_windows(self._passed, source, layout, self.config.batch_size), 1):
            if check:
                check.add(window)
            if not np.isfinite(window.values).all():
                raise FileError(f"{source.name}: the network gives NaN or infinity for it; its weights may be damaged")
            missing = source.take_missing(window)
            if missing is not None:
                window = window._replace(values=np.where(missing, np.float32(np.nan), window.values))
            yield window
            on_tile_end(done, layout.tiles)

    def _write(self, job: PredictionJob, picture: ImageReader, found: Iterator[Window]) -> None:
        """Yield each window after it was passed to all writers."""
        with ExitStack() as stack:
            masks = MaskWriter(stack, job.masks, picture.size, self.info.target, self.config.format or "index")
            laid = OverlayWriter(picture.size, self.info.target) if job.overlay else None
            found = self._to_masks(found, masks, laid)
            if job.probabilities:
                temporary = stack.enter_context(atomic_write(job.probabilities))
                write_probabilities(temporary, found, picture.size, len(self.info.target.names))
            for _ in found:
                pass
            masks.finish()
            if laid and job.overlay:
                laid.write(job.overlay, picture)

    def _to_masks(self, found: Iterator[Window], masks: MaskWriter, laid: OverlayWriter | None) -> Iterator[Window]:
        for window in found:
            decided = self.to_mask(window.values)
            masks.add(window, decided)
            if laid:
                laid.add(window, decided)
            yield window


def predict_all(
    predictor: Callable[[PredictionJob, PredictCallback], None],
    jobs: Iterable[PredictionJob],
    callback: PredictCallback,
) -> int:
    """Process all images, and return the number of those that failed."""
    failed = 0
    for job in jobs:
        try:
            predictor(job, callback)
        except FileError as error:
            failed += 1
            callback.on_image_error(job, str(error))
        except InputSizeError as error:  # a smaller image may pass
            failed += 1
            callback.on_image_error(job, f"{job.image}: {error}")
    return failed
