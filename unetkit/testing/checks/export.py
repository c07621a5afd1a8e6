"""Checks of a part in other forms: float64, the meta device, an exported program, and channels_last memory."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from unetkit.testing.catalog import Nonconformity, SkipCheck, one_line
from unetkit.testing.contracts import Contract, PartInput, Wiring, by
from unetkit.testing.subject import PartSubject, apart
from unetkit.utils.rounding import computes_in, difference_beyond_rounding


@contextmanager
def _telling(where: str) -> Iterator[None]:
    """Convert exceptions of a part to Nonconformity."""
    try:
        yield
    except (Nonconformity, SkipCheck):
        raise
    except Exception as error:
        raise Nonconformity(f"{where}fails with {one_line(error)}") from error


def dtype(subject: PartSubject) -> None:
    """Check that a part in float64 accepts and returns float64."""
    for wiring, given in subject.samples():
        part = subject.make(wiring).eval().double()
        where = f"{subject.where(wiring)}in float64 (part.double()) it "
        with _telling(where):
            outputs = subject.run(part, given.map(Tensor.double))
        if wrong := [out.dtype for out in outputs if out.dtype != torch.float64]:
            raise Nonconformity(f"{where}gives {wrong[0]}; make tensors with the dtype of what it is given")


def meta(subject: PartSubject) -> None:
    """Check that a part can be created and run on the meta device, without values."""
    for wiring, given in subject.samples():
        where = subject.where(wiring)
        with _telling(f"{where}made under torch.device('meta') it "), torch.device("meta"):
            part = subject.make(wiring).eval()
        for name, tensor in chain(part.named_parameters(), part.named_buffers()):
            if not tensor.is_meta:
                raise Nonconformity(
                    f"{where}made under torch.device('meta'), {name} is on {tensor.device}; "
                    "make tensors with torch's own functions and no device, and read none of them"
                )
        # Outside of the device's context, so that a tensor that the pass makes on the cpu shows.
        with _telling(f"{where}a pass on the meta device (it has shapes but no values; so a gpu has another device) "):
            gave = subject.run(part, given.map(lambda x: x.to("meta")))
        real = subject.run(subject.make(wiring).eval(), given)
        if wrong := [a for a, b in zip(gave, real, strict=True) if a.shape != b.shape or not a.is_meta]:
            raise Nonconformity(f"{where}on the meta device it gives {by(wrong[0].shape)} on {wrong[0].device}")


class _Probe(nn.Module):
    """A part as torch.export receives it: called as in a network, with sizes computed from those of the map."""

    def __init__(self, contract: Contract, part: nn.Module, wiring: Wiring) -> None:
        super().__init__()
        self.contract = contract
        self.part = part
        self.wiring = wiring

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Any:
        given = PartInput((x,) if skip is None else (x, skip))
        return self.contract.call(self.part, self.contract.asking(given, self.wiring))


def export(subject: PartSubject) -> None:
    """Check that a program that is exported at one size gives the part's outputs at other sizes."""
    wiring = subject.samples()[0][0]
    part = subject.make(wiring).eval()
    least, given = subject.contract.exported(part, wiring)
    where = subject.where(wiring)
    for other in given:

        def measure(dtype: torch.dtype, part: Any = part, other: PartInput = other) -> float:
            part = part.to(dtype)
            first, other = (one.map(lambda x: x.to(dtype)) for one in (given[0], other))
            with warnings.catch_warnings(), _telling(f"{where}torch.export at {first} "):
                warnings.simplefilter("ignore")  # torch's own; what the part warns of is heard in every other check
                program = _exported(_Probe(subject.contract, part, wiring), first, least)
            try:
                with torch.no_grad(), computes_in(dtype):
                    outputs = program(*other.tensors)
            except Exception as error:
                raise Nonconformity(
                    f"{where}exported at {first}, it does not take {other} ({one_line(error)}): "
                    "a size was fixed; take sizes from x.shape in the pass, and do not branch on them"
                ) from error
            outputs = (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
            return apart(outputs, subject.run(part, other))

        if difference := difference_beyond_rounding(part, measure):
            raise Nonconformity(
                f"{where}exported at {given[0]}, it gives other outputs (by up to {difference:.2g}) at {other}: "
                "a size was fixed; take sizes from x.shape in the pass"
            )


def _exported(probe: _Probe, given: PartInput, least: int) -> Any:
    any_size = {i: torch.export.Dim.AUTO(min=least) for i in (2, 3)}
    with torch.no_grad():
        program = torch.export.export(probe, given.tensors, dynamic_shapes=tuple(any_size for _ in given.tensors))
    return program.module()


def channels_last(subject: PartSubject) -> None:
    """Check that channels_last memory of part and inputs gives equal outputs."""
    for wiring, given in subject.samples():
        part, where = subject.make(wiring).eval(), subject.where(wiring, given)

        def measure(dtype: torch.dtype, part: Any = part, given: PartInput = given, where: str = where) -> float:
            part, plain = part.to(dtype), given.map(lambda x: x.to(dtype))
            expected = subject.run(part.to(memory_format=torch.contiguous_format), plain)
            with _telling(f"{where}in channels_last memory it "):
                part.to(memory_format=torch.channels_last)
                last = subject.run(part, plain.map(lambda x: x.contiguous(memory_format=torch.channels_last)))
            return apart(last, expected)

        if difference := difference_beyond_rounding(part, measure):
            raise Nonconformity(
                f"{where}in channels_last memory it gives outputs that differ by up to {difference:.2g}"
            )
