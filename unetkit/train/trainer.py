"""The training loop, in plain torch.

A run is a function of its plan, choices and data: what a step draws comes from streams named by its number, so that
a run that was killed and resumed ends with the weights of one that was not (to the bit on a CPU with as many threads).
"""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from time import monotonic
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from unetkit.data.augment import make_augment
from unetkit.data.border_weights import BorderMaps
from unetkit.data.types import Dataset, DatasetSplits, Sample
from unetkit.errors import OptionError, UnetkitError
from unetkit.serialization import save
from unetkit.summary.forward_hooks import network_of
from unetkit.tiling.sliding_window import tiled
from unetkit.train.checkpoint import BEST, HEADER, LAST, LOG, STATE, TrainRun, TrainState
from unetkit.train.dataloader import AugmentedDataset, Batch, Loader, Weigh
from unetkit.train.distributed import ProcessGroup
from unetkit.train.losses import Loss, make_loss
from unetkit.train.metrics import Evaluation
from unetkit.train.step import NonFiniteError, Stepper
from unetkit.utils.files import JsonLinesWriter
from unetkit.utils.system import is_oom

#: Images whose predictions are drawn.
SHOWN = 4


class Preview(NamedTuple):
    """What is drawn of an image: it, its mask, and what was predicted."""

    sample: Sample
    predicted: Tensor


class ValidationResult(NamedTuple):
    """What came of it: means over images, and the predictions of the first."""

    loss: float
    summary: dict[str, Any]
    shown: list[Preview]


class Validation:
    """The validation images and how they are looked at."""

    def __init__(self, images: Dataset, run: TrainRun, loss: Loss, weigh: Weigh | None, world: ProcessGroup) -> None:
        self.images, self.run, self.loss, self.weigh, self.world = images, run, loss, weigh, world

    def __call__(
        self, network: nn.Module, precision: Callable[[], Any], tell: Callable[[int, int], None]
    ) -> ValidationResult:
        """Pass every image; all processes must come here.

        Args:
            network: is put into eval mode.
            precision: gives autocast's context, or one that does nothing.
            tell: how many images are done, of how many.
        """
        network.eval()
        score, losses, shown = Evaluation(self.run.target), [], []
        mine = range(self.world.rank, len(self.images), self.world.size)
        for done, index in enumerate(mine):
            tell(done, len(mine))
            sample = self.images[index]
            logits, chances = self._passed(network, sample, precision)
            losses.append(float(self._loss(logits, sample)))
            score.add(sample.name, chances, sample)
            if index < SHOWN:
                shown.append(Preview(sample, self.run.target.to_mask(chances[None])[0]))
        return self._together(score, losses, shown)

    def _together(self, score: Evaluation, losses: list[float], shown: list[Preview]) -> ValidationResult:
        parts = self.world.all_gather((score.to_dict(), losses, shown))
        together = Evaluation(self.run.target)
        for said, _, _ in parts:
            together.merge(said)
        every = [loss for _, found, _ in parts for loss in found]
        return ValidationResult(
            sum(every) / len(every), together.summary(), [one for _, _, found in parts for one in found]
        )

    def _passed(self, network: nn.Module, sample: Sample, precision: Callable[[], Any]) -> tuple[Tensor, Tensor]:
        """Logits (K, H, W) and probabilities (L, H, W), both as `unetkit eval` puts them together."""

        def both(logits: Tensor) -> Tensor:
            logits = logits.float()
            return torch.cat([logits, self.run.target.probabilities(logits)], 1)

        with precision():
            found = tiled(network, self.run.normalised(sample.image), then=both)
        labels = len(self.run.target.names)
        return found[:-labels], found[-labels:]

    def _loss(self, logits: Tensor, sample: Sample) -> Tensor:
        there = self.world.device
        weights = self.weigh(sample)[None].to(there) if self.weigh else None
        return self.loss(logits[None].to(there), sample.mask[None].to(there), weights)[0]


#: Where the state of a run is whose loss became no number.
STOPPED = "stopped.pt"


class TrainCallback:
    """Is told how a run goes; this one says nothing."""

    def scan(self, done: int, count: int) -> None:
        """While the data are opened: how many masks are scanned."""

    def begin(self, trainer: Trainer) -> None:
        """Before the first step."""

    def step(self, done: int, loss: float) -> None:
        """After each: how many of its epoch are done."""

    def image(self, done: int, count: int) -> None:
        """Before each validation image."""

    def epoch(self, line: dict[str, Any], found: ValidationResult) -> None:
        """After each epoch: its line of the log."""

    def end(self, why: str) -> None:
        """After the last."""


class Trainer:
    """One run in one of its processes.

    Attributes:
        run, data, world: as given.
        state: where it is.
        loader: gives its batches.
        stepper: has the network, and takes steps.
    """

    def __init__(
        self,
        run: TrainRun,
        data: DatasetSplits,
        network: nn.Module,
        world: ProcessGroup,
        state: TrainState,
        watch: TrainCallback,
        save_every: float,
    ) -> None:
        """Make what the loop needs, and put it where the state is.

        Args:
            run: what was said.
            data: opened.
            network: built, on the CPU.
            world: the processes.
            state: where to begin.
            watch: is told of all.
            save_every: seconds between two saves within an epoch.
        """
        choices = run.choices
        self.run, self.data, self.world, self.state, self.watch = run, data, world, state, watch
        self.save_every, self._saved = save_every, monotonic()
        self.loss = make_loss(choices.loss, data.target, network_of(network).resolved_plan.classes or 2)
        weigh = BorderMaps(*self.loss.border, run.folder / "borders") if self.loss.border else None
        augment = make_augment(choices.augment, choices.crop or (256, 256))
        train = AugmentedDataset(data.splits["train"], augment, weigh, run.normalised, choices.seed)
        workers, pin = _workers(choices.workers, world.device), world.device.type == "cuda"
        self.loader = Loader(train, choices.batch_size, workers, world.rank, world.size, pin=pin)
        self.validation = Validation(data.splits["val"], run, self.loss, weigh, world)
        self.stepper = Stepper(network, choices, self.loss, world, self.loader.steps)
        if state.model:
            self.stepper.restore(state)

    def train(self) -> str:
        """Go on to the end, or to where patience ends; give why it ended.

        Raises:
            UnetkitError: the loss or its gradient became infinite or no number.
        """
        lines = JsonLinesWriter(self.run.folder / LOG, "training run") if self.world.first else None
        try:
            if lines:
                self._tidy(lines)
                self._files()
            self.watch.begin(self)
            with torch.random.fork_rng([self.world.device] if self.world.device.type == "cuda" else []):
                while not self.state.ended:
                    self._epoch(lines)
        finally:
            if lines:
                lines.close()
        self.watch.end(self.state.ended)
        return self.state.ended

    def _epoch(self, lines: JsonLinesWriter | None) -> None:
        start, state = monotonic(), self.state
        self.stepper.begin(state.epoch)
        for batch in self.loader.epoch(state.epoch, state.step):
            state.losses.append(self._step(batch))
            state.step += 1
            self.watch.step(state.step, state.losses[-1])
            if self.world.first and monotonic() - self._saved > self.save_every:
                self._save()
        trained = monotonic() - start
        self.world.sync_buffers(self.stepper.network)
        found = self.validation(self.stepper.network, self.stepper.precision, self.watch.image)
        about = {"lr": self.stepper.rate(state.epoch), "seconds": trained, "all_seconds": monotonic() - start}
        self._ended(lines, found, about)

    def _step(self, batch: Batch) -> float:
        try:
            return self.stepper.step(batch, self.loader.steps * self.state.epoch + self.state.step)
        except NonFiniteError as error:
            if self.world.first:
                self.stepper.store(self.state).write(self.run.folder / STOPPED)
            where = f"step {self.state.step + 1} of epoch {self.state.epoch + 1} (images {', '.join(batch.names[:8])})"
            raise UnetkitError(
                f"{error} at {where}; the weights before it are in {self.run.folder / STOPPED}: "
                "try a lower --lr, or --dtype float32"
            ) from error
        except (RuntimeError, ValueError, MemoryError) as error:
            shape = "x".join(map(str, batch.images.shape))
            if is_oom(error):
                raise UnetkitError(
                    f"memory does not suffice for a step of {shape}; lower --batch-size or --size"
                ) from error
            if "more than 1 value per channel" in str(error):  # torch's batch norm
                raise OptionError(
                    f"a step of {shape} leaves a batch norm one value a channel, of which no variance can be taken; "
                    "give a larger --batch-size or --size"
                ) from error
            raise

    def _ended(self, lines: JsonLinesWriter | None, found: ValidationResult, about: dict[str, float]) -> None:
        state, choices = self.state, self.run.choices
        loss = sum(state.losses) / len(state.losses)
        state.epoch, state.step, state.losses = state.epoch + 1, 0, []
        score = found.summary["miou"]
        better = state.best is None or (score is not None and score > state.best)
        if better:
            state.best, state.best_epoch = -1.0 if score is None else score, state.epoch
        if state.epoch == choices.epochs:
            state.ended = f"{choices.epochs} epoch{'s are' if choices.epochs > 1 else ' is'} done"
        elif choices.patience and state.epoch - state.best_epoch >= choices.patience:
            state.ended = f"no epoch was better than {state.best_epoch} in {choices.patience}"
        val_loss = found.loss if isfinite(found.loss) else None
        line = {"epoch": state.epoch, "loss": loss, "val_loss": val_loss, **found.summary, **about, "best": better}
        if lines:
            lines.append(line)
            self._save()
            self._files()
        self.watch.epoch(line, found)

    def _tidy(self, lines: JsonLinesWriter) -> None:
        """Leave what the state knows of; the lock is held."""
        if not (self.run.folder / HEADER).exists():
            self.run.write()
        lines.keep(self.state.epoch)
        for name in (HEADER, STATE, BEST, LAST):
            for torn in self.run.folder.glob(f".{name}.*.tmp"):  # of a process that was killed
                torn.unlink()

    def _save(self) -> None:
        self.stepper.store(self.state).write(self.run.folder / STATE)
        self._saved = monotonic()

    def _files(self) -> None:
        """The weights to use, after the state: what is cut off between the two is done when the run is resumed."""
        if not self.state.model:
            self._save()
        if not self.state.step or not (self.run.folder / LAST).exists():
            save(self.stepper.network, self.run.folder / LAST)
            if self.state.best_epoch == self.state.epoch > 0:
                save(self.stepper.network, self.run.folder / BEST)


def _workers(said: int | None, device: torch.device) -> int:
    if said is not None:
        return said
    return min(8, torch.get_num_threads()) if device.type == "cuda" else 0
