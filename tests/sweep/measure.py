"""All checks of one model, which run in a child process."""

from __future__ import annotations

import gc
import warnings
from itertools import chain
from time import perf_counter
from typing import Any

import timm
import torch
from torch import nn

from tests.sweep.checks import CheckSizes
from tests.sweep.config import CHECKS, SweepConfig
from tests.sweep.libraries import LIBRARIES, Library
from tests.sweep.peak_memory import PeakMemoryMode
from unetkit.utils.formatting import format_bytes, format_count
from unetkit.utils.isolation import one_line
from unetkit.utils.oom import is_oom
from unetkit.utils.processes import Emit
from unetkit.utils.system import limit_memory

#: Memory in addition to that of tensors: copies that kernels make in their own layout, and fragmentation of the heap.
_KERNEL_BYTES, _HEAP_FACTOR = 128 << 20, 1.25
#: Largest number of characters of an error.
_MAX_ERROR_LENGTH = 240


def measure_model(name: str, config: SweepConfig, emit: Emit) -> None:
    """Run all checks of a model, on real tensors if these fit into memory, and otherwise on meta tensors.

    Args:
        name: name of a timm model.
        config: configuration of the sweep.
        emit: called with every fact as soon as it is known, so that facts survive if the process is killed.
    """
    torch.set_num_threads(1)
    torch.manual_seed(config.seed)
    warnings.simplefilter("ignore")
    limit_memory(config.memory_per_job)
    library, sizes = LIBRARIES[config.library], CheckSizes.for_model(name)
    emit({"family": timm.model_entrypoint(name).__module__.rsplit(".", 1)[-1], "size": sizes.own})
    meta_model = _build_meta_model(name, library, emit)
    if meta_model is None:
        return
    required, results = _estimate_memory(meta_model, sizes)
    parameters = sum(p.numel() for p in meta_model.parameters())
    emit({"parameters": parameters, "required_memory": required})
    reason = _find_meta_reason(required, parameters, config)
    if not reason and not _check_real_model(name, library, sizes, emit):
        gc.collect()
        emit({"required_memory": max(required, config.memory_per_job + 1)})
        reason = f"ran out of memory at {format_bytes(config.memory_per_job)}"
    if reason:
        results |= {check: _run_check(check, meta_model, sizes, "meta") for check in CHECKS if check not in results}
        emit({"real": False, "meta_reason": reason, **results})


def format_error(error: BaseException) -> str:
    """Format an error as one line of at most 240 characters.

    Args:
        error: any error.
    """
    text = one_line(error)
    return text if len(text) <= _MAX_ERROR_LENGTH else f"{text[: _MAX_ERROR_LENGTH - 4]} ..."


def _build_meta_model(name: str, library: Library, emit: Emit) -> Any:
    """Build the network on the meta device and measure how long that takes; return None if it fails."""
    start = perf_counter()
    try:
        meta_model = library.build(name, "meta")
    except Exception as error:  # libraries raise any type of error
        emit({"built": format_error(error), "real": False, **dict.fromkeys(CHECKS, "not built")})
        return None
    strides, channels = library.describe_encoder(meta_model)
    emit({"built": "ok", "seconds": round(perf_counter() - start, 3), "strides": strides, "channels": channels})
    return meta_model


def _estimate_memory(meta_model: nn.Module, sizes: CheckSizes) -> tuple[int, dict[str, str]]:
    """Return the bytes that the checks need at most, and the results of the two checks that determine them, on meta."""
    tensors = [*chain(meta_model.parameters(), meta_model.buffers())]
    with PeakMemoryMode(tensors) as mode:
        results = {check: _run_check(check, meta_model, sizes, "meta") for check in ("own", "backward")}
    weight_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return _KERNEL_BYTES + int(_HEAP_FACTOR * (weight_bytes + mode.peak_bytes)), results


def _find_meta_reason(required: int, parameters: int, config: SweepConfig) -> str:
    """Return why a model is checked only on meta tensors; "" if it is not."""
    if parameters > config.real_up_to:
        return f"has {format_count(parameters)} parameters, which is more than {format_count(config.real_up_to)}"
    available = config.memory_per_job
    return f"needs {format_bytes(required)} of {format_bytes(available)}" if required > available else ""


def _check_real_model(name: str, library: Library, sizes: CheckSizes, emit: Emit) -> bool:
    """Run all checks on real tensors; return whether the memory was sufficient."""
    emit({"real": True})
    try:
        model = library.build(name, "cpu")
        for check in CHECKS:
            emit({check: _run_check(check, model, sizes, "cpu")})
    except Exception as error:  # libraries raise any type of error
        if is_oom(error):
            return False
        emit({"built": f"on real tensors: {format_error(error)}", **dict.fromkeys(CHECKS, "not built")})
    return True


def _run_check(check: str, model: nn.Module, sizes: CheckSizes, device: str) -> str:
    """Run a check and return its result: "ok", or the error."""
    try:
        with torch.device(device):  # for tensors that the model creates in its forward pass
            sizes.run_check(check, model)
    except Exception as error:  # libraries raise any type of error
        if is_oom(error):
            raise
        return format_error(error)
    return "ok"
