"""The base class of every network that unetkit builds: its plan, its outputs, and padding for inputs of any size.

In eval mode, a network returns its prediction alone: logits (B, classes, H, W). In training mode, it returns what its
head or whole model returns: one tensor, a tuple of further predictions of the same classes (deep supervision), or a
dict of named outputs, each with the prediction first. A `WholeModel` is a model of another library that is built,
traced, saved and padded like a U-Net. Shapes: H and W are height and width; sizes are (H, W).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import inf, lcm
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unetkit.errors import BuildError, InputSizeError, UnetkitError
from unetkit.options import read_signature
from unetkit.plan import Plan, ResolvedPlan
from unetkit.protocols import Output
from unetkit.utils.formatting import Size
from unetkit.utils.integers import round_up
from unetkit.utils.spatial import (
    crop_end,
    has_free_sizes,
    is_same_size,
    is_tracing,
    pad_end,
    size_of,
    strided_size,
    sym_max,
)

if TYPE_CHECKING:
    from unetkit.registry import Plugin


#: What a network returns in training mode. In eval mode, it returns one tensor.
Outputs = Tensor | tuple[Tensor, ...] | dict[str, Tensor]

#: The name of the prediction among named outputs; if none has it, the first output is the prediction.
MASK = "mask"


def prediction_name(names: Mapping[str, Any]) -> str:
    """Return the name of the prediction among named outputs."""
    return MASK if MASK in names else next(iter(names), MASK)


def prediction_of(outputs: Any) -> Tensor:
    """Return the prediction, logits (B, classes, H, W), of what a network returned in training or eval mode."""
    if isinstance(outputs, Mapping):
        outputs = outputs[prediction_name(outputs)]
    prediction: Tensor = outputs[0] if isinstance(outputs, tuple | list) else outputs
    return prediction


def declared_outputs(part: nn.Module) -> dict[str, Output]:
    """Return what a head, a whole model or a wrapper declares in `outputs`, which is optional.

    Raises:
        BuildError: It does not declare an `Output` for each name, with texts and a weight above 0.
    """
    declared = getattr(part, "outputs", None) or {}
    if isinstance(declared, nn.Module) or callable(declared):
        return {}  # layers or a method that have the name by chance
    if not isinstance(declared, Mapping) or not all(
        isinstance(name, str) and isinstance(output, Output) for name, output in declared.items()
    ):
        raise BuildError(
            f"{type(part).__name__}{describe_source(part)} declares outputs={declared!r:.80}; "
            'expected a dict such as {"boundary": unetkit.Output("boundary", "bce")}'
        )
    for name, output in declared.items():
        is_number = isinstance(output.weight, int | float) and 0 < output.weight < inf
        if not (isinstance(output.target, str) and isinstance(output.loss, str) and is_number):
            raise BuildError(
                f"{type(part).__name__}{describe_source(part)} declares {output!r} for {name!r}; "
                'expected a target and a loss as texts, such as "boundary:width=2" and "bce", and a weight above 0'
            )
    return dict(declared)


def describe_source(part: nn.Module) -> str:
    """Return the file and the line of a part's class for a message, as in " (edges.py:12)"; "" if it is torch's."""
    try:
        known = read_signature(type(part))
    except UnetkitError:
        return ""
    return f" ({known.file}:{known.line})" if known.file and not type(part).__module__.startswith("torch.") else ""


class Network(nn.Module):
    """An encoder, and whatever makes logits of its maps.

    Attributes:
        encoder: the encoder, for the trace.
        plan: the shortest plan that rebuilds the network.
        resolved_plan: the plan with every choice, with a part for each level.
        built_shapes: the shape of every tensor of the state_dict as it was built.
        built_modules: the type and the settings of every module as it was built; `save` refuses a network in which
            either differs, since the plan would build another one.
        plugins: the plugins of its parts, and those that wrapped it.
        loaded: names of the modules and tensors whose values were loaded rather than drawn, such as
            ("encoder.model",); "" stands for the whole network. See `pretrained_parameters`.
        min_size, multiple: inputs whose height or width is smaller than the first, or not a multiple of the second, are
            padded with zeros at the bottom and the right, and the output is cropped. With valid convolutions they are
            errors instead.
        size: the only size that its encoder accepts, if there is only one; smaller inputs are padded to it, unless
            convolutions are valid.
        output_stride: the stride of the output: 1 if it has the input size.
        valid: whether unpadded convolutions make the output smaller than the input.
    """

    output_stride = 1
    loaded: tuple[str, ...] = ()
    plan: Plan
    resolved_plan: ResolvedPlan
    built_shapes: dict[str, tuple[int, ...]]
    built_modules: dict[str, str]
    plugins: tuple[Plugin, ...]

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Return a part. Its type depends on the plan, so that no annotation can give it."""

    def __init__(self, *, min_size: int = 1, multiple: int = 1, size: Size | None = None, valid: bool = False) -> None:
        super().__init__()
        self.min_size = min_size
        self.multiple = multiple
        self.size = size
        self.valid = valid

    @property
    def output_part(self) -> nn.Module:
        """The part that makes the outputs: the head, or the whole model."""
        raise NotImplementedError

    @property
    def output_source(self) -> str:
        """The option that chose that part, and where its class is, for messages: "--head edges (edges.py:12)"."""
        plan = self.resolved_plan
        flag = f"--model {plan.model}" if plan.model else f"--head {plan.head}"
        return f"{flag}{describe_source(self.output_part)}"

    @property
    def outputs(self) -> dict[str, Output]:
        """The target and the loss of each named output but the prediction."""
        return declared_outputs(self.output_part)

    def forward(self, x: Tensor) -> Outputs:
        """(B, in_channels, H, W) -> logits (B, classes, H, W), smaller than the input with valid convolutions.

        In training mode, return all outputs of the head or of the whole model.
        """
        outputs = self._compute_outputs(x)
        return outputs if self.training else prediction_of(outputs)

    def forward_outputs(self, x: Tensor) -> dict[str, Tensor]:
        """Return all named outputs of images (B, in_channels, H, W), in eval mode too, with the prediction first.

        A head or model without names has one output, "mask". All have the height and width of the prediction, and are
        logits, or numbers where the target is one for regression.
        """
        outputs = self._compute_outputs(x)
        return outputs if isinstance(outputs, dict) else {MASK: prediction_of(outputs)}

    def _compute_outputs(self, x: Tensor) -> Outputs:
        """Return the outputs as the head or the model returns them, in training and in eval mode."""
        raise NotImplementedError

    def _fit_outputs(self, outputs: Any, prediction: Tensor, size: Size) -> Outputs:
        """Bring all outputs to the size of the image, with the prediction first.

        Args:
            outputs: what the head or the model returned.
            prediction: their prediction, brought to the size that it has for the padded input; the others follow it.
            size: height and width of the image.
        """
        full = size_of(prediction)

        def fit_other(x: Tensor) -> Tensor:
            x = x if is_same_size(size_of(x), full) else F.interpolate(x, full, mode="bilinear")
            return self.crop_output(x, size)

        prediction = self.crop_output(prediction, size)
        if isinstance(outputs, Mapping):
            first = prediction_name(outputs)
            return {first: prediction} | {name: fit_other(x) for name, x in outputs.items() if name != first}
        if isinstance(outputs, tuple | list):
            return prediction, *map(fit_other, outputs[1:])
        return prediction

    def _check_outputs(self, outputs: Any) -> Any:
        """Return what the head or the model returned. Raise BuildError if it is no tensor, nor several of them."""
        several = [*outputs.values()] if isinstance(outputs, Mapping) else [outputs]
        if isinstance(outputs, tuple | list) and self.training:
            several = [*outputs]
        if not several or not all(isinstance(x, Tensor) for x in several):
            what = f"gives a {type(outputs).__name__}; expected is one tensor of logits, or a dict of named outputs"
            raise BuildError(f"{self.output_source} {what}")
        return outputs

    @property
    def period(self) -> int:
        """The period of input sizes: sides that differ by it give maps that differ by whole pixels.

        It is a multiple of the multiple that is required, and of the strides, or of the usual ones.
        """
        return lcm(self.multiple, 32)

    @property
    def backbone_name(self) -> str:
        """The name of the module in which pretrained weights are looked for: the encoder."""
        return "encoder"

    @property
    def pretrained_name(self) -> str:
        """The name of the module that the encoder's library has weights for.

        An encoder declares it in `pretrained_part` if new layers, such as a feature pyramid, stand beside it.
        """
        return _join("encoder", getattr(self.encoder, "pretrained_part", ""))

    def pretrained_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the encoder whose values were loaded, from its library or from a file.

        New layers of the encoder, such as the feature pyramid of a plain vision transformer, are not among them.
        """
        start = self.backbone_name
        return [
            parameter
            for name, parameter in self.named_parameters()
            if is_within(name, start) and any(is_within(name, one) for one in self.loaded)
        ]

    def pretrained_modules(self) -> list[nn.Module]:
        """Return the largest modules of the encoder in which all values were loaded.

        Put these into eval mode to keep the statistics of their norms while `pretrained_parameters` are frozen.
        """
        start, modules = self.backbone_name, dict(self.named_modules())
        if any(is_within(start, one) for one in self.loaded):
            return [modules[start]]
        return [modules[one] for one in self.loaded if is_within(one, start) and one in modules]

    def pad_input(self, x: Tensor) -> Tensor:
        """Pad images (B, C, H, W) with zeros at the bottom and the right to a size that the encoder accepts."""
        size = size_of(x)
        return x if self._accepts(size) else pad_end(x, self.padded_size(size))

    def _check_unpadded(self, size: Size) -> None:
        """Raise InputSizeError for a size that the encoder does not accept without padding."""
        if self.size is not None and size != self.size:
            takes = f"{self.size[0]}x{self.size[1]} only"
        elif size[0] % self.multiple or size[1] % self.multiple:
            takes = f"multiples of {self.multiple} only"
        else:
            return
        raise InputSizeError(f"{self.resolved_plan.encoder} takes {takes}, and valid convolutions pad no input")

    def crop_output(self, x: Tensor, size: Size) -> Tensor:
        """Crop the output for a padded input to what belongs to the image, whose size before the padding is given."""
        if self._accepts(size):
            return x
        return crop_end(x, strided_size(size, self.output_stride))

    def _accepts(self, size: Size) -> bool:
        if self.valid:
            if not torch.compiler.is_compiling() and not is_tracing():
                self._check_unpadded(size)
            return True
        if self.multiple > 1 or self.size is not None:
            return False
        # torch.jit.trace would keep the result for the example's size, and torch.export would refuse or misread others.
        is_captured = is_tracing() or has_free_sizes()
        return self.min_size <= 1 or (not is_captured and min(size) >= self.min_size)

    def padded_size(self, size: Size) -> Size:
        """Return the size to which an input is padded with zeros at the bottom and the right.

        Its own size if that is accepted, or if convolutions are valid.

        Raises:
            InputSizeError: The input is larger than the only size that the encoder accepts.
        """
        if self.valid:
            return size
        if self.size is not None:
            if torch.compiler.is_compiling():
                torch._check(size[0] <= self.size[0])
                torch._check(size[1] <= self.size[1])
            elif size[0] > self.size[0] or size[1] > self.size[1]:
                given, fixed = (f"{height}x{width}" for height, width in (size, self.size))
                who = self.resolved_plan.encoder or self.resolved_plan.model
                raise InputSizeError(
                    f"an input of {given} is larger than {fixed}, the one size that {who} is built for; "
                    f"build it with --size {given}, or crop the input"
                )
            return self.size
        height, width = (round_up(sym_max(self.min_size, side), self.multiple) for side in size)
        return height, width

    def __prepare_scriptable__(self) -> Network:
        """Raise UnetkitError when `torch.jit.script` calls this first; it would otherwise fail deep in a part."""
        raise UnetkitError(
            "torch.jit.script, which torch itself has given up, does not take a network of unetkit; "
            "use torch.export for a program to ship, or torch.compile for speed"
        )


def _join(*names: str) -> str:
    return ".".join(filter(None, names))


def is_within(name: str, module: str) -> bool:
    """Return whether a name is that of a module, or of something in it; "" names the whole network."""
    return not module or name == module or name.startswith(f"{module}.")


def list_loaded(network: nn.Module, missing: Iterable[str]) -> tuple[str, ...]:
    """Return the value of `Network.loaded` for a network of which all tensors were loaded but those named.

    Args:
        network: the network.
        missing: names in its state_dict. Counters of batches, which older files lack, count as loaded.
    """
    names = [name for name in network.state_dict() if not name.endswith("num_batches_tracked")]
    partial = {head for name in {*missing} & {*names} for head in _list_heads(name)}
    largest = (next((head for head in _list_heads(name) if head not in partial), None) for name in names)
    return tuple(dict.fromkeys(head for head in largest if head is not None))


def _list_heads(name: str) -> list[str]:
    """Return "", "a", "a.b" and "a.b.c" for "a.b.c"."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(len(parts) + 1)]


def state_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of a state_dict."""
    return {name: tuple(value.shape) for name, value in model.state_dict().items() if isinstance(value, Tensor)}


class WholeModel(Network):
    """A whole model in the attribute `model`; see `unetkit.protocols.Model` for what it may declare.

    Attributes:
        model: the model as its factory returned it.
    """

    def __init__(self, model: nn.Module) -> None:
        """Take over what the model declares."""
        super().__init__(
            min_size=getattr(model, "min_size", 1),
            multiple=getattr(model, "multiple", 1),
            size=getattr(model, "size", None),
        )
        self.model = model

    @property
    def backbone_name(self) -> str:
        return self.pretrained_name

    @property
    def pretrained_name(self) -> str:
        return _join("model", getattr(self.model, "pretrained_part", ""))

    @property
    def encoder(self) -> nn.Module:
        """The model itself, since it declares what an encoder would."""
        return self.model

    @property
    def output_part(self) -> nn.Module:
        return self.model

    def _compute_outputs(self, x: Tensor) -> Outputs:
        outputs = self._check_outputs(self.model(self.pad_input(x)))
        return self._fit_outputs(outputs, prediction_of(outputs), size_of(x))
