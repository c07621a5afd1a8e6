"""The part that is checked: how it is created and run, and how messages describe the arguments."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from unetkit.errors import UnetkitError
from unetkit.options import Signature, load_target
from unetkit.plan import PartSpec
from unetkit.plugins import default_parts
from unetkit.registry import Entry, Factory, Kind, Parts
from unetkit.resolve import parse_options, signature_of
from unetkit.testing.catalog import Nonconformity, SkipCheck, one_line
from unetkit.testing.contracts import CONTRACTS, Contract, Outputs, PartInput, Wiring


@dataclass(frozen=True)
class PartRun:
    """One forward pass of a new part, and what is wrong with it; "" if nothing is."""

    wiring: Wiring
    given: PartInput
    training: bool
    error: str = ""
    channels: str = ""
    size: str = ""


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
        #: What each wiring is tried on.
        self.inputs: dict[Wiring, list[PartInput]] = {}

    @cached_property
    def entry(self) -> Entry | None:
        """The registered entry; None for a Python object."""
        return self.parts[self.kind.field].get(self.spec.name) if self.spec.factory is None else None

    @cached_property
    def signature(self) -> Signature:
        """The signature of the factory."""
        return signature_of(self.kind.field, self.spec, self.parts)

    @cached_property
    def written(self) -> Factory:
        """The factory as it was registered. Raises PluginError if it cannot be imported."""
        target: Any = self.spec.factory if self.entry is None else self.entry.factory
        found: Factory = load_target(target) if isinstance(target, str) else target
        return found

    @cached_property
    def factory(self) -> Factory:
        """The factory as the builder calls it."""
        return self.spec.factory if self.entry is None else self.entry.load()  # type: ignore[return-value]

    @cached_property
    def options(self) -> dict[str, Any]:
        """The options of the spec."""
        return parse_options(self.kind.field, self.spec, self.signature)

    def make(self, wiring: Wiring, *, seed: int = 0, **options: Any) -> Any:
        """Create a new part whose weights are drawn from a seed."""
        torch.default_generator.manual_seed(seed)
        return self.factory(*wiring, **{**self.options, **options})

    @cached_property
    def wirings(self) -> list[Wiring]:
        """The positional arguments that the factory accepts.

        Raises:
            Nonconformity: It accepts none, rejects one with a foreign error, or does not create a part of its kind.
        """
        taken: list[Wiring] = []
        refusals: list[str] = []
        for wiring in self.contract.wirings:
            try:
                part = self.make(wiring)
            except UnetkitError as error:
                refusals.append(f"{self.where(wiring)}{error}")
            except Exception as error:
                raise Nonconformity(
                    f"{self.where(wiring)}making it fails with {one_line(error)}; "
                    "what it cannot have it refuses with an UnetkitError, such as BuildError"
                ) from error
            else:
                self.declared(part, wiring)
                taken.append(wiring)
                self.inputs[wiring] = self.contract.inputs(part, wiring)
        if not taken:
            raise Nonconformity(f"it refuses every wiring that was tried: {refusals[0]}")
        return taken

    def declared(self, part: Any, wiring: Wiring) -> None:
        """Raise Nonconformity if a part does not have the attributes of its kind."""
        if not isinstance(part, nn.Module):
            raise Nonconformity(f"{self.where(wiring)}makes a {type(part).__name__}; a part is a torch.nn.Module")
        if lazy := [name for name, p in part.named_parameters() if isinstance(p, UninitializedParameter)]:
            raise Nonconformity(f"{self.where(wiring)}{lazy[0]} is lazy; make layers with the channels that are given")
        if fault := self.contract.declares(part):
            raise Nonconformity(f"{self.where(wiring)}{fault}")

    @cached_property
    def runs(self) -> list[PartRun]:
        """A pass for every wiring, input and mode, each with a new part."""
        return [run for wiring in self.wirings for run in self.runs_of(wiring, self.inputs[wiring])]

    def runs_of(self, wiring: Wiring, inputs: list[PartInput], **options: Any) -> Iterator[PartRun]:
        """Run every input in eval and training mode."""
        for training in (False, True):
            for given in inputs:
                # Norms over a batch refuse a single value a channel in training: torch's own rule.
                if not (training and given.batch == 1 and given.size == (1, 1)):
                    yield self._run(wiring, given, training, options)

    def _run(self, wiring: Wiring, given: PartInput, training: bool, options: dict[str, Any]) -> PartRun:
        part = self.make(wiring, **options).train(training)
        try:
            with torch.set_grad_enabled(training):
                out = self.contract.outputs(part, given.fresh())
        except Nonconformity as fault:
            return PartRun(wiring, given, training, error=str(fault))
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:  # sys.exit, too
            # Norms over a map refuse a single pixel likewise, in eval too.
            if given.size == (1, 1) and "Expected more than 1" in str(error):
                return PartRun(wiring, given, training, error="torch")
            return PartRun(wiring, given, training, error=f"fails with {one_line(error)}")
        if not all(tensor.isfinite().all() for tensor in out):
            return PartRun(wiring, given, training, error="gives numbers that are not finite")
        channels = self.contract.channel_fault(part, wiring, given, out)
        return PartRun(wiring, given, training, "", channels, self.contract.size_fault(part, wiring, given, out))

    def samples(self, *, training: bool = False, every: bool = False) -> list[tuple[Wiring, PartInput]]:
        """Return the first passing input of each wiring; for images only of the first wiring, unless `every` is set."""
        found: dict[Wiring, PartInput] = {}
        for run in self.runs:
            if run.training == training and not run.error:
                found.setdefault(run.wiring, run.given)
        if not found:
            raise SkipCheck("nothing passes through it; see forward")
        pairs = list(found.items())
        return pairs[:1] if self.contract.takes_images and not every else pairs

    def passing(self, wiring: Wiring, *, training: bool) -> list[PartInput]:
        """Return every input of a wiring that passes."""
        return [r.given for r in self.runs if r.wiring == wiring and r.training == training and not r.error]

    def run(self, part: Any, given: PartInput, *, seed: int = 1) -> Outputs:
        """Run one pass without gradients in the part's current mode."""
        torch.default_generator.manual_seed(seed)
        with torch.no_grad():
            return self.contract.outputs(part, given.fresh())

    def where(self, wiring: Wiring, given: PartInput | None = None, training: bool | None = None) -> str:
        """Describe the arguments for a message.

        "with x_channels=12, skip_channels=5, a batch of 3 of 5x7 in training: ".
        """
        pairs = [f"{name}={value:g}" for name, value in zip(self.contract.names, wiring, strict=False)]
        said = (["with " + ", ".join(pairs)] if pairs else []) + ([f"a batch of {given}"] if given else [])
        mode = "" if training is None else " in training" if training else " in eval"
        return ", ".join(said) + mode + ": " if said else ""


def weights(part: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a state_dict, which may contain other objects."""
    return {name: value for name, value in part.state_dict().items() if isinstance(value, Tensor)}


def apart(a: Outputs, b: Outputs) -> float:
    """Return the largest difference of outputs, relative to the largest output if that is above 1.

    It is infinite if shapes differ, or if only one output is finite.
    """
    if [x.shape for x in a] != [y.shape for y in b]:
        return float("inf")
    return max((_apart(x, y) for x, y in zip(a, b, strict=True)), default=0.0)


def _apart(a: Tensor, b: Tensor) -> float:
    wide = torch.complex128 if a.is_complex() or b.is_complex() else torch.float64
    difference = (a.to(wide) - b.to(wide)).abs()
    difference = torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, difference).nan_to_num(nan=float("inf"))
    return float(difference.max() / max(1.0, float(b.abs().max().nan_to_num()))) if difference.numel() else 0.0
