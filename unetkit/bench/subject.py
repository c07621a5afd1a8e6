"""A network under one condition, as metrics are given it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn

from unetkit.bench.mode import Mode
from unetkit.bench.resident import Resident
from unetkit.builder import build_plan
from unetkit.inspect.observe import network_of, size_for, tensors_of
from unetkit.inspect.trace import Trace, trace
from unetkit.plan import Plan, Size
from unetkit.registry import Parts


@dataclass
class Subject:
    """What a metric measures. The network and its input are made when they are first asked for.

    Attributes:
        plan: the line of the network.
        batch: images in the input.
        mode: how it runs.
        device: where it runs.
        parts: where names are looked up.
        seed: fixes weights and input.
    """

    plan: Plan
    batch: int
    mode: Mode
    device: torch.device
    parts: Parts
    seed: int = 0

    def build(self) -> nn.Module:
        """A new network on the device, in eval mode, its memory format as asked; not compiled."""
        plan = replace(self.plan, seed=self.seed, pretrained=None)
        return build_plan(plan, self.parts, self.device).eval().to(memory_format=self.memory_format)

    @cached_property
    def resident(self) -> Resident:
        """What the process held before this network was made."""
        build_plan(self.plan, self.parts, "meta")  # what a build imports is none of the network's
        return Resident(self.device)

    @cached_property
    def model(self) -> nn.Module:
        """The network as it was built."""
        _ = self.resident
        return self.build()

    @cached_property
    def runs(self) -> Callable[[Tensor], Any]:
        """The network as it is run: compiled, where that is asked."""
        return torch.compile(self.model) if self.mode.compiled else self.model

    @cached_property
    def x(self) -> Tensor:
        """The input, (batch, in_channels, H, W), of normal noise."""
        _ = self.model
        network = network_of(self.model)
        shape = (self.batch, network.whole.in_channels or 3, *self.size)
        drawn = torch.randn(shape, generator=torch.Generator().manual_seed(self.seed))
        return drawn.to(self.device).contiguous(memory_format=self.memory_format)

    @property
    def size(self) -> Size:
        """Height and width of the input: as planned, else the network's own."""
        return size_for(network_of(self.model), self.plan.size)

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.mode.channels_last else torch.contiguous_format

    @cached_property
    def trace(self) -> Trace:
        """What the network is, level by level, on meta tensors."""
        ghost = build_plan(self.plan, self.parts, "meta")
        return trace(ghost, self.plan.size, batch=self.batch)

    def forward(self) -> Tensor:
        """One pass of the input in eval mode, without gradients, under autocast where that is asked: the logits."""
        runs, x = self.runs, self.x  # made outside, or they could not be trained with later
        with torch.inference_mode(), self.autocast():
            return cast(Tensor, runs(x))

    def outputs(self) -> list[Tensor]:
        """One pass of the input with gradients, in the mode that the network is in: all outputs, the logits first."""
        with self.autocast():
            return tensors_of(self.runs(self.x))

    def autocast(self) -> AbstractContextManager[Any]:
        dtype = getattr(torch, self.mode.dtype)
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not torch.float32)

    def wait(self) -> None:
        """Until the device has done what it was told."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
