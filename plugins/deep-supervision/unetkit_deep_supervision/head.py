"""The head that selects deep supervision."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from unetkit.errors import OptionError


class DeepSupervision(nn.Sequential):
    """1x1 convolution to the classes, with further 1x1 convolutions on earlier stages in training (Lee 2015).

    In training the model returns a tuple of logits, in eval mode only the main logits.

    Args:
        levels: number of stages before the last that have a head; none means all but the deepest, and at least one,
            which leaves out the two lowest resolutions as nnU-Net does (Isensee 2021).
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        *,
        levels: int | None = None,
    ) -> None:
        if levels is not None and levels < 1:
            raise OptionError(f"levels={levels} must be at least 1; use --head conv for no deep supervision")
        super().__init__(OrderedDict(conv=nn.Conv2d(in_channels, classes, 1)))
        self.levels = levels
