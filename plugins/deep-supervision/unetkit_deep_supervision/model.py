"""A U-Net with auxiliary heads on its stages, which only training sees."""

from __future__ import annotations

from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from unetkit.errors import BuildError
from unetkit.unet import UNet
from unetkit.utils.spatial import crop_end, size_of


class DeeplySupervised(nn.Module):
    """A U-Net, and in training logits from earlier stages beside its own (Lee 2015, Dou 2016).

    What the U-Net has (`encoder`, `stages`, `head`, `whole`, ...) is found on this module too.

    Attributes:
        network: the U-Net; its state_dict is that of one with `--head conv`.
        auxiliary: a 1x1 convolution for each stage supervised, shallow to deep, from the last but one on.
    """

    def __init__(self, model: nn.Module) -> None:
        """Add the heads that the model's own head asks for.

        Raises:
            BuildError: the U-Net is wrapped already, has valid convolutions, or not so many stages.
        """
        super().__init__()
        if not isinstance(model, UNet):
            raise BuildError(f"--head deep-supervision needs the U-Net itself, not a {type(model).__name__} around it")
        *widths, _ = cast(tuple[int, ...], model.resolved_plan.widths)
        levels = _levels(model, len(widths))
        classes = cast(int, model.resolved_plan.classes)
        self.network = model
        self.auxiliary = nn.ModuleList(nn.Conv2d(width, classes, 1) for width in widths[::-1][:levels])

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """(B, in_channels, H, W) -> in eval the logits (B, classes, H', W') of the U-Net.

        In training a tuple of such: those, then the auxiliary ones, shallow to deep, brought to H' x W' bilinearly.
        """
        if not self.training:
            return cast(Tensor, self.network(x))
        logits, maps = self.network.forward_features(x)
        # What was padded is cut back as the U-Net cuts its own logits: after they are resized.
        padded = size_of(maps[-1]) if self.network.logits is None else self.network.padded_size(size_of(x))
        size = size_of(logits)
        earlier = zip(self.auxiliary, maps[-2::-1], strict=False)
        return logits, *(crop_end(F.interpolate(head(m), padded, mode="bilinear"), size) for head, m in earlier)

    def __getattr__(self, name: str) -> Any:
        """What this module lacks is the U-Net's."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("network"), name)


def _levels(network: UNet, earlier: int) -> int:
    """How many stages are supervised, of those before the last."""
    head = network.resolved_plan.head
    if network.valid:
        raise BuildError(f"--head {head} takes no valid convolutions, whose maps cover less and less; take padding=1")
    levels = cast("int | None", network.head.levels)
    if earlier < (levels or 1):
        few = f"only {earlier}; take levels={earlier} or less" if earlier else "none; decode one level more"
        raise BuildError(f"--head {head}: of the stages before the last, which it supervises, there are {few}")
    return levels or max(1, earlier - 1)
