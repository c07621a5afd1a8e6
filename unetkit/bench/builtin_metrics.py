"""The built-in metrics, and the BenchModel that they and the metrics of plugins measure.

A metric is a function of a BenchModel. It returns a number or, if it is timed, a callable that is timed in rounds with
that of the baseline. The first sentence of its docstring is its description in tables, reports and the documentation,
and so names what is measured.
"""

from __future__ import annotations

import ctypes
import gc
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import import_module
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
from unetkit.summary.forward_hooks import collect_tensors, find_network, resolve_input_size
from unetkit.summary.report import Trace
from unetkit.summary.trace import trace
from unetkit.utils.formatting import Size, format_size
from unetkit.utils.modules import explain_norm_error, to_channels_last
from unetkit.utils.system import peak_private_memory, private_memory, reset_peak_memory


class PeakMemory:
    """A measurement of the peak memory, in excess of the memory that was in use when this was created.

    On a GPU, it reads CUDA's counters. On a CPU, it reads the private memory of the process from Linux's high-water
    mark, which excludes memory that is mapped from files, such as the code of libraries that a first pass loads. Freed
    memory is returned to the system first.

    Args:
        device: device whose memory is measured.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        _trim_heap()
        self._base = torch.cuda.memory_allocated(device) if device.type == "cuda" else private_memory()

    def measure(self, function: Callable[[], object]) -> int:
        """Call a function and return the peak memory meanwhile, in bytes.

        Args:
            function: what is measured; on a GPU it is called twice.

        Raises:
            BuildError: The device is a CPU, and the system does not report the peak memory; only Linux does.
        """
        if self.device.type == "cuda":
            return self._measure_on_gpu(function)
        _trim_heap()
        try:
            reset_peak_memory()
        except OSError as error:
            raise BuildError(f"the high-water mark of memory cannot be reset on this system: {error}") from error
        function()
        peak = peak_private_memory()
        if peak is None:
            raise BuildError("peak memory on a CPU is read from /proc/self/status, which this system does not have")
        return peak - self._base

    def _measure_on_gpu(self, function: Callable[[], object]) -> int:
        function()  # in the first call, cuDNN tries algorithms, some of which need more memory than any later call
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        function()
        torch.cuda.synchronize(self.device)
        return torch.cuda.max_memory_allocated(self.device) - self._base


def _trim_heap() -> None:
    """Return freed memory to the system."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError, TypeError):
        return  # not glibc; other C libraries keep less freed memory


@dataclass
class BenchModel:
    """A model under one condition, as metrics get it. The model and its input are created at the first access.

    Attributes:
        plan: plan of the model.
        batch_size: number of images in the input.
        mode: execution mode.
        device: device of the model and the input.
        parts: parts in which names are looked up.
        seed: seed of the weights and the input.
    """

    plan: Plan
    batch_size: int
    mode: Mode
    device: torch.device
    parts: Parts
    seed: int = 0

    def build(self, *, check: bool = True) -> nn.Module:
        """Build a new model on the device, in eval mode and in the memory format of the mode, but not compiled.

        Args:
            check: whether to pass meta tensors through it, as `unetkit.build` does.
        """
        plan = replace(self.plan, seed=self.seed, pretrained=None)
        model = build_plan(plan, self.parts, self.device, check=check).eval()
        return to_channels_last(model) if self.mode.channels_last else model

    @cached_property
    def peak_memory(self) -> PeakMemory:
        """The measurement of memory in excess of what the process used before the model was built.

        Access it before `model` and whatever builds that, such as `forward`.
        """
        if "model" in self.__dict__:
            raise BuildError("peak_memory must be accessed before the model, or it would leave out the model's weights")
        build_plan(self.plan, self.parts, "meta")  # imports the modules that a build needs, which would count otherwise
        return PeakMemory(self.device)

    @cached_property
    def model(self) -> nn.Module:
        """The model as `build` returns it; that it takes the input was found before it is measured."""
        return self.build(check=False)

    @cached_property
    def runnable(self) -> Callable[[Tensor], Any]:
        """The callable that runs the model in its mode: the model, compiled or not, or the engine it is exported to."""
        if self.mode.is_exported:
            return self._export()
        return torch.compile(self.model) if self.mode.execution == "compiled" else self.model

    def _export(self) -> Callable[[Tensor], Tensor]:
        """Export the model, which is checked, and return what runs it."""
        from unetkit.exporter.engines import open_exported
        from unetkit.exporter.export import export

        if self.device.type != "cpu":
            raise InputSizeError(f"{self.mode} runs on a CPU; add --device cpu")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "model.onnx")
            export(self.model, path, parts=self.parts)
            engine = open_exported(self.mode.execution, path, torch.get_num_threads())
        return lambda x: torch.from_numpy(engine.run(x.numpy()))

    @cached_property
    def x(self) -> Tensor:
        """The input, of shape (batch_size, in_channels, H, W), drawn from a standard normal distribution."""
        _ = self.model
        network = find_network(self.model)
        shape = (self.batch_size, network.resolved_plan.in_channels, *self.size)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(self.seed))
        return noise.to(self.device).contiguous(memory_format=self.memory_format)

    @property
    def size(self) -> Size:
        """The input size (height, width) in pixels: that of the plan, or else the model's own."""
        return resolve_input_size(find_network(self.model), self.plan.size)

    @property
    def memory_format(self) -> torch.memory_format:
        """The memory format of weights and input."""
        return torch.channels_last if self.mode.channels_last else torch.contiguous_format

    @cached_property
    def trace(self) -> Trace:
        """The shapes and costs of the model, level by level, computed on meta tensors.

        Raises:
            InputSizeError: A part reads values of tensors, so that there are only the costs of a smaller input.
        """
        meta_model = build_plan(self.plan, self.parts, "meta")
        traced = trace(meta_model, self.plan.size, batch=self.batch_size)
        size = resolve_input_size(find_network(meta_model), self.plan.size)
        if (traced.rows[0].height, traced.rows[0].width) != size:
            raise InputSizeError(f"the costs at {format_size(size)} are unknown: {traced.notes[0]}")
        return traced

    def forward(self) -> Tensor:
        """Run the model on the input under `torch.inference_mode` and the mode's autocast, and return the logits."""
        runnable, x = self.runnable, self.x  # tensors made in inference mode could not be used in training later
        with torch.inference_mode(), self.autocast():
            return cast(Tensor, runnable(x))

    def forward_with_grad(self) -> list[Tensor]:
        """Run the model on the input with gradients, without changing its training flag.

        Returns:
            All output tensors, the logits first.
        """
        with self.autocast():
            return collect_tensors(self.runnable(self.x))

    def autocast(self) -> AbstractContextManager[Any]:
        """Return a context in which operations use the dtype of the mode."""
        dtype = getattr(torch, self.mode.dtype)
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not torch.float32)

    def synchronize(self) -> None:
        """Wait until the device has finished all work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def parameters(bench_model: BenchModel) -> int:
    """Number of parameters of the model, counted on meta tensors."""
    return bench_model.trace.parameters


def macs(bench_model: BenchModel) -> int:
    """Multiply-accumulate operations of one forward pass of the batch, counted on meta tensors as half of the FLOPs of
    torch's FlopCounterMode, which leaves out resizing, norms and activations.
    """
    return bench_model.trace.macs


def activations(bench_model: BenchModel) -> int:
    """Bytes that autograd stores in float32 for the backward pass of the batch, without parameters, counted on meta
    tensors.
    """
    return bench_model.trace.activation_bytes


#: Number of builds that are timed, after a first one that imports modules.
_NUM_BUILDS = 3


def build(bench_model: BenchModel) -> float:
    """Seconds to build the model with random weights on its device, after all imports: the median of 3 builds."""
    seconds = []
    for _ in range(1 + _NUM_BUILDS):
        start = perf_counter()
        bench_model.build()
        bench_model.synchronize()
        seconds.append(perf_counter() - start)
        gc.collect()
    return median(seconds[1:])


def disk(bench_model: BenchModel) -> int:
    """Bytes of the safetensors file that `unetkit build --save` writes, with weights in float32."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.safetensors")
        save(bench_model.model, path)
        return path.stat().st_size


def memory(bench_model: BenchModel) -> int:
    """Peak memory of a forward pass in eval mode, in bytes, including weights and input, from CUDA's counters or the
    high-water mark of the process.
    """
    _refuse_memory(bench_model)
    return bench_model.peak_memory.measure(lambda: (bench_model.forward(), bench_model.forward()))


def training_memory(bench_model: BenchModel) -> int:
    """Peak memory of a training step, in bytes, including gradients and AdamW's state, measured like `memory`."""
    _refuse_memory(bench_model)
    import_module("torch._dynamo")  # before the measurement, or its tens of megabytes would be the model's
    peak_memory, step = bench_model.peak_memory, training(bench_model)
    return peak_memory.measure(lambda: (step(), step()))


def _refuse_memory(bench_model: BenchModel) -> None:
    if bench_model.mode.is_exported:
        raise InputSizeError("memory is not measured for exported models, since it would include the export")
    if bench_model.mode.execution == "compiled" and bench_model.device.type == "cpu":
        raise InputSizeError("memory is not measured for compiled models on a CPU, since it would include the compiler")


def latency(bench_model: BenchModel) -> Callable[[], object]:
    """Seconds for one forward pass of the batch in eval mode, without gradients, with the input on the device."""
    bench_model.model.eval()
    _ = bench_model.x
    return bench_model.forward


def training(bench_model: BenchModel) -> Callable[[], object]:
    """Seconds for one training step of the batch: forward pass, cross-entropy, backward pass and AdamW."""
    if bench_model.mode.is_exported:
        raise InputSizeError(f"training is not measured for exported models; {bench_model.mode} only runs them")
    bench_model.model.train()
    # A learning rate of 0 costs the same, and keeps weights from drifting to numbers that are slower to compute with.
    optimizer = torch.optim.AdamW(bench_model.model.parameters(), lr=0.0)
    scaler = torch.amp.GradScaler(bench_model.device.type, enabled=bench_model.mode.dtype == "float16")
    targets: list[Tensor] = []

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        try:
            outputs = bench_model.forward_with_grad()
        except ValueError as error:
            if why := explain_norm_error(error):
                raise InputSizeError(f"{why}; give a larger --batch-size or --size") from error
            raise
        if not targets:
            targets.extend(_random_labels(output, bench_model) for output in outputs)
        loss = sum((_loss(*pair) for pair in zip(outputs, targets, strict=True)), outputs[0].new_zeros(()))
        torch.autograd.backward(scaler.scale(loss))
        scaler.step(optimizer)
        scaler.update()

    return step


def _random_labels(output: Tensor, bench_model: BenchModel) -> Tensor:
    """Draw a class for each pixel of an output: (B, C, H, W) -> (B, H, W)."""
    if output.dim() != 4:
        raise InputSizeError(
            f"in training, the model returns a tensor of {output.dim()} dimensions, but the loss needs (B, C, H, W)"
        )
    generator = torch.Generator().manual_seed(bench_model.seed)
    shape, classes = (len(output), *output.shape[2:]), output.shape[1]
    return torch.randint(0, max(2, classes), shape, generator=generator).to(output.device)


def _loss(output: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy, which is binary if there is a single logit: (B, C, H, W), (B, H, W) -> ()."""
    if output.shape[1] == 1:
        return F.binary_cross_entropy_with_logits(output[:, 0].float(), labels.float())
    return F.cross_entropy(output, labels)
