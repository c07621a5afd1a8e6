"""Prediction with an exported network in ONNX Runtime, without torch.

Shapes: B batch, C channels, K outputs of the network, L classes or labels, H and W height and width.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from unetkit.errors import FileError, InputSizeError
from unetkit.predict.engines import explain_memory
from unetkit.predict.model_info import ModelInfo
from unetkit.utils.file_digest import is_intact
from unetkit.utils.formatting import Size, format_size
from unetkit.utils.oom import is_oom
from unetkit.utils.system import free_memory

#: ONNX Runtime's number for messages that end the process; others also become exceptions, or are of no use to a user.
_FATAL = 4


class OnnxEngine:
    """A network in ONNX Runtime, on the CPU.

    Args:
        session: ONNX Runtime's session.
        info: what prediction must know of the network.

    Raises:
        FileError: The inputs and outputs of the graph are not those that `info` describes.
    """

    def __init__(self, session: Any, info: ModelInfo) -> None:
        self._session, self._info = session, info
        inputs, outputs = session.get_inputs(), session.get_outputs()
        if len(inputs) != 1 or inputs[0].type != "tensor(float)" or len(inputs[0].shape) != 4:
            found = ", ".join(f"{one.name}: {one.type} {one.shape}" for one in inputs) or "none"
            raise self._mismatch(f"its inputs are {found}, not one of float32 (B, C, H, W)")
        self._input, self._output = inputs[0].name, outputs[0].name
        batch, channels, *size = inputs[0].shape  # numbers, or names where any number is allowed
        if channels != info.channels:
            raise self._mismatch(f"its graph takes {channels} channels, but its metadata say {info.channels}")
        if any(isinstance(side, int) for side in size) and tuple(size) != info.tiles.fixed:
            allowed = format_size(info.tiles.fixed) if info.tiles.fixed else "other sizes"
            raise self._mismatch(f"its graph takes only {size[0]}x{size[1]}, but its metadata allow {allowed}")
        if batch not in (1, None) and isinstance(batch, int):
            raise self._mismatch(f"its graph takes only batches of {batch}")
        self._one_by_one = batch == 1
        shape = outputs[0].shape
        if len(shape) != 4 or (isinstance(shape[1], int) and shape[1] not in info.target.output_choices):
            raise self._mismatch(f"its graph returns {shape}, but its metadata describe {self._describe_outputs()}")

    def __call__(self, tiles: np.ndarray, /) -> np.ndarray:
        return self._info.to_probabilities(self.run(tiles))

    def run(self, tiles: np.ndarray) -> np.ndarray:
        """Compute the output of the file, (B, K, H', W') float32, of normalized tiles (B, C, H, W), float32."""
        if self._one_by_one and len(tiles) > 1:
            return np.concatenate([self.run(tile[None]) for tile in tiles])
        size = tiles.shape[-2:]
        try:
            output = self._session.run([self._output], {self._input: tiles.astype(np.float32, copy=False)})[0]
        except Exception as error:  # ONNX Runtime's exceptions have no common type
            if is_oom(error):
                what = f"{len(tiles)} of {format_size(size)}"
                raise InputSizeError(
                    f"not enough memory for a pass of {what}; give a smaller --tile or --batch-size"
                ) from error
            raise FileError(f"{self._info.source} fails on {format_size(size)}: {_describe(error)}") from error
        tall, wide = (side - shrink for side, shrink in zip(size, self._info.tiles.shrinks, strict=True))
        if output.shape[2:] != (tall, wide) or output.shape[1] not in self._info.target.output_choices:
            expected = f"{self._describe_outputs()} of {tall}x{wide}"
            raise self._mismatch(f"its graph returns {output.shape} for {format_size(size)}, not {expected}")
        return np.asarray(output, np.float32)

    def explain_if_too_large(self, size: Size) -> str:
        return explain_memory(self._info.bytes_per_pixel * size[0] * size[1], free_memory())

    def _describe_outputs(self) -> str:
        return f"{' or '.join(map(str, self._info.target.output_choices))} planes"

    def _mismatch(self, what: str) -> FileError:
        return FileError(f"{self._info.source}: {what}; export the network again")


def open_onnx(path: str | Path, threads: int | None = None) -> tuple[ModelInfo, OnnxEngine]:
    """Open a file that `unetkit export` wrote.

    Args:
        path: the file.
        threads: the number of threads; None for as many as the environment variable OMP_NUM_THREADS says, or one for
            each core.

    Raises:
        FileError: The file does not exist, is no ONNX file, was changed after it was exported or has no metadata of
            unetkit, these do not fit its graph, or ONNX Runtime is missing.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise FileError(f"{path} {what}; give an .onnx file that `unetkit export` wrote")
    if path.suffix.lower() != ".onnx":
        raise FileError(f"{path} is no .onnx file; export the network once more, with --out NAME.onnx")
    if is_intact([path]) is False:
        raise FileError(f"{path} was changed after it was exported; copy it again, or export the network again")
    session = open_session(path, threads)
    info = ModelInfo.from_metadata(session.get_modelmeta().custom_metadata_map, str(path))
    return info, OnnxEngine(session, info)


def open_session(path: Path, threads: int | None = None) -> Any:
    """Open any .onnx file in ONNX Runtime on the CPU.

    Args:
        path: the file.
        threads: the number of threads, as in `open_onnx`.

    Raises:
        FileError: ONNX Runtime is missing, or cannot open the file.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise FileError(f"{path}: needs the package onnxruntime; pip install 'unetkit[onnx]'") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL
    options.intra_op_num_threads = _thread_count() if threads is None else threads
    # Threads that wait in a loop take time from other work, such as the engine that this one is compared with.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_mem_pattern = False  # would keep a block for each size of a pass: 40% more memory, and no faster
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions have no common type
        why = "not enough memory" if is_oom(error) else _describe(error)
        raise FileError(f"{path} cannot be opened as ONNX: {why}; export the network again") from error


def _thread_count() -> int:
    """Return the number of threads that the environment asks for; 0 lets ONNX Runtime decide."""
    text = os.environ.get("OMP_NUM_THREADS", "")
    return int(text) if text.isdecimal() else 0


def _describe(error: Exception) -> str:
    """Return the message of ONNX Runtime without its prefixes, which name its own categories and the file."""
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error))
    return " ".join(re.sub(r"^Load model from .*? failed: ?", "", text).split()).rstrip(".")
