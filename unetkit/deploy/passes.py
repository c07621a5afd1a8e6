"""A whole image in one pass, whatever the network makes of its size: logits for every pixel.

B batch, C channels, K outputs, H and W height and width.
"""

from __future__ import annotations

from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from unetkit.deploy.fitting import full_size
from unetkit.deploy.tiles import mirrored
from unetkit.errors import CannotPass
from unetkit.inspect.limits import nearest_sizes, smallest
from unetkit.inspect.observe import meta_input, network_of
from unetkit.meta import meta_copy
from unetkit.plan import Size
from unetkit.sizes import size_of


def whole(model: nn.Module, image: Tensor) -> Tensor:
    """The logits of images of any size, one for each of their pixels.

    Where valid convolutions make the output smaller, the image is mirrored at its borders until the output covers it
    (Ronneberger 2015); where the network ends at a stride, its logits are resized bilinearly.

    Args:
        model: what `unetkit.build` or `load` gave, in eval mode.
        image: (B, C, H, W), normalised, on the model's device.

    Returns:
        (B, K, H, W).

    Raises:
        CannotPass: it is larger than the one size that the encoder takes.
    """
    height, width = size_of(image)
    if network_of(model).valid:
        image = _surrounded(image, _needs(model))
    return full_size(model, image)[..., :height, :width]


class _Needs(NamedTuple):
    """Which inputs a network of valid convolutions takes: `size` and all that are larger by multiples of `period`.

    The output of each is smaller by `shrinks`.
    """

    size: Size
    shrinks: Size
    period: int


#: Found once a network.
_found: WeakKeyDictionary[nn.Module, _Needs] = WeakKeyDictionary()


def _needs(model: nn.Module) -> _Needs:
    if model not in _found:
        with torch.inference_mode(False), torch.no_grad():
            _found[model] = _smallest(meta_copy(model).eval())
    return _found[model]


def _smallest(ghost: nn.Module) -> _Needs:
    network = network_of(ghost)
    least, sizes = smallest(ghost), nearest_sizes(ghost, (256, 256))
    if least is None or not sizes:
        raise CannotPass(f"no size up to 2048 passes through {network.plan}")
    side = least + (sizes[0][0] - least) % network.period  # of those that leave no row or column out
    with torch.device("meta"):
        out = full_size(ghost, meta_input(network, (side, side)))
    return _Needs((side, side), (side - out.shape[-2], side - out.shape[-1]), network.period)


def _surrounded(image: Tensor, needs: _Needs) -> Tensor:
    """An image (B, C, H, W), mirrored so that what comes of it begins at its first pixel and ends behind its last."""
    for axis, side in enumerate(size_of(image)):
        wanted = side + needs.shrinks[axis]
        steps = max(0, -(-(wanted - needs.size[axis]) // needs.period))
        before, total = needs.shrinks[axis] // 2, needs.size[axis] + steps * needs.period
        rows = torch.from_numpy(mirrored(-before, total - before, side)).to(image.device)
        image = image.index_select(axis - 2, rows)
    return image
