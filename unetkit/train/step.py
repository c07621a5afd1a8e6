"""A training step: forward pass, loss, backward pass, clipping, optimizer and schedule, on one of several processes.

Shapes: B batch, K outputs, L labels, H and W height and width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from unetkit.data.augment import Augment
from unetkit.data.rng import derive_seed
from unetkit.errors import OptionError, PluginError, UnetkitError
from unetkit.network import Network, Outputs, prediction_name, prediction_of
from unetkit.summary.forward_hooks import find_network
from unetkit.train.checkpoint import TrainState
from unetkit.train.config import TrainConfig
from unetkit.train.dataloader import Batch
from unetkit.train.distributed import ProcessGroup
from unetkit.train.losses import Loss
from unetkit.train.optim import OptimizerConfig
from unetkit.train.outputs import OutputLoss
from unetkit.utils.formatting import Size, format_plural, format_type
from unetkit.utils.isolation import wrap_errors
from unetkit.utils.modules import to_channels_last
from unetkit.utils.oom import is_oom
from unetkit.utils.spatial import crop_center, crop_end, resize_to_input, size_of


class RunParts(NamedTuple):
    """The losses, the augmentation and the optimizer of a run, created from the names in a TrainConfig.

    Attributes:
        loss: the loss of each image for the prediction.
        augment: augments a training image with its mask.
        optimizer_config: creates the optimizer, and sets its learning rates.
        output_losses: what trains each named output of the network but the prediction.
        further: the number of further predictions of the network in a tuple, which are trained on the mask.
    """

    loss: Loss
    augment: Augment
    optimizer_config: OptimizerConfig
    output_losses: dict[str, OutputLoss] = {}
    further: int = 0


def loss_of(
    outputs: Outputs, batch: Batch, loss: Loss, network: Network, output_losses: Mapping[str, OutputLoss]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the loss of each image.

    The losses of named outputs are summed with their weights, and that of the prediction with 1. Further predictions in
    a tuple (deep supervision) are trained on the mask, too: their losses are summed with weights proportional to 1,
    1/2, 1/4 and so on, which sum to 1 (Isensee 2021, nnU-Net).

    Args:
        outputs: logits (B, K, h, w), or several in a tuple or by name.
        batch: the targets.
        loss: the loss of each image for the prediction.
        network: the network. With valid convolutions, logits belong to the center of the input; otherwise they belong
            to all of it, possibly at a stride, and are resized bilinearly.
        output_losses: what trains each named output but the prediction.

    Returns:
        The losses (B,) that training minimizes; and those of each named output (B,), the prediction first, without
        their weights.
    """
    prediction, by_output = prediction_of(outputs), {}
    compute = partial(_loss_of_logits, size=size_of(prediction), network=network)
    if isinstance(outputs, Mapping):
        by_output[prediction_name(outputs)] = compute(prediction, batch.masks, batch.weights, loss)
        for name, output_loss in output_losses.items():
            by_output[name] = compute(outputs[name], batch.targets[name], None, output_loss.loss)
        losses, weights = [*by_output.values()], [1.0, *(output_loss.weight for output_loss in output_losses.values())]
        divisor = 1.0
    else:
        several = [outputs] if isinstance(outputs, Tensor) else outputs
        losses = [compute(logits, batch.masks, batch.weights, loss) for logits in several]
        weights = [0.5**number for number in range(len(losses))]
        divisor = sum(weights)
    weighted = [weight * values for weight, values in zip(weights, losses, strict=True)]
    return sum(weighted[1:], weighted[0]) / divisor, by_output


def _loss_of_logits(
    logits: Tensor, masks: Tensor, weights: Tensor | None, loss: Loss, *, size: Size, network: Network
) -> Tensor:
    """Compute the loss of one output; `size` is that of the prediction."""
    if not network.valid and size_of(logits) != size:  # only an output that a plugin's wrapper adds
        logits = F.interpolate(logits, size, mode="bilinear")
    if network.output_stride > 1:
        logits = crop_end(resize_to_input(logits, network.output_stride), size_of(masks))
    if network.valid:
        masks = crop_center(masks, size_of(logits))
        weights = None if weights is None else crop_center(weights, size_of(logits))
    return loss(logits, masks, weights)


#: The smallest scale of a float16 loss that a run is continued with. The first one is 65536, and each gradient that
#: overflows halves it; where the scale falls this low, the gradient is infinite or NaN for another reason, and no step
#: would ever change the weights.
_MIN_SCALE = 2.0**-24


class NonFiniteError(Exception):
    """A loss or a gradient is infinite or NaN; the message says which."""


class Losses(NamedTuple):
    """The losses of a step, as means over the images of all processes.

    Attributes:
        total: what training minimizes.
        by_output: the loss of each named output, the prediction first, without its weight; empty without names.
    """

    total: float
    by_output: dict[str, float]


class Stepper:
    """A network with its optimizer, which performs training steps.

    Attributes:
        network: the network on its device.
        dtype: the number type of autocast; float32 disables it.
        total_steps: the number of steps of all epochs.
    """

    def __init__(
        self, network: nn.Module, config: TrainConfig, run_parts: RunParts, group: ProcessGroup, total_steps: int
    ) -> None:
        """Move a network to the device of this process, and create its optimizer.

        Args:
            network: the network on the CPU.
            config: the configuration of the run.
            run_parts: the losses and the optimizer.
            group: the processes that train together.
            total_steps: the number of steps of all epochs.
        """
        self.config, self.group, self.total_steps = config, group, total_steps
        self.loss, self.output_losses = run_parts.loss, run_parts.output_losses
        self.optimizer_config = run_parts.optimizer_config
        is_gpu = group.device.type == "cuda"
        try:
            self.network: nn.Module = network.to(group.device)
            if is_gpu:
                to_channels_last(self.network)
        except RuntimeError as error:
            if not is_oom(error):
                raise
            what = f"not enough memory on {group.device} for the weights of the network"
            raise UnetkitError(f"{what}; end what else uses it, or give another --device") from error
        self._unwrapped = find_network(self.network)
        loaded = self._unwrapped.pretrained_parameters()
        self._freezable = [parameter for parameter in loaded if parameter.requires_grad]
        with wrap_errors(f"--optimizer {config.optimizer} cannot be created"):
            optimizer: Any = self.optimizer_config.make_optimizer(self.network, config.lr)
        if not isinstance(optimizer, torch.optim.Optimizer):
            what = format_type(optimizer)
            raise PluginError(f"--optimizer {config.optimizer}: `create` returns {what}; expected an Optimizer")
        self.optimizer = optimizer
        self.dtype = autocast_type(config.dtype, group.device)
        self.scaler = torch.amp.GradScaler(group.device.type, enabled=self.dtype == torch.float16)
        self._memory = torch.channels_last if is_gpu else torch.contiguous_format
        self._shared: tuple[int, nn.Module] | None = None

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context of a forward pass, in which operations use the number type."""
        if self.dtype == torch.float32:  # some devices have no autocast
            return nullcontext()
        return torch.autocast(self.group.device.type, self.dtype)

    def learning_rate(self, at: int) -> float:
        """Return the learning rate at a step, outside of the encoder."""
        return self.config.lr * self.optimizer_config.lr_factor(at, self.total_steps)

    def begin_epoch(self, epoch: int) -> None:
        """Put the network into training mode; the loaded part of its encoder stays in eval mode while it is frozen."""
        frozen = self.config.freeze_encoder == -1 or epoch < self.config.freeze_encoder
        if self.config.freeze_encoder:
            for parameter in self._freezable:
                parameter.requires_grad_(not frozen)
        self.network.train()
        if frozen:
            for module in self._unwrapped.pretrained_modules():
                module.eval()

    def step(self, batch: Batch, at: int) -> Losses:
        """Perform the step with number `at`, and return the losses over the images of all processes.

        Raises:
            NonFiniteError: The loss or a gradient is not finite; only the statistics of norms have changed.
        """
        torch.manual_seed(derive_seed(self.config.seed, "step", at, self.group.rank))
        batch = batch.to(self.group.device, self._memory)
        with self.autocast():
            outputs = self._parallel()(batch.images)
        losses, by_output = loss_of(outputs, batch, self.loss, self._unwrapped, self.output_losses)
        loss = losses.mean()
        means_by_output = [values.detach().mean() for values in by_output.values()]
        total, *means = self.group.means(torch.stack([loss.detach(), *means_by_output]))
        _check_finite(total, "loss")
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self._trained(), self.optimizer_config.clip or math.inf)
        if not self.scaler.is_enabled():  # the scaler skips such steps itself
            _check_finite(float(norm), "norm of the gradient")
        self.optimizer_config.set_rates(self.optimizer, at, self.total_steps)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        if self.scaler.is_enabled() and self.scaler.get_scale() < _MIN_SCALE:
            raise NonFiniteError("the gradient is infinite or NaN at every scale of the float16 loss")
        return Losses(total, dict(zip(by_output, means, strict=True)))

    def close(self) -> None:
        """Drop what averages gradients over the processes, whose connection it must not outlive."""
        self._shared = None

    def save_to(self, state: TrainState) -> TrainState:
        """Store everything that is needed to continue in a state."""
        state.model, state.optimizer = self.network.state_dict(), self.optimizer.state_dict()
        state.scaler, state.world_size = self.scaler.state_dict(), self.group.size
        return state

    def load_from(self, state: TrainState) -> None:
        """Continue from a state.

        Raises:
            OptionError: The state was saved within an epoch by another number of processes.
        """
        if state.steps_done and state.world_size != self.group.size:
            began = format_plural(state.world_size, "process")
            raise OptionError(
                f"the run was interrupted within an epoch of {began}; use --resume with {began}, not {self.group.size}"
            )
        self.network.load_state_dict(state.model)
        self.optimizer.load_state_dict(state.optimizer)
        if state.scaler and self.scaler.is_enabled():
            self.scaler.load_state_dict(state.scaler)

    def _trained(self) -> list[Tensor]:
        return [parameter for parameter in self.network.parameters() if parameter.requires_grad]

    def _parallel(self) -> nn.Module:
        """Wrap the network so that gradients are averaged over all processes."""
        if self.group.size == 1:
            return self.network
        trained = len(self._trained())
        if self._shared is None or self._shared[0] != trained:
            devices = [self.group.device] if self.group.device.type == "cuda" else None
            # A static graph allows weights that no output depends on, which some encoders have.
            self._shared = trained, DistributedDataParallel(self.network, device_ids=devices, static_graph=True)
        return self._shared[1]


def _check_finite(value: float, what: str) -> None:
    if not math.isfinite(value):
        raise NonFiniteError(f"the {what} is {value}")


def autocast_type(name: str, device: torch.device) -> torch.dtype:
    """Return the number type of autocast; float32 disables it."""
    if name == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    kind: torch.dtype = getattr(torch, name)
    return kind
