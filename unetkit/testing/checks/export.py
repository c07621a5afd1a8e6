"""Checks of a part in other forms: float64, the meta device, an exported program, and channels_last memory."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from unetkit.summary.forward_hooks import collect_tensors
from unetkit.testing.catalog import Nonconformity, SkipCheck, one_line
from unetkit.testing.contracts import Contract, PartInput, PositionalArgs, format_shape
from unetkit.testing.subject import PartSubject, relative_difference
from unetkit.utils.rounding import computes_in, difference_beyond_rounding


@contextmanager
def _convert_errors(where: str) -> Iterator[None]:
    """Convert exceptions of a part to Nonconformity."""
    try:
        yield
    except (Nonconformity, SkipCheck):
        raise
    except Exception as error:
        raise Nonconformity(f"{where}fails with {one_line(error)}") from error


def check_dtype(subject: PartSubject) -> None:
    """Check that a part in float64 accepts and returns float64."""
    for args, part_input in subject.samples():
        part = subject.make(args).eval().double()
        where = f"{subject.describe_case(args)}in float64 (part.double()) it "
        with _convert_errors(where):
            outputs = subject.run(part, part_input.map(Tensor.double))
        if mismatched := [out.dtype for out in outputs if out.dtype != torch.float64]:
            raise Nonconformity(f"{where}returns {mismatched[0]}; create tensors with the dtype of the input")


def check_meta(subject: PartSubject) -> None:
    """Check that a part can be created and run on the meta device, without values."""
    for args, part_input in subject.samples():
        where = subject.describe_case(args)
        with _convert_errors(f"{where}created under torch.device('meta') it "), torch.device("meta"):
            part = subject.make(args).eval()
        for name, tensor in chain(part.named_parameters(), part.named_buffers()):
            if not tensor.is_meta:
                raise Nonconformity(
                    f"{where}created under torch.device('meta'), {name} is on {tensor.device}; "
                    "create tensors with torch's functions without a device, and do not read their values"
                )
        # Outside the device's context, so that a tensor that the pass creates on the CPU is detected.
        with _convert_errors(
            f"{where}a pass on the meta device (which has shapes but no values, and detects tensors on a wrong device) "
        ):
            meta_outputs = subject.run(part, part_input.map(lambda x: x.to("meta")))
        expected = subject.run(subject.make(args).eval(), part_input)
        if mismatched := [
            a for a, b in zip(meta_outputs, expected, strict=True) if a.shape != b.shape or not a.is_meta
        ]:
            raise Nonconformity(
                f"{where}on the meta device it returns {format_shape(mismatched[0].shape)} on {mismatched[0].device}"
            )


class _ExportWrapper(nn.Module):
    """A part as torch.export receives it: called as in a network, with sizes computed from those of the map."""

    def __init__(self, contract: Contract, part: nn.Module, args: PositionalArgs) -> None:
        super().__init__()
        self.contract = contract
        self.part = part
        self.args = args

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Any:
        part_input = PartInput((x,) if skip is None else (x, skip))
        return self.contract.call(self.part, self.contract.with_target_size(part_input, self.args))


def check_export(subject: PartSubject) -> None:
    """Check that a program that is exported at one size gives the part's outputs at other sizes."""
    args = subject.samples()[0][0]
    part = subject.make(args).eval()
    least, part_input = subject.contract.make_export_inputs(part, args)
    where = subject.describe_case(args)
    programs: dict[torch.dtype, Any] = {}  # an export costs far more than a pass
    for other in part_input:

        def measure(dtype: torch.dtype, part: Any = part, other: PartInput = other) -> float:
            part = part.to(dtype)
            first, other = (one.map(lambda x: x.to(dtype)) for one in (part_input[0], other))
            if dtype not in programs:
                with warnings.catch_warnings(), _convert_errors(f"{where}torch.export at {first} "):
                    warnings.simplefilter("ignore")  # of torch.export; those of the part appear in other checks
                    programs[dtype] = _export(_ExportWrapper(subject.contract, part, args), first, least)
            try:
                with torch.no_grad(), computes_in(dtype):
                    outputs = programs[dtype](*other.tensors)
            except Exception as error:
                raise Nonconformity(
                    f"{where}exported at {first}, it does not accept {other} ({one_line(error)}): "
                    "a size was fixed; read sizes from x.shape in forward, and do not branch on them"
                ) from error
            return relative_difference(tuple(collect_tensors(outputs)), subject.run(part, other))

        if difference := difference_beyond_rounding(part, measure):
            raise Nonconformity(
                f"{where}exported at {part_input[0]}, it returns different outputs "
                f"(by up to {difference:.2g}) at {other}: "
                "a size was fixed; read sizes from x.shape in forward"
            )


def _export(wrapper: _ExportWrapper, part_input: PartInput, least: int) -> Any:
    any_size = {i: torch.export.Dim.AUTO(min=least) for i in (2, 3)}
    with torch.no_grad():
        program = torch.export.export(
            wrapper, part_input.tensors, dynamic_shapes=tuple(any_size for _ in part_input.tensors)
        )
    return program.module()


def check_channels_last(subject: PartSubject) -> None:
    """Check that channels_last memory of part and inputs gives equal outputs."""
    for args, part_input in subject.samples():
        part, where = subject.make(args).eval(), subject.describe_case(args, part_input)

        def measure(
            dtype: torch.dtype, part: Any = part, part_input: PartInput = part_input, where: str = where
        ) -> float:
            part, plain = part.to(dtype), part_input.map(lambda x: x.to(dtype))
            expected = subject.run(part.to(memory_format=torch.contiguous_format), plain)
            with _convert_errors(f"{where}in channels_last memory it "):
                part.to(memory_format=torch.channels_last)
                last = subject.run(part, plain.map(lambda x: x.contiguous(memory_format=torch.channels_last)))
            return relative_difference(last, expected)

        if difference := difference_beyond_rounding(part, measure):
            raise Nonconformity(
                f"{where}in channels_last memory it returns outputs that differ by up to {difference:.2g}"
            )
