"""AdamW with groups for the encoder and for what does not decay, and the rate's rise and fall."""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, inf, pi
from typing import Any

from torch import nn
from torch.optim import AdamW

from unetkit.errors import OptionError
from unetkit.resolve import Menu
from unetkit.summary.forward_hooks import network_of

#: Of the rate of the rest, where an encoder has pretrained weights and no rate of its own is said.
_PRETRAINED = 0.1


@dataclass(frozen=True)
class OptimizerConfig:
    """How the weights follow the gradient; see `adamw`."""

    encoder_lr: float | None
    weight_decay: float
    warmup: float
    clip: float

    def optimiser(self, model: nn.Module, lr: float) -> AdamW:
        """AdamW over all parameters of a model, frozen ones too: they may be let go later."""
        network = network_of(model)
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

    def set_rates(self, optimiser: AdamW, step: int, steps: int) -> None:
        """Give each group the rate that it has at a step."""
        for group in optimiser.param_groups:
            group["lr"] = group["highest"] * self.share(step, steps)

    def share(self, step: int, steps: int) -> float:
        """Of the highest rate, at a step counted from 0.

        A linear warm-up, then half a cosine down to 0 at the last of all steps (Loshchilov 2017, without restarts).
        """
        rising = round(steps * self.warmup)
        if step < rising:
            return (step + 1) / (rising + 1)
        return (1 + cos(pi * (step - rising) / max(steps - rising, 1))) / 2


def adamw(
    *, encoder_lr: float | None = None, weight_decay: float = 0.01, warmup: float = 0.05, clip: float = 1.0
) -> OptimizerConfig:
    """AdamW (Loshchilov 2019) with a linear warm-up and half a cosine down to 0.

    Args:
        encoder_lr: the encoder's highest rate; none means that of the rest, a tenth of it for pretrained weights.
        weight_decay: of weights with two dimensions and more; biases and norms do not decay.
        warmup: share of all steps in which the rate rises.
        clip: the largest norm of all gradients together; 0 clips none.
    """
    if encoder_lr is not None and not 0 <= encoder_lr < inf:
        raise OptionError(f"--optimizer adamw: encoder_lr must be at least 0; got {encoder_lr:g}")
    if not 0 <= warmup < 1:
        raise OptionError(f"--optimizer adamw: warmup takes a share from 0 to below 1; got {warmup:g}")
    if not (weight_decay >= 0 and clip >= 0):
        raise OptionError("--optimizer adamw: weight_decay and clip must be at least 0")
    return OptimizerConfig(encoder_lr, weight_decay, warmup, clip)


OPTIMIZERS = Menu("optimizer", "optimizer", "docs/training.md", {"adamw": adamw})
