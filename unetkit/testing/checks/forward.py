"""Checks of construction and outputs: that a part runs, its channels and sizes, and every choice of an option."""

from __future__ import annotations

import types
from collections.abc import Iterator
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin

import torch
from torch import Tensor

from unetkit.errors import UnetkitError
from unetkit.options import format_value
from unetkit.testing.catalog import Nonconformity, SkipCheck, one_line
from unetkit.testing.checks.autograd import check_gradient_flow
from unetkit.testing.contracts import PartInput, PositionalArgs
from unetkit.testing.subject import PartRun, PartSubject


def check_construction(subject: PartSubject) -> None:
    """Check that the factory creates a torch module with the attributes of its kind, for some positional arguments."""
    _ = subject.positional_cases


def check_forward(subject: PartSubject) -> None:
    """Check that every input passes in eval and training mode."""
    for run in subject.runs:
        if run.error not in ("", "torch"):
            message = subject.describe_case(run.args, run.part_input, run.training) + run.error
            raise Nonconformity(message) from run.exception


def check_channels(subject: PartSubject) -> None:
    """Check the channels and the batch size of every output."""
    _raise_first_error(subject, "channel_error")


def check_size(subject: PartSubject) -> None:
    """Check the height and width of every output."""
    _raise_first_error(subject, "size_error")


def _raise_first_error(subject: PartSubject, attribute: Literal["channel_error", "size_error"]) -> None:
    subject.samples()
    for run in subject.runs:
        if fault := getattr(run, attribute):
            raise Nonconformity(subject.describe_case(run.args, run.part_input, run.training) + fault)


#: Factors of the weights, each with its own seed: norms undo large inputs, and one draw may give only negative logits.
_WEIGHT_SCALES = (1, 1, 1, 2, 4, 8, 16)


def check_logits(subject: PartSubject) -> None:
    """Check with large inputs and weights that outputs exceed the range of probabilities, their logarithms and tanh."""
    for args, part_input in subject.samples(all_cases=True):
        if value_range := _find_output_range(subject, args, part_input):
            raise Nonconformity(
                f"{subject.describe_case(args)}every output {value_range}: a {subject.kind.title} must return logits; "
                "leave sigmoid and softmax to the loss"
            )


def _find_output_range(subject: PartSubject, args: PositionalArgs, part_input: PartInput) -> str:
    """Describe the range that all outputs keep to; "" if an output exceeds it."""
    first_range = ""
    for seed, scale in enumerate(_WEIGHT_SCALES):
        out = _run_scaled(subject, args, part_input, seed, scale)
        if out.isfinite().all():
            value_range = _describe_range(float(out.min()), float(out.max()))
            if not value_range:
                return ""
            first_range = first_range or value_range
    return first_range


def _run_scaled(subject: PartSubject, args: PositionalArgs, part_input: PartInput, seed: int, scale: int) -> Tensor:
    part = subject.make(args, seed=seed).eval()
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.mul_(scale)
    return subject.run(part, part_input.map(lambda x: 100 * x))[0]  # the prediction


def _describe_range(low: float, high: float) -> str:
    if low >= 0 and high <= 1:
        return "lies in [0, 1]"
    if low >= -1 and high <= 1:
        return "lies in [-1, 1]"
    return "is at most 0, as after log-softmax" if high <= 0 else ""


def check_options(subject: PartSubject) -> None:
    """Check that each choice of a bool, a Literal or an Enum makes a conforming part, or raises an UnetkitError."""
    choices = list(_iter_choices(subject))
    if not choices:
        raise SkipCheck("it has no option with a fixed set of values")
    for name, value, kind in choices:
        prefix = f"with {name}={format_value(value, kind)}, "
        try:
            _check_choice(subject, {name: value})
        except Nonconformity as fault:
            raise Nonconformity(prefix + str(fault).removeprefix("with ")) from fault


def _iter_choices(subject: PartSubject) -> Iterator[tuple[str, Any, Any]]:
    for option in subject.signature.options:
        if option.name == "pretrained":
            continue  # it belongs to the builder, and would download weights
        default = subject.options.get(option.name, option.default)
        for value in _list_values(option.type):
            if value != default or type(value) is not type(default):
                yield option.name, value, option.type


def _list_values(kind: Any) -> tuple[Any, ...]:
    """Return the values of a type that has few."""
    if get_origin(kind) is Literal:
        return get_args(kind)
    if get_origin(kind) in (Union, types.UnionType):
        return tuple(value for member in get_args(kind) for value in _list_values(member))
    if kind is bool:
        return (False, True)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return tuple(kind)
    return (None,) if kind in (None, type(None)) else ()


def _check_choice(subject: PartSubject, option: dict[str, Any]) -> None:
    for args in subject.positional_cases[: 1 if subject.contract.takes_images else 2]:
        try:
            part = subject.make(args, **option)
        except UnetkitError:
            continue
        except Exception as error:
            raise Nonconformity(f"{subject.describe_case(args)}construction fails with {one_line(error)}") from error
        subject.check_declarations(part, args)
        runs = list(
            subject.run_inputs(args, subject.contract.select_inputs(subject.contract.make_inputs(part, args)), **option)
        )
        for run in runs:
            if fault := _find_error(run):
                message = subject.describe_case(args, run.part_input, run.training) + fault
                raise Nonconformity(message) from run.exception
        check_gradient_flow(subject, args, [run.part_input for run in runs if run.training and not run.error], option)


def _find_error(run: PartRun) -> str:
    return ("" if run.error == "torch" else run.error) or run.channel_error or run.size_error
