"""Prediction with a network of torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from unetkit.predict.config import PredictConfig
from unetkit.predict.engines import explain_memory
from unetkit.predict.model_info import ModelInfo
from unetkit.predict.predictor import Predictor
from unetkit.summary.trace import trace
from unetkit.tiling.requirements import find_tile_requirements
from unetkit.tiling.sliding_window import make_forward
from unetkit.train.checkpoint import TrainRun
from unetkit.utils.formatting import Size
from unetkit.utils.integers import ceil_div
from unetkit.utils.isolation import ignore_breakpoints
from unetkit.utils.system import free_memory


def describe_run(run: TrainRun, network: nn.Module) -> ModelInfo:
    """Return what prediction must know of the network of a training run.

    Raises:
        InputSizeError: The network accepts no size.
    """
    return ModelInfo(
        source=str(run.folder),
        plan=str(run.plan),
        target=run.target,
        channels=run.channels,
        mean=run.mean,
        std=run.std,
        tiles=find_tile_requirements(network),
        conversion=run.config.channels,
        nodata=run.config.nodata_value,
    )


class TorchEngine:
    """A network of torch, on its own device and in its own dtype.

    Args:
        network: the network in eval mode.
        info: what prediction must know of it.
        is_compiled: whether torch.compile compiles it.
    """

    def __init__(self, network: nn.Module, info: ModelInfo, *, is_compiled: bool = False) -> None:
        first = next(network.parameters())
        self.network = network
        runnable: Any = torch.compile(network) if is_compiled else network
        self._forward = make_forward(runnable, first.device, first.dtype, info.target.probabilities)

    def __call__(self, tiles: np.ndarray, /) -> np.ndarray:
        return self._forward(tiles)

    def explain_if_too_large(self, size: Size) -> str:
        return explain_if_too_large(self.network, size)


def make_predictor(run: TrainRun, network: nn.Module, config: PredictConfig) -> Predictor:
    """Make a network of a training run, in eval mode on its device, ready to predict images."""
    info = describe_run(run, network)
    return Predictor(info, TorchEngine(network, info), config)


@ignore_breakpoints()
def explain_if_too_large(network: nn.Module, size: Size) -> str:
    """Explain why a single pass over an input of this size would need more memory than is free; "" if it would not."""
    device = next(network.parameters()).device
    left = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()
    return explain_memory(bytes_per_pixel(network, size) * size[0] * size[1], left)


def bytes_per_pixel(network: nn.Module, size: Size) -> int:
    """Return the bytes of all activations of a pass over an input of this size, for each pixel of the input.

    Autograd would keep them all, so they exceed the peak memory of a pass without autograd.
    """
    traced = trace(network, size)
    # A network whose parts read values is traced with a smaller input.
    return ceil_div(traced.activation_bytes, traced.rows[0].height * traced.rows[0].width)
