"""The built-in metrics: functions of a Subject. The first line of each is what docs and reports say of it."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from torch import Tensor
from torch.nn import functional as F

from unetkit.bench.subject import Subject
from unetkit.deploy.files import save
from unetkit.errors import CannotPass

#: A first build imports what is not imported yet, so it is left out.
_BUILDS = 3


def parameters(subject: Subject) -> int:
    """Parameters of the whole network, counted on meta tensors."""
    return subject.trace.parameters


def macs(subject: Subject) -> int:
    """Multiply-accumulates of one forward pass of the batch: half of what torch's FlopCounterMode counts, on meta
    tensors. Resizing, norms and activations count nothing.
    """
    return subject.trace.macs


def activations(subject: Subject) -> int:
    """Bytes that autograd keeps for the backward pass of the batch in float32, parameters left out; on meta tensors."""
    return subject.trace.activation_bytes


def build(subject: Subject) -> float:
    """Seconds from the line to a network with random weights on its device, libraries imported: median of 3 builds."""
    taken = []
    for _ in range(1 + _BUILDS):
        start = perf_counter()
        subject.build()
        subject.wait()
        taken.append(perf_counter() - start)
        gc.collect()
    return median(taken[1:])


def disk(subject: Subject) -> int:
    """Bytes of the safetensors file that `unetkit build --save` writes, weights in float32."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.safetensors")
        save(subject.model, path)
        return path.stat().st_size


def memory(subject: Subject) -> int:
    """Most bytes held in eval mode, weights and input included: CUDA's counters, or the process's high-water mark."""
    _no_compiler(subject)
    return subject.resident.peak(lambda: (subject.forward(), subject.forward()))


def training_memory(subject: Subject) -> int:
    """Most bytes held by training steps, gradients and AdamW's state included: measured as `memory` is."""
    _no_compiler(subject)
    step = training(subject)
    return subject.resident.peak(lambda: (step(), step()))


def _no_compiler(subject: Subject) -> None:
    if subject.mode.compiled and subject.device.type == "cpu":
        raise CannotPass("not measured: on a CPU the memory of the compiler itself would count")


def latency(subject: Subject) -> Callable[[], object]:
    """Seconds for one forward pass of the batch in eval mode, without gradients, input on the device."""
    subject.model.eval()
    _ = subject.x
    return subject.forward


def training(subject: Subject) -> Callable[[], object]:
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


def _labels(output: Tensor, subject: Subject) -> Tensor:
    """A class for each pixel of an output, (batch, H, W), drawn at random."""
    if output.dim() != 4:
        raise CannotPass(
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
