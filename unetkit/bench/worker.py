"""The functions that the processes of a benchmark run: build cases on meta tensors, or measure one beside the baseline.

`BenchRunner` starts a process for each call. They emit results as dicts with the keys "line", "macs", "activations",
"size", "device", "cpu_contention", "current_metric", and (field of a BenchRow, name of a metric) for each metric.
"""

from __future__ import annotations

import gc
import math
import os
import platform
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from random import Random
from time import perf_counter
from typing import Any

import torch

from unetkit.bench.builtin_metrics import BenchModel
from unetkit.bench.devices import CpuContention, Slot
from unetkit.bench.grid import Trial
from unetkit.bench.metrics import ANALYTIC_METRICS, describe_failure, to_number
from unetkit.bench.ray_engine import library_versions
from unetkit.bench.timing import time_pair
from unetkit.builder import build_plan
from unetkit.errors import InputSizeError
from unetkit.plugins import load_manager
from unetkit.registry import Metric, Parts
from unetkit.utils.formatting import format_bytes
from unetkit.utils.isolation import one_line
from unetkit.utils.modules import numbered_device
from unetkit.utils.oom import is_oom
from unetkit.utils.processes import Emit
from unetkit.utils.system import available_cores, cpu_name, free_memory, limit_memory, total_memory

#: Share of the free memory that a process may use, so that an allocation beyond it fails instead of the system ending
#: some other process.
_MEMORY_SHARE = 0.9


def dry_build(trials: Sequence[Trial], slot: Slot, emit: Emit) -> None:
    """Build cases on meta tensors, run their input through them, and emit for each its line, size and analytic metrics.

    Args:
        trials: the cases, at least one, of one benchmark.
        slot: not used.
        emit: called with the results of a case by its id; they are {"error": one line} if it cannot be built.
    """
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    parts = load_manager(trials[0].plugins).parts
    for trial in trials:
        try:
            facts = _dry_build(trial, parts)
        except Exception as error:  # parts may raise anything
            facts = {"error": one_line(error)}
        emit({trial.case.id: facts})


def _dry_build(trial: Trial, parts: Parts) -> dict[Any, Any]:
    if trial.case.plan.pretrained:
        build_plan(trial.case.plan, parts, "meta")  # fails if there are no such weights, and loads none
    bench_model = _make_bench_model(trial, torch.device("meta"), parts)
    trace = bench_model.trace
    size = trace.rows[0].height, trace.rows[0].width
    facts = {"line": trace.line, "macs": trace.macs, "activations": trace.activation_bytes, "size": size}
    analytic = [metric for metric in _requested_metrics(trial, parts) if metric.name in ANALYTIC_METRICS]
    return facts | {("values", metric.name): metric.load()(bench_model) for metric in analytic}


def measure(trial: Trial, slot: Slot, emit: Emit) -> None:
    """Measure a case, and emit each result as soon as it is known, so that none is lost if the process dies.

    Args:
        trial: the case.
        slot: device and cores to use.
        emit: called with the results.
    """
    device = prepare_process(slot, trial.timing_config.seed)
    contention = CpuContention(slot.cores)
    emit({"device": str(slot)})
    manager = load_manager(trial.plugins)
    for metric in _requested_metrics(trial, manager.parts):
        if metric.name not in ANALYTIC_METRICS:
            function = _measure_timing if metric.timed else _measure_value
            _emit_result(metric, partial(function, metric, trial, device, manager.parts), emit)
            gc.collect()
    emit({"cpu_contention": round(contention.fraction(), 3)})


def _measure_value(metric: Metric, trial: Trial, device: torch.device, parts: Parts) -> dict[str, Any]:
    """Measure a metric that is not timed, with a model of its own, which other metrics cannot have affected."""
    return {"values": _to_number(metric.load()(_make_bench_model(trial, device, parts)))}


def _measure_timing(metric: Metric, trial: Trial, device: torch.device, parts: Parts) -> dict[str, Any]:
    """Measure a timed metric with a new pair of models.

    The model that is built first is mostly a little slower, so which one that is is drawn at random for each row.
    """
    pair = [_make_bench_model(trial, device, parts), _make_bench_model(trial, device, parts, is_baseline=True)]
    calls: dict[int, Any] = {}
    for index in Random(f"{trial.case.id} {metric.name}").sample((0, 1), 2):  # noqa: S311 - no secret
        try:
            calls[index] = metric.load()(pair[index])
            calls[index]()
        except Exception as error:
            is_separate_baseline = index == 1 and pair[0].plan != pair[1].plan
            if not is_separate_baseline:
                raise
            raise InputSizeError(f"the baseline, {trial.baseline}, failed: {one_line(error)}") from error
    return {"timings": vars(time_pair(calls[0], calls[1], trial.timing_config, synchronize=pair[0].synchronize))}


def probe(trial: Trial, slot: Slot, emit: Emit) -> None:
    """Emit the MACs of a case, and the seconds for one call of each timed metric, by the metric's name.

    Args:
        trial: the case.
        slot: device and cores to use.
        emit: called with the results.
    """
    device = prepare_process(slot, trial.timing_config.seed)
    manager = load_manager(trial.plugins)
    bench_model = _make_bench_model(trial, device, manager.parts)
    emit({"macs": bench_model.trace.macs})
    for metric in _requested_metrics(trial, manager.parts):
        if metric.timed:
            call = metric.load()(bench_model)
            call()
            bench_model.synchronize()
            start = perf_counter()
            call()
            bench_model.synchronize()
            emit({metric.name: perf_counter() - start})


def _requested_metrics(trial: Trial, parts: Parts) -> list[Metric]:
    return [metric for metric in parts.metrics if metric.name in trial.metrics]


def _make_bench_model(trial: Trial, device: torch.device, parts: Parts, *, is_baseline: bool = False) -> BenchModel:
    case = trial.case
    size = trial.size if is_baseline else case.plan.size or trial.default_size
    plan = replace(trial.baseline if is_baseline else case.plan, size=size, pretrained=None)
    mode = trial.baseline_mode if is_baseline else case.mode
    return BenchModel(plan, case.batch_size, mode, device, parts, trial.timing_config.seed)


def prepare_process(slot: Slot, seed: int) -> torch.device:
    """Set up this process to measure in a slot: its cores, threads and device, and a limit on its memory.

    Args:
        slot: device and cores to use.
        seed: seed of torch's global random generator.

    Returns:
        The device of the slot.
    """
    warnings.simplefilter("ignore")
    torch.manual_seed(seed)
    if slot.cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, slot.cores)
    torch.set_num_threads(slot.threads)
    device = numbered_device(slot.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = True  # all inputs have one shape
    else:
        limit_memory(int(_MEMORY_SHARE * free_memory() / slot.num_slots))
    return device


def _emit_result(metric: Metric, function: Callable[[], dict[str, Any]], emit: Emit) -> None:
    """Emit the result of a metric, or why it failed, so that the other metrics are still measured."""
    emit({"current_metric": metric.name})
    try:
        result = function()
    except Exception as error:  # a model or the metric of a plugin may raise anything
        reason = "ran out of memory: " if is_oom(error) or isinstance(error, torch.OutOfMemoryError) else ""
        result = {"failures": f"{reason}{describe_failure(metric, error)}"}
    [(field, value)] = result.items()
    emit({(field, metric.name): value, "current_metric": ""})


def _to_number(value: Any) -> float:
    """Convert the result of a metric to a finite number; an int stays an int."""
    number = to_number(value)
    if not math.isfinite(number):
        raise InputSizeError(f"the metric returned {number}, which is not finite")
    return number


def describe_machine(task: None, slot: None, emit: Emit) -> None:
    """Emit a description of the machine, the versions, and the GPUs as (device, name) pairs.

    Args:
        task: not used.
        slot: not used.
        emit: called with the results.
    """
    gpus = [(f"cuda:{i}", torch.cuda.get_device_name(i)) for i in range(torch.cuda.device_count())]
    emit({"machine": _machine_info([name for _, name in gpus]), "versions": library_versions(), "gpus": gpus})


def _machine_info(gpus: list[str]) -> dict[str, Any]:
    return {
        "cpu": cpu_name(),
        "cores": len(available_cores()),
        "memory": format_bytes(total_memory()),
        "gpus": gpus,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "mkldnn": torch._C._has_mkldnn,
        "cuda": torch.version.cuda if gpus else None,
        "cudnn": _cudnn_version() if gpus else None,
        "tf32 in matmul": torch.backends.cuda.matmul.allow_tf32 if gpus else None,
        "tf32 in convolutions": torch.backends.cudnn.allow_tf32 if gpus else None,
    }


def _cudnn_version() -> int:
    version: int = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    return version
