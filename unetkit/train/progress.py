"""The progress of a run: a table and a bar in a terminal, a line per epoch elsewhere, and pictures in its folder."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from unetkit.summary.forward_hooks import find_network
from unetkit.summary.outputs import format_further
from unetkit.train.checkpoint import HEADER, LOG
from unetkit.train.plots import draw_curves, draw_samples
from unetkit.train.trainer import TrainCallback, Trainer, ValidationResult
from unetkit.utils.formatting import format_plural
from unetkit.utils.isolation import call_before_debugger
from unetkit.utils.json_lines import read_json_lines

#: The number of epochs that the table shows.
_SEEN = 12
#: The number of tensors that were not loaded which are listed by name.
_NOT_LOADED = 8
#: Seconds between two updates of the curves.
_PAUSE = 20.0
CURVES, PREVIEWS, BOARD = "curves.png", "previews", "tensorboard"


class TrainProgress(TrainCallback):
    """A callback that shows a run on stderr and draws its curves and predictions."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False)
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:3.0f}%"))
        left = (TimeElapsedColumn(), TextColumn("gone,"), TimeRemainingColumn(), TextColumn("left"))
        self._bar = Progress(*columns, *left, console=self.console)
        self._lines: list[dict[str, Any]] = []
        self._drawn = 0.0
        self._live: Live | None = None
        self._restore_debugger: Callable[[], None] = lambda: None
        self._board: Any = None

    def on_scan(self, done: int, count: int) -> None:
        """Show how many masks were read, in one line of a terminal."""
        if self.console.is_terminal:
            self.console.print(f"\r{done} of {count} masks are read" if done < count else "\r\x1b[K", end="")

    def on_note(self, note: str) -> None:
        self.console.print(f"note     {note}", soft_wrap=True)

    def on_train_begin(self, trainer: Trainer) -> None:
        """Print what is trained on which data, and start the progress bar."""
        self.trainer = trainer
        self.epochs = trainer.run.config.epochs
        read_json_lines(trainer.run.folder / LOG, self._lines.append, "training run")
        for line in describe_run(trainer):
            self.console.print(line, soft_wrap=True)
        done = self._steps_before() + trainer.state.steps_done
        self._task = self._bar.add_task("training", total=trainer.loader.total_steps, completed=done)
        self._board = (
            _open_tensorboard(trainer.run.folder, trainer.state.epochs_done) if trainer.run.config.tensorboard else None
        )
        if self.console.is_terminal:
            self._live = Live(self._render(), console=self.console, refresh_per_second=4, transient=True)
            self._live.get_renderable = self._render  # type: ignore[method-assign]
            self._live.start()
            # From a breakpoint on, there is a line for each epoch instead of the table.
            self._restore_debugger = call_before_debugger(self._stop_live)

    def on_step_end(self, done: int, loss: float) -> None:
        text = f"epoch {self.trainer.state.epochs_done + 1} of {self.epochs}, loss {loss:.3f}"
        self._bar.update(self._task, completed=self._steps_before() + done, description=text)

    def _steps_before(self) -> int:
        return self.trainer.loader.first_step(self.trainer.state.epochs_done)

    def on_validation_image(self, done: int, count: int) -> None:
        text = f"epoch {self.trainer.state.epochs_done + 1} of {self.epochs}, validating image {done + 1} of {count}"
        self._bar.update(self._task, description=text)

    def on_epoch_end(self, line: dict[str, Any], result: ValidationResult) -> None:
        """Add a row to the table, and draw the pictures."""
        self._lines.append(line)
        folder, every = self.trainer.run.folder, self.trainer.run.config.preview_every
        if not self._live:
            self.console.print(format_epoch(line, self.epochs), soft_wrap=True)
        last = bool(self.trainer.state.stop_reason)
        if last or monotonic() - self._drawn > _PAUSE:
            draw_curves(self._lines, folder / CURVES)
            self._drawn = monotonic()
        if every and (last or line["epoch"] % every == 0):
            draw_samples(result.previews, self.trainer.run.target, folder / PREVIEWS / f"epoch-{line['epoch']:03}.png")
        if self._board:
            _write_tensorboard(self._board, line)

    def on_train_end(self, why: str) -> None:
        """Leave the table on the screen, and print where the results are."""
        self.close()
        if self.console.is_terminal:
            self.console.print(self._table())
        best = max(self._lines, key=lambda line: line["miou"] or 0.0)
        folder = self.trainer.run.folder
        self.console.print(
            f"{why}; best mIoU {_format_score(best['miou'])} after epoch {best['epoch']}", soft_wrap=True
        )
        written = [(what, folder / name) for what, name in (("curves", CURVES), ("predictions", PREVIEWS))]
        self.console.print("; ".join(f"{what} in {path}" for what, path in written if path.exists()), soft_wrap=True)
        quoted = shlex.quote(str(folder))
        then = f"next: unetkit eval {quoted}, or unetkit predict {quoted} IMAGE... --out masks"
        self.console.print(then, soft_wrap=True)

    def close(self) -> None:
        """Release the terminal, and close TensorBoard's file."""
        if self._board:
            self._board.close()
            self._board = None
        self._stop_live()
        self._restore_debugger()

    def _stop_live(self) -> None:
        if self._live:
            self._live.stop()
            self._live = None

    def _render(self) -> RenderableType:
        return Group(self._table(), self._bar) if self._lines else self._bar

    def _table(self) -> Table:
        table = Table(box=SIMPLE_HEAD)
        outputs = [*self._lines[-1].get("output_losses", ())]
        for name in ("epoch", "loss", *outputs, "val. loss", "mIoU", "rate", "s"):
            table.add_column(Text(name), justify="right")
        for line in self._lines[-_SEEN:]:
            cells = (
                str(line["epoch"]),
                f"{line['loss']:.4f}",
                *(f"{line['output_losses'][name]:.4f}" for name in outputs),
                _format_score(line["val_loss"]),
                _format_score(line["miou"]),
            )
            table.add_row(
                *cells, f"{line['lr']:.2g}", f"{line['all_seconds']:.0f}", style="bold" if line["best"] else ""
            )
        return table


def describe_run(trainer: Trainer) -> list[str]:
    """Describe the network, the data and the configuration in lines."""
    run, data, group = trainer.run, trainer.data, trainer.group
    splits = ", ".join(f"{len(images)} {name}" for name, images in data.splits.items())
    crop = "x".join(map(str, run.config.crop or ()))
    images, epochs = (
        format_plural(run.config.batch_size * group.size, "image"),
        format_plural(run.config.epochs, "epoch"),
    )
    precision = str(trainer.stepper.dtype).removeprefix("torch.")
    lines = [
        f"network  {run.plan}",
        f"data     {data.source}: {splits}; {data.target.kind} ({', '.join(data.target.names[:8])})",
        *(f"note     {note}" for note in data.notes),
        f"loss     {trainer.run_parts.loss.text}; augmentation {run.config.augment}; crops {crop}",
        f"steps    {trainer.loader.total_steps} with {images}, in {epochs}; {group.device}, {precision}",
    ]
    if run.config.init_weights and not trainer.state.epochs_done:
        lines.insert(1, f"weights  from {run.config.init_weights}{_format_not_loaded(run.not_loaded)}")
    if trainer.run_parts.further:
        lines.append(f"output   {format_further(trainer.run_parts.further)}")
    lines += [
        f"output   {name}: trained on {one.target.text} with {one.loss.text}, weight {one.weight:g}"
        for name, one in trainer.run_parts.output_losses.items()
    ]
    if trainer.fewer_workers:
        lines.append(f"note     {trainer.fewer_workers}")
    if group.size > 1:
        norms = "; statistics of batch norms are each process's own, and the first one's are kept"
        kept = (
            norms if any("BatchNorm" in type(module).__name__ for module in trainer.stepper.network.modules()) else ""
        )
        lines.append(
            f"devices  {group.size} processes with {format_plural(run.config.batch_size, 'image')} in a step{kept}"
        )
    if trainer.state.stop_reason:
        lines.append("note     the run in this folder is finished, so nothing is trained")
    elif trainer.state.epochs_done or trainer.state.steps_done:
        lines.append(f"resumed  after epoch {trainer.state.epochs_done}, step {trainer.state.steps_done}")
    if run.config.freeze_encoder:
        epochs = format_plural(run.config.freeze_encoder, "epoch")
        until = "throughout" if run.config.freeze_encoder < 0 else f"for {epochs}"
        network = find_network(trainer.stepper.network)
        backbone = network.get_submodule(network.backbone_name)
        frozen, count = (
            sum(p.numel() for p in each) for each in (network.pretrained_parameters(), backbone.parameters())
        )
        new = f"; its {count - frozen:,} new ones train" if count > frozen else ""
        lines.append(f"frozen   {frozen:,} loaded parameters of the encoder, {until}{new}")
    return lines


def _format_not_loaded(not_loaded: dict[str, str]) -> str:
    if not not_loaded:
        return ", all tensors"
    shown = ", ".join(f"{name} ({why})" for name, why in [*not_loaded.items()][:_NOT_LOADED])
    more = f", and {len(not_loaded) - _NOT_LOADED} more, which {HEADER} lists" if len(not_loaded) > _NOT_LOADED else ""
    return f"; not loaded: {shown}{more}"


def format_epoch(line: dict[str, Any], epochs: int) -> str:
    """Format the results of an epoch as one line."""
    outputs = ", ".join(f"{name} {value:.4f}" for name, value in line.get("output_losses", {}).items())
    losses = f"loss {line['loss']:.4f}{f' ({outputs})' if outputs else ''}"
    losses += f", validation {_format_score(line['val_loss'])}"
    best = ", best so far" if line["best"] else ""
    score = f"mIoU {_format_score(line['miou'])}, {line['all_seconds']:.0f} s"
    return f"epoch {line['epoch']} of {epochs}: {losses}, {score}{best}"


def _format_score(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"


def _open_tensorboard(folder: Path, epoch: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder / BOARD), purge_step=epoch + 1)


def _write_tensorboard(board: Any, line: dict[str, Any]) -> None:
    for name in ("loss", "val_loss", "miou", "lr"):
        if line[name] is not None:
            board.add_scalar(name, line[name], line["epoch"])
    for name, value in line.get("output_losses", {}).items():
        board.add_scalar(f"loss/{name}", value, line["epoch"])
    for name, value in line["iou"].items():
        if value is not None:
            board.add_scalar(f"iou/{name}", value, line["epoch"])
    board.flush()
