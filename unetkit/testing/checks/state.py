"""Checks that two parts are equal when they should be: from the same seed, from a state_dict, and as a deep copy."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from unetkit.testing.catalog import Nonconformity, one_line
from unetkit.testing.contracts import PartInput, PositionalArgs, random_tensor
from unetkit.testing.subject import PartSubject, relative_difference, state_tensors


def check_registration(subject: PartSubject) -> None:
    """Check that a new part holds every tensor and layer as a parameter, a buffer or a module."""
    found = _find_unregistered(subject.make(subject.positional_cases[0]))
    if found is None:
        return
    name, value = found
    kind, advice = "layer", "use ModuleList or ModuleDict"
    if isinstance(value, Tensor):
        kind, advice = "tensor", "use register_buffer (persistent=False if it need not be saved) or nn.Parameter"
    raise Nonconformity(
        f"{name} holds a {kind} that is not registered, so it is not in the state_dict and does not move with the part "
        f"to another device or dtype; {advice}"
    )


def check_seed(subject: PartSubject) -> None:
    """Check that torch's seed determines the weights and training passes, and that the part does not set the seed."""
    for args, part_input in subject.samples(training=True):
        where = subject.describe_case(args)
        first_part, second_part = subject.make(args), subject.make(args)
        random_number = torch.rand(1)
        second_state = state_tensors(second_part)
        for name, value in state_tensors(first_part).items():
            if name in second_state and relative_difference((value,), (second_state[name],)):
                raise Nonconformity(
                    f"{where}{name} differs between two parts created with the same torch.manual_seed; "
                    "draw it with torch"
                )
        subject.make(args, seed=1)
        if torch.equal(random_number, torch.rand(1)):
            raise Nonconformity(f"{where}its constructor sets torch's seed, which changes all later random numbers")
        if difference := subject.output_difference(first_part.train(), second_part.train(), part_input):
            raise Nonconformity(
                f"{where}in training two passes with the same torch.manual_seed differ by up to {difference:.2g}"
            )
        _check_training_determinism(subject, first_part, part_input, where)
        random_number = torch.rand(1)
        subject.run(first_part, part_input, seed=2)
        if torch.equal(random_number, torch.rand(1)):
            raise Nonconformity(f"{where}a pass sets torch's seed, which changes all later random numbers")


def _check_training_determinism(subject: PartSubject, part: Any, part_input: PartInput, where: str) -> None:
    """Check that in training mode, too, outputs depend only on the input and the buffers."""
    before = {name: value.clone() for name, value in part.named_buffers()}
    first, second = subject.run(part, part_input), subject.run(part, part_input)
    buffers_unchanged = all(
        name in before and not relative_difference((b,), (before[name],)) for name, b in part.named_buffers()
    )
    if buffers_unchanged and (difference := relative_difference(first, second)):
        raise Nonconformity(
            f"{where}in training two successive passes of one input differ by up to {difference:.2g} "
            "with the same seed: it keeps state between calls"
        )


def check_state_dict(subject: PartSubject) -> None:
    """Check that loading the state_dict strictly into another part gives equal outputs."""
    for args, part_input in subject.samples():
        where = subject.describe_case(args)
        first_part, second_part = _make_trained(subject, args), subject.make(args, seed=2).eval()
        _load_strictly(first_part.state_dict(), second_part, where)
        if difference := subject.output_difference(first_part, second_part, part_input):
            raise Nonconformity(
                f"{where}loaded into another part, the state_dict gives outputs that differ by up to {difference:.2g}: "
                "something is not in it"
            )


def _make_trained(subject: PartSubject, args: PositionalArgs) -> Any:
    """Create a part in eval mode, after one pass in training mode has changed its buffers."""
    part = subject.make(args).train()
    for part_input in subject.passing_inputs(args, training=True)[:1]:
        subject.run(part, part_input)
    return part.eval()


def _load_strictly(state: Mapping[str, Any], part: nn.Module, where: str) -> None:
    try:
        part.load_state_dict(dict(state), strict=True)
    except RuntimeError as error:
        why = " ".join(str(error).split())[:300]
        raise Nonconformity(f"{where}its state_dict does not load into another part: {why}") from error


def _find_unregistered(part: nn.Module) -> tuple[str, nn.Module | Tensor] | None:
    """Return the first attribute that holds a layer or tensor that is not registered, and the layer or tensor."""
    known = {id(value) for value in (*part.modules(), *part.parameters(), *part.buffers())}
    for prefix, module in part.named_modules():
        for name, value in vars(module).items():
            if name in vars(nn.Module()):
                continue
            for leaf in _iter_leaves(value):
                if isinstance(leaf, nn.Module | Tensor) and id(leaf) not in known:
                    return (f"{prefix}.{name}" if prefix else name), leaf
    return None


def _iter_leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping | list | tuple):
        for member in value.values() if isinstance(value, Mapping) else value:
            yield from _iter_leaves(member)
    else:
        yield value


def check_deepcopy(subject: PartSubject) -> None:
    """Check that a deep copy gives equal outputs, has its own weights, and uses these."""
    for args, part_input in subject.samples():
        where = subject.describe_case(args)
        part = _make_trained(subject, args)
        before = subject.run(part, part_input)
        copied = _deep_copy(part, where)
        if difference := subject.output_difference(part, copied, part_input):
            raise Nonconformity(f"{where}a deep copy gives outputs that differ by up to {difference:.2g}")
        _perturb(copied)
        if difference := relative_difference(subject.run(part, part_input), before):
            raise Nonconformity(
                f"{where}changing the weights of a deep copy changes the original's output by up to {difference:.2g}: "
                "they share memory"
            )
        _check_own_weights(subject, args, part_input, copied)


def _deep_copy(part: Any, where: str) -> Any:
    try:
        return copy.deepcopy(part)
    except Exception as error:
        raise Nonconformity(f"{where}copy.deepcopy fails with {one_line(error)}") from error


def _perturb(part: nn.Module) -> None:
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.add_(random_tensor(*parameter.shape))


def _check_own_weights(subject: PartSubject, args: PositionalArgs, part_input: PartInput, copied: Any) -> None:
    other = subject.make(args, seed=3).eval()
    other.load_state_dict(copied.state_dict())
    if subject.output_difference(copied, other, part_input):
        raise Nonconformity(
            f"{subject.describe_case(args)}a deep copy still uses the original's weights: "
            "it keeps a lambda or a bound method, which "
            "is not copied; define a method instead"
        )
