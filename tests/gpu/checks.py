"""The checks that need a GPU, each a generator of facts that runs in a process of its own.

Networks and images are small: what is checked is where tensors lie, which numbers they have, and what is waited for.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import monotonic, perf_counter
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import unetkit
from tests.gpu.results import Fact
from tests.train.example_sets import squares
from unetkit import bench, train
from unetkit.bench.builtin_metrics import BenchModel, latency
from unetkit.bench.devices import Slot
from unetkit.bench.grid import Mode
from unetkit.bench.runner import BenchRows
from unetkit.bench.selftest import make_tasks, measure_tasks
from unetkit.bench.statistics import estimate_ratio
from unetkit.bench.timing import TimingConfig, time_pair
from unetkit.builder import build_plan
from unetkit.errors import InputSizeError, UnetkitError
from unetkit.plan import Plan
from unetkit.plugins import default_parts
from unetkit.predict.config import PredictConfig
from unetkit.predict.predictor import Predictor, plan_outputs
from unetkit.train.checkpoint import LAST, STATE, read_state
from unetkit.train.dataloader import Batch
from unetkit.train.step import autocast_type
from unetkit.train.trainer import TrainCallback
from unetkit.utils.isolation import one_line
from unetkit.utils.modules import numbered_device, to_channels_last
from unetkit.utils.processes import Emit
from unetkit.utils.system import available_cores, cpu_name, limit_memory

SMALL, TINY = "--encoder plain:widths=[16,32,64]", "--encoder plain:widths=[4,8]"
#: A network without the operations that have no deterministic implementation on a GPU: it has no pooling.
DETERMINISTIC = "--encoder test_convnext --up transposed"
_GIB = 1 << 30


@dataclass(frozen=True)
class CheckTask:
    """A check to run, and the device to run it on, as text."""

    name: str
    device: str


@dataclass(frozen=True)
class Check:
    """A check.

    Attributes:
        function: yields facts about a device; its folder is empty, and removed afterwards.
        needs_gpu: whether it cannot be rehearsed on a CPU.
        timeout: time limit, in seconds.
    """

    function: Callable[[torch.device, Path], Iterator[Fact]]
    needs_gpu: bool = False
    timeout: float = 90.0


def run_check(task: CheckTask, slot: None, emit: Emit) -> None:
    """Run one check in a child process, and emit each fact as soon as it is known.

    Args:
        task: the check.
        slot: not used.
        emit: called with ("fact", number) for each fact, and with "error" and "traceback" if the check failed.
    """
    device = numbered_device(task.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        with TemporaryDirectory(prefix="unetkit-gpu-") as folder:
            for number, fact in enumerate(CHECKS[task.name].function(device, Path(folder))):
                emit({("fact", number): vars(fact)})
    except Exception as error:
        emit({"error": one_line(error), "traceback": traceback.format_exc()})


def describe_device(device: str, slot: None, emit: Emit) -> None:
    """Emit the name of a device, the driver, and the versions of CUDA and cuDNN.

    Raises:
        UnetkitError: torch finds no GPU.
    """
    if not device.startswith("cuda"):
        torch.empty(0, device=device)
        emit({"device": f"{device} {cpu_name()}"})
        return
    if not torch.cuda.is_available():
        raise UnetkitError("torch finds no CUDA device; --device cpu rehearses the checks without one")
    found = torch.cuda.get_device_properties(numbered_device(device))
    memory = f"{found.total_memory / _GIB:.0f} GiB, compute capability {found.major}.{found.minor}"
    emit({"device": f"{device} {found.name} ({memory})", "driver": _driver_version()})
    emit({"CUDA": torch.version.cuda, "cuDNN": torch.backends.cudnn.version()})  # type: ignore[no-untyped-call]


def _driver_version() -> str:
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
        if found := re.search(r"Kernel Module\D*([\d.]+)", text):
            return found[1]
    except OSError:
        pass
    program = shutil.which("nvidia-smi")
    if program is None:
        return "unknown"
    words = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    lines = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False).stdout.split()
    return lines[0] if lines else "unknown"


class _StepRecorder(TrainCallback):
    """Records losses, loss scales and the weights of the head after each step, and may stop the run."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.stop_after = stop_after
        self.losses: list[float] = []
        self.scales: list[float] = []
        self.weights: list[Tensor] = []

    def on_train_begin(self, trainer: Any) -> None:
        self.trainer = trainer
        self._record()

    def on_step_end(self, done: int, loss: float) -> None:
        self.losses.append(loss)
        self._record()
        if len(self.losses) == self.stop_after:
            raise KeyboardInterrupt

    def _record(self) -> None:
        self.scales.append(self.trainer.stepper.scaler.get_scale())
        *_, last = self.trainer.stepper.network.parameters()
        self.weights.append(last.detach().clone())


def _train(line: str, folder: Path, device: torch.device, recorder: _StepRecorder | None = None, **options: Any) -> Any:
    settings = {"data": squares(32, 64), "batch_size": 8, "epochs": 3, "lr": 0.01, "preview_every": 0, **options}
    return train.run(line, folder, device=str(device), callback=recorder, **settings)


def _falls(losses: list[float]) -> Fact:
    met = all(map(math.isfinite, losses)) and losses[-1] < losses[0]
    return Fact(f"loss {losses[0]:.3g} at first, {losses[-1]:.3g} at last", "finite and falling", met)


def _equals(what: str, figure: object, expected: object) -> Fact:
    return Fact(f"{what} {figure}", str(expected), figure == expected)


def _at_most(what: str, figure: float, most: float) -> Fact:
    return Fact(f"{what} {figure:.2g}", f"at most {most:g}", figure <= most)


def _near(what: str, figure: float, expected: float, tolerance: float) -> Fact:
    return Fact(f"{what} {figure:.4g}", f"{expected:.4g} +- {tolerance:.0%}", abs(figure / expected - 1) <= tolerance)


def check_bfloat16(device: torch.device, folder: Path) -> Iterator[Fact]:
    """Train with bfloat16 and, on a GPU, in channels_last memory."""
    recorder = _StepRecorder()
    _train(SMALL, folder / "run", device, recorder, dtype="bfloat16")
    yield _falls(recorder.losses)
    stepper, batch = recorder.trainer.stepper, next(recorder.trainer.loader.epoch(0))
    images = batch.to(device, stepper._memory).images
    with torch.no_grad(), stepper.autocast():
        yield _equals("logits of type", stepper.network(images).dtype, torch.bfloat16)
    yield _equals("weights of types", {weight.dtype for weight in stepper.network.parameters()}, {torch.float32})
    yield _equals("weights on", {str(weight.device) for weight in stepper.network.parameters()}, {str(device)})
    if device.type == "cuda":
        weights = [weight for weight in stepper.network.parameters() if weight.ndim == 4]
        last = all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
        yield _equals("all weights of convolutions in channels_last", last, True)
        is_recent = torch.cuda.get_device_capability(device) >= (8, 0)
        yield _equals("--dtype auto is", autocast_type("auto", device), torch.bfloat16 if is_recent else torch.float16)


def check_float16(device: torch.device, folder: Path) -> Iterator[Fact]:
    """Train with float16 and a loss that is so large that its first gradients overflow."""
    line, size = (SMALL, 64) if device.type == "cuda" else (TINY, 16)  # float16 is slow on a CPU
    options: dict[str, Any] = {
        "dtype": "float16",
        "loss": "bce:share=1000.0",
        "data": squares(40, size),
        "epochs": 4,
    }
    recorder = _StepRecorder()
    _train(line, folder / "whole", device, recorder, **options)
    yield _equals("loss scale before and after the first step", recorder.scales[:2], [65536.0, 32768.0])
    yield _equals("step skipped", torch.equal(*recorder.weights[:2]), True)
    skipped = sum(after < before for before, after in pairwise(recorder.scales))
    steps = len(recorder.losses)
    yield Fact(f"{skipped} of {steps} steps skipped", "some, then none", 0 < skipped < steps - 2)
    yield _equals("loss scale after the last step", recorder.scales[-1], 65536.0 / 2**skipped)
    yield _equals("weights changed by the last step", torch.equal(*recorder.weights[-2:]), False)
    yield _falls(recorder.losses)
    with suppress(KeyboardInterrupt):
        _train(line, folder / "cut", device, _StepRecorder(stop_after=2), save_every=0.0, **options)
    yield _equals(
        "loss scale in the saved state", read_state(folder / "cut" / STATE).scaler["scale"], recorder.scales[1]
    )
    resumed = _StepRecorder()
    train.resume(folder / "cut", data=options["data"], device=str(device), callback=resumed)
    yield _equals("loss scales after resuming as without interruption", resumed.scales == recorder.scales[1:], True)


def check_channels_last(device: torch.device, folder: Path) -> Iterator[Fact]:
    """Compare outputs and gradients in channels_last memory with those in contiguous memory, without TF32."""
    torch.backends.cudnn.allow_tf32 = False
    for line in (SMALL, "--encoder test_resnet", "--encoder lambda_resnet26t --up nearest"):
        x = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(0)).to(device)
        found = []
        for memory in (torch.contiguous_format, torch.channels_last):
            model: nn.Module = (
                build_plan(Plan.parse(f"{line} --classes 2 --seed 0"), default_parts(), "cpu").to(device).train()
            )
            model = to_channels_last(model) if memory is torch.channels_last else model
            out = model(x.contiguous(memory_format=memory))
            out.square().mean().backward()
            first = next(weight.grad for weight in model.parameters() if weight.grad is not None)
            found.append((out.detach(), first))
        for what, one, other in zip(("output", "gradient"), *found, strict=True):
            difference = float((one - other).norm() / one.norm())
            most = 1e-3 if what == "output" else 0.02  # a gradient of many layers is less well conditioned
            yield _at_most(f"{line.split()[1]}: relative difference of the {what}", difference, most)


def check_resume(device: torch.device, folder: Path) -> Iterator[Fact]:
    """Stop runs in the middle of an epoch, resume them, and compare every bit with uninterrupted runs."""
    torch.use_deterministic_algorithms(True)
    for dtype in ("float32", "bfloat16", "float16") if device.type == "cuda" else ("float32", "bfloat16"):
        options: dict[str, Any] = {"dtype": dtype, "epochs": 2, "crop": (64, 64)}
        whole, cut = folder / f"{dtype}-whole", folder / f"{dtype}-cut"
        _train(DETERMINISTIC, whole, device, **options)
        with suppress(KeyboardInterrupt):
            _train(DETERMINISTIC, cut, device, _StepRecorder(stop_after=3), save_every=0.0, **options)
        steps = read_state(cut / STATE).steps_done
        train.resume(cut, data=squares(32, 64), device=str(device))
        one, other = (read_state(path / STATE) for path in (whole, cut))
        differing = [name for name in one.model if not torch.equal(one.model[name], other.model[name])]
        figure = f"{dtype}: {len(differing)} of {len(one.model)} tensors differ after an interruption at step {steps}"
        yield Fact(figure, "0, at step 2", not differing and steps == 2 and one.model.keys() == other.model.keys())
        moments = [
            torch.equal(state[name], other.optimizer["state"][number][name])
            for number, state in one.optimizer["state"].items()
            for name in state
        ]
        yield _equals(f"{dtype}: optimizer equal", bool(moments) and all(moments), True)
        saved = [unetkit.load(path / LAST).state_dict() for path in (whole, cut)]
        yield _equals(f"{dtype}: {LAST} equal", all(map(torch.equal, *(each.values() for each in saved))), True)


def check_workers(device: torch.device, folder: Path) -> Iterator[Fact]:
    """Load data with the default number of processes into pinned memory, and compare with loading without them."""
    is_gpu = device.type == "cuda"
    recorders = {"default": _StepRecorder(), "none": _StepRecorder()}
    options: dict[str, Any] = {"loss": "border+dice", "epochs": 1}
    _train(SMALL, folder / "default", device, recorders["default"], workers=None if is_gpu else 2, **options)
    _train(SMALL, folder / "none", device, recorders["none"], workers=0, **options)
    trainer = recorders["default"].trainer
    expected = min(8, torch.get_num_threads()) if is_gpu else 2
    why = f" ({trainer.fewer_workers})" if trainer.fewer_workers else ""
    yield _equals(f"data loading processes{why}:", trainer.loader.workers, expected)
    pairs = [*zip(trainer.loader.epoch(0), recorders["none"].trainer.loader.epoch(0), strict=True)]
    batches = [batch for pair in pairs for batch in pair]
    yield _equals("batches of type", {type(batch).__name__ for batch in batches}, {Batch.__name__})
    pinned = {tensor.is_pinned() for batch in batches for tensor in batch[1:] if tensor is not None}
    yield _equals("tensors pinned", pinned, {is_gpu})
    differing = sum(one.names != other.names or not all(map(torch.equal, one[1:], other[1:])) for one, other in pairs)
    yield _equals("batches that differ from those without processes:", differing, 0)
    yield _falls(recorders["default"].losses)


def check_predict(device: torch.device, folder: Path) -> Iterator[Fact]:
    """Predict an image by tiles, in batches and one by one, and on the CPU."""
    run = _train(SMALL, folder / "run", device, epochs=4)
    draw = np.random.default_rng(0)
    picture = draw.normal(0.2, 0.05, (200, 300))
    picture[40:90, 60:140] += 0.5
    picture[120:180, 200:280] += 0.5
    Image.fromarray((picture.clip(0, 1) * 255).astype(np.uint8)).save(folder / "image.png")
    found: dict[tuple[str, int, bool], tuple[Any, Any]] = {}
    for where, batch_size, tf32 in ((device, 1, True), (device, 5, True), (device, 1, False), (device, 5, False)):
        torch.backends.cudnn.allow_tf32 = tf32
        found[str(where), batch_size, tf32] = _predict(run, where, batch_size, folder)
    cpu = _predict(run, torch.device("cpu"), 1, folder)
    for tf32, most in ((True, 0.02), (False, 1e-4)):
        one, other = (found[str(device), size, tf32] for size in (1, 5))
        words = f"{'with' if tf32 else 'without'} TF32, batches of 5 and 1:"
        yield _at_most(f"{words} difference of probabilities", float(abs(one[0] - other[0]).max()), most)
        yield _at_most(f"{words} share of pixels of another class", float((one[1] != other[1]).mean()), 1e-3)
    alone = found[str(device), 1, False]
    yield _at_most(f"{device} and CPU: difference of probabilities", float(abs(alone[0] - cpu[0]).max()), 1e-3)
    yield _equals("classes that occur:", sorted({*cpu[1].ravel().tolist()}), [0, 1])


def _predict(run: Any, device: torch.device, batch_size: int, folder: Path) -> tuple[Any, Any]:
    """Return the probabilities and the mask of the image."""
    import tifffile

    with TemporaryDirectory(dir=folder) as out:
        config = PredictConfig(tile=(64, 64), batch_size=batch_size, probabilities=True)
        predictor = Predictor(run, run.network(device), config)
        [job] = plan_outputs([folder / "image.png"], Path(out), run.target, config)
        predictor.predict(job)
        return tifffile.imread(str(job.probabilities)), np.asarray(Image.open(job.masks[0]))


def check_out_of_memory(device: torch.device, folder: Path) -> Iterator[Fact]:
    """Train and predict with too little memory, and then with less work in the same process."""
    options: dict[str, Any] = {"data": squares(4, 384), "epochs": 1, "crop": (384, 384)}
    run = _train(SMALL, folder / "run", device, batch_size=1, **options)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(_GIB / torch.cuda.get_device_properties(device).total_memory, device)
    else:
        limit_memory(_GIB // 2)
    yield _refusal("train", lambda: _train(SMALL, folder / "large", device, batch_size=32, **options), "--batch-size")
    network = run.network(device)
    Image.fromarray(np.zeros((1536, 1536), np.uint8)).save(folder / "image.png")
    [job] = plan_outputs([folder / "image.png"], folder / "out", run.target)
    large = Predictor(run, network, PredictConfig(tile=(384, 384), overlap=0, batch_size=25))
    yield _refusal("predict", lambda: large.predict(job), "--batch-size", InputSizeError)
    _train(SMALL, folder / "small", device, batch_size=1, **options)
    Predictor(run, network, PredictConfig(tile=(384, 384), batch_size=1)).predict(job)
    written = (folder / "small" / LAST).exists() and job.masks[0].exists()
    yield _equals("smaller batches afterwards succeed:", written, True)


def _refusal(what: str, call: Callable[[], object], word: str, error_type: type[UnetkitError] = UnetkitError) -> Fact:
    expected = f"one line with {word}"
    try:
        call()
    except error_type as error:
        message = str(error)
        met = "not enough memory" in message and word in message and "\n" not in message
        return Fact(f"{what}: {message}", expected, met)
    return Fact(f"{what}: no error", expected, is_met=False)


#: Data of the trainings of a benchmark: few small images, which are quick to make.
_CELLS = "cells:count=16,val=4,test=4,size=64"


def _bench_training(device: torch.device, **options: Any) -> BenchRows:
    settings: dict[str, Any] = {"steps": 12, "epochs": 2, "metrics": ("parameters", "miou"), **options}
    return bench.run([SMALL], size=64, batch_size=4, data=_CELLS, device=str(device), **settings)


def _check_trainings(rows: BenchRows, device: torch.device, expected: int) -> Iterator[Fact]:
    records = rows.run.trainings
    errors = [record.error for record in records if record.error]
    yield Fact(f"{len(records)} trainings, {'; '.join(errors) or 'no errors'}", f"{expected}, no errors", not errors)
    scores = [record.values.get("miou", math.nan) for record in records]
    met = len(scores) == expected and all(map(math.isfinite, scores))
    yield Fact(f"miou {', '.join(f'{score:.3f}' for score in scores)}", f"{expected} finite", met)
    devices = {record.device.split(",")[0].split(" ")[0] for record in records}
    yield _equals("trained on", devices, {str(device)})
    least = min((record.memory for record in records), default=0)
    yield Fact(f"peak memory {least / 2**20:.0f} MiB", "above 0", least > 0)


def check_bench_training(device: torch.device, folder: Path) -> Iterator[Fact]:
    """Train a row of a benchmark with the default number of data loading processes."""
    yield from _check_trainings(_bench_training(device, seeds=1), device, 1)


def check_shared_gpu(device: torch.device, folder: Path) -> Iterator[Fact]:
    """Train a row with two seeds at the same time on one device."""
    start = monotonic()
    rows = _bench_training(device, seeds=2, jobs=2, workers=1)
    elapsed = monotonic() - start
    yield from _check_trainings(rows, device, 2)
    spent = sum(record.seconds for record in rows.run.trainings)
    yield Fact(f"trainings of {spent:.1f} s together, within {elapsed:.1f} s", "above 0", spent > 0)


def check_delay(device: torch.device, folder: Path) -> Iterator[Fact]:
    """Time a known delay on the device, and compare with CUDA events."""
    cycles = round(5e-3 / _sleep_seconds(10_000_000, device) * 10_000_000)
    expected = _sleep_seconds(cycles, device)

    def synchronize() -> None:
        torch.cuda.synchronize(device)

    def delay(factor: int) -> Callable[[], None]:
        return lambda: torch.cuda._sleep(factor * cycles)  # type: ignore[no-untyped-call]

    synchronize()
    start = perf_counter()
    delay(1)()
    yield _at_most("seconds until a call returns without synchronization", perf_counter() - start, expected / 2)
    timing = time_pair(delay(2), delay(1), TimingConfig(budget=4), synchronize=synchronize)
    yield _near("ratio of two delays to one", estimate_ratio(timing).ratio, 2, 0.03)
    yield _near("milliseconds of a delay, by events and by rounds", 1e3 * median(timing.baseline), 1e3 * expected, 0.05)
    plan = Plan.parse(f"{SMALL} --size 64")
    slow, fast = (BenchModel(plan, 1, Mode(), device, default_parts()) for _ in range(2))
    slow.model.register_forward_hook(lambda *_: delay(1)())
    timing = time_pair(latency(slow), latency(fast), TimingConfig(budget=4), synchronize=slow.synchronize)
    found = median(timing.candidate) - median(timing.baseline)
    yield _near("milliseconds of a delay in a network, by the metric latency", 1e3 * found, 1e3 * expected, 0.1)


def _sleep_seconds(cycles: int, device: torch.device) -> float:
    """Return how long a delay takes by CUDA events, as the median of several, after the clock has risen."""
    return median([_event_seconds(lambda: torch.cuda._sleep(cycles), device) for _ in range(25)][5:])  # type: ignore[no-untyped-call]


def _event_seconds(call: Callable[[], object], device: torch.device) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize(device)
    start.record()
    call()
    end.record()
    torch.cuda.synchronize(device)
    return float(start.elapsed_time(end)) / 1e3


def check_selftest(device: torch.device, folder: Path) -> Iterator[Fact]:
    """Time a network against itself with 0%, 5% and 20% more work, as `unetkit bench selftest` does."""
    is_gpu = device.type == "cuda"
    plan = Plan.parse("--encoder resnet18 --size 128" if is_gpu else f"{SMALL} --size 64")
    cores = available_cores()
    slot = Slot(str(device), cores, min(8, len(cores)))
    tasks = make_tasks(plan, TimingConfig(budget=5), runs=1)
    for result in measure_tasks(tasks, slot, lambda line: None):
        estimate = estimate_ratio(result.timing)
        figure = f"ratio {estimate.ratio:.3f} from {estimate.rounds} rounds"
        off = abs(estimate.ratio / result.true_ratio - 1)
        yield Fact(
            figure, f"{result.true_ratio:.2f} +- {0.04 if is_gpu else 0.15:.0%}", off < (0.04 if is_gpu else 0.15)
        )


def check_latency(device: torch.device, folder: Path) -> Iterator[Fact]:
    """Measure a row in each mode, eager and compiled, and compare the latency with CUDA events."""
    is_gpu = device.type == "cuda"
    line, size, batch_size = "--encoder resnet18", 256, 8
    modes: tuple[str, ...] = ("eager", "eager+channels_last+bfloat16", "eager+float16", "compiled")
    if not is_gpu:
        line, size, batch_size, modes = SMALL, 64, 1, ("eager", "eager+channels_last+bfloat16", "compiled")
    metrics = ("parameters", "latency", "training", "memory", "training-memory") if is_gpu else ("latency", "training")
    rows = bench.run(
        [line],
        size=size,
        batch_size=batch_size,
        mode=modes,
        metrics=metrics,
        device=str(device),
        budget=3.0,
        timeout=200.0,
    )
    for row in rows:
        times = ", ".join(f"{name} {1e3 * median(timing.candidate):.3g} ms" for name, timing in row.timings.items())
        problems = "; ".join(filter(None, (row.error, *row.failures.values())))
        met = not problems and {*row.timings} == {"latency", "training"} and row.device.startswith(str(device))
        memory = "".join(f", {name} {row.values[name] / 2**20:.0f} MiB" for name in metrics if "memory" in name)
        yield Fact(f"{row.mode}: {problems or times + memory}", "measured", met)
        if "memory" in row.values:
            more = row.values["training-memory"] > row.values["memory"] > 4 * row.values["parameters"]
            yield _equals(
                f"{row.mode}: training needs more memory than a pass, and that more than the weights", more, True
            )
    if is_gpu and "latency" in rows[0].timings:
        torch.backends.cudnn.benchmark = True
        model = BenchModel(Plan.parse(f"{line} --size {size}"), batch_size, Mode(), device, default_parts())
        call = latency(model)
        events = 1e3 * median([_event_seconds(call, device) for _ in range(60)][20:])
        yield _near("eager latency in ms, by events:", 1e3 * median(rows[0].timings["latency"].candidate), events, 0.2)


#: All checks, those first that matter most if time is short.
CHECKS = {
    "delay": Check(check_delay, needs_gpu=True),
    "bfloat16": Check(check_bfloat16),
    "float16": Check(check_float16),
    "resume": Check(check_resume),
    "workers": Check(check_workers),
    "predict": Check(check_predict),
    "out-of-memory": Check(check_out_of_memory),
    "bench-training": Check(check_bench_training, timeout=150.0),
    "shared-gpu": Check(check_shared_gpu, timeout=150.0),
    "channels-last": Check(check_channels_last),
    "latency": Check(check_latency, timeout=200.0),
    "selftest": Check(check_selftest, timeout=150.0),
}
# cuBLAS reads this when a process first uses it; without it, deterministic algorithms raise an error.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
