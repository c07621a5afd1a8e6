"""The training loop in plain PyTorch, and validation.

A run is a function of its plan, configuration and data. The random numbers of a step depend only on the seed and on the
number of the step, so a run that was killed and resumed ends with the same weights as an uninterrupted one; on a CPU
with the same number of threads they are identical to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from math import isfinite
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from unetkit.data.border_weights import BorderMaps
from unetkit.data.sample_checks import CheckedImages
from unetkit.data.types import Dataset, DatasetSplits, Sample
from unetkit.errors import OptionError, UnetkitError
from unetkit.serialization import save
from unetkit.tiling.sliding_window import tiled
from unetkit.train.checkpoint import BEST, HEADER, LAST, LOG, STATE, TrainRun, TrainState
from unetkit.train.dataloader import AugmentedDataset, Batch, Loader, Weigh
from unetkit.train.distributed import ProcessGroup
from unetkit.train.image_check import ImageCheck
from unetkit.train.losses import Loss
from unetkit.train.metrics import Evaluation
from unetkit.train.step import Losses, NonFiniteError, RunParts, Stepper
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
        self,
        network: nn.Module,
        autocast: Callable[[], AbstractContextManager[Any]],
        callback: Callable[[int, int], None],
    ) -> ValidationResult:
        """Score all validation images; every process must call this.

        Args:
            network: the network, which is put into eval mode.
            autocast: returns the context of a forward pass.
            callback: is called with the number of images that are done, and their total number.
        """
        network.eval()
        evaluation, losses, previews = Evaluation(self.run.target), [], []
        share = range(self.group.rank, len(self.images), self.group.size)
        for done, index in enumerate(share):
            callback(done, len(share))
            sample = self.images[index]
            logits, probabilities = self._forward(network, sample, autocast)
            losses.append(float(self._loss(logits, sample)))
            evaluation.add(sample.name, probabilities, sample)
            if index < NUM_PREVIEWS:
                previews.append(Preview(sample, self.run.target.to_mask(probabilities[None])[0]))
        return self._gather(evaluation, losses, previews)

    def _gather(self, evaluation: Evaluation, losses: list[float], previews: list[Preview]) -> ValidationResult:
        """Combine the results of all processes."""
        shares = self.group.all_gather((evaluation.to_dict(), losses, previews))
        evaluation = Evaluation(self.run.target)
        for scores, _, _ in shares:
            evaluation.merge(scores)
        losses = [loss for _, losses, _ in shares for loss in losses]
        previews = [preview for _, _, previews in shares for preview in previews]
        return ValidationResult(sum(losses) / len(losses), evaluation.summary(), previews)

    def _forward(
        self, network: nn.Module, sample: Sample, autocast: Callable[[], AbstractContextManager[Any]]
    ) -> tuple[Tensor, Tensor]:
        """Compute logits (K, H, W) and probabilities (L, H, W) with the same tiling as `unetkit eval`."""

        def add_probabilities(logits: Tensor) -> Tensor:
            logits = logits.float()
            return torch.cat([logits, self.run.target.probabilities(logits)], 1)

        with autocast():
            maps = tiled(network, self.run.normalize(sample.image), then=add_probabilities)
        labels = len(self.run.target.names)
        return maps[:-labels], maps[-labels:]

    def _loss(self, logits: Tensor, sample: Sample) -> Tensor:
        device = self.group.device
        weights = self.weigh(sample)[None].to(device) if self.weigh else None
        return self.loss(logits[None].to(device), sample.mask[None].to(device), weights)[0]


#: The file with the state of a run whose loss became NaN or infinite.
STOPPED = "stopped.pt"


class TrainCallback:
    """The base class of callbacks of a run; its methods do nothing."""

    def on_scan(self, done: int, count: int) -> None:
        """Called while the data are opened, with the number of masks that were read."""

    def on_note(self, note: str) -> None:
        """Called with a note for the user about a run that is continued."""

    def on_train_begin(self, trainer: Trainer) -> None:
        """Called before the first step."""

    def on_step_end(self, done: int, loss: float) -> None:
        """Called after each step, with the number of completed steps of the epoch."""

    def on_validation_image(self, done: int, count: int) -> None:
        """Called before each validation image."""

    def on_epoch_end(self, line: dict[str, Any], result: ValidationResult) -> None:
        """Called after each epoch, with its entry of the log."""

    def on_train_end(self, why: str) -> None:
        """Called after the last epoch."""


class Trainer:
    """One run in one of its processes.

    Attributes:
        run, data, group: the run, its data, and the processes.
        run_parts: losses, augmentation and optimizer.
        state: the progress of the run.
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
            run_parts: losses, augmentation and optimizer.
            group: the processes that train together.
            state: the state to continue from.
            callback: receives the progress in the first process.
            save_every: seconds between two saves within an epoch.
            borders: a folder for border weights; None for one in the folder of the run.
            check_images: whether to read all images of a folder in the background.
        """
        config, loss = run.config, run_parts.loss
        self.run, self.data, self.run_parts, self.group, self.state = run, data, run_parts, group, state
        self.callback = callback if group.is_first else TrainCallback()
        self.save_every, self._saved = save_every, monotonic()
        weigh = BorderMaps(*loss.border, Path(borders or run.folder / "borders")) if loss.border else None
        targets = {name: one.target for name, one in run_parts.output_losses.items()}
        train, val = (CheckedImages(data.splits[name], run.target, run.channels) for name in ("train", "val"))
        augmented = AugmentedDataset(train, run_parts.augment, weigh, run.normalize, config.seed, targets)
        self.loader = Loader(augmented, config, group, workers=_count_workers(config.workers, group.device))
        height, width = config.crop or (0, 0)
        planes = 4 * run.channels + 4
        for maps in (run.target, *(target.maps for target in targets.values())):
            planes += 8 * (len(maps.names) if maps.kind in ("multilabel", "regression") else 1)
        #: Why fewer processes load data than were asked for; "" if as many do.
        self.fewer_workers = self.loader.limit_workers(config.batch_size * height * width * planes)
        self.image_check = ImageCheck(data.splits if check_images else {})
        self.validation = Validation(val, run, loss, weigh, group)
        self.stepper = Stepper(network, config, run_parts, group, self.loader.total_steps)
        if state.model:
            self.stepper.load_from(state)
        self._log: JsonLinesWriter | None = None

    def train(self) -> None:
        """Train to the last epoch, or until patience ends the run.

        Raises:
            FileError: An image cannot be read.
            UnetkitError: The loss or its gradient became infinite or NaN.
        """
        if self.group.is_first:
            self._log = JsonLinesWriter(self.run.folder / LOG, "training run")
        try:
            if self._log:
                self._remove_leftovers()
                self._log.truncate(self.state.epochs_done)
                self._write_weights()
            self.callback.on_train_begin(self)
            if self.group.is_first and not self.state.epochs_done:
                self.image_check.start()
            with torch.random.fork_rng([self.group.device] if self.group.device.type == "cuda" else []):
                while not self.state.stop_reason:
                    self._train_epoch()
        finally:
            self.image_check.stop()
            self.stepper.close()
            if self._log:
                self._log.close()
        self.callback.on_train_end(self.state.stop_reason)

    def _train_epoch(self) -> None:
        start, state = monotonic(), self.state
        self.stepper.begin_epoch(state.epochs_done)
        for batch in self.loader.epoch(state.epochs_done, state.steps_done):
            self.image_check.raise_error()
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
        result = self.validation(self.stepper.network, self.stepper.autocast, self.callback.on_validation_image)
        measured = {
            "lr": self.stepper.learning_rate(self.loader.first_step(state.epochs_done)),
            "seconds": trained,
            "all_seconds": monotonic() - start,
        }
        self._finish_epoch(result, measured)

    def _step(self, batch: Batch) -> Losses:
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

    def _finish_epoch(self, result: ValidationResult, measured: dict[str, float]) -> None:
        """Decide whether the epoch is the best one and whether it is the last one, and write its results."""
        state, config = self.state, self.run.config
        loss = sum(state.losses) / len(state.losses)
        by_output = {name: sum(values) / len(values) for name, values in state.output_losses.items()}
        state.epochs_done, state.steps_done, state.losses = state.epochs_done + 1, 0, []
        state.output_losses = {}
        score = result.summary["miou"]
        is_best = state.best is None or (score is not None and score > state.best)
        if is_best:
            state.best, state.best_epoch = -1.0 if score is None else score, state.epochs_done
        if state.epochs_done == config.epochs:
            state.stop_reason = f"{format_plural(config.epochs, 'epoch')} completed"
        elif config.patience and state.epochs_done - state.best_epoch >= config.patience:
            state.stop_reason = (
                f"no epoch was better than epoch {state.best_epoch} for {format_plural(config.patience, 'epoch')}"
            )
        val_loss = result.loss if isfinite(result.loss) else None
        line = {
            "epoch": state.epochs_done,
            "loss": loss,
            "val_loss": val_loss,
            **({"output_losses": by_output} if by_output else {}),
            **result.summary,
            **measured,
            "best": is_best,
        }
        if self._log:
            self._log.append(line)
            self._save()
            self._write_weights()
        self.callback.on_epoch_end(line, result)

    def _remove_leftovers(self) -> None:
        """Remove the files of an earlier run that saved no step, and those that a killed process has left."""
        if not self.state.model:
            for name in (STATE, BEST, LAST):
                (self.run.folder / name).unlink(missing_ok=True)
            self.run.write()
        for name in (HEADER, STATE, BEST, LAST):
            for temporary in self.run.folder.glob(f".{name}.*.tmp"):
                temporary.unlink()

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


def _count_workers(workers: int | None, device: torch.device) -> int:
    if workers is not None:
        return workers
    return min(8, torch.get_num_threads()) if device.type == "cuda" else 0
