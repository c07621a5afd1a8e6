"""One image after the other: read, passed by tiles, written; one that cannot be read costs a line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unetkit.atomic import written_whole
from unetkit.deploy.fitting import fit
from unetkit.deploy.layouts import Layout
from unetkit.deploy.passing import passing
from unetkit.deploy.stitching import Source, Window, windows
from unetkit.errors import BadFile, BadOption, CannotPass
from unetkit.inspect.figures import format_size
from unetkit.plan import Size
from unetkit.predict.checking import Check
from unetkit.predict.opening import Picture, opened
from unetkit.predict.planning import Job
from unetkit.predict.writing import Masks, Overlay, write_probabilities
from unetkit.train.record import Run


@dataclass(frozen=True)
class How:
    """How images are passed.

    Attributes:
        tile: height and width of what is passed at a time; None lets the network decide.
        overlap: of tiles, which are then blended; None lets the network decide.
        batch: tiles a pass.
        flips: whether the mean is taken over the image and its mirror images.
        check: whether the result is compared with one pass over the whole image.
    """

    tile: Size | None = None
    overlap: int | None = None
    batch: int = 1
    flips: bool = False
    check: bool = False

    def __post_init__(self) -> None:
        if self.tile and min(self.tile) < 1:
            raise BadOption(f"--tile {format_size(self.tile)}: must be at least 1x1")
        if self.batch < 1 or (self.overlap is not None and self.overlap < 0):
            name, least = ("batch", 1) if self.batch < 1 else ("overlap", 0)
            raise BadOption(f"--{name} {getattr(self, name)}: must be at least {least}")


class Normalised:
    """An image as the network takes it."""

    def __init__(self, picture: Picture, run: Run) -> None:
        self._picture, self._run = picture, run
        self.size = picture.size

    def read(self, rows: slice, columns: slice) -> Tensor:
        return self._run.normalised(self._picture.read(rows, columns))


class Tell:
    """What becomes of images as they are passed; this one keeps it to itself."""

    def begins(self, job: Job, picture: Picture, layout: Layout) -> None:
        """An image is open."""

    def passed(self, done: int, tiles: int) -> None:
        """So many of its tiles are done."""

    def ends(self, job: Job, checked: str) -> None:
        """Its files are written; what --check found, or ""."""

    def fails(self, job: Job, why: str) -> None:
        """It could not be done."""


class Predictor:
    """A trained network, ready for images.

    Args:
        run: what it was trained as.
        network: its network, in eval mode on its device.
        how: images are passed.
    """

    def __init__(self, run: Run, network: nn.Module, how: How) -> None:
        self.run, self.network, self.how = run, network, how
        self.fit = fit(network)
        first = next(network.parameters())
        self._passed = passing(network, first.device, first.dtype, run.target.probabilities, flips=how.flips)

    def predict(self, job: Job, tell: Tell | None = None) -> None:
        """Write the files of an image, all of them or none.

        Raises:
            BadFile: it cannot be read, has other channels than the network takes, or the files cannot be written.
            CannotPass: no size of tile passes that is near it, or memory does not suffice for one.
        """
        with opened(job.image) as picture:
            if picture.channels != self.run.channels:
                takes = f"{picture.channels} channels, and the network of {self.run.folder} takes {self.run.channels}"
                raise BadFile(f"{job.image}: has {takes}; give images such as it was trained on")
            layout = self.fit.layout(picture.size, self.how.tile, self.how.overlap, flips=self.how.flips)
            tell = tell or Tell()
            tell.begins(job, picture, layout)
            source = Normalised(picture, self.run)
            check = Check(self.fit, self.network, self._passed, source) if self.how.check else None
            try:
                with torch.inference_mode():
                    self._write(job, picture, self._windows(source, layout, tell, check))
            except OSError as error:
                raise BadFile(f"{job.image}: its files cannot be written: {error.strerror or error}") from error
            tell.ends(job, check.said if check else "")

    def _windows(self, source: Source, layout: Layout, tell: Tell, check: Check | None) -> Iterator[Window]:
        for done, window in enumerate(windows(self._passed, source, layout, self.how.batch), 1):
            if check:
                check.add(window, self.run.target.decided)
            yield window
            tell.passed(done, layout.tiles)

    def _write(self, job: Job, picture: Picture, found: Iterator[Window]) -> None:
        """Let each window pass all that is written of it."""
        with ExitStack() as stack:
            masks = Masks(stack, job.masks, picture.size, self.run.target)
            laid = Overlay(picture.size, self.run.target) if job.overlay else None
            found = self._decided(found, masks, laid)
            if job.probabilities:
                temporary = stack.enter_context(written_whole(job.probabilities))
                write_probabilities(temporary, found, picture.size, len(self.run.target.names))
            for _ in found:
                pass
            masks.end()
            if laid and job.overlay:
                laid.write(job.overlay, picture)

    def _decided(self, found: Iterator[Window], masks: Masks, laid: Overlay | None) -> Iterator[Window]:
        for window in found:
            decided = self.run.target.decided(window.values[None])[0]
            masks.add(window, decided)
            if laid:
                laid.add(window, decided)
            yield window


def predict_all(predictor: Callable[[Job, Tell], None], jobs: Iterable[Job], tell: Tell) -> int:
    """Do all that can be done; how many could not be."""
    failed = 0
    for job in jobs:
        try:
            predictor(job, tell)
        except BadFile as error:
            failed += 1
            tell.fails(job, str(error))
        except CannotPass as error:  # a smaller image may pass
            failed += 1
            tell.fails(job, f"{job.image}: {error}")
    return failed
