"""A training step: forward pass, loss, backward pass, clipping, optimizer and schedule, on one of several processes.

Shapes: B batch, K outputs, L labels, H and W height and width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, Generic, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

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
from unetkit.utils.formatting import format_plural
from unetkit.utils.isolation import wrap_errors
from unetkit.utils.modules import to_channels_last
from unetkit.utils.oom import is_oom
from unetkit.utils.spatial import crop_center, crop_end, resize_to_input, size_of

L = TypeVar("L", Tensor, float)


class Losses(NamedTuple, Generic[L]):
    """The losses of each image of a batch, as tensors (B,), or their means over the images of all processes.

    Attributes:
        total: what training minimizes.
        by_output: the loss of each named output, the prediction first, without its weight; empty without names.
    """

    total: L
    by_output: dict[str, L]


def loss_of(
    outputs: Outputs, batch: Batch, loss: Loss, network: Network, others: Mapping[str, OutputLoss] | None = None
) -> Losses[Tensor]:
    """Compute the loss of each image (B,).

    The losses of named outputs are summed with their weights, and that of the prediction with 1. Further predictions in
    a tuple (deep supervision) are trained on the mask, too: their losses are summed with weights proportional to 1,
    1/2, 1/4 and so on, which sum to 1 (Isensee 2021, nnU-Net).

    Args:
        outputs: logits (B, K, h, w), or several in a tuple or by name.
        batch: the targets.
        loss: the loss of each image for the prediction.
        network: the network. With valid convolutions, logits belong to the center of the input; otherwise they belong
            to all of it, possibly at a stride, and are resized bilinearly.
        others: what trains each named output but the prediction.
    """
    if isinstance(outputs, Mapping):
        first = prediction_name(outputs)
        found = {first: _loss_of_logits(outputs[first], batch.masks, batch.weights, loss, network)}
        for name, one in (others or {}).items():
            logits = _resize_like(outputs[name], outputs[first], network)
            found[name] = _loss_of_logits(logits, batch.targets[name], None, one.loss, network)
        weighted = [one.weight * found[name] for name, one in (others or {}).items()]
        return Losses(sum(weighted, found[first]), found)
    several = [outputs] if isinstance(outputs, Tensor) else [*outputs]
    weights = [0.5**number for number in range(len(several))]
    losses = [
        weight
        * _loss_of_logits(
            _resize_like(logits, prediction_of(outputs), network), batch.masks, batch.weights, loss, network
        )
        for weight, logits in zip(weights, several, strict=True)
    ]
    return Losses(sum(losses[1:], losses[0]) / sum(weights), {})


def _resize_like(logits: Tensor, prediction: Tensor, network: Network) -> Tensor:
    """Resize logits of a plugin's wrapper to those of the prediction; with valid convolutions, they have their own."""
    size = size_of(prediction)
    return logits if network.valid or size_of(logits) == size else F.interpolate(logits, size, mode="bilinear")


def _loss_of_logits(logits: Tensor, masks: Tensor, weights: Tensor | None, loss: Loss, network: Network) -> Tensor:
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


class Stepper:
    """A network with its optimizer, which performs training steps.

    Attributes:
        network: the network on its device.
        dtype: the number type of autocast; float32 disables it.
        total_steps: the number of steps of all epochs.
    """

    def __init__(
        self,
        network: nn.Module,
        config: TrainConfig,
        optimizer: OptimizerConfig,
        loss: Loss,
        group: ProcessGroup,
        total_steps: int,
        others: Mapping[str, OutputLoss] | None = None,
    ) -> None:
        """Move a network to the device of this process, and create its optimizer.

        Args:
            network: the network on the CPU.
            config: the configuration of the run.
            optimizer: creates the optimizer, and sets its learning rates.
            loss: the loss of each image.
            group: the processes that train together.
            total_steps: the number of steps of all epochs.
            others: what trains each named output but the prediction.
        """
        self.config, self.loss, self.group, self.total_steps = config, loss, group, total_steps
        self.others = others or {}
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
        loaded = find_network(self.network).pretrained_parameters()
        self._freezable = [parameter for parameter in loaded if parameter.requires_grad]
        self.schedule = optimizer
        with wrap_errors(f"--optimizer {config.optimizer} cannot be created"):
            created: Any = self.schedule.make_optimizer(self.network, config.lr)
        if not isinstance(created, torch.optim.Optimizer):
            what = type(created).__name__
            raise PluginError(f"--optimizer {config.optimizer}: `create` returns a {what}; expected an Optimizer")
        self.optimizer = created
        self.dtype = autocast_type(config.dtype, group.device)
        self.scaler = torch.amp.GradScaler(group.device.type, enabled=self.dtype == torch.float16)
        self._memory = torch.channels_last if is_gpu else torch.contiguous_format
        self._shared: tuple[int, nn.Module] | None = None

    def autocast(self) -> Any:
        """Return the autocast context, or one that does nothing."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.group.device.type, self.dtype)

    def learning_rate(self, at: int) -> float:
        """Return the learning rate at a step, outside of the encoder."""
        return self.config.lr * self.schedule.lr_factor(at, self.total_steps)

    def begin_epoch(self, epoch: int) -> None:
        """Put the network into training mode; the loaded part of its encoder stays in eval mode while it is frozen."""
        frozen = self.config.freeze_encoder == -1 or epoch < self.config.freeze_encoder
        if self.config.freeze_encoder:
            for parameter in self._freezable:
                parameter.requires_grad_(not frozen)
        self.network.train()
        if frozen:
            for module in find_network(self.network).pretrained_modules():
                module.eval()

    def step(self, batch: Batch, at: int) -> Losses[float]:
        """Perform the step with number `at`, and return the losses over the images of all processes.

        Raises:
            NonFiniteError: The loss or a gradient is not finite; only the statistics of norms have changed.
        """
        torch.manual_seed(derive_seed(self.config.seed, "step", at, self.group.rank))
        batch = batch.to(self.group.device, self._memory)
        with self.autocast():
            outputs = self._parallel()(batch.images)
        losses = loss_of(outputs, batch, self.loss, find_network(self.network), self.others)
        loss = losses.total.mean()
        each = [values.detach().mean() for values in losses.by_output.values()]
        value, *by_output = self.group.means(torch.stack([loss.detach(), *each]))
        _check_finite(value, "loss")
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self._trained(), self.schedule.clip or math.inf)
        if not self.scaler.is_enabled():  # the scaler skips such steps itself
            _check_finite(float(norm), "norm of the gradient")
        self.schedule.set_rates(self.optimizer, at, self.total_steps)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        if self.scaler.is_enabled() and self.scaler.get_scale() < _MIN_SCALE:
            raise NonFiniteError("the gradient is infinite or NaN at every scale of the float16 loss")
        return Losses(value, dict(zip(losses.by_output, by_output, strict=True)))

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
