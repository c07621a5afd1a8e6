"""The training loop in plain PyTorch, and validation.

A run is a function of its plan, configuration and data. What a step draws comes from random streams that are named by
its number, so a run that was killed and resumed ends with the same weights as an uninterrupted one; on a CPU
with the same number of threads they are identical to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from unetkit.data.augment import Augment
from unetkit.data.border_weights import BorderMaps
from unetkit.data.types import Dataset, DatasetSplits, Sample, check_values
from unetkit.errors import OptionError, UnetkitError
from unetkit.serialization import save
from unetkit.tiling.sliding_window import tiled
from unetkit.train.checkpoint import BEST, HEADER, LAST, LOG, STATE, TrainRun, TrainState
from unetkit.train.dataloader import AugmentedDataset, Batch, Loader, Weigh
from unetkit.train.distributed import ProcessGroup
from unetkit.train.image_check import ImageCheck
from unetkit.train.losses import Loss
from unetkit.train.metrics import Evaluation
from unetkit.train.optim import OptimizerConfig
from unetkit.train.outputs import OutputLoss
from unetkit.train.step import Losses, NonFiniteError, Stepper
from unetkit.utils.formatting import format_plural
from unetkit.utils.json_lines import JsonLinesWriter
from unetkit.utils.modules import explain_norm_error
from unetkit.utils.oom import is_oom

#: The number of images in a preview.
NUM_PREVIEWS = 4


class Preview(NamedTuple):
    """An image, its true mask and the predicted probabilities, to be drawn."""

    sample: Sample
    predicted: Tensor


class ValidationResult(NamedTuple):
    """The validation loss and scores, and predictions of the first images."""

    loss: float
    summary: dict[str, Any]
    previews: list[Preview]


class Validation:
    """The validation images, which are shared among the processes."""

    def __init__(self, images: Dataset, run: TrainRun, loss: Loss, weigh: Weigh | None, group: ProcessGroup) -> None:
        self.images, self.run, self.loss, self.weigh, self.group = images, run, loss, weigh, group

    def __call__(
        self, network: nn.Module, precision: Callable[[], Any], callback: Callable[[int, int], None]
    ) -> ValidationResult:
        """Score all validation images; every process must call this.

        Args:
            network: the network, which is put into eval mode.
            precision: returns the autocast context, or one that does nothing.
            callback: is called with the number of images that are done, and their total number.
        """
        network.eval()
        score, losses, shown = Evaluation(self.run.target), [], []
        mine = range(self.group.rank, len(self.images), self.group.size)
        for done, index in enumerate(mine):
            callback(done, len(mine))
            sample = check_values(self.images[index])
            logits, chances = self._forward(network, sample, precision)
            losses.append(float(self._loss(logits, sample)))
            score.add(sample.name, chances, sample)
            if index < NUM_PREVIEWS:
                shown.append(Preview(sample, self.run.target.to_mask(chances[None])[0]))
        return self._gather(score, losses, shown)

    def _gather(self, score: Evaluation, losses: list[float], shown: list[Preview]) -> ValidationResult:
        parts = self.group.all_gather((score.to_dict(), losses, shown))
        together = Evaluation(self.run.target)
        for values, _, _ in parts:
            together.merge(values)
        every = [loss for _, found, _ in parts for loss in found]
        return ValidationResult(
            sum(every) / len(every), together.summary(), [one for _, _, found in parts for one in found]
        )

    def _forward(self, network: nn.Module, sample: Sample, precision: Callable[[], Any]) -> tuple[Tensor, Tensor]:
        """Compute logits (K, H, W) and probabilities (L, H, W) with the same tiling as `unetkit eval`."""

        def both(logits: Tensor) -> Tensor:
            logits = logits.float()
            return torch.cat([logits, self.run.target.probabilities(logits)], 1)

        with precision():
            found = tiled(network, self.run.normalize(sample.image), then=both)
        labels = len(self.run.target.names)
        return found[:-labels], found[-labels:]

    def _loss(self, logits: Tensor, sample: Sample) -> Tensor:
        there = self.group.device
        weights = self.weigh(sample)[None].to(there) if self.weigh else None
        return self.loss(logits[None].to(there), sample.mask[None].to(there), weights)[0]


#: The file with the state of a run whose loss became NaN or infinite.
STOPPED = "stopped.pt"


class TrainCallback:
    """The base class of callbacks of a run; its methods do nothing."""

    def on_scan(self, done: int, count: int) -> None:
        """Called while the data are opened, with the number of masks that were read."""

    def on_train_begin(self, trainer: Trainer) -> None:
        """Called before the first step."""

    def on_step_end(self, done: int, loss: float) -> None:
        """Called after each step, with the number of completed steps of the epoch."""

    def on_validation_image(self, done: int, count: int) -> None:
        """Called before each validation image."""

    def on_epoch_end(self, line: dict[str, Any], found: ValidationResult) -> None:
        """Called after each epoch, with its entry of the log."""

    def on_train_end(self, why: str) -> None:
        """Called after the last epoch."""


class RunParts(NamedTuple):
    """What a training step needs beside the network, created from the names in a TrainConfig."""

    loss: Loss
    augment: Augment
    optimizer: OptimizerConfig
    #: What trains each named output of the network but the prediction.
    others: dict[str, OutputLoss] = {}
    #: The number of further predictions of the network in a tuple, which are trained on the mask.
    further: int = 0


class Trainer:
    """One run in one of its processes.

    Attributes:
        run, data, group: the run, its data, and the processes.
        state: the progress of the run.
        others: what trains each named output of the network but the prediction.
        further: the number of further predictions in a tuple, which are trained on the mask.
        loader: the source of batches.
        stepper: the network with its optimizer.
    """

    def __init__(
        self,
        run: TrainRun,
        data: DatasetSplits,
        network: nn.Module,
        run_parts: RunParts,
        group: ProcessGroup,
        state: TrainState,
        callback: TrainCallback,
        save_every: float,
        borders: str | Path | None = None,
        check_images: bool = True,
    ) -> None:
        """Prepare the loop, and continue at the given state.

        Args:
            run: the description of the run.
            data: the opened data set.
            network: the network on the CPU.
            run_parts: loss, augmentation and optimizer.
            group: the processes that train together.
            state: the state to continue from.
            callback: receives the progress in the first process.
            save_every: seconds between two saves within an epoch.
            borders: a folder for border weights; None for one in the folder of the run.
            check_images: whether to read all images of a folder in the background.
        """
        config, (loss, augment, optimizer, others, further) = run.config, run_parts
        self.others, self.further = others, further
        self.run, self.data, self.group, self.state, self.loss = run, data, group, state, loss
        self.callback = callback if group.is_first else TrainCallback()
        self.save_every, self._saved = save_every, monotonic()
        weigh = BorderMaps(*loss.border, Path(borders or run.folder / "borders")) if loss.border else None
        targets = {name: one.target for name, one in others.items()}
        train = AugmentedDataset(data.splits["train"], augment, weigh, run.normalize, config.seed, targets)
        self.loader = Loader(train, config, group, workers=_workers(config.workers, group.device))
        height, width = config.crop or (0, 0)
        planes = 4 * run.channels + 4
        for maps in (run.target, *(target.maps for target in targets.values())):
            planes += 8 * (len(maps.names) if maps.kind in ("multilabel", "regression") else 1)
        #: Why fewer processes load data than were asked for; "" if as many do.
        self.fewer_workers = self.loader.limit_workers(config.batch_size * height * width * planes)
        self.images = ImageCheck(data.splits if check_images else {})
        self.validation = Validation(data.splits["val"], run, loss, weigh, group)
        self.stepper = Stepper(network, config, optimizer, loss, group, self.loader.total_steps, others)
        if state.model:
            self.stepper.load_from(state)

    def train(self) -> str:
        """Train to the last epoch, or until patience ends the run; return why it ended.

        Raises:
            FileError: An image cannot be read.
            UnetkitError: The loss or its gradient became infinite or NaN.
        """
        lines = JsonLinesWriter(self.run.folder / LOG, "training run") if self.group.is_first else None
        try:
            if lines:
                self._remove_later_files(lines)
                self._write_weights()
            self.callback.on_train_begin(self)
            if self.group.is_first and not self.state.epochs_done:
                self.images.start()
            with torch.random.fork_rng([self.group.device] if self.group.device.type == "cuda" else []):
                while not self.state.stop_reason:
                    self._epoch(lines)
        finally:
            self.images.stop()
            if lines:
                lines.close()
        self.callback.on_train_end(self.state.stop_reason)
        return self.state.stop_reason

    def _epoch(self, lines: JsonLinesWriter | None) -> None:
        start, state = monotonic(), self.state
        self.stepper.begin_epoch(state.epochs_done)
        for batch in self.loader.epoch(state.epochs_done, state.steps_done):
            self.images.raise_error()
            losses = self._step(batch)
            state.losses.append(losses.total)
            for name, value in losses.by_output.items():
                state.output_losses.setdefault(name, []).append(value)
            state.steps_done += 1
            self.callback.on_step_end(state.steps_done, state.losses[-1])
            if self.group.is_first and monotonic() - self._saved > self.save_every:
                self._save()
        trained = monotonic() - start
        self.group.sync_buffers(self.stepper.network)
        found = self.validation(self.stepper.network, self.stepper.autocast, self.callback.on_validation_image)
        about = {
            "lr": self.stepper.learning_rate(self.loader.first_step(state.epochs_done)),
            "seconds": trained,
            "all_seconds": monotonic() - start,
        }
        self._finish_epoch(lines, found, about)

    def _step(self, batch: Batch) -> Losses[float]:
        try:
            return self.stepper.step(batch, self.loader.first_step(self.state.epochs_done) + self.state.steps_done)
        except NonFiniteError as error:
            if self.group.is_first:
                self.stepper.save_to(self.state).write(self.run.folder / STOPPED)
            step, epoch = self.state.steps_done + 1, self.state.epochs_done + 1
            where = f"step {step} of epoch {epoch} (images {', '.join(batch.names[:8])})"
            raise UnetkitError(
                f"{error} at {where}; the weights before it are in {self.run.folder / STOPPED}: "
                "try a lower --lr, or --dtype float32"
            ) from error
        except (RuntimeError, ValueError, MemoryError) as error:
            shape = "x".join(map(str, batch.images.shape))
            if is_oom(error):
                advice = "give a lower --batch-size or --crop"
                if self.state.epochs_done or self.state.steps_done:
                    advice += ", and another --out"
                raise UnetkitError(f"not enough memory for a step of {shape}; {advice}") from error
            if why := explain_norm_error(error):
                raise OptionError(f"a step of {shape}: {why}; give a larger --batch-size or --crop") from error
            raise

    def _finish_epoch(self, lines: JsonLinesWriter | None, found: ValidationResult, about: dict[str, float]) -> None:
        state, config = self.state, self.run.config
        loss = sum(state.losses) / len(state.losses)
        by_output = {name: sum(values) / len(values) for name, values in state.output_losses.items()}
        state.epochs_done, state.steps_done, state.losses = state.epochs_done + 1, 0, []
        state.output_losses = {}
        score = found.summary["miou"]
        better = state.best is None or (score is not None and score > state.best)
        if better:
            state.best, state.best_epoch = -1.0 if score is None else score, state.epochs_done
        if state.epochs_done == config.epochs:
            state.stop_reason = f"{format_plural(config.epochs, 'epoch')} completed"
        elif config.patience and state.epochs_done - state.best_epoch >= config.patience:
            state.stop_reason = (
                f"no epoch was better than epoch {state.best_epoch} for {format_plural(config.patience, 'epoch')}"
            )
        val_loss = found.loss if isfinite(found.loss) else None
        line = {
            "epoch": state.epochs_done,
            "loss": loss,
            "val_loss": val_loss,
            **({"output_losses": by_output} if by_output else {}),
            **found.summary,
            **about,
            "best": better,
        }
        if lines:
            lines.append(line)
            self._save()
            self._write_weights()
        self.callback.on_epoch_end(line, found)

    def _remove_later_files(self, lines: JsonLinesWriter) -> None:
        """Remove files of later epochs than the state's; called with the lock held."""
        if not self.state.model:  # what a run that saved no step has left
            for name in (STATE, BEST, LAST):
                (self.run.folder / name).unlink(missing_ok=True)
            self.run.write()
        lines.truncate(self.state.epochs_done)
        for name in (HEADER, STATE, BEST, LAST):
            for torn in self.run.folder.glob(f".{name}.*.tmp"):  # left by a process that was killed
                torn.unlink()

    def _save(self) -> None:
        self.stepper.save_to(self.state).write(self.run.folder / STATE)
        self._saved = monotonic()

    def _write_weights(self) -> None:
        """Write the weight files after the state; if this is interrupted, resuming the run repeats it."""
        if not self.state.model:
            self._save()
        if not self.state.steps_done or not (self.run.folder / LAST).exists():
            save(self.stepper.network, self.run.folder / LAST)
            if self.state.best_epoch == self.state.epochs_done > 0:
                save(self.stepper.network, self.run.folder / BEST)


def _workers(workers: int | None, device: torch.device) -> int:
    if workers is not None:
        return workers
    return min(8, torch.get_num_threads()) if device.type == "cuda" else 0
