"""Pass an image in memory through a network of torch by tiles.

Shapes: B batch, C channels, K outputs of the network, L planes that are computed from them, H and W height and width.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from unetkit.errors import InputSizeError
from unetkit.tiling.requirements import find_tile_requirements, full_size
from unetkit.tiling.stitching import InMemoryImage, Pass, average_over_flips, iterate_windows, join_windows
from unetkit.utils.formatting import Size
from unetkit.utils.modules import preserve_mode
from unetkit.utils.oom import is_oom


def tiled(
    network: nn.Module,
    image: Tensor,
    *,
    tile: Size | None = None,
    overlap: int | None = None,
    batch_size: int = 1,
    tta: bool = False,
    then: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Pass an image through a network by tiles; the result equals that of a single pass if the network allows it.

    The image is mirrored at its borders.

    Args:
        network: a network from `unetkit.build` or `unetkit.load`, on any device; it is used in eval mode and not
            changed.
        image: (C, H, W), normalized for the network, on any device.
        tile: the height and width of tiles; None for 512x512, for the only size that the network accepts, or for a
            single pass if the image is at most 1024x1024.
        overlap: blend tiles that overlap by this number of pixels; None lets `unetkit.tiling.layout` decide.
        batch_size: the number of tiles in a forward pass.
        tta: average over the image and its three mirror images.
        then: converts logits (B, K, h, w) to what is blended and averaged, such as a run's `target.probabilities`.

    Returns:
        The logits, or the result of `then`, (L, H, W), on the CPU.

    Raises:
        InputSizeError: The network accepts no size, or memory is not sufficient for a tile.
        OptionError: The network does not accept this tile or overlap.
    """
    first = next(network.parameters())
    source = InMemoryImage(_to_array(image))
    layout = find_tile_requirements(network).layout(source.size, tile, overlap, tta=tta)
    with preserve_mode(network), torch.inference_mode():
        network.eval()
        through = make_forward(network, first.device, first.dtype, then)
        through = average_over_flips(through) if tta else through
        joined = join_windows(iterate_windows(through, source, layout, batch_size), source.size)
    return torch.from_numpy(joined)  # outside of inference mode, so that it can be used in autograd


def make_forward(
    network: nn.Module,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    then: Callable[[Tensor], Tensor] | None = None,
) -> Pass:
    """Return a function that passes a batch of tiles through the network in eval mode and converts its logits."""

    def passed(x: np.ndarray) -> np.ndarray:
        try:
            with torch.inference_mode():
                logits = full_size(network, torch.from_numpy(x).to(device, dtype))
                return _to_array(then(logits) if then else logits)
        except (RuntimeError, MemoryError) as error:
            if not is_oom(error):
                raise
            what = f"{x.shape[0]} of {x.shape[-2]}x{x.shape[-1]}"
            raise InputSizeError(
                f"not enough memory for a pass of {what}; give a smaller --tile or --batch-size"
            ) from error

    return passed


def _to_array(x: Tensor) -> np.ndarray:
    """Return a tensor as an array of float64, or of float32, which is what NumPy has for the shorter types."""
    x = x.detach().cpu()
    return (x if x.dtype == torch.float64 else x.float()).numpy()
