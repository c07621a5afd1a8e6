"""The interface of engines, which run a network for prediction: from tiles to probabilities, as NumPy arrays."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Protocol

from unetkit.utils.formatting import format_bytes

if TYPE_CHECKING:
    import numpy as np

    from unetkit.utils.formatting import Size


class Engine(Protocol):
    """A network that is ready to run."""

    def __call__(self, tiles: np.ndarray, /) -> np.ndarray:
        """Compute probabilities (B, L, H', W') of normalized tiles (B, C, H, W), float32.

        Raises:
            InputSizeError: Memory is not sufficient.
        """
        ...

    def explain_if_too_large(self, size: Size) -> str:
        """Explain why a single pass over an input of this size would need more memory than is free; "" if unknown."""
        ...


#: The engines that `--engine` names: what each needs beside unetkit, and what it is.
ENGINES = {
    "torch": ((), "the network as it was trained"),
    "compiled": ((), "torch.compile"),
    "onnxruntime": (("onnxruntime", "onnx", "onnxscript"), "ONNX Runtime, on the CPU"),
    "openvino": (("openvino", "onnxruntime", "onnx", "onnxscript"), "OpenVINO, on the CPU"),
}
#: Chooses among the installed engines.
AUTO = "auto"


def missing_packages(name: str) -> list[str]:
    """Return the packages that an engine needs and that are not installed."""
    return [package for package in ENGINES[name][0] if find_spec(package) is None]


def explain_memory(needs: int, free: int) -> str:
    """Explain why a pass over a whole image that needs so many bytes is not made; "" if that many are free."""
    if needs <= free:
        return ""
    what = f"a single pass may need {format_bytes(needs)}, but {format_bytes(free)} are free"
    return f"{what}; use --check on a smaller image"
