"""Checks of the side effects of a pass: gradients, inputs, state, and independence of samples."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from unetkit.testing.catalog import Nonconformity, one_line
from unetkit.testing.contracts import Outputs, PartInput, PositionalArgs, random_tensor
from unetkit.testing.subject import PartSubject, relative_difference, state_tensors
from unetkit.utils.rounding import computes_in, difference_beyond_rounding

#: An output that changes by more than this fraction depends on the input that was changed.
DEPENDENCE_THRESHOLD = 1e-4


def check_gradients(subject: PartSubject) -> None:
    """Check that in training every parameter receives a finite gradient, and that gradients reach the inputs."""
    for args, _ in subject.samples(training=True):
        check_gradient_flow(
            subject, args, subject.contract.select_inputs(subject.passing_inputs(args, training=True)), {}
        )


def check_gradient_flow(
    subject: PartSubject, args: PositionalArgs, inputs: list[PartInput], options: dict[str, Any]
) -> None:
    """Check the gradients for one tuple of positional arguments.

    Raises:
        Nonconformity: A parameter or an input receives no gradient; the message names the parameters.
    """
    part = subject.make(args, **options).train()
    where = subject.describe_case(args)
    leaves: list[tuple[Tensor, ...]] = []
    for part_input in (*inputs[:1], *inputs):  # the first twice, to detect a graph that is kept
        copied = part_input.map(lambda x: x.clone().requires_grad_())
        leaves.append(copied.tensors)
        # Clones, because changes in place are reported by the check `inputs`.
        outputs = subject.contract.compute_outputs(part, copied.map(torch.clone))
        differentiable = [out for out in outputs if out.requires_grad]
        if not differentiable:
            raise Nonconformity(f"{where}its output has no gradient; something in it is detached or not differentiable")
        try:
            torch.autograd.backward([(out * random_tensor(*out.shape)).sum() for out in differentiable])
        except RuntimeError as error:
            raise Nonconformity(
                f"{subject.describe_case(args, part_input, True)}backward fails with {one_line(error)}"
            ) from error
    _check_parameter_gradients(part, where)
    if not subject.contract.takes_images:
        _check_input_gradients(subject, part.eval(), inputs, leaves, where)


def _check_input_gradients(
    subject: PartSubject, part: Any, inputs: list[PartInput], leaves: list[Any], where: str
) -> None:
    """Check that a gradient reaches every input that an output depends on."""
    names = ("its input",) if len(leaves[0]) == 1 else ("the map", "the skip")
    blocked = [i for i in range(len(names)) if not any(tensors[i].grad is not None for tensors in leaves)]
    if len(blocked) == len(names):
        raise Nonconformity(f"{where}no gradient reaches its inputs, so the layers before it do not train")
    for index in blocked:
        part_input = inputs[0]
        tensors = tuple(x + 1 if i == index else x for i, x in enumerate(part_input.tensors))
        changed = subject.run(part, PartInput(tensors, part_input.target_size))
        if relative_difference(changed, subject.run(part, part_input)) > DEPENDENCE_THRESHOLD:
            raise Nonconformity(f"{where}its output depends on {names[index]}, but no gradient reaches it")


def _check_parameter_gradients(part: nn.Module, where: str) -> None:
    trained = {name: p for name, p in part.named_parameters() if p.requires_grad}
    if without_gradient := [name for name, p in trained.items() if p.grad is None]:
        raise Nonconformity(
            f"{where}no gradient reaches {_format_names(without_gradient)}: "
            "it is unused, or cut off by detach or no_grad"
        )
    if not_finite := [name for name, p in trained.items() if p.grad is not None and not p.grad.isfinite().all()]:
        raise Nonconformity(f"{where}the gradient of {_format_names(not_finite)} is not finite")


def _format_names(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def check_inputs(subject: PartSubject) -> None:
    """Check that no input is changed in place, in eval and training mode."""
    for training in (False, True):
        for args, part_input in subject.samples(training=training):
            copied = part_input.clone()
            versions = [x._version for x in copied.tensors]
            with torch.set_grad_enabled(training):
                subject.contract.compute_outputs(subject.make(args).train(training), copied)
            changed = [
                x._version != version or not torch.equal(x, before)
                for x, version, before in zip(copied.tensors, versions, part_input.tensors, strict=True)
            ]
            if any(changed):
                which = "its input" if len(changed) == 1 else "the skip" if not changed[0] else "the map"
                raise Nonconformity(
                    f"{subject.describe_case(args, part_input, training)}changes {which} in place, "
                    "although other parts still use it"
                )


def check_state(subject: PartSubject) -> None:
    """Check that in eval mode outputs depend on the input only, and that the state_dict does not change."""
    for args, part_input in subject.samples():
        part = subject.make(args).eval()
        where = subject.describe_case(args)
        before = {name: value.clone() for name, value in state_tensors(part).items()}
        buffers = {name: value.clone() for name, value in part.named_buffers()}
        first = subject.run(part, part_input)
        _check_state_unchanged(part, before, buffers, where)
        _check_determinism(subject, part, args, part_input, first)
        _check_call_independence(subject, part, args, part_input, first)


def _check_state_unchanged(part: nn.Module, before: dict[str, Tensor], buffers: dict[str, Tensor], where: str) -> None:
    if added := [name for name in state_tensors(part) if name not in before]:
        raise Nonconformity(
            f"{where}a pass adds {_format_names(added)} to the state_dict; create every layer in __init__"
        )
    changed = [
        name
        for name, value in part.named_buffers()
        if name not in buffers or relative_difference((value,), (buffers[name],))
    ]
    if changed:
        raise Nonconformity(
            f"{where}a pass in eval changes the buffer {_format_names(changed)}; update it only in training"
        )
    if moved := [name for name, value in state_tensors(part).items() if relative_difference((value,), (before[name],))]:
        raise Nonconformity(f"{where}a pass in eval changes {_format_names(moved)}")


def _check_call_independence(
    subject: PartSubject, part: Any, args: PositionalArgs, part_input: PartInput, first: Outputs
) -> None:
    """Check that after one input, other inputs give the same outputs as with a new part."""
    where = subject.describe_case(args)
    for other in subject.contract.select_inputs(subject.passing_inputs(args, training=False)):
        try:
            after = subject.run(part, other)
        except Exception as error:
            why = error if isinstance(error, Nonconformity) else one_line(error)
            raise Nonconformity(
                f"{where}after a batch of {part_input}, a batch of {other} fails ({why}), "
                "but passes through a new part: "
                "it keeps state between calls"
            ) from error
        new = subject.make(args).eval()
        difference = relative_difference(after, subject.run(new, other)) if _has_equal_state(part, new) else 0.0
        if difference or (difference := relative_difference(subject.run(part, part_input), first)):
            raise Nonconformity(
                f"{where}in eval a batch of {other} and one of {part_input} give different outputs "
                f"(by up to {difference:.2g}) "
                "when run one after the other: it keeps state between calls"
            )


def _has_equal_state(part: nn.Module, other: nn.Module) -> bool:
    """Return whether two parts have the same weights, which the check "seed" requires."""
    copied, theirs = state_tensors(part), state_tensors(other)
    return copied.keys() == theirs.keys() and not any(
        relative_difference((copied[name],), (theirs[name],)) for name in copied
    )


def _check_determinism(
    subject: PartSubject, part: Any, args: PositionalArgs, part_input: PartInput, first: Outputs
) -> None:
    where = subject.describe_case(args)
    if difference := relative_difference(subject.run(part, part_input), first):
        raise Nonconformity(
            f"{where}in eval two successive passes of one input differ by up to {difference:.2g} with the same seed: "
            "it keeps state between calls, or draws random numbers without torch"
        )
    if difference := relative_difference(subject.run(part, part_input, seed=2), first):
        raise Nonconformity(
            f"{where}in eval two passes of one input differ by up to {difference:.2g}: "
            "it draws random numbers; check self.training first"
        )


def check_batch(subject: PartSubject) -> None:
    """Check that in eval mode each sample of a batch gives the same output as alone."""
    for args, part_input in subject.samples():
        part = subject.make(args).eval()
        for index in range(part_input.batch):

            def measure(
                dtype: torch.dtype, part: Any = part, part_input: PartInput = part_input, index: int = index
            ) -> float:
                part, samples = part.to(dtype), part_input.map(lambda x: x.to(dtype))
                with computes_in(dtype):
                    together = subject.run(part, samples)
                    alone = subject.run(part, samples.map(lambda x: x[index : index + 1]))
                return relative_difference(tuple(out[index : index + 1] for out in together), alone)

            if difference := difference_beyond_rounding(part, measure):
                raise Nonconformity(
                    f"{subject.describe_case(args, part_input, False)}the output of sample {index} differs (by up to "
                    f"{difference:.2g}) from its output alone: samples are mixed"
                )
