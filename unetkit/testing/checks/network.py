"""Checks of a part within a small network that is trained, saved and loaded; and checks of a recipe's network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from unetkit.builder import build
from unetkit.errors import UnetkitError
from unetkit.network import Network
from unetkit.plan import PartSpec, Plan
from unetkit.registry import Parts
from unetkit.serialization import load, save
from unetkit.summary.forward_hooks import collect_tensors, find_network, resolve_input_size
from unetkit.summary.outputs import describe_output_source, find_output_error, outputs_of_model
from unetkit.summary.trace import trace
from unetkit.testing.catalog import Nonconformity, one_line
from unetkit.testing.contracts import format_shape, list_encoder_shapes, random_tensor
from unetkit.testing.subject import PartSubject, relative_difference
from unetkit.utils.formatting import Size, format_type
from unetkit.utils.rounding import computes_in, difference_beyond_rounding

#: The name under which a Python object is registered, so that a saved file can refer to it.
_PART_NAME = "part-under-test"
_CHANNELS, _CLASSES = 3, 4
#: The rest of the network, tried in order: a part need not accept every pair of channels.
_SURROUNDINGS = (
    {"encoder": "plain:widths=[4,8,16]"},
    {"encoder": "plain:widths=[4,8,16]", "fuse": "add"},
    {"encoder": "plain:widths=[8,8,8]", "fuse": "add"},
)


def check_network(subject: PartSubject) -> None:
    """Check that a network with the part accepts an odd size, trains, and is equal after saving and loading."""
    parts, spec = _register(subject)
    model, prefix = _build_first(subject, parts, spec)
    x = random_tensor(2, _CHANNELS, *_choose_input_size(subject, find_network(model)))
    try:
        check_training(model, x, prefix, only=subject.kind.field)
        check_prediction(model, x, prefix)
        check_round_trip(model, x, parts, prefix)
    except UnetkitError as error:
        raise Nonconformity(f"{prefix}{error}") from error


def _register(subject: PartSubject) -> tuple[Parts, PartSpec]:
    """Return the parts and the spec for the subject; a Python object is registered under a name."""
    if subject.spec.factory is None:
        return subject.parts, subject.spec
    parts = subject.parts.stage("unetkit.testing")
    parts[subject.kind.field].add(_PART_NAME, subject.spec.factory)
    return parts, PartSpec(_PART_NAME, subject.spec.options)


def _build_first(subject: PartSubject, parts: Parts, spec: PartSpec) -> tuple[Network, str]:
    rejections = []
    for plan_fields in _iter_plan_fields(subject):
        line = str(Plan.of(**{**plan_fields, subject.kind.field: subject.spec}))
        prefix = f"in the network `{line}` "
        try:
            plan_fields = {**plan_fields, subject.kind.field: spec}
            return build(**plan_fields, classes=_CLASSES, in_channels=_CHANNELS, seed=0, parts=parts), prefix
        except UnetkitError as error:
            rejections.append(f"{prefix}it is rejected: {error}".replace(_PART_NAME, str(subject.spec)))
        except Exception as error:
            raise Nonconformity(f"{prefix}building fails with {one_line(error)}") from error
    raise Nonconformity(rejections[0])


def _iter_plan_fields(subject: PartSubject) -> Iterator[dict[str, Any]]:
    if subject.kind.title == "model":
        yield {}
        return
    if subject.kind.title != "encoder":
        yield from ({k: v for k, v in plan_fields.items() if k != subject.kind.field} for plan_fields in _SURROUNDINGS)
        return
    encoder = subject.make(subject.positional_cases[0])
    yield {"widths": (8,) * (len(encoder.strides) - 1), "decode_to": encoder.strides[0]}


def _choose_input_size(subject: PartSubject, model: Network) -> Size:
    if subject.kind.title == "encoder":
        return list_encoder_shapes(model.encoder)[0][1:]
    return model.size or ((61, 69) if model.valid else (21, 27))


def check_training(model: nn.Module, x: Tensor, prefix: str, *, only: str = "") -> None:
    """Check that a batch passes in training and that gradients reach every parameter (`only`: of these parts)."""
    try:
        returned = model.train()(x)
        outputs = collect_tensors(returned)
        torch.autograd.backward([(out * random_tensor(*out.shape)).sum() for out in outputs])
    except Exception as error:
        size = format_shape(x.shape[-2:])
        raise Nonconformity(f"{prefix}a batch of 2 of {size} in training fails with {one_line(error)}") from error
    network = find_network(model)
    if fault := find_output_error(returned, outputs_of_model(model, network), network.resolved_plan.classes):
        raise Nonconformity(f"{prefix}{describe_output_source(model, network)} {fault}")
    for name, parameter in model.named_parameters():
        is_checked = not only or only in name.split(".")
        if is_checked and parameter.requires_grad and parameter.grad is None:
            raise Nonconformity(f"{prefix}no gradient reaches {name}")


def check_prediction(model: nn.Module, x: Tensor, prefix: str) -> None:
    """Check that in eval mode the output is one tensor of logits, of the input size unless convolutions are valid."""
    with torch.no_grad():
        out = model.eval()(x)
    if not isinstance(out, Tensor):
        raise Nonconformity(f"{prefix}in eval it returns {format_type(out)}; expected one tensor of logits")
    expected = (len(x), find_network(model).resolved_plan.classes, *x.shape[-2:])
    wrong = out.shape[:2] != expected[:2] if find_network(model).valid else out.shape != expected
    if wrong:
        raise Nonconformity(
            f"{prefix}an input of {format_shape(x.shape)} gives {format_shape(out.shape)}; "
            f"expected {format_shape(expected)}"
        )


def check_round_trip(model: Any, x: Tensor, parts: Parts, prefix: str) -> None:
    """Check that a saved and loaded model gives equal outputs. Raises Nonconformity."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save(model, path)
        loaded = load(path, parts=parts)

    def measure(dtype: torch.dtype) -> float:
        with torch.no_grad(), computes_in(dtype):
            one, other = (each.eval().to(dtype)(x.to(dtype)) for each in (model, loaded))
        return relative_difference((one,), (other,))

    if difference := difference_beyond_rounding(model, measure):
        raise Nonconformity(f"{prefix}after saving and loading, its outputs differ by up to {difference:.2g}")


def check_plan(subject: PartSubject) -> None:
    """Check that a recipe returns a Plan that names no other recipe, and whose line can be parsed."""
    recipe_plan = _create_plan(subject)
    if not isinstance(recipe_plan, Plan):
        raise Nonconformity(f"returns {format_type(recipe_plan)}; expected a Plan")
    if recipe_plan.recipe is not None:
        raise Nonconformity(f"its plan names the recipe {recipe_plan.recipe}; write out its fields instead")
    try:
        parsed = Plan.parse(str(recipe_plan))
    except UnetkitError as error:
        raise Nonconformity(f"its line `{recipe_plan}` cannot be parsed: {error}") from error
    if parsed != recipe_plan:
        raise Nonconformity(f"its line `{recipe_plan}` is parsed as another plan, `{parsed}`; create it with Plan.of")


def _create_plan(subject: PartSubject) -> Any:
    try:
        return subject.factory(**subject.options)
    except Exception as error:
        raise Nonconformity(f"creating its plan fails with {one_line(error)}") from error


def check_input_size(subject: PartSubject) -> None:
    """Check that a recipe's network can be built on the meta device and traced at its own size."""
    try:
        model = build(recipe=subject.spec, parts=subject.parts, device="meta")
    except UnetkitError as error:
        raise Nonconformity(f"it cannot be built: {error}") from error
    size = resolve_input_size(find_network(model), None)
    try:
        last = trace(model, size).rows[-1]
    except UnetkitError as error:
        raise Nonconformity(f"at its own size: {error}") from error
    if not find_network(model).valid and (last.height, last.width) != size:
        raise Nonconformity(
            f"an input of its own size {format_shape(size)} gives {format_shape((last.height, last.width))}"
        )
