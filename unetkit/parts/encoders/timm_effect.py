"""Whether an option of timm's changes a model's feature maps: seen by making the model with it and without.

timm drops some options in silence: what is None, what only a classifier needs, what a model takes and never reads. No
list could keep up with that.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from unetkit.errors import BadOption, CannotBuild
from unetkit.lazyinit import set_aside
from unetkit.meter import Meter
from unetkit.parts.encoders.timm_create import Request
from unetkit.parts.encoders.timm_maps import flatten
from unetkit.parts.encoders.timm_sizes import Facts, learn
from unetkit.values import format_value


@cache
def refuse_useless(asked: Request, name: str, value: Any) -> None:
    """Refuse an option without which the maps would be the same, but for which random weights are drawn."""
    without = asked._replace(options=tuple(option for option in asked.options if option[0] != name))
    try:
        plain = learn(without, None, None)
    except CannotBuild:
        return  # others need it
    try:
        facts = learn(asked, None, None)
    except CannotBuild as error:
        raise BadOption(str(error)) from error
    if facts != plain or _structure(asked, facts) != _structure(without, facts):
        return
    with set_aside(), _disable_current_modes(), torch.device("cpu"):
        same = _same(asked, without, facts)
    if same:
        raise BadOption(
            f"timm/{asked.name}: {name}={format_value(value)} changes nothing in its feature maps; leave it out"
        )


def _structure(request: Request, facts: Facts) -> list[Any]:
    """Of each module that takes part in a training pass: its type, plain attributes and shapes of parameters."""
    network = _made(request.ghost(**facts.extra), facts).train()
    # What is at the root is what the constructor was told, used or not.
    roots = (network, getattr(network, "model", None), getattr(network, "body", None))
    seen: list[Any] = []
    for module in network.modules():
        if module not in roots:
            module.register_forward_hook(lambda module, *_: seen.append(_described(module)))
    with torch.no_grad(), torch.device("meta"), Meter([], []):
        network(torch.empty(_input(request, facts)))
    return seen


def _described(module: nn.Module) -> Any:
    plain = {k: v for k, v in vars(module).items() if k[0] != "_" and isinstance(v, int | float | str | tuple | None)}
    return type(module), plain, [(name, tuple(p.shape)) for name, p in module.named_parameters(recurse=False)]


def _same(asked: Request, without: Request, facts: Facts) -> bool:
    """Whether the maps are the same, with one's weights in the other where both draw them alike."""
    one, other = _drawn(asked, facts), _drawn(without, facts)
    shapes, others = ({name: x.shape for name, x in network.state_dict().items()} for network in (one, other))
    same_buffers = all(map(torch.equal, one.buffers(), other.buffers()))
    if shapes == others and same_buffers and all(map(_alike, one.parameters(), other.parameters())):
        other.load_state_dict(one.state_dict())
    size = _input(asked, facts)
    return all(map(torch.equal, _maps(one, size), _maps(other, size)))


def _alike(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of random numbers are of one distribution, by their spreads; constants must be equal."""
    if torch.equal(one, other):
        return True
    here, there = ((x.std(correction=0), x.abs().mean()) for x in (one, other))
    # What only a part that is not there needs may still shift what all others draw: six deviations of a spread's error.
    near = 6 / one.numel() ** 0.5
    return bool(here[0] and there[0]) and all(abs(a - b) <= near * b for a, b in zip(here, there, strict=True))


def _drawn(request: Request, facts: Facts) -> nn.Module:
    torch.default_generator.manual_seed(0)  # torch.manual_seed would seed gpus too, which nobody sets aside
    return _made(request.create(**facts.extra), facts).train()


@torch.no_grad()
def _maps(network: nn.Module, size: tuple[int, ...]) -> list[Tensor]:
    """The maps of a training pass, everything random in it drawn from one seed."""
    torch.default_generator.manual_seed(0)
    given: list[Tensor] = network(torch.rand(size))
    return given


def _made(network: nn.Module, facts: Facts) -> nn.Module:
    if facts.flat:
        flatten(network)
    return network


def _input(request: Request, facts: Facts) -> tuple[int, ...]:
    # Two images: a norm refuses to take the mean of one value.
    return 2, request.in_channels, *(facts.size or facts.padded((1, 1)))
