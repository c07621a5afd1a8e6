"""Checks of the side effects of a pass: gradients, inputs, state, and independence of samples."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from unetkit.testing.catalog import Nonconformity, one_line
from unetkit.testing.contracts import Outputs, PartInput, Wiring, drawn
from unetkit.testing.subject import PartSubject, apart, weights
from unetkit.utils.rounding import computes_in, difference_beyond_rounding

#: An output that changes by more than this share depends on the input that was changed.
DEPENDS = 1e-4


def gradients(subject: PartSubject) -> None:
    """Check that in training every parameter receives a finite gradient, and that gradients reach the inputs."""
    for wiring, _ in subject.samples(training=True):
        reached(subject, wiring, subject.contract.few(subject.passing(wiring, training=True)), {})


def reached(subject: PartSubject, wiring: Wiring, inputs: list[PartInput], options: dict[str, Any]) -> None:
    """Check the gradients for one wiring. Raises Nonconformity with the names of parameters without a gradient."""
    part = subject.make(wiring, **options).train()
    where = subject.where(wiring)
    leaves: list[tuple[Tensor, ...]] = []
    for given in (*inputs[:1], *inputs):  # one twice: it shows a graph that is kept
        mine = given.map(lambda x: x.clone().requires_grad_())
        leaves.append(mine.tensors)
        # A clone, so that a part that writes on its input is told so by the check of that.
        outputs = subject.contract.outputs(part, mine.map(torch.clone))
        graded = [out for out in outputs if out.requires_grad]
        if not graded:
            raise Nonconformity(
                f"{where}its output carries no gradient; something in it is detached, or not differentiable"
            )
        try:
            torch.autograd.backward([(out * drawn(*out.shape)).sum() for out in graded])
        except RuntimeError as error:
            raise Nonconformity(f"{subject.where(wiring, given, True)}backward fails with {one_line(error)}") from error
    _every(part, where)
    if not subject.contract.takes_images:
        _let_through(subject, part.eval(), inputs, leaves, where)


def _let_through(subject: PartSubject, part: Any, inputs: list[PartInput], leaves: list[Any], where: str) -> None:
    """Check that a gradient reaches every input that an output depends on."""
    names = ("its input",) if len(leaves[0]) == 1 else ("the map", "the skip")
    stopped = [i for i in range(len(names)) if not any(each[i].grad is not None for each in leaves)]
    if len(stopped) == len(names):
        raise Nonconformity(f"{where}no gradient reaches its inputs, so that nothing before it learns")
    for index in stopped:
        given = inputs[0]
        tensors = tuple(x + 1 if i == index else x for i, x in enumerate(given.tensors))
        if apart(subject.run(part, PartInput(tensors, given.asked)), subject.run(part, given)) > DEPENDS:
            raise Nonconformity(f"{where}its output depends on {names[index]}, but no gradient reaches it")


def _every(part: nn.Module, where: str) -> None:
    trained = {name: p for name, p in part.named_parameters() if p.requires_grad}
    if missed := [name for name, p in trained.items() if p.grad is None]:
        raise Nonconformity(f"{where}no gradient reaches {_list(missed)}: unused, or cut off by detach or no_grad")
    if wild := [name for name, p in trained.items() if p.grad is not None and not p.grad.isfinite().all()]:
        raise Nonconformity(f"{where}the gradient of {_list(wild)} is not finite")


def _list(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def inputs(subject: PartSubject) -> None:
    """Check that no input is changed in place, in eval and training mode."""
    for training in (False, True):
        for wiring, given in subject.samples(training=training):
            mine = given.fresh()
            versions = [x._version for x in mine.tensors]
            with torch.set_grad_enabled(training):
                subject.contract.outputs(subject.make(wiring).train(training), mine)
            changed = [
                x._version != version or not torch.equal(x, before)
                for x, version, before in zip(mine.tensors, versions, given.tensors, strict=True)
            ]
            if any(changed):
                which = "its input" if len(changed) == 1 else "the skip" if not changed[0] else "the map"
                raise Nonconformity(
                    f"{subject.where(wiring, given, training)}changes {which} in place, which others still use"
                )


def state(subject: PartSubject) -> None:
    """Check that in eval mode outputs depend on the input only, and that the state_dict does not change."""
    for wiring, given in subject.samples():
        part = subject.make(wiring).eval()
        where = subject.where(wiring)
        before = {name: value.clone() for name, value in weights(part).items()}
        buffers = {name: value.clone() for name, value in part.named_buffers()}
        first = subject.run(part, given)
        _kept(part, before, buffers, where)
        _draws_nothing(subject, part, wiring, given, first)
        _after_another(subject, part, wiring, given, first)


def _kept(part: nn.Module, before: dict[str, Tensor], buffers: dict[str, Tensor], where: str) -> None:
    if added := [name for name in weights(part) if name not in before]:
        raise Nonconformity(f"{where}a pass adds {_list(added)} to the state_dict; make every layer in __init__")
    changed = [name for name, value in part.named_buffers() if name not in buffers or apart((value,), (buffers[name],))]
    if changed:
        raise Nonconformity(f"{where}a pass in eval changes the buffer {_list(changed)}; do that in training only")
    if moved := [name for name, value in weights(part).items() if apart((value,), (before[name],))]:
        raise Nonconformity(f"{where}a pass in eval changes {_list(moved)}")


def _after_another(subject: PartSubject, part: Any, wiring: Wiring, given: PartInput, first: Outputs) -> None:
    """Check that after one input, other inputs give the same outputs as with a new part."""
    where = subject.where(wiring)
    for other in subject.contract.few(subject.passing(wiring, training=False)):
        try:
            after = subject.run(part, other)
        except Exception as error:
            why = error if isinstance(error, Nonconformity) else one_line(error)
            raise Nonconformity(
                f"{where}after a batch of {given}, a batch of {other} fails ({why}), which passes a new part: "
                "something is kept from call to call"
            ) from error
        new = subject.make(wiring).eval()
        difference = apart(after, subject.run(new, other)) if _alike(part, new) else 0.0
        if difference or (difference := apart(subject.run(part, given), first)):
            raise Nonconformity(
                f"{where}in eval a batch of {other} and one of {given} give other outputs (by up to {difference:.2g}) "
                "when one comes after the other: something is kept from call to call"
            )


def _alike(part: nn.Module, other: nn.Module) -> bool:
    """Return whether two parts have the same weights, which the check "seed" requires."""
    mine, theirs = weights(part), weights(other)
    return mine.keys() == theirs.keys() and not any(apart((mine[name],), (theirs[name],)) for name in mine)


def _draws_nothing(subject: PartSubject, part: Any, wiring: Wiring, given: PartInput, first: Outputs) -> None:
    where = subject.where(wiring)
    if difference := apart(subject.run(part, given), first):
        raise Nonconformity(
            f"{where}in eval two passes of one input in a row differ by up to {difference:.2g}, under one seed: "
            "something is kept from call to call, or drawn elsewhere"
        )
    if difference := apart(subject.run(part, given, seed=2), first):
        raise Nonconformity(
            f"{where}in eval two passes of one input differ by up to {difference:.2g}: "
            "it draws random numbers; ask self.training first"
        )


def batch(subject: PartSubject) -> None:
    """Check that in eval mode each sample of a batch gives the same output as alone."""
    for wiring, given in subject.samples():
        part = subject.make(wiring).eval()
        for index in range(given.batch):

            def measure(dtype: torch.dtype, part: Any = part, given: PartInput = given, index: int = index) -> float:
                part, samples = part.to(dtype), given.map(lambda x: x.to(dtype))
                with computes_in(dtype):
                    together = subject.run(part, samples)
                    alone = subject.run(part, samples.map(lambda x: x[index : index + 1]))
                return apart(tuple(out[index : index + 1] for out in together), alone)

            if difference := difference_beyond_rounding(part, measure):
                raise Nonconformity(
                    f"{subject.where(wiring, given, False)}sample {index} comes out otherwise (by up to "
                    f"{difference:.2g}) than alone: samples are mixed"
                )
