"""What losses do with pixels: which count, what they weigh, and their mean over each image by itself.

B batch, K outputs of the network, L labels or classes, H and W height and width.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from unetkit.data.target import IGNORE, Activation, Target
from unetkit.errors import BadOption

#: What a pixel of each class weighs: 1; as given, one a class; or so that the classes of an image weigh alike.
Weights = tuple[float, ...] | Literal["balanced"] | None


def surprise(logits: Tensor, masks: Tensor, activation: Activation) -> Tensor:
    """-log p of what is true at each pixel, of the shape of the masks; of no meaning where they are IGNORE."""
    if activation == "softmax":
        return F.cross_entropy(logits, masks, ignore_index=IGNORE, reduction="none")
    planes = logits.reshape(masks.shape)  # (B, 1, H, W) has a mask (B, H, W)
    return F.binary_cross_entropy_with_logits(planes, masks.clamp_min(0).to(logits.dtype), reduction="none")


def mean_of_each(values: Tensor, masks: Tensor) -> Tensor:
    """The mean over the pixels of each image that count, (B,); 0 where none does."""
    counts = masks != IGNORE
    return torch.where(counts, values, 0).flatten(1).sum(1) / counts.flatten(1).sum(1).clamp_min(1)


def planes_of(masks: Tensor, activation: Activation, outputs: int) -> tuple[Tensor, Tensor]:
    """Masks as a plane of 0 and 1 for each output (B, K, H, W), and the pixels that count, (B, 1 or K, H, W)."""
    counts = (masks if masks.ndim == 4 else masks[:, None]) != IGNORE
    if activation == "softmax":
        classes = torch.arange(outputs, device=masks.device)[:, None, None]
        return masks[:, None] == classes, counts
    return masks.reshape(counts.shape) == 1, counts


def weights_of(weights: Weights, masks: Tensor, like: Tensor, classes: int) -> Tensor:
    """What each pixel weighs by its class, (B, H, W), or one number for all.

    Balanced, the classes that an image has weigh alike in sum, and its pixels 1 in the mean.
    """
    if weights is None:
        return like.new_ones(())
    if weights != "balanced":
        return like.new_tensor(weights)[masks.clamp_min(0)]
    flat = masks.flatten(1)
    none = flat.new_zeros(len(flat), classes + 1)
    counted = none.scatter_add(1, flat - IGNORE, torch.ones_like(flat))[:, 1:].to(like.dtype)
    there = (counted > 0).sum(1, keepdim=True)
    shares = counted.sum(1, keepdim=True) / (there * counted).clamp_min(1)
    return shares.gather(1, flat.clamp_min(0)).reshape(masks.shape)


def check_weights(weights: Weights, target: Target) -> None:
    """Raise BadOption for weights that are not one a class."""
    if weights is None:
        return
    if target.kind == "multilabel":
        raise BadOption("weights are of classes, of which a pixel has one; these masks are labels that may overlap")
    if weights != "balanced" and len(weights) != len(target.names):
        names = ", ".join(target.names[:6]) + (" ..." if len(target.names) > 6 else "")
        raise BadOption(f"weights has {len(weights)} numbers for {len(target.names)} classes ({names}); give one each")
    if weights != "balanced":
        check_numbers("weights", weights)


def check_numbers(name: str, numbers: tuple[float, ...]) -> None:
    """Raise BadOption for numbers that are below 0, infinite, or all 0."""
    if not all(0 <= number < float("inf") for number in numbers) or not any(numbers):
        raise BadOption(f"{name} takes numbers from 0 on, not all of them 0")
