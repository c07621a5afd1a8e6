"""What an encoder of smp gives, seen from one pass on meta: its maps, and the layers that no map needs."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

from unetkit.meta import meta_copy

#: The side of the input that it is shown: its deepest map is 2x2.
_SIDE = 64


class Map(NamedTuple):
    """A map that an encoder gives: which of its outputs it is, and the module that it comes from, "" for none."""

    output: int
    channels: int
    stride: int
    module: str


def look(model: nn.Module, in_channels: int) -> tuple[list[Map], list[str]]:
    """The maps of an encoder, and the outermost of its modules whose weights reach none of them.

    Left out are the input itself and maps without channels; of several maps of one stride the deepest is given.

    Args:
        model: an encoder of smp, on any device; it is left as it was.
        in_channels: of its input.
    """
    ghost = meta_copy(model).eval()
    ran: list[tuple[str, Any]] = []  # what came out stays alive, so that no two have one id
    for path, module in ghost.named_modules():
        if not isinstance(module, nn.Identity):
            module.register_forward_hook(lambda _, __, out, path=path: ran.append((path, out)))
    x = torch.empty(1, in_channels, _SIDE, _SIDE, dtype=next(ghost.parameters()).dtype, device="meta")
    with torch.enable_grad(), torch.device("meta"):
        maps = ghost(x)
        torch.autograd.backward([each.sum() for each in maps if each.requires_grad and each is not x])
    sources = {id(out): path for path, out in ran}
    found: dict[int, Map] = {}
    for output, each in enumerate(maps):
        if each is not x and each.shape[1]:
            stride = _SIDE // each.shape[-1]
            found[stride] = Map(output, each.shape[1], stride, sources.get(id(each), ""))
    return [*found.values()], _idle(ghost)


def _idle(ghost: nn.Module) -> list[str]:
    """The paths of the outermost modules none of whose parameters has a gradient."""
    idle: list[str] = []
    for path, module in ghost.named_modules():
        grads = [parameter.grad for parameter in module.parameters()]
        within = any(path.startswith(f"{outer}.") for outer in idle)
        if grads and not within and all(grad is None for grad in grads):
            idle.append(path)
    return idle
