"""What every network that unetkit builds has: the plan that rebuilds it, and room for inputs of any size.

H and W are height and width; sizes are (H, W).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from unetkit.errors import InputSizeError, UnetkitError
from unetkit.plan import Plan
from unetkit.utils.formatting import Size
from unetkit.utils.spatial import crop_end, pad_end, size_of

if TYPE_CHECKING:
    from unetkit.registry import Plugin


class Network(nn.Module):
    """An encoder and what makes logits of its maps.

    Attributes:
        encoder: what the trace is told by.
        plan: the shortest line that rebuilds it.
        whole: the plan with everything said, a part a level; what the network is told by.
        layout: the shape of every tensor of the state_dict as it was built, by which files know it again.
        plugins: whose parts it has, or who wrapped it.
        min_size, multiple: a height or width below the one, or no multiple of the other, is padded with zeros below
            and to the right, and the output cut back.
        size: the one size that its encoder takes, where it takes only one; a smaller input is padded to it.
        valid: whether unpadded convolutions make the output smaller than the input.
    """

    encoder: nn.Module
    plan: Plan
    resolved_plan: Plan
    layout: dict[str, tuple[int, ...]]
    plugins: tuple[Plugin, ...]

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """A part, whose kind the plan says and no type can."""

    def __init__(self, *, min_size: int, multiple: int, size: Size | None, valid: bool) -> None:
        super().__init__()
        self.min_size = min_size
        self.multiple = multiple
        self.size = size
        self.valid = valid

    @property
    def output_stride(self) -> int:
        """Of what a pass gives: 1 where its output has the input's size."""
        return 1

    @property
    def period(self) -> int:
        """Sizes that differ by this are of one kind to it: what they must be multiples of, or the usual stride."""
        return max(self.multiple, 32)

    def forward(self, x: Tensor, maps: list[Tensor] | None = None) -> Tensor:
        """(B, in_channels, H, W) -> logits (B, classes, H, W); smaller than the input where convolutions are valid.

        Args:
            x: the images.
            maps: a list that takes the map of each stage, as `forward_features` of a U-Net gives them.
        """
        size = size_of(x)
        if self.multiple == 1 and self.size is None and min(size) >= self.min_size:
            return self._whole(x, maps)
        height, width = self.padded_size(size)
        x = self._whole(pad_end(x, (height, width)), maps)
        stride = self.output_stride
        return crop_end(x, ((size[0] - 1) // stride + 1, (size[1] - 1) // stride + 1))

    def padded_size(self, size: Size) -> Size:
        """The size that an input is padded to with zeros, below and to the right; its own where that passes.

        Raises:
            InputSizeError: it is larger than the one size that the encoder takes.
        """
        if self.size is not None:
            if torch.compiler.is_compiling():
                torch._check(size[0] <= self.size[0])
                torch._check(size[1] <= self.size[1])
            elif size[0] > self.size[0] or size[1] > self.size[1]:
                given, fixed = (f"{height}x{width}" for height, width in (size, self.size))
                who = self.resolved_plan.encoder or self.resolved_plan.model
                raise InputSizeError(
                    f"an input of {given} is larger than {fixed}, the one size that {who} is built for; "
                    f"build it with --size {given}, or cut the input"
                )
            return self.size
        least, multiple = self.min_size, self.multiple
        height, width = (-(-torch.sym_max(least, side) // multiple) * multiple for side in size)
        return cast(Size, (height, width))

    def __prepare_scriptable__(self) -> Network:
        """What `torch.jit.script` calls first. Raises UnetkitError, where it would end deep in a part with torch's."""
        raise UnetkitError(
            "torch.jit.script, which torch itself has given up, does not take a network of unetkit; "
            "use torch.export for a program to ship, or torch.compile for speed"
        )

    def _whole(self, x: Tensor, kept: list[Tensor] | None) -> Tensor:
        """A pass of an input of a size that the encoder takes."""
        raise NotImplementedError


def state_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a state_dict."""
    return {name: tuple(value.shape) for name, value in model.state_dict().items() if isinstance(value, Tensor)}


class WholeModel(Network):
    """A whole model, by itself in `model`; see `unetkit.protocols.Model` for what it may declare.

    Attributes:
        model: as its factory made it.
    """

    def __init__(self, model: nn.Module) -> None:
        """Declare what the model does."""
        super().__init__(
            min_size=getattr(model, "min_size", 1),
            multiple=getattr(model, "multiple", 1),
            size=getattr(model, "size", None),
            valid=False,
        )
        self.model = model

    @property
    def encoder(self) -> nn.Module:  # type: ignore[override]
        """The model: what it declares of itself, it declares here."""
        return self.model

    def _whole(self, x: Tensor, kept: list[Tensor] | None) -> Tensor:
        out = self.model(x)
        if not isinstance(out, Tensor):
            what = f"gives a {type(out).__name__}; promised is one tensor, the logits"
            raise InputSizeError(f"--model {self.resolved_plan.model} {what}")
        return out
