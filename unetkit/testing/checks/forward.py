"""Checks of construction and outputs: that a part runs, its channels and sizes, and every choice of an option."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any, Literal, Union, get_args, get_origin

import torch
from torch import Tensor

from unetkit.errors import UnetkitError
from unetkit.options import format_value
from unetkit.testing.catalog import Nonconformity, SkipCheck, one_line
from unetkit.testing.checks.autograd import reached
from unetkit.testing.contracts import PartInput, Wiring
from unetkit.testing.subject import PartRun, PartSubject


def made(subject: PartSubject) -> None:
    """Check that the factory creates a torch module with the attributes of its kind, for at least one wiring."""
    _ = subject.wirings


def forward(subject: PartSubject) -> None:
    """Check that every input passes in eval and training mode."""
    for run in subject.runs:
        if run.error not in ("", "torch"):
            raise Nonconformity(subject.where(run.wiring, run.given, run.training) + run.error)


def channels(subject: PartSubject) -> None:
    """Check the channels and the batch size of every output."""
    _first_fault(subject, "channels")


def size(subject: PartSubject) -> None:
    """Check the height and width of every output."""
    _first_fault(subject, "size")


def _first_fault(subject: PartSubject, what: Literal["channels", "size"]) -> None:
    subject.samples()
    for run in subject.runs:
        if fault := getattr(run, what):
            raise Nonconformity(subject.where(run.wiring, run.given, run.training) + fault)


#: How much larger the weights are, a draw each: norms undo large inputs, and of one draw all logits may be negative.
_LOUDER = (1, 1, 1, 2, 4, 8, 16)


def logits(subject: PartSubject) -> None:
    """Check with large inputs and weights that outputs exceed the range of probabilities, their logarithms and tanh."""
    for wiring, given in subject.samples(every=True):
        if bounds := _kept_to(subject, wiring, given):
            raise Nonconformity(
                f"{subject.where(wiring)}every output {bounds}: a {subject.kind.title} gives logits; leave sigmoid and "
                "softmax to the loss"
            )


def _kept_to(subject: PartSubject, wiring: Wiring, given: PartInput) -> str:
    """Describe the range that all outputs keep to; "" if an output exceeds it."""
    kept = ""
    for seed, times in enumerate(_LOUDER):
        out = _loud(subject, wiring, given, seed, times)
        if out.isfinite().all():
            bounds = _bounds(float(out.min()), float(out.max()))
            if not bounds:
                return ""
            kept = kept or bounds
    return kept


def _loud(subject: PartSubject, wiring: Wiring, given: PartInput, seed: int, times: int) -> Tensor:
    part = subject.make(wiring, seed=seed).eval()
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.mul_(times)
    return torch.cat([out.flatten() for out in subject.run(part, given.map(lambda x: 100 * x))])


def _bounds(low: float, high: float) -> str:
    if low >= 0 and high <= 1:
        return "lies in [0, 1]"
    if low >= -1 and high <= 1:
        return "lies in [-1, 1]"
    return "is at most 0, as log-softmax gives" if high <= 0 else ""


def options(subject: PartSubject) -> None:
    """Check that each choice of a bool or a Literal makes a conforming part, or raises an UnetkitError."""
    choices = list(_choices(subject))
    if not choices:
        raise SkipCheck("it has no option of few choices")
    for name, value, kind in choices:
        said = f"with {name}={format_value(value, kind)}, "
        try:
            _keeps(subject, {name: value})
        except Nonconformity as fault:
            raise Nonconformity(said + str(fault).removeprefix("with ")) from fault


def _choices(subject: PartSubject) -> Iterator[tuple[str, Any, Any]]:
    for option in subject.signature.options:
        if option.name == "pretrained":
            continue  # the builder's own word: it would go and fetch weights
        default = subject.options.get(option.name, option.default)
        for value in _finite(option.type):
            if value != default or type(value) is not type(default):
                yield option.name, value, option.type


def _finite(kind: Any) -> tuple[Any, ...]:
    """Return the values of a type that has few."""
    if get_origin(kind) is Literal:
        return get_args(kind)
    if get_origin(kind) in (Union, types.UnionType):
        return tuple(value for member in get_args(kind) for value in _finite(member))
    if kind is bool:
        return (False, True)
    return (None,) if kind in (None, type(None)) else ()


def _keeps(subject: PartSubject, option: dict[str, Any]) -> None:
    for wiring in subject.wirings[: 1 if subject.contract.takes_images else 2]:
        try:
            part = subject.make(wiring, **option)
        except UnetkitError:
            continue
        except Exception as error:
            raise Nonconformity(f"{subject.where(wiring)}making it fails with {one_line(error)}") from error
        subject.declared(part, wiring)
        runs = list(subject.runs_of(wiring, subject.contract.few(subject.contract.inputs(part, wiring)), **option))
        for run in runs:
            if fault := _fault(run):
                raise Nonconformity(subject.where(wiring, run.given, run.training) + fault)
        reached(subject, wiring, [run.given for run in runs if run.training and not run.error], option)


def _fault(run: PartRun) -> str:
    return ("" if run.error == "torch" else run.error) or run.channels or run.size
