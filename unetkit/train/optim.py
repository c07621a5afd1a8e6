"""Optimizers, with groups of parameters for the encoder and for those without weight decay, and learning rates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import cos, inf, pi
from typing import Any

from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from unetkit.errors import OptionError, PluginError
from unetkit.registry import Parts
from unetkit.resolve import create
from unetkit.summary.forward_hooks import find_network
from unetkit.utils.formatting import format_type

#: The default learning rate of the loaded weights of an encoder, as a factor of that of the other layers.
_PRETRAINED = 0.1


#: A function from parameter groups to an optimizer, which takes the weight decay of each group from the group.
MakeOptimizer = Callable[[list[dict[str, Any]]], Optimizer]


@dataclass(frozen=True)
class OptimizerConfig:
    """An optimizer with its schedule, which an optimizer of the registry returns.

    The learning rate rises linearly during the warm-up and then decays with half a cosine to 0 at the last step
    (Loshchilov 2017, without restarts).

    Attributes:
        create: creates the optimizer, such as `torch.optim.AdamW`, from parameter groups.
        encoder_lr: highest learning rate of the encoder's loaded weights, or of all its weights if none were loaded;
            None means a tenth of that of the other layers for loaded weights, else the same.
        weight_decay: weight decay of parameters with two or more dimensions; biases and norms do not decay.
        warmup: share of all steps in which the learning rate rises, from 0 to below 1.
        clip: largest norm of all gradients together; 0 disables clipping.

    Raises:
        OptionError: A value is out of range.
    """

    create: MakeOptimizer
    encoder_lr: float | None = None
    weight_decay: float = 0.0
    warmup: float = 0.05
    clip: float = 1.0

    def __post_init__(self) -> None:
        if self.encoder_lr is not None and not 0 <= self.encoder_lr < inf:
            raise OptionError(f"encoder_lr must be at least 0; got {self.encoder_lr:g}")
        if not 0 <= self.warmup < 1:
            raise OptionError(f"warmup must be at least 0 and below 1; got {self.warmup:g}")
        if not (self.weight_decay >= 0 and self.clip >= 0):
            raise OptionError("weight_decay and clip must be at least 0")

    def make_optimizer(self, model: nn.Module, lr: float) -> Optimizer:
        """Create the optimizer over all parameters of a model, including frozen ones, which may be unfrozen later."""
        network = find_network(model)
        loaded = network.pretrained_parameters()
        encoder = {id(parameter) for parameter in loaded or network.get_submodule(network.backbone_name).parameters()}
        groups: dict[tuple[bool, bool], list[Any]] = {}
        for parameter in model.parameters():
            groups.setdefault((id(parameter) in encoder, parameter.ndim > 1), []).append(parameter)
        default = lr * (_PRETRAINED if loaded else 1)
        rates = {True: default if self.encoder_lr is None else self.encoder_lr, False: lr}
        return self.create(
            [
                {"params": found, "highest": rates[inside], "weight_decay": self.weight_decay if decays else 0.0}
                for (inside, decays), found in sorted(groups.items(), key=lambda group: group[0])
            ]
        )

    def set_rates(self, optimizer: Optimizer, step: int, steps: int) -> None:
        """Set the learning rate of each parameter group for a step."""
        for group in optimizer.param_groups:
            group["lr"] = group["highest"] * self.lr_factor(step, steps)

    def lr_factor(self, step: int, steps: int) -> float:
        """Return the share of the highest learning rate at a step, counted from 0."""
        rising = round(steps * self.warmup)
        if step < rising:
            return (step + 1) / (rising + 1)
        return (1 + cos(pi * (step - rising) / max(steps - rising, 1))) / 2


def adamw(
    *, encoder_lr: float | None = None, weight_decay: float = 0.01, warmup: float = 0.05, clip: float = 1.0
) -> OptimizerConfig:
    """AdamW (Loshchilov 2019) with a linear warm-up and a cosine decay to 0.

    Args:
        encoder_lr: highest learning rate of the encoder's loaded weights, or of all its weights if none were loaded;
            none means a tenth of --lr for loaded weights, else --lr.
        weight_decay: weight decay of parameters with two or more dimensions; biases and norms do not decay.
        warmup: share of all steps in which the learning rate rises.
        clip: largest norm of all gradients together; 0 disables clipping.
    """
    return OptimizerConfig(AdamW, encoder_lr, weight_decay, warmup, clip)


def sgd(
    *,
    momentum: float = 0.9,
    nesterov: bool = False,
    encoder_lr: float | None = None,
    weight_decay: float = 0.0,
    warmup: float = 0.05,
    clip: float = 1.0,
) -> OptimizerConfig:
    """SGD with momentum (0.99 in Ronneberger 2015), a linear warm-up and a cosine decay to 0.

    Args:
        momentum: share of the previous update that is added to the next one.
        nesterov: whether the gradient is taken after the momentum's share of the update (Sutskever 2013).
        encoder_lr: highest learning rate of the encoder's loaded weights, or of all its weights if none were loaded;
            none means a tenth of --lr for loaded weights, else --lr.
        weight_decay: L2 penalty of parameters with two or more dimensions; biases and norms have none.
        warmup: share of all steps in which the learning rate rises.
        clip: largest norm of all gradients together; 0 disables clipping.
    """
    if not 0 <= momentum < 1:
        raise OptionError(f"momentum must be at least 0 and below 1; got {momentum:g}")
    if nesterov and not momentum:
        raise OptionError("nesterov needs a momentum above 0")
    return OptimizerConfig(partial(SGD, momentum=momentum, nesterov=nesterov), encoder_lr, weight_decay, warmup, clip)


def create_optimizer_config(text: str, parts: Parts) -> OptimizerConfig:
    """Create an optimizer with its schedule from text, such as `sgd:momentum=0.99`.

    Raises:
        UnknownNameError, OptionError: The optimizer, an option or a value does not exist.
        PluginError: The optimizer of a plugin returns something else.
    """
    found = create("optimizer", text, parts)
    if not isinstance(found, OptimizerConfig):
        raise PluginError(
            f"--optimizer {text}: its factory returns {format_type(found)}; "
            "it must return a unetkit.train.optim.OptimizerConfig"
        )
    return found
