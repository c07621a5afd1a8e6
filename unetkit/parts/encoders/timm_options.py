"""Options of timm's own: their names and types, by the constructor of the model, and whether they do anything."""

from __future__ import annotations

import inspect
import types
from contextlib import suppress
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import timm
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from unetkit.errors import BuildError, OptionError, did_you_mean
from unetkit.options import describe_type, format_value
from unetkit.parts.encoders.timm_features import TimmSpec, flatten
from unetkit.parts.encoders.timm_input_sizes import SizeLimits, probe
from unetkit.utils.flops import CostMeter
from unetkit.utils.lazy_init import preserve_rng


@cache
def refuse_useless(asked: TimmSpec, name: str, value: Any) -> None:
    """Refuse an option without which the maps would be the same, but for which random weights are drawn."""
    without = asked._replace(options=tuple(option for option in asked.options if option[0] != name))
    try:
        plain = probe(without, None, None)
    except BuildError:
        return  # others need it
    try:
        facts = probe(asked, None, None)
    except BuildError as error:
        raise OptionError(str(error)) from error
    if facts != plain or _structure(asked, facts) != _structure(without, facts):
        return
    with preserve_rng(), _disable_current_modes(), torch.device("cpu"):
        same = _same(asked, without, facts)
    if same:
        raise OptionError(
            f"timm/{asked.name}: {name}={format_value(value)} changes nothing in its feature maps; leave it out"
        )


def _structure(request: TimmSpec, facts: SizeLimits) -> list[Any]:
    """Of each module that takes part in a training pass: its type, plain attributes and shapes of parameters."""
    network = _made(request.meta_model(**facts.extra), facts).train()
    # What is at the root is what the constructor was told, used or not.
    roots = (network, getattr(network, "model", None), getattr(network, "body", None))
    seen: list[Any] = []
    for module in network.modules():
        if module not in roots:
            module.register_forward_hook(lambda module, *_: seen.append(_described(module)))
    with torch.no_grad(), torch.device("meta"), CostMeter([], []):
        network(torch.empty(_input(request, facts)))
    return seen


def _described(module: nn.Module) -> Any:
    plain = {k: v for k, v in vars(module).items() if k[0] != "_" and isinstance(v, int | float | str | tuple | None)}
    return type(module), plain, [(name, tuple(p.shape)) for name, p in module.named_parameters(recurse=False)]


def _same(asked: TimmSpec, without: TimmSpec, facts: SizeLimits) -> bool:
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


def _drawn(request: TimmSpec, facts: SizeLimits) -> nn.Module:
    torch.default_generator.manual_seed(0)  # torch.manual_seed would seed gpus too, which nobody sets aside
    return _made(request.create(**facts.extra), facts).train()


@torch.no_grad()
def _maps(network: nn.Module, size: tuple[int, ...]) -> list[Tensor]:
    """The maps of a training pass, everything random in it drawn from one seed."""
    torch.default_generator.manual_seed(0)
    given: list[Tensor] = network(torch.rand(size))
    return given


def _made(network: nn.Module, facts: SizeLimits) -> nn.Module:
    if facts.flat:
        flatten(network)
    return network


def _input(request: TimmSpec, facts: SizeLimits) -> tuple[int, ...]:
    # Two images: a norm refuses to take the mean of one value.
    return 2, request.in_channels, *(facts.size or facts.padded((1, 1)))


#: What other words say, or an encoder has no use for.
SAID = {
    "in_chans": "--in-channels says it",
    "num_classes": "--classes says it",
    "pretrained_cfg": "--pretrained says it",
    "pretrained_cfg_overlay": "--pretrained says it",
    "checkpoint_path": "--pretrained FILE says it",
    "out_indices": "levels says how many maps to use",
    "features_only": "an encoder is always asked for its maps only",
    "device": "device= of unetkit.build says it",
    "dtype": "model.to(dtype) converts a network",
}


def check_timm_options(request: TimmSpec, options: dict[str, Any]) -> TimmSpec:
    """The request with more of timm's options.

    Raises:
        OptionError: the model's constructor has no such option, or not of this type; other words say it; timm cannot
            make the model with it; or it changes nothing in the maps.
    """
    if not options:
        return request
    known, more = _constructor(request)
    for name, value in options.items():
        _refuse_name(request, name, value, known, more=more)
    asked = request._replace(options=tuple(sorted(options.items())))
    for name, value in options.items():
        if name not in known or known[name].default != value or type(known[name].default) is not type(value):
            refuse_useless(asked, name, value)
    return asked


def _refuse_name(request: TimmSpec, name: str, value: Any, known: dict[str, Any], *, more: bool) -> None:
    if name in SAID:
        raise OptionError(f"timm/{request.name} takes no {name}: {SAID[name]}; leave it out")
    if name not in known and not more:
        others = [other for other in known if other not in SAID]
        raise OptionError(
            f"timm/{request.name} has no option {name!r}{did_you_mean(name, others) or '; it has ' + ', '.join(others)}"
        )
    if name in known and not _fits(value, kind := known[name].annotation):
        raise OptionError(f"timm/{request.name}: {name} takes {describe_type(kind)}; got {format_value(value)}")


@cache
def _constructor(request: TimmSpec) -> tuple[dict[str, inspect.Parameter], bool]:
    """The options of a model's constructor, with their types, and whether it hands others on, to a configuration.

    A type that is neither annotated nor told by the default is Any.
    """
    made = request.meta_model()
    if type(made).__module__ == "timm.models._features":  # timm's own wrapping of a model, which may be cut to pieces
        with torch.device("meta"):
            made = getattr(made, "model", None) or timm.create_model(request.name)
    known: dict[str, inspect.Parameter] = {}
    for owner in type(made).__mro__:
        if owner.__module__.startswith("torch."):
            return known, True
        if init := vars(owner).get("__init__"):
            known = _parameters(init) | known
            if not any(p.kind is p.VAR_KEYWORD for p in inspect.signature(init).parameters.values()):
                break
    return known, False


def _parameters(init: Any) -> dict[str, inspect.Parameter]:
    hints: dict[str, Any] = {}
    with suppress(Exception):  # a name that is there for type checkers only
        hints = get_type_hints(init)
    return {
        p.name: p.replace(annotation=hints.get(p.name, _kind_of(p.default)))
        for p in inspect.signature(init).parameters.values()
        if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD) and p.name != "self"
    }


def _kind_of(default: Any) -> Any:
    return type(default) if type(default) in (bool, int, float, str) else Any


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a type; true where the type is none that a line could say."""
    if get_origin(kind) in (Union, types.UnionType):
        return any(_fits(value, choice) for choice in get_args(kind))
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if kind in (int, float):
        return isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    if kind in (bool, str, type(None)):
        return isinstance(value, kind)
    return True
