"""The head that asks for deep supervision."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from unetkit.errors import OptionError


class DeepSupervision(nn.Sequential):
    """A 1x1 convolution, and in training one more on each of the stages before the last (Lee 2015).

    In training the model returns a tuple of logits instead of one tensor, in eval the main logits alone.

    Args:
        levels: how many stages before the last have a head of their own; none means all but the deepest (and one at
            least), which leaves out the two lowest resolutions as nnU-Net does (Isensee 2021).
    """

    def __init__(self, in_channels: int, classes: int, *, levels: int | None = None) -> None:
        if levels is not None and levels < 1:
            raise OptionError(f"levels={levels}: takes at least 1; for no deep supervision take --head conv")
        super().__init__(OrderedDict(conv=nn.Conv2d(in_channels, classes, 1)))
        self.levels = levels
