"""A run as it goes on: a bar and a table on a terminal, a line an epoch elsewhere; curves and samples in its folder."""

from __future__ import annotations

from pathlib import Path
from time import monotonic
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from unetkit.summary.forward_hooks import network_of
from unetkit.train.checkpoint import LOG
from unetkit.train.plots import draw_curves, draw_samples
from unetkit.train.trainer import TrainCallback, Trainer, ValidationResult
from unetkit.utils.files import read_json_lines

#: Epochs of the table that stay in sight.
_SEEN = 12
#: Seconds between two drawings of the curves.
_PAUSE = 20.0
CURVES, SAMPLES, BOARD = "curves.png", "samples", "tensorboard"


class TrainProgress(TrainCallback):
    """Shows a run on stderr, and draws it."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False)
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:3.0f}%"))
        left = (TimeElapsedColumn(), TextColumn("gone,"), TimeRemainingColumn(), TextColumn("left"))
        self._bar = Progress(*columns, *left, console=self.console)
        self._lines: list[dict[str, Any]] = []
        self._drawn = 0.0
        self._live: Live | None = None
        self._board: Any = None

    def scan(self, done: int, count: int) -> None:
        """A line that is written over, on a terminal."""
        if self.console.is_terminal:
            self.console.print(f"\r{done} of {count} masks are read" if done < count else "\r\x1b[K", end="")

    def begin(self, trainer: Trainer) -> None:
        """Say what is trained on what, and begin the bar."""
        self.trainer = trainer
        self.steps = trainer.loader.steps
        self.epochs = trainer.run.choices.epochs
        read_json_lines(trainer.run.folder / LOG, self._lines.append, "training run")
        for line in about(trainer):
            self.console.print(line, soft_wrap=True)
        done = trainer.state.epoch * self.steps + trainer.state.step
        self._task = self._bar.add_task("training", total=self.epochs * self.steps, completed=done)
        self._board = _board(trainer.run.folder, trainer.state.epoch) if trainer.run.choices.tensorboard else None
        if self.console.is_terminal:
            self._live = Live(self._shown(), console=self.console, refresh_per_second=4, transient=True)
            self._live.get_renderable = self._shown  # type: ignore[method-assign]
            self._live.start()

    def step(self, done: int, loss: float) -> None:
        said = f"epoch {self.trainer.state.epoch + 1} of {self.epochs}, loss {loss:.3f}"
        self._bar.update(self._task, completed=self.trainer.state.epoch * self.steps + done, description=said)

    def image(self, done: int, count: int) -> None:
        said = f"epoch {self.trainer.state.epoch + 1} of {self.epochs}, validating image {done + 1} of {count}"
        self._bar.update(self._task, description=said)

    def epoch(self, line: dict[str, Any], found: ValidationResult) -> None:
        """Add a line to the table, and draw."""
        self._lines.append(line)
        folder, every = self.trainer.run.folder, self.trainer.run.choices.preview_every
        if not self._live:
            self.console.print(told(line, self.epochs), soft_wrap=True)
        last = bool(self.trainer.state.ended)
        if last or monotonic() - self._drawn > _PAUSE:
            draw_curves(self._lines, folder / CURVES)
            self._drawn = monotonic()
        if every and (last or line["epoch"] % every == 0):
            draw_samples(found.shown, self.trainer.run.target, folder / SAMPLES / f"epoch-{line['epoch']:03}.png")
        if self._board:
            _to_board(self._board, line)

    def end(self, why: str) -> None:
        """Leave the table, and say where all is."""
        self.close()
        if self.console.is_terminal:
            self.console.print(self._table())
        best = max(self._lines, key=lambda line: line["miou"] or 0.0)
        folder = self.trainer.run.folder
        self.console.print(f"{why}; best mIoU {_figure(best['miou'])} after epoch {best['epoch']}", soft_wrap=True)
        self.console.print(f"curves in {folder / CURVES}; predictions in {folder / SAMPLES}", soft_wrap=True)
        then = f"next: unetkit eval {folder}, or unetkit predict {folder} IMAGE... --out masks"
        self.console.print(then, soft_wrap=True)

    def close(self) -> None:
        """Give the terminal back, and end TensorBoard's file."""
        if self._board:
            self._board.close()
            self._board = None
        if self._live:
            self._live.stop()
            self._live = None

    def _shown(self) -> RenderableType:
        return Group(self._table(), self._bar) if self._lines else self._bar

    def _table(self) -> Table:
        table = Table(box=SIMPLE_HEAD)
        for name in ("epoch", "loss", "val. loss", "mIoU", "rate", "s"):
            table.add_column(name, justify="right")
        for line in self._lines[-_SEEN:]:
            cells = (str(line["epoch"]), f"{line['loss']:.4f}", _figure(line["val_loss"]), _figure(line["miou"]))
            table.add_row(
                *cells, f"{line['lr']:.2g}", f"{line['all_seconds']:.0f}", style="bold" if line["best"] else ""
            )
        return table


def about(trainer: Trainer) -> list[str]:
    """What is trained on what."""
    run, data, world = trainer.run, trainer.data, trainer.world
    splits = ", ".join(f"{len(images)} {name}" for name, images in data.splits.items())
    crop = "x".join(map(str, run.choices.crop or ()))
    lines = [
        f"network  {run.plan}",
        f"data     {data.said}: {splits}; {data.target.kind} ({', '.join(data.target.names[:8])})",
        f"loss     {trainer.loss.said}; augmentation {run.choices.augment}; crops {crop}",
        f"steps    {trainer.loader.steps} an epoch of {run.choices.batch_size * world.size} images, "
        f"{run.choices.epochs} epochs; {world.device}, {str(trainer.stepper.dtype).removeprefix('torch.')}",
    ]
    if world.size > 1:
        norms = "; statistics of batch norms are each process's own, and the first one's are kept"
        kept = (
            norms if any("BatchNorm" in type(module).__name__ for module in trainer.stepper.network.modules()) else ""
        )
        lines.append(f"world    {world.size} processes of {run.choices.batch_size} images a step{kept}")
    if trainer.state.epoch or trainer.state.step:
        lines.append(f"resumed  after epoch {trainer.state.epoch}, step {trainer.state.step}")
    if run.choices.freeze_encoder:
        until = "throughout" if run.choices.freeze_encoder < 0 else f"for {run.choices.freeze_encoder} epochs"
        lines.append(f"frozen   the encoder {network_of(trainer.stepper.network).plan.encoder}, {until}")
    return lines


def told(line: dict[str, Any], epochs: int) -> str:
    """An epoch as a line."""
    losses = f"loss {line['loss']:.4f}, validation {_figure(line['val_loss'])}"
    best = ", best so far" if line["best"] else ""
    return (
        f"epoch {line['epoch']} of {epochs}: {losses}, mIoU {_figure(line['miou'])}, {line['all_seconds']:.0f} s{best}"
    )


def _figure(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"


def _board(folder: Path, epoch: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder / BOARD), purge_step=epoch + 1)


def _to_board(board: Any, line: dict[str, Any]) -> None:
    for name in ("loss", "val_loss", "miou", "lr"):
        if line[name] is not None:
            board.add_scalar(name, line[name], line["epoch"])
    for name, value in line["iou"].items():
        if value is not None:
            board.add_scalar(f"iou/{name}", value, line["epoch"])
    board.flush()
