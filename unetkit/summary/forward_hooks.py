"""Runs one forward pass on meta tensors and sees where it stands: which module, on what shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from unetkit.errors import InputSizeError, UnetkitError
from unetkit.network import Network
from unetkit.plan import Plan
from unetkit.utils.formatting import Size


@dataclass(eq=False)
class ModuleCall:
    """One call of a module: its name in the state_dict, what went in, what came out, and when (`clock`)."""

    name: str
    module: nn.Module
    given: list[Tensor]
    start: int
    gave: list[Tensor] = field(default_factory=list)
    end: int = -1


@dataclass
class Observation:
    """Every call of a forward pass in the order in which they began, and the output; or the error that ended it.

    A wrapper may give several outputs in training; the first is the network's, and `others` says how many there are
    beside it.
    """

    calls: list[ModuleCall] = field(default_factory=list)
    output: Tensor | None = None
    others: int = 0
    error: Exception | None = None

    def failure(self) -> str:
        """Where the pass ended and on what, in words."""
        inside = [call for call in self.calls if call.end < 0]
        if not inside:
            return reason(self.error)
        last = inside[-1]
        shapes = " and ".join("x".join(map(str, t.shape[1:])) for t in last.given) or "nothing"
        if "Kernel size can't be greater" in str(self.error) or "Output size is too small" in str(self.error):
            # Of torch's words for a map smaller than the kernel, these are what a person needs.
            kernel = getattr(last.module, "kernel_size", "?")
            return f"{last.name}, a {type(last.module).__name__} of kernel {kernel}, gets {shapes}"
        return f"{last.name or 'the network'} gets {shapes} ({reason(self.error)})"

    def calls_within(self, module: nn.Module) -> list[ModuleCall]:
        """The calls that began during a module's first call and ended well."""
        whole = next((call for call in self.calls if call.module is module), None)
        if whole is None:
            raise InputSizeError(f"the forward pass never calls its {type(module).__name__}, so it cannot be traced")
        start = self.calls.index(whole)
        return [call for call in self.calls[start + 1 :] if call.start <= whole.end and call.end >= 0]

    def dropped(self) -> list[str]:
        """The pools that leave out the last row or column of an odd map."""
        return [
            f"{call.name} halves {call.given[0].shape[-2]}x{call.given[0].shape[-1]}"
            for call in self.calls
            if isinstance(call.module, nn.MaxPool2d) and call.given and _leftover(call.module, call.given[0])
        ]


def reason(error: Exception | None) -> str:
    """An error's first line."""
    text = str(error).strip().split("\n")[0]
    return text if isinstance(error, UnetkitError) else f"{type(error).__name__}: {text[:200]}"


def record_forward(model: nn.Module, x: Tensor, clock: Callable[[], int] = lambda: 0) -> Observation:
    """Pass a meta tensor through a model on meta. An error is part of what is observed, not raised."""
    seen = Observation()
    try:
        with torch.device("meta"), _watching(model, seen, clock):
            out = model(x)
            seen.output, *rest = tensors_of(out) or [out]
            seen.others = len(rest)
    except Exception as error:  # any part's own complaint
        seen.error = error
    return seen


@contextmanager
def _watching(model: nn.Module, seen: Observation, clock: Callable[[], int]) -> Iterator[None]:
    names = {module: name for name, module in model.named_modules()}
    inside: list[ModuleCall] = []

    def before(module: nn.Module, args: Any) -> None:
        call = ModuleCall(names[module], module, tensors_of(args), clock())
        inside.append(call)
        seen.calls.append(call)

    def after(_module: nn.Module, _args: Any, out: Any) -> None:
        call = inside.pop()
        call.gave, call.end = tensors_of(out), clock()

    # On each module, since hooks for all modules would see what other threads run.
    handles = [h for m in names for h in (m.register_forward_pre_hook(before), m.register_forward_hook(after))]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def tensors_of(value: Any) -> list[Tensor]:
    """The tensors of what a module was given or gave: one, or tuples and lists of them."""
    if isinstance(value, tuple | list):
        return [tensor for item in value for tensor in tensors_of(item)]
    return [value] if isinstance(value, Tensor) else []


def _leftover(pool: nn.MaxPool2d, x: Tensor) -> bool:
    kernel, stride, padding = (_int(v) for v in (pool.kernel_size, pool.stride, pool.padding))
    if pool.ceil_mode:
        return False
    # What a last step does not reach may be padding alone.
    return any((size + 2 * padding - kernel) % stride > padding for size in x.shape[-2:])


def _int(value: Any) -> int:
    return int(value[0] if isinstance(value, tuple) else value)


def network_of(model: nn.Module) -> Network:
    """The network in a model, which a plugin may have wrapped. Raises UnetkitError where there is none."""
    for module in model.modules():
        if isinstance(module, Network):
            return module
    raise UnetkitError(f"a {type(model).__name__} holds no network that unetkit built; give what unetkit.build returns")


def meta_input(network: Network, size: Size, batch: int = 1) -> Tensor:
    """An input of a size, (batch, in_channels, *size), on meta and with grad."""
    dtype = next(network.parameters()).dtype
    return torch.empty(
        batch, network.resolved_plan.in_channels or 3, *size, dtype=dtype, device="meta", requires_grad=True
    )


def input_size_for(network: Network, size: int | Size | None) -> Size:
    """The size asked for, else the plan's own, else the one that the encoder is fixed to, else 256."""
    return Plan.of(size=size).size or network.resolved_plan.size or network.size or (256, 256)
