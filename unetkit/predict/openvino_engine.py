"""Prediction with an exported network in OpenVINO, without torch.

Shapes: B batch, C channels, L classes or labels, H and W height and width.
"""

from __future__ import annotations

from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from unetkit.errors import FileError, InputSizeError
from unetkit.predict.model_info import ModelInfo
from unetkit.utils.formatting import Size, format_size
from unetkit.utils.isolation import one_line
from unetkit.utils.oom import is_oom


class OpenVinoEngine:
    """A network in OpenVINO, on the CPU.

    Args:
        compiled: OpenVINO's compiled model, which takes images (B, C, H, W).
        info: what prediction must know of the network.
    """

    def __init__(self, compiled: Any, info: ModelInfo) -> None:
        self._compiled, self._info = compiled, info

    def __call__(self, tiles: np.ndarray, /) -> np.ndarray:
        return self._info.to_probabilities(self.run(tiles))

    def run(self, tiles: np.ndarray) -> np.ndarray:
        """Compute the output of the file, (B, K, H', W') float32, of normalized tiles (B, C, H, W), float32."""
        try:
            output = self._compiled(np.asarray(tiles, np.float32))[0]
        except RuntimeError as error:  # OpenVINO's exceptions are no other type in Python
            size = format_size((tiles.shape[-2], tiles.shape[-1]))
            if is_oom(error):
                raise InputSizeError(
                    f"not enough memory for a pass of {len(tiles)} of {size}; give a smaller --tile or --batch-size"
                ) from error
            raise FileError(f"{self._info.source} fails on {size} in OpenVINO: {one_line(error)}") from error
        return np.array(output, np.float32)  # the output's memory is used again

    def explain_if_too_large(self, size: Size) -> str:
        return ""


def open_openvino(path: Path, info: ModelInfo, threads: int | None = None) -> OpenVinoEngine:
    """Open an exported .onnx or .xml file by OpenVINO on the CPU, in float32.

    Args:
        path: the file.
        info: what prediction must know of the network.
        threads: the number of threads; None lets OpenVINO decide.

    Raises:
        FileError: OpenVINO is missing, or cannot read the file.
    """
    return OpenVinoEngine(compile_file(path, threads), info)


def compile_file(path: Path, threads: int | None = None) -> Any:
    """Compile an .onnx or .xml file by OpenVINO for the CPU, in float32.

    Args:
        path: the file.
        threads: the number of threads; None lets OpenVINO decide.

    Raises:
        FileError: OpenVINO is missing, or cannot read the file.
    """
    try:
        core = openvino_core()
    except ImportError as error:
        raise FileError(f"{path}: needs the package openvino; pip install 'unetkit[openvino]'") from error
    # Some processors would compute in bfloat16 otherwise, which decides other pixels.
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    try:
        return core.compile_model(core.read_model(path), "CPU", settings)
    except RuntimeError as error:
        raise FileError(f"{path} cannot be opened by OpenVINO: {one_line(error)}; export the network again") from error


def openvino_core() -> Any:
    """Return the `openvino.Core` of this process, which is created at the first call and kept.

    On processors with AMX, each Core that has compiled a model gives the thread a stack for signals, and takes it away
    when it is destroyed. Of two, the one that ends first leaves the thread with memory that is gone, and the next
    signal, be it an interrupt or the end of a child process, ends this process without a word (OpenVINO 2026.4).

    Raises:
        ImportError: openvino is not installed.
    """
    import openvino

    with _LOCK:
        if not _CORES:
            _CORES.append(openvino.Core())
        return _CORES[0]


#: The core of this process, if it was created, and what is held meanwhile: two threads would create two.
_CORES: list[Any] = []
_LOCK = Lock()
