"""Layers of torch as the calls that make them, and the small classes that torch lacks."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from unetkit.ejection.code import Call, Expression, quote
from unetkit.errors import BuildError

#: Activations of timm that are torch's by another name.
_SAME_AS_TORCH: dict[str, Call] = {
    "GELU": Call("nn.GELU", ()),
    "GELUTanh": Call("nn.GELU", (("approximate", '"tanh"'),)),
    "Sigmoid": Call("nn.Sigmoid", ()),
    "Tanh": Call("nn.Tanh", ()),
}
#: Arguments that do not change what a layer computes.
_IGNORED = {"device", "dtype", "args", "kwargs"}
#: Arguments with a default that are clear without their names.
_POSITIONAL = {"p", "normalized_shape", "scale_factor"}


def is_torch(module: nn.Module) -> bool:
    """Return whether a module is one of torch's own."""
    return type(module).__module__.startswith("torch.nn.modules.")


def torch_layer(module: nn.Module, **symbols: Expression) -> Call:
    """Return the call that makes a layer of torch.

    Args:
        module: a layer without layers in it.
        symbols: text for arguments, such as in_channels="in_channels"; the others are the layer's own numbers.

    Raises:
        BuildError: An argument of its constructor cannot be read from the layer.
    """
    kind: type[Any] = next(one for one in type(module).__mro__ if one.__module__.startswith("torch.nn.modules."))
    arguments: list[tuple[str, Expression]] = []
    for parameter in [*inspect.signature(kind).parameters.values()]:
        name = parameter.name
        if name in _IGNORED:
            continue
        if name in symbols:
            value: Expression = symbols[name]
        else:
            if not hasattr(module, name):
                raise BuildError(
                    f"the argument {name} of a {kind.__name__} is not known; it cannot be written as source"
                )
            given = _read(module, name)
            if given == _simplify(parameter.default) or (
                name == "stride" and given == _read(module, "kernel_size") and parameter.default is None
            ):
                continue
            value = quote(given)
        is_positional = parameter.default is parameter.empty or name in _POSITIONAL
        arguments.append(("" if is_positional else name, value))
    return Call(f"nn.{kind.__name__}", tuple(arguments))


def _read(module: nn.Module, name: str) -> Any:
    value = getattr(module, name)
    return value is not None if name == "bias" and not isinstance(value, bool) else _simplify(value)


def _simplify(value: Any) -> Any:
    """Return a number in place of a tuple of equal numbers."""
    if isinstance(value, tuple) and value and all(one == value[0] for one in value):
        return value[0]
    return value


def timm_activation(module: nn.Module) -> Call | None:
    """Return torch's call for an activation of timm's; None where torch has none."""
    if type(module).__module__ != "timm.layers.activations":
        return None
    if isinstance(module, nn.PReLU):
        return torch_layer_as(module, "PReLU")
    return _SAME_AS_TORCH.get(type(module).__name__)


def torch_layer_as(module: nn.PReLU, name: str) -> Call:
    """Return torch's PReLU for timm's."""
    count = (("num_parameters", str(module.num_parameters)),) if module.num_parameters != 1 else ()
    return Call(f"nn.{name}", (*count, ("init", quote(module.init))))


def ordered(children: Mapping[str, Expression]) -> Call:
    """Return the OrderedDict that names the layers of an nn.Sequential."""
    return Call("OrderedDict", tuple(children.items()))


def describe_layer(module: nn.Module) -> str:
    """Return the words for a layer in a docstring."""
    name = type(module).__name__
    if isinstance(module, nn.GroupNorm):
        return "instance norm" if module.num_groups == module.num_channels else "group norm"
    words = {
        "BatchNorm2d": "batch norm",
        "LayerNorm2d": "layer norm",
        "Dropout2d": "dropout of channels",
        "Conv2d": "convolution",
        "ReflectConv2d": "convolution",
        "LeakyReLU": "leaky ReLU",
    }
    return words.get(name, name)
