"""A network as tiles are passed through it, and an image in memory passed so.

B batch, C channels, K logits, L planes of what is made of them, H and W height and width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from unetkit.deploy.fitting import fit, full_size
from unetkit.deploy.stitching import Held, Pass, windows
from unetkit.errors import CannotPass
from unetkit.jobs.memory import exhausted
from unetkit.meta import mode_kept
from unetkit.plan import Size

#: The axes of (B, C, H, W) that are turned for each mirror image.
_MIRRORED = ((-1,), (-2,), (-2, -1))


def tiled(
    network: nn.Module,
    image: Tensor,
    *,
    tile: Size | None = None,
    overlap: int | None = None,
    batch: int = 1,
    flips: bool = False,
    then: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Pass an image by tiles, mirrored beyond its borders; exactly as in one pass where the network allows it.

    Args:
        network: as `unetkit.build` or `unetkit.load` gives it, on any device; it is used in eval mode and left as it
            was.
        image: (C, H, W), as the network takes it, on any device.
        tile: height and width of what is passed at a time; if None, 512x512, the network's one size, or all of an image
            of no more than 1024x1024.
        overlap: blend tiles that overlap by so many pixels; where None, as `unetkit.deploy.layouts` decides.
        batch: tiles a pass.
        flips: take the mean over the image and its three mirror images.
        then: makes of logits (B, K, h, w) what is blended and averaged, such as a run's `target.probabilities`.

    Returns:
        The logits, or what `then` makes of them, (L, H, W), on the CPU.

    Raises:
        CannotPass: no size passes, or memory does not suffice for a tile.
        BadOption: a tile or overlap that the network does not take.
    """
    source = Held(image)
    layout = fit(network).layout(source.size, tile, overlap, flips=flips)
    first = next(network.parameters())
    with mode_kept(network), torch.inference_mode():
        network.eval()
        through = passing(network, first.device, first.dtype, then, flips=flips)
        result = torch.empty(0)
        for window in windows(through, source, layout, batch):
            if not result.numel():
                result = window.values.new_empty(window.values.shape[0], *source.size)
            result[:, window.rows, window.columns] = window.values
    return result.clone()  # made outside, it may be used in autograd


def passing(
    network: nn.Module,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    then: Callable[[Tensor], Tensor] | None = None,
    *,
    flips: bool = False,
) -> Pass:
    """What a batch of tiles is passed through: the network in eval mode, and what is made of its logits."""

    def once(x: Tensor) -> Tensor:
        logits = full_size(network, x)
        return then(logits) if then else logits

    def passed(x: Tensor) -> Tensor:
        try:
            with torch.inference_mode():
                x = x.to(device, dtype)
                return _mean(once, x) if flips else once(x)
        except (RuntimeError, MemoryError) as error:
            if not exhausted(error):
                raise
            what = f"{x.shape[0]} of {x.shape[-2]}x{x.shape[-1]}"
            raise CannotPass(
                f"memory does not suffice for a pass of {what}; give a smaller --tile or --batch"
            ) from error

    return passed


def _mean(once: Pass, x: Tensor) -> Tensor:
    """Over an input and its mirror images, each turned back."""
    total = once(x)
    for axes in _MIRRORED:
        total = total + once(x.flip(axes)).flip(axes)
    return total / (1 + len(_MIRRORED))
