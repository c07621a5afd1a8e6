"""The training loop, in plain torch.

A run is a function of its plan, choices and data: what a step draws comes from streams named by its number, so that
a run that was killed and resumed ends with the weights of one that was not (to the bit on a CPU with as many threads).
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from time import monotonic
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from unetkit.data.augment import make_augment
from unetkit.data.borders import BorderMaps
from unetkit.data.sample import Data
from unetkit.data.streams import seed_of
from unetkit.deploy.files import save
from unetkit.errors import UnetkitError
from unetkit.inspect.observe import network_of
from unetkit.jobs.lines import Lines
from unetkit.train.batches import Augmented, Batch, Loader
from unetkit.train.fitting import loss_of
from unetkit.train.losses import make_loss
from unetkit.train.optimising import OPTIMIZERS, Descent
from unetkit.train.record import BEST, LAST, LOG, STATE, Run
from unetkit.train.state import State
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
        run, data, network, world: as given.
        state: where it is.
        loader: gives its batches.
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
        #: The network as several processes train it, and how many of its tensors learn.
        self._shared: tuple[int, nn.Module] | None = None
        self.loss = make_loss(choices.loss, data.target, _outputs(network))
        weigh = BorderMaps(*self.loss.border, run.folder / "borders") if self.loss.border else None
        augment = make_augment(choices.augment, choices.crop or (256, 256))
        train = Augmented(data.splits["train"], augment, weigh, run.normalised, choices.seed)
        self.loader = Loader(train, choices.batch, _workers(choices.workers, world.device), world.rank, world.size)
        self.validation = Validation(data.splits["val"], run, self.loss, weigh, world)
        memory = torch.channels_last if channels_last(world.device) else torch.contiguous_format
        self.network: nn.Module = network.to(world.device, memory_format=memory)  # type: ignore[call-overload]
        self.descent: Descent = OPTIMIZERS.make(choices.optimizer)
        self.optimiser = self.descent.optimiser(self.network, choices.lr)
        self.schedule = self.descent.schedule(self.optimiser, self.loader.steps * choices.epochs)
        self.dtype = autocast_type(choices.precision, world.device)
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=self.dtype == torch.float16)
        self._restore()

    def precision(self) -> Any:
        """Autocast's context, or one that does nothing."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.world.device.type, self.dtype)

    def train(self) -> str:
        """Go on to the end, or to where patience ends; give why it ended.

        Raises:
            UnetkitError: the loss or its gradient became infinite or no number.
        """
        lines = Lines(self.run.folder / LOG, "training run") if self.world.first else None
        try:
            if lines:
                lines.keep(self.state.epoch)
                self._files()
            self.watch.begin(self)
            with torch.random.fork_rng(enabled=True):
                while not self.state.ended:
                    self._epoch(lines)
        finally:
            if lines:
                lines.close()
        self.watch.end(self.state.ended)
        return self.state.ended

    # An epoch

    def _epoch(self, lines: Lines | None) -> None:
        start, epoch, choices = monotonic(), self.state.epoch, self.run.choices
        frozen = self._freeze(epoch)
        model = self._parallel()
        rate = choices.lr * self.descent.share(epoch * self.loader.steps, choices.epochs * self.loader.steps)
        for batch in self.loader.epoch(epoch, self.state.step):
            network_of(self.network).train()
            self.network.train()
            if frozen:
                network_of(self.network).encoder.eval()
            self.state.losses.append(self.take(model, batch.to(self.world.device)))
            self.state.step += 1
            self.watch.step(self.state.step, self.state.losses[-1])
            if self.world.first and monotonic() - self._saved > self.save_every:
                self._save()
        trained = monotonic() - start
        found = self.validation(self.network, self.precision, self.watch.image)
        self._ended(
            lines, found, {"lr": rate, "seconds": round(trained, 2), "all_seconds": round(monotonic() - start, 2)}
        )

    def _ended(self, lines: Lines | None, found: Validated, about: dict[str, Any]) -> None:
        state, choices = self.state, self.run.choices
        losses = [sum(each) / len(each) for each in self.world.gathered(state.losses)]
        state.epoch, state.step, state.losses = state.epoch + 1, 0, []
        score = found.summary["miou"]
        better = score is not None and not math.isnan(score) and (state.best is None or score > state.best)
        if better:
            state.best, state.best_epoch = score, state.epoch
        if state.epoch == choices.epochs:
            state.ended = f"{choices.epochs} epochs are done"
        elif choices.patience and state.epoch - state.best_epoch >= choices.patience:
            state.ended = f"no epoch was better than {state.best_epoch} in {choices.patience}"
        loss = sum(losses) / len(losses)
        line = {"epoch": state.epoch, "loss": loss, "val_loss": found.loss, **found.summary, **about, "best": better}
        if lines:
            lines.append(line)
            self._save()
            self._files()
        self.watch.epoch(line, found)

    def take(self, model: nn.Module, batch: Batch) -> float:
        """Take a step; give its loss. Raises UnetkitError where that is no number."""
        at = self.loader.steps * self.state.epoch + self.state.step
        torch.manual_seed(seed_of(self.run.choices.seed, "step", at, self.world.rank))
        with self.precision():
            outputs = model(batch.images)
        loss = loss_of(outputs, batch, self.loss, network_of(self.network)).mean()
        value = float(loss.detach())
        if self.world.size == 1:  # in several, all learn of it by the gradient
            self._check(value, "loss", batch)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.unscale_(self.optimiser)
        norm = nn.utils.clip_grad_norm_(self._trained(), self.descent.clip or math.inf)
        if not self.scaler.is_enabled():  # which leaves out such steps itself
            self._check(float(norm), "norm of the gradient", batch)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad()
        self.schedule.step()
        return value

    def _check(self, value: float, what: str, batch: Batch) -> None:
        if math.isfinite(value):
            return
        if self.world.first:
            self._state().write(self.run.folder / STOPPED)
        where = f"step {self.state.step + 1} of epoch {self.state.epoch + 1} (images {', '.join(batch.names[:8])})"
        raise UnetkitError(
            f"the {what} is {value} at {where}; the weights before it are in {self.run.folder / STOPPED}: "
            "try a lower --lr, or --precision float32"
        )

    def _trained(self) -> list[Tensor]:
        return [parameter for parameter in self.network.parameters() if parameter.requires_grad]

    def _freeze(self, epoch: int) -> bool:
        """Whether the encoder rests in this epoch."""
        frozen = self.run.choices.freeze == -1 or epoch < self.run.choices.freeze
        if self.run.choices.freeze:
            network_of(self.network).encoder.requires_grad_(not frozen)
        return frozen

    def _parallel(self) -> nn.Module:
        """The network, with gradients that are the mean of all processes'."""
        if self.world.size == 1:
            return self.network
        trained = len(self._trained())
        if self._shared is None or self._shared[0] != trained:
            devices = [self.world.device] if self.world.device.type == "cuda" else None
            # A static graph may have weights that no map needs, as some encoders do.
            self._shared = trained, DistributedDataParallel(self.network, device_ids=devices, static_graph=True)
        return self._shared[1]

    # What is written

    def _state(self) -> State:
        state = self.state
        state.model, state.optimiser = self.network.state_dict(), self.optimiser.state_dict()
        state.schedule, state.scaler = self.schedule.state_dict(), self.scaler.state_dict()
        return state

    def _save(self) -> None:
        self._state().write(self.run.folder / STATE)
        self._saved = monotonic()

    def _files(self) -> None:
        """The weights to use, after the state: what is cut off between the two is done when the run is resumed."""
        if not self.state.model:
            self._save()
        if not self.state.step or not (self.run.folder / LAST).exists():
            save(self.network, self.run.folder / LAST)
            if self.state.best_epoch == self.state.epoch > 0:
                save(self.network, self.run.folder / BEST)

    def _restore(self) -> None:
        if self.state.model:
            self.network.load_state_dict(self.state.model)
            self.optimiser.load_state_dict(self.state.optimiser)
            self.schedule.load_state_dict(self.state.schedule)
            self.scaler.load_state_dict(self.state.scaler)


def channels_last(device: torch.device) -> bool:
    """Whether that memory format is the quicker there."""
    return device.type == "cuda"


def autocast_type(said: str, device: torch.device) -> torch.dtype:
    """The number type that autocast computes in; float32 for none."""
    if said == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    kind: torch.dtype = getattr(torch, said)
    return kind


def _workers(said: int | None, device: torch.device) -> int:
    if said is not None:
        return said
    return min(8, torch.get_num_threads()) if device.type == "cuda" else 0


def _outputs(network: nn.Module) -> int:
    return network_of(network).whole.classes or 2
