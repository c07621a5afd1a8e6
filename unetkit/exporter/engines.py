"""Engines for the network of a training run: exported once into a folder of the run, checked, and opened.

An exported file is named after the weights and the versions that it depends on, so that a file which is there is right.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from platformdirs import user_cache_path
from torch import nn

from unetkit.errors import OptionError
from unetkit.exporter.export import export
from unetkit.predict.auto_engine import AutoEngine
from unetkit.predict.engines import AUTO, ENGINES, Engine, missing_packages
from unetkit.predict.model_info import ModelInfo
from unetkit.predict.onnx_engine import OnnxEngine, open_onnx
from unetkit.predict.openvino_engine import OpenVinoEngine, open_openvino
from unetkit.predict.torch_engine import TorchEngine
from unetkit.registry import Parts
from unetkit.train.checkpoint import TrainRun

#: The folder of a run in which exported files are kept.
CACHE = "exported"
#: The seconds that an export takes, about, and those that opening a file takes.
_EXPORT_SECONDS, _OPEN_SECONDS = 12.0, 1.0
#: The engines that are compared by "auto" on a CPU; compiling by torch takes longer than it saves there.
_COMPARED = ("onnxruntime", "openvino")


def open_engine(
    name: str,
    run: TrainRun,
    network: nn.Module,
    info: ModelInfo,
    *,
    weights: str = "best",
    parts: Parts | None = None,
    expected: int | None = None,
    on_notice: Callable[[str], object] = lambda line: None,
) -> Engine:
    """Open an engine for the network of a training run.

    Args:
        name: "torch", "compiled", "onnxruntime", "openvino", or "auto", which times those that are installed on the
            first tiles and uses the fastest.
        run: the run.
        network: its network in eval mode, on its device.
        info: what prediction must know of the network.
        weights: "best" or "last", as the network was loaded.
        parts: the registered parts; None for all that are installed.
        expected: the number of passes that will follow; None if it is unknown.
        on_notice: called with each line that a user should see.

    Raises:
        OptionError: There is no such engine, it is not installed, or it does not run on the network's device.
        ExportError: The network cannot be exported, or the exported file does not compute the same.
    """
    is_on_cpu = next(network.parameters()).device.type == "cpu"
    reference = TorchEngine(network, info)
    if name == AUTO:
        others = [other for other in _COMPARED if is_on_cpu and not missing_packages(other)]
        if not others:
            return reference
        path = _cached_path(run, weights)
        cost = _OPEN_SECONDS * len(others) + (0 if path.is_file() else _EXPORT_SECONDS)
        opened = {other: partial(_open, other, path, run, weights, parts, on_notice) for other in others}
        return AutoEngine(reference, "torch", opened, cost=cost, expected=expected, on_notice=on_notice)
    if name not in ENGINES:
        raise OptionError(f"--engine {name}: no engine is called so; give one of {', '.join((AUTO, *ENGINES))}")
    if absent := missing_packages(name):
        extra = "onnx" if name == "onnxruntime" else f"onnx,{name}"
        raise OptionError(f"--engine {name}: needs {' and '.join(absent)}; pip install 'unetkit[{extra}]'")
    if name == "torch":
        return reference
    if name == "compiled":
        return TorchEngine(network, info, is_compiled=True)
    if not is_on_cpu:
        raise OptionError(f"--engine {name}: runs on the CPU; add --device cpu, or use torch or compiled")
    return _open(name, _cached_path(run, weights), run, weights, parts, on_notice)


def _open(
    name: str,
    path: Path,
    run: TrainRun,
    weights: str,
    parts: Parts | None,
    on_notice: Callable[[str], object],
) -> Engine:
    """Open an engine of an exported file, which is written first if it is not there."""
    if not path.is_file():
        on_notice(f"exporting the network to {path}, once")
        for old in path.parent.glob(f"{weights}-*.onnx"):  # of weights that are no longer there
            old.unlink(missing_ok=True)
        export(run, path, weights=weights, parts=parts)
    return open_exported(name, path, torch.get_num_threads())


def open_exported(name: str, path: Path, threads: int) -> OnnxEngine | OpenVinoEngine:
    """Open an .onnx file that `export` wrote.

    Args:
        name: "onnxruntime" or "openvino".
        path: the file.
        threads: the number of threads.
    """
    info, engine = open_onnx(path, threads)
    return open_openvino(path, info, threads) if name == "openvino" else engine


def _cached_path(run: TrainRun, weights: str) -> Path:
    """Return the path of the exported file of a run's weights: in the run's folder, or else a temporary one."""
    digest = hashlib.sha256(run.weights_path(weights).read_bytes())
    for package in ("unetkit", "torch", "timm", "onnx", "onnxscript"):
        digest.update(version(package).encode())
    folder = run.folder / CACHE
    if not os.access(run.folder, os.W_OK):
        folder = user_cache_path("unetkit") / CACHE
    return folder / f"{weights}-{digest.hexdigest()[:16]}.onnx"
