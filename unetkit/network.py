"""The base class of every network that unetkit builds: the plan that rebuilds it, and padding for inputs of any size.

A `WholeModel` is a model of another library that is built, traced, saved and padded like a U-Net. Shapes: H and W are
height and width; sizes are (H, W).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from unetkit.errors import InputSizeError, UnetkitError
from unetkit.plan import Plan, ResolvedPlan
from unetkit.utils.formatting import Size
from unetkit.utils.integers import ceil_div, round_up
from unetkit.utils.spatial import crop_end, pad_end, size_of, sym_max

if TYPE_CHECKING:
    from unetkit.registry import Plugin


class Network(nn.Module):
    """An encoder, and whatever makes logits of its maps.

    Attributes:
        encoder: the encoder, for the trace.
        plan: the shortest plan that rebuilds the network.
        resolved_plan: the plan with every choice, with a part for each level.
        built_shapes: the shape of every tensor of the state_dict as it was built.
        built_modules: the type and the settings of every module as it was built; `save` refuses a network in which
            either differs, since the plan would build another one.
        plugins: the plugins of its parts, and those that wrapped it.
        min_size, multiple: inputs whose height or width is smaller than the first, or not a multiple of the second, are
            padded with zeros at the bottom and the right, and the output is cropped.
        size: the only size that its encoder accepts, if there is only one; smaller inputs are padded to it.
        output_stride: the stride of the output: 1 if it has the input size.
        valid: whether unpadded convolutions make the output smaller than the input.
    """

    output_stride = 1
    plan: Plan
    resolved_plan: ResolvedPlan
    built_shapes: dict[str, tuple[int, ...]]
    built_modules: dict[str, str]
    plugins: tuple[Plugin, ...]

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """A part, whose kind the plan says and no type can."""

    def __init__(self, *, min_size: int = 1, multiple: int = 1, size: Size | None = None, valid: bool = False) -> None:
        super().__init__()
        self.min_size = min_size
        self.multiple = multiple
        self.size = size
        self.valid = valid

    @property
    def period(self) -> int:
        """The period of input sizes: the multiple that is required, or the usual stride.

        Sizes that differ by it behave alike.
        """
        return max(self.multiple, 32)

    def pad_input(self, x: Tensor) -> Tensor:
        """Pad images (B, C, H, W) with zeros at the bottom and the right to a size that the encoder accepts."""
        size = size_of(x)
        return x if self._accepts(size) else pad_end(x, self.padded_size(size))

    def crop_output(self, x: Tensor, size: Size) -> Tensor:
        """Crop the output for a padded input to what belongs to the image, whose size before the padding is given."""
        if self._accepts(size):
            return x
        return crop_end(x, (ceil_div(size[0], self.output_stride), ceil_div(size[1], self.output_stride)))

    def _accepts(self, size: Size) -> bool:
        return self.multiple == 1 and self.size is None and min(size) >= self.min_size

    def padded_size(self, size: Size) -> Size:
        """Return the size to which an input is padded with zeros at the bottom and the right.

        Its own size if that is accepted.

        Raises:
            InputSizeError: The input is larger than the only size that the encoder accepts.
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
                    f"build it with --size {given}, or crop the input"
                )
            return self.size
        height, width = (round_up(sym_max(self.min_size, side), self.multiple) for side in size)
        return height, width

    def __prepare_scriptable__(self) -> Network:
        """Raise UnetkitError when `torch.jit.script` calls this first; it would otherwise fail deep in a part."""
        raise UnetkitError(
            "torch.jit.script, which torch itself has given up, does not take a network of unetkit; "
            "use torch.export for a program to ship, or torch.compile for speed"
        )


def state_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of a state_dict."""
    return {name: tuple(value.shape) for name, value in model.state_dict().items() if isinstance(value, Tensor)}


class WholeModel(Network):
    """A whole model in the attribute `model`; see `unetkit.protocols.Model` for what it may declare.

    Attributes:
        model: the model as its factory returned it.
    """

    def __init__(self, model: nn.Module) -> None:
        """Take over what the model declares."""
        super().__init__(
            min_size=getattr(model, "min_size", 1),
            multiple=getattr(model, "multiple", 1),
            size=getattr(model, "size", None),
        )
        self.model = model

    @property
    def encoder(self) -> nn.Module:
        """The model itself, since it declares what an encoder would."""
        return self.model

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> logits (B, classes, H, W)."""
        out = self.model(self.pad_input(x))
        if not isinstance(out, Tensor):
            what = f"gives a {type(out).__name__}; expected is one tensor of logits"
            raise InputSizeError(f"--model {self.resolved_plan.model} {what}")
        return self.crop_output(out, size_of(x))
