"""The part that is checked: how it is created and run, and how messages describe the arguments."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from unetkit.errors import UnetkitError
from unetkit.options import Signature, load_target, read_signature
from unetkit.plan import PartSpec
from unetkit.plugins import default_parts
from unetkit.registry import Entry, Factory, Kind, Parts
from unetkit.resolve import parse_options, signature_of
from unetkit.testing.catalog import Nonconformity, SkipCheck, one_line
from unetkit.testing.contracts import CONTRACTS, Contract, Outputs, PartInput, PositionalArgs
from unetkit.testing.source import AuthorSource
from unetkit.utils.formatting import format_place, format_type
from unetkit.utils.isolation import INTERRUPTS
from unetkit.utils.rounding import computes_in, difference_beyond_rounding


@dataclass(frozen=True)
class PartRun:
    """One forward pass of a new part, and what is wrong with it; "" if nothing is.

    Attributes:
        exception: the exception behind `error`, if there is one.
    """

    args: PositionalArgs
    part_input: PartInput
    training: bool
    error: str = ""
    exception: BaseException | None = None
    channel_error: str = ""
    size_error: str = ""


class PartSubject:
    """A part given by its kind and a line, a PartSpec, a class or a callable.

    Attributes:
        kind: the kind of the part.
        spec: its name and options.
        parts: the registered parts.
        contract: the contract of its kind.
    """

    def __init__(self, kind: str, part: Any, parts: Parts | None = None) -> None:
        self.spec = PartSpec.of(part)
        self.parts = default_parts() if parts is None else parts
        self.kind: Kind = self.parts[kind].kind
        self.contract: Contract = CONTRACTS.get(self.kind.title, Contract())
        #: The inputs for each tuple of positional arguments.
        self.inputs: dict[PositionalArgs, list[PartInput]] = {}

    @cached_property
    def entry(self) -> Entry | None:
        """The registered entry; None for a Python object."""
        return self.parts[self.kind.field].get(self.spec.name) if self.spec.factory is None else None

    @cached_property
    def signature(self) -> Signature:
        """The signature of the factory, even if the values of an option cannot be read from text."""
        is_from_library = self.entry is not None and self.entry.library is not None
        if is_from_library:  # each name of a library may have options of its own
            return signature_of(self.kind.field, self.spec, self.parts)
        return read_signature(self.registered_factory if self.entry is None else self.entry.factory)

    @cached_property
    def registered_factory(self) -> Factory:
        """The factory as it was registered. Raises PluginError if it cannot be imported."""
        target: Any = self.spec.factory if self.entry is None else self.entry.factory
        found: Factory = load_target(target) if isinstance(target, str) else target
        return found

    @cached_property
    def factory(self) -> Factory:
        """The factory as the builder calls it."""
        return self.spec.factory if self.entry is None else self.entry.load()  # type: ignore[return-value]

    @cached_property
    def source(self) -> AuthorSource:
        """The files of the author's code."""
        target: Any = self.spec.factory if self.entry is None else self.entry.factory
        if isinstance(target, str):
            return AuthorSource(target.partition(":")[0])
        return AuthorSource(getattr(getattr(target, "func", target), "__module__", None) or "")

    @property
    def place(self) -> str:
        """The file and line where the part is defined; "" if there is none."""
        try:
            return format_place(self.signature.file, self.signature.line)
        except UnetkitError:
            return ""  # it cannot be imported

    @cached_property
    def options(self) -> dict[str, Any]:
        """The options of the spec."""
        return parse_options(self.kind.field, self.spec, self.signature)

    def make(self, args: PositionalArgs, *, seed: int = 0, **options: Any) -> Any:
        """Create a new part whose weights are drawn from a seed."""
        torch.default_generator.manual_seed(seed)
        return self.factory(*args, **{**self.options, **options})

    @cached_property
    def positional_cases(self) -> list[PositionalArgs]:
        """The positional arguments that the factory accepts.

        Raises:
            Nonconformity: It accepts none, rejects one with a foreign error, or does not create a part of its kind.
        """
        taken: list[PositionalArgs] = []
        rejections: list[str] = []
        for args in self.contract.positional_cases:
            try:
                part = self.make(args)
            except UnetkitError as error:
                rejections.append(f"{self.describe_case(args)}{error}")
            except Exception as error:
                raise Nonconformity(
                    f"{self.describe_case(args)}construction fails with {one_line(error)}; "
                    "reject unsupported arguments with an UnetkitError such as BuildError"
                ) from error
            else:
                self.check_declarations(part, args)
                taken.append(args)
                self.inputs[args] = self.contract.make_inputs(part, args)
        if not taken:
            raise Nonconformity(f"it rejects all positional arguments that were tried: {rejections[0]}")
        return taken

    def check_declarations(self, part: Any, args: PositionalArgs) -> None:
        """Raise Nonconformity if a part does not have the attributes of its kind."""
        if not isinstance(part, nn.Module):
            raise Nonconformity(
                f"{self.describe_case(args)}returns {format_type(part)}; a part must be a torch.nn.Module"
            )
        if lazy := [name for name, p in part.named_parameters() if isinstance(p, UninitializedParameter)]:
            raise Nonconformity(f"{self.describe_case(args)}{lazy[0]} is lazy; create layers with the given channels")
        if fault := self.contract.find_declaration_error(part):
            raise Nonconformity(f"{self.describe_case(args)}{fault}")

    @cached_property
    def runs(self) -> list[PartRun]:
        """The forward passes with all positional arguments, inputs and modes, each with a new part."""
        return [run for args in self.positional_cases for run in self.run_inputs(args, self.inputs[args])]

    def run_inputs(self, args: PositionalArgs, inputs: list[PartInput], **options: Any) -> Iterator[PartRun]:
        """Run every input in eval and training mode."""
        for training in (False, True):
            for part_input in inputs:
                # In training, torch's batch norms reject a single value per channel.
                if not (training and part_input.batch == 1 and part_input.size == (1, 1)):
                    yield self._run(args, part_input, training, options)

    def _run(self, args: PositionalArgs, part_input: PartInput, training: bool, options: dict[str, Any]) -> PartRun:
        part = self.make(args, **options).train(training)
        try:
            with torch.set_grad_enabled(training):
                out = self.contract.compute_outputs(part, part_input.clone())
        except Nonconformity as fault:
            return PartRun(args, part_input, training, error=str(fault))
        except INTERRUPTS:
            raise
        except BaseException as error:  # includes sys.exit
            # Norms over a map, such as instance norm, reject a single pixel, in eval mode as well.
            if part_input.size == (1, 1) and "Expected more than 1" in str(error):
                return PartRun(args, part_input, training, error="torch")
            return PartRun(args, part_input, training, error=f"fails with {one_line(error)}", exception=error)
        if not all(tensor.isfinite().all() for tensor in out):
            return PartRun(args, part_input, training, error="returns values that are not finite")
        channels = self.contract.find_channel_error(part, args, part_input, out)
        size = self.contract.find_size_error(part, args, part_input, out)
        return PartRun(args, part_input, training, channel_error=channels, size_error=size)

    def samples(self, *, training: bool = False, all_cases: bool = False) -> list[tuple[PositionalArgs, PartInput]]:
        """Return the first passing input for each tuple of positional arguments, together with these.

        For images only the first tuple is used, unless `all_cases` is set.
        """
        found: dict[PositionalArgs, PartInput] = {}
        for run in self.runs:
            if run.training == training and not run.error:
                found.setdefault(run.args, run.part_input)
        if not found:
            raise SkipCheck("no input passes; see the check `forward`")
        pairs = list(found.items())
        return pairs[:1] if self.contract.takes_images and not all_cases else pairs

    def passing_inputs(self, args: PositionalArgs, *, training: bool) -> list[PartInput]:
        """Return every input that passes with these positional arguments."""
        return [r.part_input for r in self.runs if r.args == args and r.training == training and not r.error]

    def run(self, part: Any, part_input: PartInput, *, seed: int = 1) -> Outputs:
        """Run one pass without gradients in the part's current mode."""
        torch.default_generator.manual_seed(seed)
        with torch.no_grad():
            return self.contract.compute_outputs(part, part_input.clone())

    def output_difference(self, one: Any, other: Any, part_input: PartInput) -> float:
        """Return by how much two parts differ that should give equal outputs; 0 where rounding explains it.

        Equal weights in memory of another layout or alignment may be multiplied by another routine of the processor.
        """

        def measure(dtype: torch.dtype) -> float:
            wide = dtype == torch.float64
            parts = [copy.deepcopy(part).to(dtype) if wide else part for part in (one, other)]
            given = part_input.map(lambda x: x.to(dtype)) if wide else part_input
            with computes_in(dtype):
                first, second = (self.run(part, given) for part in parts)
            return relative_difference(first, second)

        return difference_beyond_rounding(one, measure)

    def describe_case(
        self, args: PositionalArgs, part_input: PartInput | None = None, training: bool | None = None
    ) -> str:
        """Describe the arguments as the start of a message.

        An example: "with x_channels=12, skip_channels=5, a batch of 3 of 5x7 in training: ".
        """
        pairs = [f"{name}={value:g}" for name, value in zip(self.contract.arg_names, args, strict=False)]
        descriptions = (["with " + ", ".join(pairs)] if pairs else []) + (
            [f"a batch of {part_input}"] if part_input else []
        )
        mode = "" if training is None else " in training" if training else " in eval"
        return ", ".join(descriptions) + mode + ": " if descriptions else ""


def state_tensors(part: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a state_dict, which may contain other objects."""
    return {name: value for name, value in part.state_dict().items() if isinstance(value, Tensor)}


def relative_difference(a: Outputs, b: Outputs) -> float:
    """Return the largest difference of outputs, relative to the largest output if that is above 1.

    It is infinite if shapes differ, or if only one output is finite.
    """
    if [x.shape for x in a] != [y.shape for y in b]:
        return float("inf")
    return max((_relative_tensor_difference(x, y) for x, y in zip(a, b, strict=True)), default=0.0)


def _relative_tensor_difference(a: Tensor, b: Tensor) -> float:
    if torch.equal(a, b):
        return 0.0  # as most are, and the rest takes several passes over float64
    wide = torch.complex128 if a.is_complex() or b.is_complex() else torch.float64
    difference = (a.to(wide) - b.to(wide)).abs()
    difference = torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, difference).nan_to_num(nan=float("inf"))
    return float(difference.max() / max(1.0, float(b.abs().max().nan_to_num()))) if difference.numel() else 0.0
