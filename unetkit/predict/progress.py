"""Images as they are done: a bar with the time left on a terminal, a line an image elsewhere; on stderr."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from unetkit.predict.image_reader import ImageReader
from unetkit.predict.predictor import PredictCallback, PredictionJob
from unetkit.tiling.layout import TileLayout
from unetkit.utils.formatting import format_size


class PredictProgress(PredictCallback):
    """Shows images on stderr.

    Args:
        count: of all images.
    """

    def __init__(self, count: int) -> None:
        self.console = Console(stderr=True, highlight=False)
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("gone,"))
        self._bar = Progress(*columns, TimeRemainingColumn(), TextColumn("left"), console=self.console, transient=True)
        self._count, self._tried, self.done, self._why = count, 0, 0, ""
        self._task = self._bar.add_task("", total=count)
        if self.console.is_terminal:
            self._bar.start()

    def begins(self, job: PredictionJob, picture: ImageReader, layout: TileLayout) -> None:
        """Say how it is passed, where that is not as it was with the one before."""
        if layout.why != self._why:
            self._why = layout.why
            self._say(layout.why)
        if picture.note:
            self._say(f"{job.image} {picture.note}")
        self._named = f"{self._tried + 1} of {self._count}: {job.image}, {format_size(picture.size)}"
        self._bar.update(self._task, description=self._named)

    def passed(self, done: int, tiles: int) -> None:
        self._bar.update(self._task, completed=self._tried + done / tiles)

    def ends(self, job: PredictionJob, checked: str) -> None:
        self._next()
        self.done += 1
        files = ", ".join(map(str, job.files))
        self._say(f"{self._named}: {files}" + (f"; {checked}" if checked else ""))

    def fails(self, job: PredictionJob, why: str) -> None:
        self._next()
        self._say(f"{self._tried} of {self._count}: failed: {why}")

    def close(self) -> None:
        """Take the bar away."""
        if self.console.is_terminal:
            self._bar.stop()

    def _next(self) -> None:
        self._tried += 1
        self._bar.update(self._task, completed=self._tried)

    def _say(self, line: str) -> None:
        self.console.print(Text(line), soft_wrap=True)
