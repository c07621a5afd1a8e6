"""Options of timm's own constructors: their names, their types, and whether they change the feature maps.

timm silently drops some options: those that are None, those that only a classifier needs, those that a model takes and
never reads. No list could keep up with that, so a model is built with an option and without it, and both are compared.
"""

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
from unetkit.parts.encoders.timm_features import TimmSpec, set_nlc_output
from unetkit.parts.encoders.timm_input_sizes import SizeLimits, probe
from unetkit.utils.flops import CostMeter
from unetkit.utils.lazy_init import preserve_rng

#: Options of timm that an encoder does not take, with the reason.
RESERVED_OPTIONS = {
    "in_chans": "--in-channels sets it",
    "num_classes": "--classes sets it",
    "pretrained_cfg": "--pretrained sets it",
    "pretrained_cfg_overlay": "--pretrained sets it",
    "checkpoint_path": "--pretrained FILE sets it",
    "out_indices": "levels sets the number of feature maps",
    "features_only": "an encoder always gives feature maps",
    "device": "device= of unetkit.build sets it",
    "dtype": "model.to(dtype) converts a network",
}


def check_timm_options(spec: TimmSpec, options: dict[str, Any]) -> TimmSpec:
    """Add options of timm's constructor to a specification, after checking them.

    Raises:
        OptionError: the model's constructor has no such option, or takes another type; unetkit sets the option itself;
            timm cannot build the model with it; or it changes nothing in the feature maps.
    """
    if not options:
        return spec
    known, takes_others = _read_constructor(spec)
    for name, value in options.items():
        _check_option(spec, name, value, known, takes_others=takes_others)
    extended = spec._replace(options=tuple(sorted(options.items())))
    for name, value in options.items():
        if name not in known or known[name].default != value or type(known[name].default) is not type(value):
            check_option_effect(extended, name, value)
    return extended


def _check_option(spec: TimmSpec, name: str, value: Any, known: dict[str, Any], *, takes_others: bool) -> None:
    if name in RESERVED_OPTIONS:
        raise OptionError(f"timm/{spec.name} does not take {name}, because {RESERVED_OPTIONS[name]}; leave it out")
    if name not in known and not takes_others:
        others = [other for other in known if other not in RESERVED_OPTIONS]
        raise OptionError(
            f"timm/{spec.name} has no option {name!r}{did_you_mean(name, others) or '; it has ' + ', '.join(others)}"
        )
    if name in known and not _is_of_type(value, kind := known[name].annotation):
        raise OptionError(f"timm/{spec.name}: {name} must be {describe_type(kind)}; got {format_value(value)}")


@cache
def _read_constructor(spec: TimmSpec) -> tuple[dict[str, inspect.Parameter], bool]:
    """Return the options of a model's constructor with their types, and whether it passes other options on.

    A type that is neither annotated nor that of a plain default is Any.
    """
    model = spec.create_on_meta()
    if type(model).__module__ == "timm.models._features":  # timm's wrapper of a model, which may be cut to pieces
        with torch.device("meta"):
            model = getattr(model, "model", None) or timm.create_model(spec.name)
    known: dict[str, inspect.Parameter] = {}
    for owner in type(model).__mro__:
        if owner.__module__.startswith("torch."):
            return known, True
        if init := vars(owner).get("__init__"):
            known = _read_parameters(init) | known
            if not any(p.kind is p.VAR_KEYWORD for p in inspect.signature(init).parameters.values()):
                break
    return known, False


def _read_parameters(init: Any) -> dict[str, inspect.Parameter]:
    hints: dict[str, Any] = {}
    with suppress(Exception):  # an annotation may name what is imported for type checkers only
        hints = get_type_hints(init)
    return {
        p.name: p.replace(annotation=hints.get(p.name, _type_of_default(p.default)))
        for p in inspect.signature(init).parameters.values()
        if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD) and p.name != "self"
    }


def _type_of_default(default: Any) -> Any:
    return type(default) if type(default) in (bool, int, float, str) else Any


def _is_of_type(value: Any, kind: Any) -> bool:
    """Return whether a value is of a type; True for a type that a command line cannot express."""
    if get_origin(kind) in (Union, types.UnionType):
        return any(_is_of_type(value, choice) for choice in get_args(kind))
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if kind in (int, float):
        return isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    if kind in (bool, str, type(None)):
        return isinstance(value, kind)
    return True


@cache
def check_option_effect(spec: TimmSpec, name: str, value: Any) -> None:
    """Check that an option of a specification changes the feature maps, or the distribution of the random weights.

    Raises:
        OptionError: timm cannot build the model with the option, or the option changes nothing.
    """
    without = spec._replace(options=tuple(option for option in spec.options if option[0] != name))
    try:
        limits_without = probe(without, None, None)
    except BuildError:
        return  # other options need it
    try:
        limits = probe(spec, None, None)
    except BuildError as error:
        raise OptionError(str(error)) from error
    if limits != limits_without or _describe_structure(spec, limits) != _describe_structure(without, limits):
        return
    with preserve_rng(), _disable_current_modes(), torch.device("cpu"):
        is_useless = _have_same_maps(spec, without, limits)
    if is_useless:
        raise OptionError(
            f"timm/{spec.name}: {name}={format_value(value)} changes nothing in its feature maps; leave it out"
        )


def _describe_structure(spec: TimmSpec, limits: SizeLimits) -> list[Any]:
    """Describe each module that takes part in a training pass: its type, plain attributes and parameter shapes."""
    network = _set_output_format(spec.create_on_meta(**limits.timm_options), limits).train()
    # The root module keeps the arguments of its constructor, whether they are used or not.
    roots = (network, getattr(network, "model", None), getattr(network, "body", None))
    structure: list[Any] = []
    for module in network.modules():
        if module not in roots:
            module.register_forward_hook(lambda module, *_: structure.append(_describe_module(module)))
    with torch.no_grad(), torch.device("meta"), CostMeter([], []):
        network(torch.empty(_input_shape(spec, limits)))
    return structure


def _describe_module(module: nn.Module) -> Any:
    plain = {k: v for k, v in vars(module).items() if k[0] != "_" and isinstance(v, int | float | str | tuple | None)}
    return type(module), plain, [(name, tuple(p.shape)) for name, p in module.named_parameters(recurse=False)]


def _have_same_maps(spec: TimmSpec, without: TimmSpec, limits: SizeLimits) -> bool:
    """Return whether two models give equal maps, with equal weights where both draw them from one distribution."""
    one, other = _create_seeded(spec, limits), _create_seeded(without, limits)
    shapes, other_shapes = ({name: x.shape for name, x in network.state_dict().items()} for network in (one, other))
    same_buffers = all(map(torch.equal, one.buffers(), other.buffers()))
    if shapes == other_shapes and same_buffers and all(map(_have_same_spread, one.parameters(), other.parameters())):
        other.load_state_dict(one.state_dict())
    shape = _input_shape(spec, limits)
    return all(map(torch.equal, _compute_maps(one, shape), _compute_maps(other, shape)))


def _have_same_spread(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors of random numbers are of one distribution by their spread; constants must be equal."""
    if torch.equal(one, other):
        return True
    spread, other_spread = ((x.std(correction=0), x.abs().mean()) for x in (one, other))
    # If one of the two lacks a layer, all later layers draw other values: six standard errors of a spread are allowed.
    tolerance = 6 / one.numel() ** 0.5
    return bool(spread[0] and other_spread[0]) and all(
        abs(a - b) <= tolerance * b for a, b in zip(spread, other_spread, strict=True)
    )


def _create_seeded(spec: TimmSpec, limits: SizeLimits) -> nn.Module:
    # torch.manual_seed would seed GPUs too, whose random state is not preserved here.
    torch.default_generator.manual_seed(0)
    return _set_output_format(spec.create(**limits.timm_options), limits).train()


@torch.no_grad()
def _compute_maps(network: nn.Module, shape: tuple[int, ...]) -> list[Tensor]:
    """Compute the maps of a training pass, with all random numbers drawn from one seed."""
    torch.default_generator.manual_seed(0)
    maps: list[Tensor] = network(torch.rand(shape))
    return maps


def _set_output_format(network: nn.Module, limits: SizeLimits) -> nn.Module:
    if limits.has_nlc_output:
        set_nlc_output(network)
    return network


def _input_shape(spec: TimmSpec, limits: SizeLimits) -> tuple[int, ...]:
    # Two images, because batch norm refuses a single value per channel in training.
    return 2, spec.in_channels, *(limits.size or limits.padded_size((1, 1)))
