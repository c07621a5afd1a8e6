"""Options of timm's own: their names and types, by the constructor of the model, and whether they do anything."""

from __future__ import annotations

import inspect
import types
from contextlib import suppress
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import timm
import torch

from unetkit.errors import BadOption, nearest
from unetkit.parts.encoders.timm_create import Request
from unetkit.parts.encoders.timm_effect import refuse_useless
from unetkit.values import describe_type, format_value

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


def checked(request: Request, options: dict[str, Any]) -> Request:
    """The request with more of timm's options.

    Raises:
        BadOption: the model's constructor has no such option, or not of this type; other words say it; timm cannot
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


def _refuse_name(request: Request, name: str, value: Any, known: dict[str, Any], *, more: bool) -> None:
    if name in SAID:
        raise BadOption(f"timm/{request.name} takes no {name}: {SAID[name]}; leave it out")
    if name not in known and not more:
        others = [other for other in known if other not in SAID]
        raise BadOption(
            f"timm/{request.name} has no option {name!r}{nearest(name, others) or '; it has ' + ', '.join(others)}"
        )
    if name in known and not _fits(value, kind := known[name].annotation):
        raise BadOption(f"timm/{request.name}: {name} takes {describe_type(kind)}; got {format_value(value)}")


@cache
def _constructor(request: Request) -> tuple[dict[str, inspect.Parameter], bool]:
    """The options of a model's constructor, with their types, and whether it hands others on, to a configuration.

    A type that is neither annotated nor told by the default is Any.
    """
    made = request.ghost()
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
