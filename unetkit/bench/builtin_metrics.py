"""The built-in metrics: functions of a Subject. The first line of each is what docs and reports say of it."""

from __future__ import annotations

import ctypes
import gc
import re
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unetkit.bench.grid import Mode
from unetkit.builder import build_plan
from unetkit.errors import BuildError, InputSizeError
from unetkit.plan import Plan
from unetkit.registry import Parts
from unetkit.serialization import save
from unetkit.summary.forward_hooks import input_size_for, network_of, tensors_of
from unetkit.summary.report import Trace
from unetkit.summary.trace import trace
from unetkit.utils.formatting import Size

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """What is held beyond what was held when this was made.

    On a CPU it is the anonymous memory of the process: that of files (the libraries' own code, which a first pass
    reads in) is left out. Memory that was freed is given back to the system before it counts.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        _trim()
        self._base = torch.cuda.memory_allocated(device) if device.type == "cuda" else _status("RssAnon") or 0

    def peak(self, run: Callable[[], object]) -> int:
        """Call `run`; the most bytes that were held while it ran.

        Raises:
            BuildError: the system does not tell (on a CPU, Linux alone does).
        """
        if self.device.type == "cuda":
            return self._on_gpu(run)
        _trim()
        try:
            _CLEAR.write_text("5")  # sets the high-water mark back to what is held now
        except OSError as error:
            raise BuildError(f"the high-water mark of memory cannot be set back here: {error}") from error
        run()
        return _told("VmHWM") - _told("RssFile") - self._base

    def _on_gpu(self, run: Callable[[], object]) -> int:
        run()  # cuDNN tries its algorithms the first time, some with more memory than any pass takes later
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        run()
        torch.cuda.synchronize(self.device)
        return torch.cuda.max_memory_allocated(self.device) - self._base


def _told(what: str) -> int:
    found = _status(what)
    if found is None:
        raise BuildError("peak memory on a CPU is read from /proc/self/status, which this system has not")
    return found


def _status(what: str) -> int | None:
    try:
        found = re.search(rf"{what}:\s+(\d+) kB", _STATUS.read_text(encoding="utf-8"))
    except OSError:
        return None
    return 1024 * int(found[1]) if found else None


def _trim() -> None:
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError, TypeError):
        return  # another libc, which keeps less


@dataclass
class BenchModel:
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
    def resident(self) -> PeakMemory:
        """What the process held before this network was made."""
        build_plan(self.plan, self.parts, "meta")  # what a build imports is none of the network's
        return PeakMemory(self.device)

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
        shape = (self.batch, network.resolved_plan.in_channels or 3, *self.size)
        drawn = torch.randn(shape, generator=torch.Generator().manual_seed(self.seed))
        return drawn.to(self.device).contiguous(memory_format=self.memory_format)

    @property
    def size(self) -> Size:
        """Height and width of the input: as planned, else the network's own."""
        return input_size_for(network_of(self.model), self.plan.size)

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


#: A first build imports what is not imported yet, so it is left out.
_BUILDS = 3


def parameters(subject: BenchModel) -> int:
    """Parameters of the whole network, counted on meta tensors."""
    return subject.trace.parameters


def macs(subject: BenchModel) -> int:
    """Multiply-accumulates of one forward pass of the batch: half of what torch's FlopCounterMode counts, on meta
    tensors. Resizing, norms and activations count nothing.
    """
    return subject.trace.macs


def activations(subject: BenchModel) -> int:
    """Bytes that autograd keeps for the backward pass of the batch in float32, parameters left out; on meta tensors."""
    return subject.trace.activation_bytes


def build(subject: BenchModel) -> float:
    """Seconds from the line to a network with random weights on its device, libraries imported: median of 3 builds."""
    taken = []
    for _ in range(1 + _BUILDS):
        start = perf_counter()
        subject.build()
        subject.wait()
        taken.append(perf_counter() - start)
        gc.collect()
    return median(taken[1:])


def disk(subject: BenchModel) -> int:
    """Bytes of the safetensors file that `unetkit build --save` writes, weights in float32."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.safetensors")
        save(subject.model, path)
        return path.stat().st_size


def memory(subject: BenchModel) -> int:
    """Most bytes held in eval mode, weights and input included: CUDA's counters, or the process's high-water mark."""
    _no_compiler(subject)
    return subject.resident.peak(lambda: (subject.forward(), subject.forward()))


def training_memory(subject: BenchModel) -> int:
    """Most bytes held by training steps, gradients and AdamW's state included: measured as `memory` is."""
    _no_compiler(subject)
    step = training(subject)
    return subject.resident.peak(lambda: (step(), step()))


def _no_compiler(subject: BenchModel) -> None:
    if subject.mode.compiled and subject.device.type == "cpu":
        raise InputSizeError("not measured: on a CPU the memory of the compiler itself would count")


def latency(subject: BenchModel) -> Callable[[], object]:
    """Seconds for one forward pass of the batch in eval mode, without gradients, input on the device."""
    subject.model.eval()
    _ = subject.x
    return subject.forward


def training(subject: BenchModel) -> Callable[[], object]:
    """Seconds for one training step of the batch: forward, cross-entropy, backward, AdamW."""
    subject.model.train()
    # A rate of 0 costs the same and leaves the weights as they are: none drifts to numbers that compute more slowly.
    optimizer = torch.optim.AdamW(subject.model.parameters(), lr=0.0)
    scaler = torch.amp.GradScaler(subject.device.type, enabled=subject.mode.dtype == "float16")
    targets: list[Tensor] = []

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        outputs = subject.outputs()
        if not targets:
            targets.extend(_labels(output, subject) for output in outputs)
        loss = sum((_loss(*pair) for pair in zip(outputs, targets, strict=True)), outputs[0].new_zeros(()))
        torch.autograd.backward(scaler.scale(loss))
        scaler.step(optimizer)
        scaler.update()

    return step


def _labels(output: Tensor, subject: BenchModel) -> Tensor:
    """A class for each pixel of an output, (batch, H, W), drawn at random."""
    if output.dim() != 4:
        raise InputSizeError(
            f"in training it gives a tensor of {output.dim()} dimensions, and a loss is taken of (B,C,H,W)"
        )
    drawn = torch.Generator().manual_seed(subject.seed)
    shape, classes = (len(output), *output.shape[2:]), output.shape[1]
    return torch.randint(0, max(2, classes), shape, generator=drawn).to(output.device)


def _loss(output: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy: of the classes, or of one logit."""
    if output.shape[1] == 1:
        return F.binary_cross_entropy_with_logits(output[:, 0].float(), labels.float())
    return F.cross_entropy(output, labels)
