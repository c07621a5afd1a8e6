"""Checks of a second part that is to be the same: from a seed, from a state_dict, from a deep copy."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from unetkit.testing.catalog import Nonconformity, one_line
from unetkit.testing.contracts import PartInput, Wiring, drawn
from unetkit.testing.subject import PartSubject, apart, weights


def seed(subject: PartSubject) -> None:
    """The seed of torch fixes the weights and a pass in training, and is left to whoever set it."""
    for wiring, given in subject.samples(training=True):
        where = subject.where(wiring)
        one, two = subject.make(wiring), subject.make(wiring)
        left = torch.rand(1)
        theirs = weights(two)
        for name, value in weights(one).items():
            if name in theirs and apart((value,), (theirs[name],)):
                raise Nonconformity(
                    f"{where}{name} differs between two makes under one torch.manual_seed; draw it by torch"
                )
        subject.make(wiring, seed=1)
        if torch.equal(left, torch.rand(1)):
            raise Nonconformity(
                f"{where}making it sets torch's seed, so that all that is made after it is no longer free"
            )
        outputs = [subject.run(part.train(), given) for part in (one, two)]
        if difference := apart(*outputs):
            raise Nonconformity(
                f"{where}in training two passes under one torch.manual_seed differ by up to {difference:.2g}"
            )
        _again(subject, one, given, where)
        left = torch.rand(1)
        subject.run(one, given, seed=2)
        if torch.equal(left, torch.rand(1)):
            raise Nonconformity(
                f"{where}a pass sets torch's seed, so that all that is drawn after it is no longer free"
            )


def _again(subject: PartSubject, part: Any, given: PartInput, where: str) -> None:
    """In training, too, an output depends on the input and the buffers alone."""
    before = {name: value.clone() for name, value in part.named_buffers()}
    first, second = subject.run(part, given), subject.run(part, given)
    same = all(name in before and not apart((b,), (before[name],)) for name, b in part.named_buffers())
    if same and (difference := apart(first, second)):
        raise Nonconformity(
            f"{where}in training two passes of one input in a row differ by up to {difference:.2g}, under one seed: "
            "something is kept from call to call"
        )


def state_dict(subject: PartSubject) -> None:
    """Loaded strictly into a part made from another seed, it gives outputs that are equal to the bit."""
    for wiring, given in subject.samples():
        where = subject.where(wiring)
        one, two = _trained(subject, wiring), subject.make(wiring, seed=2).eval()
        _load(one.state_dict(), two, where)
        difference = apart(subject.run(one, given), subject.run(two, given))
        if difference:
            raise Nonconformity(
                f"{where}loaded into another part, the state_dict gives outputs that differ by up to {difference:.2g}: "
                f"something is not in it{_unregistered(one)}"
            )


def _trained(subject: PartSubject, wiring: Wiring) -> Any:
    """A part in eval whose buffers have moved by a pass in training."""
    part = subject.make(wiring).train()
    for given in subject.passing(wiring, training=True)[:1]:
        subject.run(part, given)
    return part.eval()


def _load(state: Mapping[str, Any], part: nn.Module, where: str) -> None:
    try:
        part.load_state_dict(dict(state), strict=True)
    except RuntimeError as error:
        why = " ".join(str(error).split())[:300]
        raise Nonconformity(f"{where}its state_dict does not load into another part: {why}") from error


def _unregistered(part: nn.Module) -> str:
    """The attribute that holds layers or tensors out of torch's sight, in words; "" where none is found."""
    for prefix, module in part.named_modules():
        for name, value in vars(module).items():
            if name.startswith("_") and name in vars(nn.Module()):
                continue
            if any(isinstance(found, nn.Module | Tensor) for found in _within(value)):
                place = f"{prefix}.{name}" if prefix else name
                kind = type(value).__name__
                return f" ({place}, a {kind}, is out of torch's sight: take ModuleList, ModuleDict or register_buffer)"
    return ""


def _within(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping | list | tuple):
        for member in value.values() if isinstance(value, Mapping) else value:
            yield from _within(member)
    else:
        yield value


def deep_copy(subject: PartSubject) -> None:
    """A copy gives equal outputs; its weights are its own, and they are the ones that it uses."""
    for wiring, given in subject.samples():
        where = subject.where(wiring)
        part = _trained(subject, wiring)
        before = subject.run(part, given)
        twin = _copied(part, where)
        if difference := apart(subject.run(twin, given), before):
            raise Nonconformity(f"{where}a deep copy gives outputs that differ by up to {difference:.2g}")
        _shake(twin)
        if difference := apart(subject.run(part, given), before):
            raise Nonconformity(
                f"{where}changing the weights of a deep copy changes the original's output by up to {difference:.2g}: "
                "they share memory"
            )
        _uses_its_own(subject, wiring, given, twin)


def _copied(part: Any, where: str) -> Any:
    try:
        return copy.deepcopy(part)
    except Exception as error:
        raise Nonconformity(f"{where}copy.deepcopy fails with {one_line(error)}") from error


def _shake(part: nn.Module) -> None:
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.add_(drawn(*parameter.shape))


def _uses_its_own(subject: PartSubject, wiring: Wiring, given: PartInput, twin: Any) -> None:
    other = subject.make(wiring, seed=3).eval()
    other.load_state_dict(twin.state_dict())
    if apart(subject.run(twin, given), subject.run(other, given)):
        raise Nonconformity(
            f"{subject.where(wiring)}a deep copy goes on using the original's weights: a lambda or a bound method that "
            "the part keeps is not copied with it; write it as a method"
        )
