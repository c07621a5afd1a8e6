"""Descriptions of the modules of a model: the type of each, and the settings that decide its outputs.

A state_dict says only which tensors a model has. An activation, the padding mode of a convolution, the epsilon of a
norm or the interpolation of an upsampler can change without any change in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import nn

#: Libraries whose modules keep their settings, and nothing that changes in a pass, in attributes. Modules of others,
#: such as plugins, say theirs in `extra_repr`, since their attributes may be counters or caches.
_LIBRARIES = ("torch", "timm", "segmentation_models_pytorch", "unetkit")
#: Attributes that do not change what a module computes.
_WITHOUT_EFFECT = {"training", "inplace", "grad_checkpointing", "fused_attn", "weights_from", "loaded"}
#: Norms of torch and timm that differ from others in distributed training alone.
_SYNCHRONIZED = {"SyncBatchNorm": "BatchNorm2d", "SyncBatchNormAct": "BatchNormAct2d"}
#: The setting under which hooks are listed.
_HOOKS = "forward hooks"
_MODULE_ATTRIBUTES = frozenset(vars(nn.Module()))


def describe_modules(model: nn.Module) -> dict[str, str]:
    """Describe every module of a model, by its name: its type, then a line for each setting.

    Settings are the attributes that are numbers, text, functions or sequences of them. Those whose names begin with an
    underscore, and those that do not change outputs, such as `inplace`, are left out.
    """
    return {name: "\n".join(_describe_module(module)) for name, module in model.named_modules()}


def _describe_module(module: nn.Module) -> Iterator[str]:
    kind = type(module)
    yield _SYNCHRONIZED.get(kind.__name__, kind.__name__)
    if hooks := _list_hooks(module):
        yield f"{_HOOKS}={', '.join(hooks)}"
    if isinstance(module, nn.Sequential | nn.ModuleList):
        yield f"length={len(module)}"
    if kind.__module__.partition(".")[0] not in _LIBRARIES:
        yield f"extra_repr()={module.extra_repr()!r}"
        return
    for name, value in vars(module).items():
        if name[0] != "_" and name != "forward" and name not in _MODULE_ATTRIBUTES and name not in _WITHOUT_EFFECT:
            text = _describe_value(value)
            if text is not None:
                yield f"{name}={text}"


def _list_hooks(module: nn.Module) -> list[str]:
    """List the functions that change what a module computes: its hooks, and a `forward` of its own."""
    hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
    own = [vars(module)["forward"]] if "forward" in vars(module) else []
    return [getattr(hook, "__qualname__", type(hook).__name__) for hook in (*hooks, *own)]


def _describe_value(value: Any) -> str | None:
    """Return a setting as text; None for what is not a setting, such as a tensor or an object."""
    if value is None or isinstance(value, bool | int | float | complex | str | torch.dtype):
        return repr(value.value if isinstance(value, Enum) else value)
    if isinstance(value, type | FunctionType | BuiltinFunctionType):
        return value.__qualname__
    if isinstance(value, list | tuple):
        members = [text for member in value if (text := _describe_value(member)) is not None]
        return f"({', '.join(members)})" if len(members) == len(value) else None
    return None


def find_difference(built: dict[str, str], found: dict[str, str]) -> str:
    """Return the first difference of two descriptions, such as "head.act is GELU, and the plan builds ReLU".

    Args:
        built: what `describe_modules` returned when the model was built.
        found: what it returns now. Attributes and modules that were added since have no effect, and are ignored.

    Returns:
        The difference; "" if there is none.
    """
    for name, before in built.items():
        where, now = name or "the model", found.get(name)
        kind, *settings = before.split("\n")
        if now is None:
            return f"{where} is missing, and the plan builds {kind}"
        new_kind, *new_settings = now.split("\n")
        if new_kind != kind:
            return f"{where} is {new_kind}, and the plan builds {kind}"
        changed = dict(setting.split("=", 1) for setting in new_settings)
        known = dict(setting.split("=", 1) for setting in settings)
        if changed.get(_HOOKS, known.get(_HOOKS)) != known.get(_HOOKS):  # lazy modules remove theirs
            return f"{where} has the forward hook {changed[_HOOKS]}, which the plan does not build"
        for key, value in known.items():
            if changed.get(key, value) != value:
                return f"{where} has {key}={changed[key]}, and the plan builds {value}"
    return ""
