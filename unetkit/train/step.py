"""A network and how a step changes it: precision, gradient, optimiser, schedule, on one of several processes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from unetkit.data.rng import derive_seed
from unetkit.errors import OptionError
from unetkit.network import Network
from unetkit.summary.forward_hooks import network_of
from unetkit.train.checkpoint import TrainState
from unetkit.train.config import TrainConfig
from unetkit.train.dataloader import Batch
from unetkit.train.distributed import ProcessGroup
from unetkit.train.losses import Loss
from unetkit.train.optim import OPTIMIZERS, OptimizerConfig
from unetkit.utils.spatial import at_full_size, crop_center, crop_end, size_of


def loss_of(outputs: Tensor | Sequence[Tensor], batch: Batch, loss: Loss, network: Network) -> Tensor:
    """The loss of each image (B,).

    Where a model in training gives several logits (deep supervision: the main ones first), theirs are summed with
    weights 1, 1/2, 1/4 and so on, scaled to sum to 1 (Isensee 2021, nnU-Net).

    Args:
        outputs: logits (B, K, h, w), or several.
        batch: their targets.
        loss: of each image.
        network: whose they are. Of valid convolutions logits are of the middle of the input; otherwise they are of all
            of it, at a stride maybe, and are resized bilinearly.
    """
    several = [outputs] if isinstance(outputs, Tensor) else [*outputs]
    weights = [0.5**number for number in range(len(several))]
    losses = [weight * _one(logits, batch, loss, network) for weight, logits in zip(weights, several, strict=True)]
    return sum(losses[1:], losses[0]) / sum(weights)


def _one(logits: Tensor, batch: Batch, loss: Loss, network: Network) -> Tensor:
    masks, weights = batch.masks, batch.weights
    if network.output_stride > 1:
        logits = crop_end(at_full_size(logits, network.output_stride), size_of(masks))
    if network.valid:
        masks = crop_center(masks, size_of(logits))
        weights = None if weights is None else crop_center(weights, size_of(logits))
    return loss(logits, masks, weights)


class NonFiniteError(Exception):
    """A loss or gradient that is infinite or not a number; says which."""


class Stepper:
    """What takes steps.

    Attributes:
        network: on its device.
        dtype: that autocast computes in; float32 for none.
        epochs, steps: how many there are, and of an epoch.
    """

    def __init__(self, network: nn.Module, choices: TrainConfig, loss: Loss, world: ProcessGroup, steps: int) -> None:
        """Put a network on the device of a process, with an optimiser of its own.

        Args:
            network: on the CPU.
            choices: of the run.
            loss: of each image.
            world: the processes.
            steps: of an epoch.
        """
        self.choices, self.loss, self.world, self.steps = choices, loss, world, steps
        memory = torch.channels_last if world.device.type == "cuda" else torch.contiguous_format
        self.network: nn.Module = network.to(world.device, memory_format=memory)  # type: ignore[call-overload]
        self.descent: OptimizerConfig = OPTIMIZERS.make(choices.optimizer)
        self.optimiser = self.descent.optimiser(self.network, choices.lr)
        self.dtype = autocast_type(choices.dtype, world.device)
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=self.dtype == torch.float16)
        self._memory = memory
        self._shared: tuple[int, nn.Module] | None = None

    def precision(self) -> Any:
        """Autocast's context, or one that does nothing."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.world.device.type, self.dtype)

    def rate(self, epoch: int) -> float:
        """The learning rate at the first step of an epoch, of what is no encoder."""
        return self.choices.lr * self.descent.share(epoch * self.steps, self.choices.epochs * self.steps)

    def begin(self, epoch: int) -> None:
        """Put the network into training mode, its encoder at rest where it is frozen in this epoch."""
        frozen = self.choices.freeze_encoder == -1 or epoch < self.choices.freeze_encoder
        encoder = network_of(self.network).encoder
        if self.choices.freeze_encoder:
            encoder.requires_grad_(not frozen)
        self.network.train()
        if frozen:
            encoder.eval()

    def step(self, batch: Batch, at: int) -> float:
        """Take a step, the `at`-th of all; give the loss, of all processes' images.

        Raises:
            NonFiniteError: before anything is changed but the statistics of norms.
        """
        torch.manual_seed(derive_seed(self.choices.seed, "step", at, self.world.rank))
        batch = batch.to(self.world.device, self._memory)
        with self.precision():
            outputs = self._parallel()(batch.images)
        loss = loss_of(outputs, batch, self.loss, network_of(self.network)).mean()
        value = self.world.mean(loss)
        _check(value, "loss")
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.unscale_(self.optimiser)
        norm = nn.utils.clip_grad_norm_(self._trained(), self.descent.clip or math.inf)
        if not self.scaler.is_enabled():  # which leaves out such steps itself
            _check(float(norm), "norm of the gradient")
        self.descent.set_rates(self.optimiser, at, self.steps * self.choices.epochs)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad()
        return value

    def store(self, state: TrainState) -> TrainState:
        """Put all that is needed to go on into a state."""
        state.model, state.optimiser = self.network.state_dict(), self.optimiser.state_dict()
        state.scaler, state.world = self.scaler.state_dict(), self.world.size
        return state

    def restore(self, state: TrainState) -> None:
        """Go on from a state.

        Raises:
            OptionError: it was saved within an epoch, by another number of processes.
        """
        if state.step and state.world != self.world.size:
            raise OptionError(
                f"the run was stopped within an epoch of {state.world} processes, which {self.world.size} would share "
                f"otherwise; --resume it with {state.world}"
            )
        self.network.load_state_dict(state.model)
        self.optimiser.load_state_dict(state.optimiser)
        if state.scaler and self.scaler.is_enabled():
            self.scaler.load_state_dict(state.scaler)

    def _trained(self) -> list[Tensor]:
        return [parameter for parameter in self.network.parameters() if parameter.requires_grad]

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


def _check(value: float, what: str) -> None:
    if not math.isfinite(value):
        raise NonFiniteError(f"the {what} is {value}")


def autocast_type(said: str, device: torch.device) -> torch.dtype:
    """The number type that autocast computes in; float32 for none."""
    if said == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    kind: torch.dtype = getattr(torch, said)
    return kind
