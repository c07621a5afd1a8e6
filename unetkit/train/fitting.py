"""Logits and targets of one size, and the loss of a batch.

B batch, K outputs, L labels, H and W height and width.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from unetkit.network import Network
from unetkit.sizes import at_full_size, crop_center, cut_end, size_of
from unetkit.train.batches import Batch
from unetkit.train.losses import Loss


def loss_of(outputs: Tensor | Sequence[Tensor], batch: Batch, loss: Loss, network: Network) -> Tensor:
    """The loss of each image (B,).

    Where a model in training gives several logits (deep supervision: the main ones first), theirs are summed with
    weights 1, 1/2, 1/4 and so on, scaled to sum to 1 (Isensee 2021, nnU-Net).

    Args:
        outputs: logits (B, K, h, w), or several.
        batch: their targets.
        loss: of each image.
        network: whose they are. Of valid convolutions logits are of the middle of the input; otherwise they are of all
            of it, at a stride maybe, and are resized bilinearly.
    """
    several = [outputs] if isinstance(outputs, Tensor) else [*outputs]
    weights = [0.5**number for number in range(len(several))]
    losses = [weight * _one(logits, batch, loss, network) for weight, logits in zip(weights, several, strict=True)]
    return sum(losses[1:], losses[0]) / sum(weights)


def _one(logits: Tensor, batch: Batch, loss: Loss, network: Network) -> Tensor:
    masks, weights = batch.masks, batch.weights
    if network.output_stride > 1:
        logits = cut_end(at_full_size(logits, network.output_stride), size_of(masks))
    if network.valid:
        masks = crop_center(masks, size_of(logits))
        weights = None if weights is None else crop_center(weights, size_of(logits))
    return loss(logits, masks, weights)
