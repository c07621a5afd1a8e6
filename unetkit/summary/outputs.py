"""The outputs of a network in training: whether they keep the contract, and what each is trained on."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from unetkit.network import MASK, Network, declared_outputs, describe_source, prediction_name, prediction_of
from unetkit.protocols import Output
from unetkit.utils.formatting import format_plural, format_type
from unetkit.utils.spatial import size_of


@dataclass(frozen=True)
class OutputInfo:
    """A named output of a network beside its prediction.

    Attributes:
        name: its name.
        channels: its channels.
        height: its height in pixels.
        width: its width in pixels.
        target: the target that it is trained on.
        loss: the loss that trains it; "" for the one that fits the target.
        weight: the factor of its loss beside that of the prediction.
    """

    name: str
    channels: int
    height: int
    width: int
    target: str
    loss: str
    weight: float

    def __str__(self) -> str:
        shape = f"{self.channels}x{self.height}x{self.width}"
        loss = self.loss or "the loss that fits it"
        return f"output {self.name}: {shape}, trained on {self.target} with {loss}, weight {self.weight:g}"


def count_further(returned: Any) -> int:
    """Return the number of further predictions in a tuple that a pass in training mode returned."""
    return len(returned) - 1 if isinstance(returned, tuple | list) else 0


def format_further(number: int) -> str:
    """Say what a number of further predictions is trained on."""
    return f"{format_plural(number, 'further prediction')} of the same classes, trained on the mask"


def outputs_of_model(model: nn.Module, network: Network) -> dict[str, Output]:
    """Return what the outputs of a model are trained on, as its wrapper or the part that makes them declares it."""
    return network.outputs if model is network else declared_outputs(model) or network.outputs


def describe_output_source(model: nn.Module, network: Network) -> str:
    """Name what makes the outputs of a model, for messages: the option of a part, or a plugin's wrapper."""
    if model is network:
        return network.output_source
    return f"the wrapper {type(model).__name__}{describe_source(model)} of {network.output_source}"


def list_outputs(returned: Any, declared: Mapping[str, Output]) -> tuple[OutputInfo, ...]:
    """Describe the named outputs beside the prediction that a pass in training mode returned."""
    if not isinstance(returned, Mapping):
        return ()
    return tuple(
        OutputInfo(name, x.shape[1], *size_of(x), output.target, output.loss, output.weight)
        for name, output in declared.items()
        for x in [returned[name]]
    )


def find_names_error(names: Collection[str], declared: Mapping[str, Output]) -> str:
    """Say in words how the names of outputs contradict what is declared; "" if they do not.

    Args:
        names: the names of all outputs that were returned, in order.
        declared: what each output but the prediction is trained on.
    """
    if not names:
        return "returns an empty dict; expected a prediction and other outputs by name"
    prediction = prediction_name(dict.fromkeys(names))
    if prediction in declared:
        first = MASK if prediction == MASK else "the first one if none is called mask"
        return (
            f"declares a target for its output {prediction!r}, which is the prediction ({first}) and is trained on the "
            "mask; return the prediction first, and declare only the others"
        )
    if undeclared := [name for name in names if name != prediction and name not in declared]:
        example = f'outputs = {{"{undeclared[0]}": unetkit.Output("boundary", "bce")}}'
        return (
            f"returns the output {undeclared[0]!r} beside its prediction {prediction!r}, but declares no target and "
            f"loss for it; add {example}, with a target that `unetkit list targets` shows"
        )
    if missing := [name for name in declared if name not in names]:
        return f"declares the output {missing[0]!r}, but returns only {', '.join(names)}"
    return ""


def find_output_error(returned: Any, declared: Mapping[str, Output], classes: int) -> str:
    """Say in words what is wrong with what a pass in training mode returned; "" if nothing is.

    Args:
        returned: the outputs of a network, a head or a whole model.
        declared: what each named output but the prediction is trained on.
        classes: the channels of the prediction.
    """
    if isinstance(returned, Mapping):
        if error := find_names_error([*map(str, returned)], declared):
            return error
        named = {f"output {name!r}": x for name, x in returned.items()}
    elif declared:
        return (
            f"declares the output {next(iter(declared))!r}, but returns {format_type(returned)} in training; "
            "return a dict of outputs by name"
        )
    else:
        several = returned if isinstance(returned, tuple | list) and returned else [returned]
        named = {f"output {index}": x for index, x in enumerate(several)}
    for name, x in named.items():
        if not isinstance(x, Tensor) or x.ndim != 4:
            shape = f"shape {'x'.join(map(str, x.shape))}" if isinstance(x, Tensor) else f"type {type(x).__name__}"
            return f"returns {name} of {shape}; expected a tensor (B, C, H, W)"
    if not isinstance(returned, Mapping) and len(named) > 1:
        return _find_further_error([*named.values()], classes)
    if (channels := prediction_of(returned).shape[1]) != classes:
        return f"returns a prediction with channels={channels} for classes={classes}"
    return ""


def _find_further_error(predictions: list[Tensor], classes: int) -> str:
    """Say in words why outputs in a tuple are not predictions of the same classes; "" if they are."""
    channels = [x.shape[1] for x in predictions]
    if any(number != classes for number in channels):
        return (
            f"returns a tuple of {len(channels)} outputs with {', '.join(map(str, channels))} channels in training, "
            f"but each output in a tuple is a further prediction with a channel for each class ({classes}), trained on "
            "the mask; "
            "return outputs with targets of their own in a dict by name"
        )
    return ""
