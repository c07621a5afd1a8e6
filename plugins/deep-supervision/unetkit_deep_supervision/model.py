"""A U-Net with auxiliary heads on its stages, which are used only in training."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

from unetkit.errors import BuildError
from unetkit.unet import UNet


class DeepSupervisionModel(nn.Module):
    """A U-Net that in training also returns logits of earlier stages (Lee 2015, Dou 2016).

    The attributes of the U-Net (`encoder`, `stages`, `head`, `resolved_plan`, ...) are available on this module too.

    Attributes:
        network: the U-Net; its state_dict is that of one with `--head conv`.
        auxiliary: a 1x1 convolution for each supervised stage, shallow to deep, beginning with the last but one.
    """

    network: UNet
    auxiliary: nn.ModuleList

    def __init__(self, model: nn.Module) -> None:
        """Add the auxiliary heads that the model's head asks for.

        Raises:
            BuildError: the model is not a U-Net or is wrapped already, has valid convolutions, or has too few stages.
        """
        super().__init__()
        if not isinstance(model, UNet):
            raise BuildError(f"--head deep-supervision needs the U-Net itself, not a {type(model).__name__} around it")
        *widths, _ = cast(tuple[int, ...], model.resolved_plan.widths)
        levels = _count_levels(model, len(widths))
        classes = model.resolved_plan.classes
        self.network = model
        self.auxiliary = nn.ModuleList(nn.Conv2d(width, classes, 1) for width in widths[::-1][:levels])

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return the logits (B, classes, H', W') of the U-Net for images (B, in_channels, H, W).

        In training, return a tuple of these and of the auxiliary logits, shallow to deep, all resized to H' x W'.
        """
        if self.training:
            return self.network.forward_auxiliary(x, self.auxiliary)
        logits: Tensor = self.network(x)
        return logits

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the U-Net that this module does not have."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("network"), name)


def _count_levels(network: UNet, earlier: int) -> int:
    """Return the number of supervised stages, of `earlier` stages before the last."""
    head = network.resolved_plan.head
    if network.valid:
        raise BuildError(
            f"--head {head} does not support valid convolutions, whose maps cover less at each stage; use padding=1"
        )
    levels = cast("int | None", network.head.levels)
    if earlier < (levels or 1):
        only = f"of which there {'is' if earlier == 1 else 'are'} only {earlier}; give levels={earlier} or less"
        none = "and there are none; decode one level more"
        raise BuildError(f"--head {head} supervises stages before the last, {only if earlier else none}")
    return levels or max(1, earlier - 1)
