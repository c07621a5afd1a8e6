"""Options of timm's own constructors: their names and types.

timm drops an option that is None without looking at its name, and a misspelled name of any other value ends in a
TypeError from deep within. So names are checked before anything is built with them.
"""

from __future__ import annotations

import inspect
import types
from contextlib import suppress
from dataclasses import is_dataclass
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import timm
import torch
from timm.models import build_model_with_cfg

from unetkit.errors import BuildError, OptionError, did_you_mean
from unetkit.options import describe_type, format_value
from unetkit.parts.encoders.timm_features import TimmSpec

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


#: Parameters with which timm builds and loads any model; they are not options of one.
_BUILD_PARAMETERS = {
    *inspect.signature(timm.create_model).parameters,
    *inspect.signature(build_model_with_cfg).parameters,
    "feature_cls",
    "pruned",
}


def check_timm_options(spec: TimmSpec, options: dict[str, Any]) -> TimmSpec:
    """Add options of timm's constructor to a specification, after checking their names and types.

    Raises:
        OptionError: the model's constructor has no such option, or takes another type, or unetkit sets it itself.
    """
    if not options:
        return spec
    known = _read_constructor(spec)
    extended = spec._replace(options=tuple(sorted(options.items())))
    for name, value in options.items():
        if name in RESERVED_OPTIONS:
            raise OptionError(f"timm/{spec.name} does not take {name}, because {RESERVED_OPTIONS[name]}; leave it out")
        if name not in known and (name in _BUILD_PARAMETERS or value is None or not _is_taken(extended, name)):
            others = [other for other in known if other not in RESERVED_OPTIONS]
            hint = did_you_mean(name, others) or f"; it has {', '.join(others)}"
            raise OptionError(f"timm/{spec.name} has no option {name!r}{hint}")
        if value is None:
            raise OptionError(f"timm/{spec.name}: {name}=none has no effect, because timm drops it; leave it out")
        if not _is_of_type(value, kind := known.get(name, Any)):
            raise OptionError(f"timm/{spec.name}: {name} must be {describe_type(kind)}; got {format_value(value)}")
    return extended


def _is_taken(spec: TimmSpec, name: str) -> bool:
    """Return whether timm takes an option that no signature shows, as the `bn_eps` of an EfficientNet."""
    try:
        spec.create_on_meta()
    except BuildError as error:
        return not (isinstance(error.__cause__, TypeError) and repr(name) in str(error.__cause__))
    return True


@cache
def _read_constructor(spec: TimmSpec) -> dict[str, Any]:
    """Return the options of a model's constructor with their types, Any where one is neither annotated nor plain.

    Where a constructor passes `**kwargs` on, the options are also those of its base class, and the fields of its `cfg`.
    """
    model = spec.create_on_meta()
    if type(model).__module__ == "timm.models._features":  # timm's wrapper of a model, which may be cut to pieces
        with torch.device("meta"):
            model = getattr(model, "model", None) or timm.create_model(spec.name)
    known: dict[str, Any] = {}
    for owner in type(model).__mro__:
        if owner.__module__.startswith("torch."):
            break
        if init := vars(owner).get("__init__"):
            known = _read_parameters(init) | known
            if not any(p.kind is p.VAR_KEYWORD for p in inspect.signature(init).parameters.values()):
                break
    for kind in _members(known.pop("cfg", None)):
        if is_dataclass(kind):
            known |= get_type_hints(kind)
    return known


def _read_parameters(init: Any) -> dict[str, Any]:
    hints: dict[str, Any] = {}
    with suppress(Exception):  # an annotation may name what is imported for type checkers only
        hints = get_type_hints(init)
    return {
        p.name: hints.get(p.name, _type_of_default(p.default))
        for p in inspect.signature(init).parameters.values()
        if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD) and p.name != "self"
    }


def _members(kind: Any) -> tuple[Any, ...]:
    """Return the types of a union, or the one type that it is."""
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _type_of_default(default: Any) -> Any:
    return type(default) if type(default) in (bool, int, float, str) else Any


def _is_of_type(value: Any, kind: Any) -> bool:
    """Return whether a value is of a type; True for a type that a command line cannot express."""
    if len(choices := _members(kind)) > 1:
        return any(_is_of_type(value, choice) for choice in choices)
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if kind in (int, float):
        return isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    if kind in (bool, str, type(None)):
        return isinstance(value, kind)
    return True
