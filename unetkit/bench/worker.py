"""What a child does: look at a case on meta tensors, or measure it beside the baseline."""

from __future__ import annotations

import gc
import math
import os
import platform
import warnings
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from random import Random
from time import perf_counter
from typing import Any

import torch

from unetkit.bench.builtin_metrics import BenchModel
from unetkit.bench.devices import CpuContention, Slot
from unetkit.bench.grid import Trial
from unetkit.bench.metrics import ANALYTIC, metrics_of
from unetkit.bench.ray_engine import versions
from unetkit.bench.timing import time_pair
from unetkit.errors import InputSizeError
from unetkit.plugins import load_manager
from unetkit.registry import Metric, Parts
from unetkit.utils.formatting import format_bytes
from unetkit.utils.isolation import one_line
from unetkit.utils.processes import Emit
from unetkit.utils.system import available_cores, cpu_name, free_memory, is_oom, limit_memory

#: Of the memory that is free as a trial begins: an allocation beyond it fails, and nothing else is ended for it.
_SHARE = 0.9


def dry_build(trial: Trial, slot: Slot, say: Emit) -> None:
    """Build a case on meta tensors and pass its input; say its line, its size and what follows from shapes alone."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    host = load_manager(trial.plugins)
    subject = _subject(trial, torch.device("meta"), host.parts)
    traced = subject.trace
    say({"line": traced.line, "macs": traced.macs, "size": (traced.rows[0].height, traced.rows[0].width)})
    for metric in _asked(trial, metrics_of(host)):
        if metric.name in ANALYTIC:
            say({("figures", metric.name): metric.load()(subject)})


def measure(trial: Trial, slot: Slot, say: Emit) -> None:
    """Measure a case. Every figure is said as soon as it is known, so that none is lost with the process."""
    device = prepare_process(slot, trial.rules.seed)
    others = CpuContention(slot.cores)
    say({"where": str(slot)})
    host = load_manager(trial.plugins)
    metrics = [metric for metric in _asked(trial, metrics_of(host)) if metric.name not in ANALYTIC]
    for metric in metrics:
        measured = _timed if metric.timed else _figure
        _tell(metric, partial(measured, metric, trial, device, host.parts), say)
        gc.collect()
    say({"others": round(others.share(), 3)})


def _figure(metric: Metric, trial: Trial, device: torch.device, parts: Parts) -> dict[str, Any]:
    """Of a network of its own, so that nothing which one metric leaves behind is in another's."""
    return {"figures": _number(metric.load()(_subject(trial, device, parts)))}


def _timed(metric: Metric, trial: Trial, device: torch.device, parts: Parts) -> dict[str, Any]:
    """Of a new pair. Which of the two is built first is drawn by the row: that one is mostly a little slower."""
    pair = [_subject(trial, device, parts), _subject(trial, device, parts, of_baseline=True)]
    calls: dict[int, Any] = {}
    for which in Random(f"{trial.case.id} {metric.name}").sample((0, 1), 2):  # noqa: S311
        try:
            calls[which] = metric.load()(pair[which])
            calls[which]()
        except Exception as error:
            of_baseline = which == 1 and trial.case.plan != pair[1].plan
            if not of_baseline:
                raise
            raise InputSizeError(f"the baseline, {trial.baseline}, fails here: {one_line(error)}") from error
    return {"timings": vars(time_pair(calls[0], calls[1], trial.rules, wait=pair[0].wait))}


def probe(trial: Trial, slot: Slot, say: Emit) -> None:
    """Say the MACs of a case, and seconds for one call of each timed metric, by the metric's name."""
    device = prepare_process(slot, trial.rules.seed)
    host = load_manager(trial.plugins)
    subject = _subject(trial, device, host.parts)
    say({"macs": subject.trace.macs})
    for metric in _asked(trial, metrics_of(host)):
        if metric.timed:
            call = metric.load()(subject)
            call()
            subject.wait()
            start = perf_counter()
            call()
            subject.wait()
            say({metric.name: perf_counter() - start})


def _asked(trial: Trial, metrics: Iterable[Metric]) -> list[Metric]:
    return [metric for metric in metrics if metric.name in trial.metrics]


def _subject(trial: Trial, device: torch.device, parts: Parts, *, of_baseline: bool = False) -> BenchModel:
    case = trial.case
    plan = replace(trial.baseline, size=trial.size) if of_baseline else case.plan
    mode = trial.baseline_mode if of_baseline else case.mode
    return BenchModel(plan, case.batch, mode, device, parts, trial.rules.seed)


def prepare_process(slot: Slot, seed: int) -> torch.device:
    """Make this process one that measures: on its own cores and device, with so many threads, and no more memory."""
    warnings.simplefilter("ignore")
    torch.manual_seed(seed)
    if slot.cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, slot.cores)
    torch.set_num_threads(slot.threads)
    device = torch.device(slot.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = True  # inputs have one shape
    else:
        limit_memory(int(_SHARE * free_memory() / slot.share))
    return device


def _tell(metric: Metric, measured: Any, say: Emit) -> None:
    """Say a metric's figure, or why there is none; the others go on."""
    say({"doing": metric.name})
    try:
        found = measured()
    except Exception as error:  # whatever a network or a plugin's metric raises is its answer
        why = "ran out of memory" if is_oom(error) or isinstance(error, torch.OutOfMemoryError) else ""
        found = {"failures": f"{why}: {one_line(error)}" if why else one_line(error)}
    [(what, value)] = found.items()
    say({(what, metric.name): value, "doing": ""})


def _number(value: Any) -> float:
    """A metric's answer, a whole number left whole."""
    number = int(value) if isinstance(value, int) else float(value)
    if not math.isfinite(number):
        raise InputSizeError(f"it gave {number}")
    return number


def survey(task: None, slot: None, say: Emit) -> None:
    """Say the machine, the versions, and the GPUs as (device, name)."""
    gpus = [(f"cuda:{i}", torch.cuda.get_device_name(i)) for i in range(torch.cuda.device_count())]
    say({"machine": _machine([name for _, name in gpus]), "versions": versions(), "gpus": gpus})


def _machine(gpus: list[str]) -> dict[str, Any]:
    held = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
    return {
        "cpu": cpu_name(),
        "cores": len(available_cores()),
        "memory": format_bytes(held),
        "gpus": gpus,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "mkldnn": torch._C._has_mkldnn,
        "cuda": torch.version.cuda if gpus else None,
        "cudnn": _cudnn() if gpus else None,
        "tf32 in matmul": torch.backends.cuda.matmul.allow_tf32 if gpus else None,
        "tf32 in convolutions": torch.backends.cudnn.allow_tf32 if gpus else None,
    }


def _cudnn() -> int:
    version: int = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    return version
