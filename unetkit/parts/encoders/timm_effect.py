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
from unetkit.meter import Meter
from unetkit.parts.encoders.timm_create import Request
from unetkit.parts.encoders.timm_maps import flatten
from unetkit.parts.encoders.timm_sizes import Facts, learn
from unetkit.values import to_text


@cache
def refuse_useless(asked: Request, name: str, value: Any) -> None:
    """Refuse an option without which the maps would be the same."""
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
    with torch.random.fork_rng(devices=[]), _disable_current_modes(), torch.device("cpu"):
        same = all(map(torch.equal, _values(asked, facts), _values(without, facts)))
    if same:
        raise BadOption(f"timm/{asked.name}: {name}={to_text(value)} changes nothing in its feature maps; leave it out")


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


def _values(request: Request, facts: Facts) -> list[Tensor]:
    """The maps of a training pass, everything random in it drawn from one seed."""
    torch.manual_seed(0)
    network = _made(request.create(**facts.extra), facts).train()
    with torch.no_grad():
        given: list[Tensor] = network(torch.rand(_input(request, facts)))
    return given


def _made(network: nn.Module, facts: Facts) -> nn.Module:
    if facts.flat:
        flatten(network)
    return network


def _input(request: Request, facts: Facts) -> tuple[int, ...]:
    # Two images: a norm refuses to take the mean of one value.
    return 2, request.in_channels, *(facts.size or facts.padded((1, 1)))
