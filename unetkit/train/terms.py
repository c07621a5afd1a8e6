"""The terms that losses are sums of. Each gives every image a value of its own, so that a batch may be split anywhere.

B batch, K outputs of the network, L labels or classes, H and W height and width. smp's losses do not serve here: its
Dice sums over the batch, and its focal loss of classes is one of sigmoids.
"""

from __future__ import annotations

from math import inf

import torch
from torch import Tensor

from unetkit.data.target import Activation, Target
from unetkit.errors import BadOption
from unetkit.train.pixels import Weights, check_numbers, check_weights, mean_of_each, planes_of, surprise, weights_of


class Term:
    """What all terms have.

    Attributes:
        target: what the masks mean.
        activation: what makes probabilities of the logits.
        share: what the term's value is multiplied by.
        border: w0 and sigma of the border maps that it wants, or None.
    """

    border: tuple[float, float] | None = None

    def __init__(self, target: Target, activation: Activation, *, share: float = 1.0) -> None:
        self.target, self.activation, self.share = target, activation, share
        if not 0 < share < inf:
            raise BadOption(f"share must be above 0; got {share:g}")

    def __call__(self, logits: Tensor, masks: Tensor, borders: Tensor | None) -> Tensor:
        """The value for each image (B,), without the share; 0 where no pixel counts.

        Args:
            logits: (B, K, H, W), float32 or float64.
            masks: (B, H, W) or (B, L, H, W) int64; IGNORE counts nowhere.
            borders: border maps (B, H, W), where the loss wants them.
        """
        raise NotImplementedError

    def _surprise(self, logits: Tensor, masks: Tensor) -> Tensor:
        return surprise(logits, masks, self.activation)

    def _weights(self, weights: Weights, masks: Tensor, logits: Tensor) -> Tensor:
        return weights_of(weights, masks, logits, len(self.target.names))


class CE(Term):
    """Cross-entropy of classes by log-softmax, the mean over an image's pixels.

    Args:
        weights: of a pixel of each class, [1,5]; or balanced, so that the classes of each image weigh alike.
        share: what its value is multiplied by.
    """

    def __init__(self, target: Target, activation: Activation, *, weights: Weights = None, share: float = 1.0) -> None:
        super().__init__(target, activation, share=share)
        if activation == "sigmoid":
            instead = "write bce, or give the network --classes 2" if target.kind == "binary" else "write bce"
            raise BadOption(
                f"ce is for softmax, and {target.kind} masks on {target.outputs} output(s) for sigmoid; {instead}"
            )
        check_weights(weights, target)
        self.weights = weights

    def __call__(self, logits: Tensor, masks: Tensor, borders: Tensor | None) -> Tensor:
        return mean_of_each(self._surprise(logits, masks) * self._weights(self.weights, masks, logits), masks)


class BCE(Term):
    """Cross-entropy of each output alone by log-sigmoid, the mean over an image's pixels, of all labels.

    Args:
        positive: what a pixel that is 1 weighs, where one that is 0 weighs 1; of labels also one each, [1,5].
        share: what its value is multiplied by.
    """

    def __init__(
        self, target: Target, activation: Activation, *, positive: tuple[float, ...] | float = 1.0, share: float = 1.0
    ) -> None:
        super().__init__(target, activation, share=share)
        if activation == "softmax":
            instead = "write ce, or leave out --classes" if target.kind == "binary" else "write ce"
            raise BadOption(f"bce is for sigmoid, and {len(target.names)} classes a pixel for softmax; {instead}")
        self.positive = positive if isinstance(positive, tuple) else (positive,)
        if len(self.positive) not in (1, target.outputs):
            wanted = f"one, or one for each of {target.outputs} labels" if target.outputs > 1 else "one"
            raise BadOption(f"positive has {len(self.positive)} numbers; give {wanted}")
        check_numbers("positive", self.positive)

    def __call__(self, logits: Tensor, masks: Tensor, borders: Tensor | None) -> Tensor:
        weights = torch.where(masks == 1, logits.new_tensor(self.positive)[:, None, None], 1)
        return mean_of_each(self._surprise(logits, masks) * weights, masks)


class Dice(Term):
    """1 - Dice of probabilities (Milletari 2016), the mean over the classes or labels that the image's truth has.

    Args:
        share: what its value is multiplied by.
    """

    def __call__(self, logits: Tensor, masks: Tensor, borders: Tensor | None) -> Tensor:
        truth, counts = planes_of(masks, self.activation, logits.shape[1])
        chances = (logits.softmax(1) if self.activation == "softmax" else logits.sigmoid()) * counts
        both, true = (chances * truth).sum((2, 3)), truth.sum((2, 3))
        # Where a class is there, it has a pixel at least, so that nothing need be added below.
        lost = torch.where(true > 0, 1 - 2 * both / (chances.sum((2, 3)) + true).clamp_min(1), 0)
        return lost.sum(1) / (true > 0).sum(1).clamp_min(1)
