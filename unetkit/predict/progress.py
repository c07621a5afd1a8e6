"""The progress of prediction on stderr: a bar with the time left in a terminal, a line for each image elsewhere."""

from __future__ import annotations

from collections import Counter

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from unetkit.predict.image_reader import ImageReader
from unetkit.predict.predictor import PredictCallback, PredictionJob
from unetkit.tiling.layout import TileLayout
from unetkit.utils.formatting import format_plural, format_size

#: The number of images for which the same reason of a failure is printed.
_REPEATS = 3


class PredictProgress(PredictCallback):
    """A callback that shows the progress on stderr.

    Args:
        count: the number of images.
    """

    def __init__(self, count: int) -> None:
        self.console = Console(stderr=True, highlight=False)
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("gone,"))
        self._bar = Progress(*columns, TimeRemainingColumn(), TextColumn("left"), console=self.console, transient=True)
        self._reasons: Counter[str] = Counter()
        self._count, self._tried, self.done, self._why = count, 0, 0, ""
        self._task = self._bar.add_task("", total=count)
        if self.console.is_terminal:
            self._bar.start()

    def on_image_begin(self, job: PredictionJob, picture: ImageReader, layout: TileLayout) -> None:
        """Print how the image is divided into tiles, if that differs from the previous image."""
        if layout.explanation != self._why:
            self._why = layout.explanation
            self.print_line(layout.explanation)
        if picture.note:
            self.print_line(f"{job.image} {picture.note}")
        self._named = f"{self._tried + 1} of {self._count}: {job.image}, {format_size(picture.size)}"
        self._bar.update(self._task, description=self._named)

    def on_tile_end(self, done: int, tiles: int) -> None:
        self._bar.update(self._task, completed=self._tried + done / tiles)

    def on_image_end(self, job: PredictionJob, checked: str) -> None:
        self._next()
        self.done += 1
        files = ", ".join(map(str, job.files))
        self.print_line(f"{self._named}: {files}" + (f"; {checked}" if checked else ""))

    def on_image_error(self, job: PredictionJob, why: str) -> None:
        self._next()
        reason = why.removeprefix(f"{job.image}: ")
        self._reasons[reason] += 1
        if self._reasons[reason] <= _REPEATS:
            self.print_line(f"{self._tried} of {self._count}: failed: {why}")

    def close(self) -> None:
        """Remove the bar, and print how often a reason was not repeated."""
        for reason, count in self._reasons.items():
            if count > _REPEATS:
                self.print_line(f"{format_plural(count - _REPEATS, 'more image')} failed: {reason}")
        self._reasons.clear()
        if self.console.is_terminal:
            self._bar.stop()

    def _next(self) -> None:
        self._tried += 1
        self._bar.update(self._task, completed=self._tried)

    def print_line(self, line: str) -> None:
        """Print a line above the bar."""
        self.console.print(Text(line), soft_wrap=True)
