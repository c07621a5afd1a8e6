"""The targets and losses of the named outputs of a network beside its prediction.

Shapes: B batch, K channels of an output, L labels, H and W height and width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from unetkit.data.sample_checks import find_mask_error
from unetkit.data.types import Target
from unetkit.errors import OptionError, PluginError, UnetkitError
from unetkit.plan import PartSpec
from unetkit.registry import BUILTIN, Parts
from unetkit.resolve import canonical_spec, create
from unetkit.summary.outputs import OutputInfo
from unetkit.train.losses import Loss, make_loss
from unetkit.utils.isolation import wrap_errors
from unetkit.utils.spatial import size_of


class OutputTarget:
    """A target as a training run uses it: errors name it, and the maps that it computes are checked.

    Attributes:
        text: the shortest text that describes the target.
        maps: what its maps mean.
    """

    def __init__(self, text: str, masks: Target, parts: Parts) -> None:
        """Create a target from text, for masks of this meaning.

        Raises:
            UnknownNameError: The target does not exist.
            OptionError: An option is wrong, or the target does not fit the masks.
            PluginError: The target does not declare what its maps mean.
        """
        spec = PartSpec.parse(text)
        self._compute: Any = create("target", spec, parts, masks)
        self.text = str(canonical_spec("target", spec, parts))
        owner = parts.targets.get(spec.name).owner
        self._name = f"target {self.text}" + (f" (of {owner})" if owner != BUILTIN else "")
        maps = getattr(self._compute, "maps", None)
        if not isinstance(maps, Target):
            raise PluginError(
                f"{self._name} declares maps={maps!r:.80}; expected a unetkit.data.types.Target that describes them"
            )
        self.maps: Target = maps

    def __call__(self, mask: Tensor) -> Tensor:
        """Compute the map of a mask: (H, W) or (L, H, W) int64 -> (H, W) or (L, H, W) int64, or (K, H, W) float32."""
        with wrap_errors(f"{self._name} failed"):
            found = self._compute(mask)
        if error := find_mask_error(found, self.maps, size_of(mask)):
            raise PluginError(f"{self._name} returns a map that {error}")
        tensor: Tensor = found
        return tensor


@dataclass(frozen=True)
class OutputLoss:
    """The target, the loss and the weight with which an output beside the prediction is trained.

    Attributes:
        target: computes its map from the mask of an image.
        loss: the loss of each image.
        weight: the factor of the loss beside that of the prediction.
    """

    target: OutputTarget
    loss: Loss
    weight: float


def make_output_losses(
    outputs: Iterable[OutputInfo], masks: Target, parts: Parts, source: str
) -> dict[str, OutputLoss]:
    """Create what trains each named output beside the prediction.

    Args:
        outputs: the outputs, as `unetkit.trace` finds them.
        masks: what the masks of the data mean.
        parts: the registered parts.
        source: names what declares the outputs, for messages.

    Raises:
        UnetkitError: A target or a loss does not exist, or does not fit the output or the masks.
    """
    found = {}
    for output in outputs:
        with _name_output(f"{source}: output {output.name!r}"):
            found[output.name] = _make_output_loss(output, masks, parts)
    return found


def find_target_mistake(outputs: Iterable[OutputInfo], classes: int, parts: Parts) -> str:
    """Say which output has a target that does not exist, or that needs other channels for masks of every kind.

    The masks are unknown, so nothing is said of a target that is not created for those that are tried: it may need
    classes of certain names.

    Args:
        outputs: the outputs, as `unetkit.trace` finds them.
        classes: the number of output channels of the network.
        parts: the registered parts.

    Returns:
        One line; "" where there is no mistake.
    """
    names = tuple(f"class {index}" for index in range(classes))
    kinds = (Target("binary", ("background", "object")), Target("multiclass", names), Target("multilabel", names))
    for output in outputs:
        try:
            parts.targets.get(PartSpec.parse(output.target).name)
        except UnetkitError as error:
            return f"output {output.name!r}: {error}"
        targets = []
        for masks in kinds:
            with suppress(UnetkitError):
                targets += [OutputTarget(output.target, masks, parts)] if classes in masks.output_choices else []
        mistakes = [_find_channel_mistake(output, target) for target in targets]
        if mistakes and all(mistakes):
            return f"output {output.name!r}: {mistakes[0]}"
    return ""


@contextmanager
def _name_output(where: str) -> Iterator[None]:
    """Begin the messages of errors with an output; its loss and target are no options of the command line."""
    try:
        yield
    except UnetkitError as error:
        raise type(error)(f"{where}: {str(error).removeprefix('--')}") from error


def _make_output_loss(output: OutputInfo, masks: Target, parts: Parts) -> OutputLoss:
    target = OutputTarget(output.target, masks, parts)
    if mistake := _find_channel_mistake(output, target):
        raise OptionError(mistake)
    loss = make_loss(output.loss, target.maps, output.channels, parts)
    if loss.border:
        raise OptionError(f"loss {loss.text}: border weights belong to the objects of masks; take another loss")
    return OutputLoss(target, loss, output.weight)


def _find_channel_mistake(output: OutputInfo, target: OutputTarget) -> str:
    choices = target.maps.output_choices
    if output.channels in choices:
        return ""
    wanted, names = " or ".join(map(str, choices)), ", ".join(target.maps.names[:6])
    return (
        f"it has {output.channels} channels, but target {target.text} needs {wanted} "
        f"({target.maps.kind}: {names}); change the head's layer, or take another target"
    )


def find_output_owners(losses: dict[str, OutputLoss], parts: Parts) -> set[str]:
    """Find the plugins, or "unetkit", that supply the targets and the losses of outputs."""
    targets = {parts.targets.get(PartSpec.parse(one.target.text).name).owner for one in losses.values()}
    terms = [spec.name for one in losses.values() for spec in PartSpec.parse(one.loss.text).links]
    return targets | {parts.losses.get(name).owner for name in terms}
