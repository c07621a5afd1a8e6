"""The training loop, in plain torch.

A run is a function of its plan, choices and data: what a step draws comes from streams named by its number, so that
a run that was killed and resumed ends with the weights of one that was not (to the bit on a CPU with as many threads).
"""

from __future__ import annotations

from math import isfinite
from time import monotonic
from typing import Any

import torch
from torch import nn

from unetkit.data.augment import make_augment
from unetkit.data.borders import BorderMaps
from unetkit.data.sample import Data
from unetkit.deploy.files import save
from unetkit.errors import BadOption, UnetkitError
from unetkit.inspect.observe import network_of
from unetkit.jobs.lines import Lines
from unetkit.jobs.memory import exhausted
from unetkit.train.batches import Augmented, Batch, Loader
from unetkit.train.losses import make_loss
from unetkit.train.record import BEST, HEADER, LAST, LOG, STATE, Run
from unetkit.train.state import State
from unetkit.train.stepping import NoNumber, Stepper
from unetkit.train.validating import Validated, Validation
from unetkit.train.world import World

#: Where the state of a run is whose loss became no number.
STOPPED = "stopped.pt"


class Watch:
    """Is told how a run goes; this one says nothing."""

    def scan(self, done: int, count: int) -> None:
        """While the data are opened: how many masks are scanned."""

    def begin(self, trainer: Trainer) -> None:
        """Before the first step."""

    def step(self, done: int, loss: float) -> None:
        """After each: how many of its epoch are done."""

    def image(self, done: int, count: int) -> None:
        """Before each validation image."""

    def epoch(self, line: dict[str, Any], found: Validated) -> None:
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
        self, run: Run, data: Data, network: nn.Module, world: World, state: State, watch: Watch, save_every: float
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
        self.loss = make_loss(choices.loss, data.target, network_of(network).whole.classes or 2)
        weigh = BorderMaps(*self.loss.border, run.folder / "borders") if self.loss.border else None
        augment = make_augment(choices.augment, choices.crop or (256, 256))
        train = Augmented(data.splits["train"], augment, weigh, run.normalised, choices.seed)
        workers, pin = _workers(choices.workers, world.device), world.device.type == "cuda"
        self.loader = Loader(train, choices.batch, workers, world.rank, world.size, pin=pin)
        self.validation = Validation(data.splits["val"], run, self.loss, weigh, world)
        self.stepper = Stepper(network, choices, self.loss, world, self.loader.steps)
        if state.model:
            self.stepper.restore(state)

    def train(self) -> str:
        """Go on to the end, or to where patience ends; give why it ended.

        Raises:
            UnetkitError: the loss or its gradient became infinite or no number.
        """
        lines = Lines(self.run.folder / LOG, "training run") if self.world.first else None
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

    def _epoch(self, lines: Lines | None) -> None:
        start, state = monotonic(), self.state
        self.stepper.begin(state.epoch)
        for batch in self.loader.epoch(state.epoch, state.step):
            state.losses.append(self._step(batch))
            state.step += 1
            self.watch.step(state.step, state.losses[-1])
            if self.world.first and monotonic() - self._saved > self.save_every:
                self._save()
        trained = monotonic() - start
        self.world.agree(self.stepper.network)
        found = self.validation(self.stepper.network, self.stepper.precision, self.watch.image)
        about = {"lr": self.stepper.rate(state.epoch), "seconds": trained, "all_seconds": monotonic() - start}
        self._ended(lines, found, about)

    def _step(self, batch: Batch) -> float:
        try:
            return self.stepper.take(batch, self.loader.steps * self.state.epoch + self.state.step)
        except NoNumber as error:
            if self.world.first:
                self.stepper.store(self.state).write(self.run.folder / STOPPED)
            where = f"step {self.state.step + 1} of epoch {self.state.epoch + 1} (images {', '.join(batch.names[:8])})"
            raise UnetkitError(
                f"{error} at {where}; the weights before it are in {self.run.folder / STOPPED}: "
                "try a lower --lr, or --precision float32"
            ) from error
        except (RuntimeError, ValueError, MemoryError) as error:
            shape = "x".join(map(str, batch.images.shape))
            if exhausted(error):
                raise UnetkitError(f"memory does not suffice for a step of {shape}; lower --batch or --size") from error
            if "more than 1 value per channel" in str(error):  # torch's batch norm
                raise BadOption(
                    f"a step of {shape} leaves a batch norm one value a channel, of which no variance can be taken; "
                    "give a larger --batch or --size"
                ) from error
            raise

    def _ended(self, lines: Lines | None, found: Validated, about: dict[str, float]) -> None:
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

    def _tidy(self, lines: Lines) -> None:
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
