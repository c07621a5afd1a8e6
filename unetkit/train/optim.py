"""AdamW with parameter groups for the encoder and for parameters without weight decay, and the learning rate."""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, inf, pi
from typing import Any

from torch import nn
from torch.optim import AdamW

from unetkit.errors import OptionError
from unetkit.resolve import NamedFactories
from unetkit.summary.forward_hooks import find_network

#: The default learning rate of a pretrained encoder, as a factor of that of the other layers.
_PRETRAINED = 0.1


@dataclass(frozen=True)
class OptimizerConfig:
    """The options of an optimizer; see `adamw`."""

    encoder_lr: float | None
    weight_decay: float
    warmup: float
    clip: float

    def make_optimizer(self, model: nn.Module, lr: float) -> AdamW:
        """Create AdamW over all parameters of a model, including frozen ones, which may be unfrozen later."""
        network = find_network(model)
        encoder = {id(parameter) for parameter in network.encoder.parameters()}
        groups: dict[tuple[bool, bool], list[Any]] = {}
        for parameter in model.parameters():
            groups.setdefault((id(parameter) in encoder, parameter.ndim > 1), []).append(parameter)
        pretrained = lr * (_PRETRAINED if network.plan.pretrained else 1)
        rates = {True: pretrained if self.encoder_lr is None else self.encoder_lr, False: lr}
        return AdamW(
            [
                {"params": found, "highest": rates[inside], "weight_decay": self.weight_decay if decays else 0.0}
                for (inside, decays), found in sorted(groups.items(), key=lambda group: group[0])
            ]
        )

    def set_rates(self, optimizer: AdamW, step: int, steps: int) -> None:
        """Set the learning rate of each parameter group for a step."""
        for group in optimizer.param_groups:
            group["lr"] = group["highest"] * self.lr_factor(step, steps)

    def lr_factor(self, step: int, steps: int) -> float:
        """Return the share of the highest learning rate at a step, counted from 0.

        The rate rises linearly during the warm-up and then decays with half a cosine to 0 at the last step
        (Loshchilov 2017, without restarts).
        """
        rising = round(steps * self.warmup)
        if step < rising:
            return (step + 1) / (rising + 1)
        return (1 + cos(pi * (step - rising) / max(steps - rising, 1))) / 2


def adamw(
    *, encoder_lr: float | None = None, weight_decay: float = 0.01, warmup: float = 0.05, clip: float = 1.0
) -> OptimizerConfig:
    """AdamW (Loshchilov 2019) with a linear warm-up and a cosine decay to 0.

    Args:
        encoder_lr: highest learning rate of the encoder; none means --lr, or a tenth of it for pretrained weights.
        weight_decay: weight decay of parameters with two or more dimensions; biases and norms do not decay.
        warmup: share of all steps in which the learning rate rises.
        clip: largest norm of all gradients together; 0 disables clipping.
    """
    if encoder_lr is not None and not 0 <= encoder_lr < inf:
        raise OptionError(f"--optimizer adamw: encoder_lr must be at least 0; got {encoder_lr:g}")
    if not 0 <= warmup < 1:
        raise OptionError(f"--optimizer adamw: warmup must be at least 0 and below 1; got {warmup:g}")
    if not (weight_decay >= 0 and clip >= 0):
        raise OptionError("--optimizer adamw: weight_decay and clip must be at least 0")
    return OptimizerConfig(encoder_lr, weight_decay, warmup, clip)


OPTIMIZERS = NamedFactories("optimizer", "optimizer", "docs/training.md", {"adamw": adamw})
