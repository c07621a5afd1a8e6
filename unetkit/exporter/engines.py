"""Engines for the network of a training run: exported once into a folder of the run, checked, and opened.

An exported file is named after all that it depends on, so that a file which is there is the right one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from platformdirs import user_cache_path
from torch import nn

from unetkit.errors import OptionError, UnetkitError
from unetkit.exporter.export import export
from unetkit.predict.auto_engine import AutoEngine, ComparedEngine
from unetkit.predict.engines import AUTO, ENGINES, Engine, missing_packages
from unetkit.predict.model_info import ModelInfo
from unetkit.predict.onnx_engine import OnnxEngine, open_onnx
from unetkit.predict.openvino_engine import OpenVinoEngine, open_openvino
from unetkit.predict.torch_engine import TorchEngine
from unetkit.registry import Parts
from unetkit.train.checkpoint import TrainRun
from unetkit.utils.file_digest import is_intact
from unetkit.utils.files import atomic_write
from unetkit.utils.system import code_digest

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
        cached = _CachedExport(run, weights, parts, on_notice)
        if cached.failure.is_file():  # an earlier attempt took its time, and would end in the same way
            return reference
        cost = _OPEN_SECONDS * len(others) + (0 if cached.path.is_file() else _EXPORT_SECONDS)
        opened = {other: partial(cached.open, other) for other in others}
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
    return ComparedEngine(_CachedExport(run, weights, parts, on_notice).open(name), name, reference)


class _CachedExport:
    """The exported file of a run's weights, in the run's folder, or else in the user's cache.

    Its name is a digest of all that the export depends on: weights, plan, plugins, unetkit's own code and the versions
    of libraries. An export that failed leaves a file with the reason, so that it is not tried again.

    Attributes:
        path: the file.
        failure: the file with the reason of a failure.
    """

    def __init__(self, run: TrainRun, weights: str, parts: Parts | None, on_notice: Callable[[str], object]) -> None:
        self._run, self._weights, self._parts, self._on_notice = run, weights, parts, on_notice
        self._error: UnetkitError | None = None
        facts = [
            hashlib.sha256(run.weights_path(weights).read_bytes()).hexdigest(),
            str(run.plan),
            code_digest("exporter"),
            *(f"{package} {version(package)}" for package in ("torch", "timm", "onnx", "onnxscript", "onnxruntime")),
            *(" ".join(owner) for owner in run.owners.items()),
            *(hashlib.sha256(Path(one).read_bytes()).hexdigest() for one in run.plugins if Path(one).is_file()),
        ]
        name = f"{weights}-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]}"
        folder = run.folder / CACHE
        if not os.access(run.folder, os.W_OK):
            own = hashlib.sha256(str(run.folder.resolve()).encode()).hexdigest()[:16]
            folder = user_cache_path("unetkit") / CACHE / own
        self.path, self.failure = folder / f"{name}.onnx", folder / f"{name}.txt"

    def open(self, name: str) -> Engine:
        """Open the file by an engine; it is written first if it is not there, or is damaged.

        Raises:
            UnetkitError: The network cannot be exported.
        """
        if self._error is not None:
            raise self._error
        if not self.path.is_file() or not is_intact([self.path]):
            self._write()
        return open_exported(name, self.path, torch.get_num_threads())

    def _write(self) -> None:
        self._on_notice(f"exporting the network to {self.path}, once")
        try:
            export(self._run, self.path, weights=self._weights, parts=self._parts)
        except UnetkitError as error:
            self._error = error
            with atomic_write(self.failure) as temporary:
                temporary.write_text(f"{error}\n", encoding="utf-8")
            raise
        for old in self.path.parent.glob(f"{self._weights}-*"):  # of weights or versions that are gone
            if old.stem != self.path.stem:
                old.unlink(missing_ok=True)


def open_exported(name: str, path: Path, threads: int) -> OnnxEngine | OpenVinoEngine:
    """Open an .onnx file that `export` wrote.

    Args:
        name: "onnxruntime" or "openvino".
        path: the file.
        threads: the number of threads.
    """
    info, engine = open_onnx(path, threads)
    return open_openvino(path, info, threads) if name == "openvino" else engine
