"""Every encoder of segmentation_models_pytorch (smp)."""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from segmentation_models_pytorch.encoders import encoders as known
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from unetkit.errors import CannotBuild
from unetkit.foreign import one_line
from unetkit.parts.encoders.borne import bears
from unetkit.parts.encoders.smp_maps import look
from unetkit.parts.encoders.smp_weights import Weights, find_smp_weights
from unetkit.parts.encoders.statistics import Statistics

#: How often smp's encoders halve the input, unless told to stop before.
_DEPTH = 5


class SmpEncoder(nn.Module):
    """An encoder of segmentation_models_pytorch (smp); channels and strides are those of the maps that it gives.

    Where several maps have one stride (dilation in place of stride makes such), the deepest of them is given. Layers
    of smp's that no map needs are left out.

    Args:
        levels: how many of its maps to use, counted from the shallowest; none means all.
        output_stride: dilates the last stages so that no map is coarser than this, where the encoder can.
        pretrained: smp's weights for it, or the path of a .safetensors file of its tensors; `--pretrained` says the
            same. On the meta device, which holds no weights, they are looked for, but neither downloaded nor read.
    """

    def __init__(
        self,
        in_channels: int,
        name: str,
        *,
        levels: int | None = None,
        output_stride: Literal[8, 16, 32] = 32,
        pretrained: bool | str = False,
    ) -> None:
        super().__init__()
        name, dot, tag = name.partition(".")
        self.weights = weights = find_smp_weights(name, tag if dot else None, pretrained)
        depth = _DEPTH if levels is None else _depth(name, levels, output_stride)
        self.model = _create(name, in_channels, depth, output_stride, weights)
        self.weights_from = weights.name if weights else "random"
        maps, idle = look(self.model, in_channels)
        for path in idle:
            self.model.set_submodule(path, _Passed())  # not deleted: some count the modules that they hold
        self.take = [found.output for found in maps]
        self.strides = tuple(found.stride for found in maps)
        self.channels = tuple(found.channels for found in maps)
        self.source = tuple(f"smp {found.module or name}, reduction {found.stride}" for found in maps)
        key = "smp", name, depth, output_stride
        self.min_size, self.multiple = bears(key, self.model, in_channels, self.strides[-1])

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, H, W) -> maps of (B, channels[i], H / strides[i], W / strides[i]), rounded as the encoder does."""
        maps = self.model(x)
        return [maps[i] for i in self.take]

    def statistics(self) -> Statistics | None:
        """As `unetkit.parts.encoders.statistics` says."""
        return self.weights.statistics() if self.weights else None


def _depth(name: str, levels: int, output_stride: int) -> int:
    """The depth that smp calls so many maps: each of its maps but the input is one deeper."""
    with torch.device("meta"):
        maps, _ = look(_create(name, 3, _DEPTH, output_stride, None), 3)
    if not 2 <= levels <= len(maps):
        raise CannotBuild(f"smp/{name} gives {len(maps)} maps; levels={levels} must be from 2 to that")
    return maps[levels - 1].output


def _create(name: str, in_channels: int, depth: int, output_stride: int, weights: Weights | None) -> Any:
    """The encoder as smp's `get_encoder` makes it, which warns of half of its names and takes no files."""
    options = copy.deepcopy(known[name]["params"])
    with NumbersOnCpu():
        model = known[name]["encoder"](depth=depth, output_stride=output_stride, **options)
    if weights and torch.get_default_device().type != "meta":
        _load(name, model, weights)
    model.set_in_channels(in_channels, pretrained=weights is not None)
    try:
        if output_stride != 32:
            model.make_dilated(output_stride)
    except Exception as error:
        why = f"does not take output_stride={output_stride} ({one_line(error)}); leave it out, or take a ResNet"
        raise CannotBuild(f"smp/{name} {why}") from error
    # A first convolution for other than three channels is made on the cpu, wherever the rest is.
    return model.to(torch.get_default_device())


def _load(name: str, model: Any, weights: Weights) -> None:
    try:
        model.load_state_dict(weights.read())
    except Exception as error:  # whatever the hub's client, a file's reader or torch raises
        raise CannotBuild(
            f"the pretrained weights of smp/{name} cannot be {weights.where} ({one_line(error)[:300]}); give a "
            ".safetensors file of its tensors with `--pretrained FILE`, or leave --pretrained out for random weights"
        ) from error


class _Passed(nn.Module):
    """What stands where a layer was that no map needs."""

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        """The map as it is."""
        return x


class NumbersOnCpu(TorchFunctionMode):
    """Within, `torch.linspace` is on the cpu: Mix Transformers read numbers from it, which meta tensors have not."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        return func(*args, **({"device": "cpu"} | given if func is torch.linspace else given))
