"""The terms that weigh pixels by more than their class: by how wrong they are, and by the objects around them.

B batch, K outputs of the network, H and W height and width.
"""

from __future__ import annotations

from math import inf

import torch
from torch import Tensor

from unetkit.data.borders import check_border
from unetkit.data.target import Activation, Target
from unetkit.errors import BadOption
from unetkit.train.pixels import Weights, check_weights, mean_of_each
from unetkit.train.terms import Term


class Focal(Term):
    """Cross-entropy in which what is right counts little, (1 - p)^gamma (-log p) (Lin 2017), the mean over pixels.

    Args:
        gamma: 0 makes it the plain cross-entropy.
        weights: as those of ce; the paper's alpha=0.25 is [0.75,0.25].
        share: what its value is multiplied by.
    """

    def __init__(
        self, target: Target, activation: Activation, *, gamma: float = 2.0, weights: Weights = None, share: float = 1.0
    ) -> None:
        super().__init__(target, activation, share=share)
        if not (gamma == 0 or 1 <= gamma < inf):  # between, the gradient has no bound where p is 1
            raise BadOption(f"gamma takes 0, or 1 and above; got {gamma:g}")
        check_weights(weights, target)
        self.gamma, self.weights = gamma, weights

    def __call__(self, logits: Tensor, masks: Tensor, borders: Tensor | None) -> Tensor:
        surprised = self._surprise(logits, masks)
        wrong = -torch.expm1(-surprised)  # 1 - p, to the last digit where p is nearly 1
        return mean_of_each(wrong**self.gamma * surprised * self._weights(self.weights, masks, logits), masks)


class Border(Term):
    """Cross-entropy with each pixel's weight w_c + w0 exp(-(d1 + d2)^2 / (2 sigma^2)) (Ronneberger 2015).

    The paper's energy is a sum over pixels; this is its mean, divided by their number and not by their weights.

    Args:
        w0: what is added where two objects touch.
        sigma: in pixels, how far apart they may be for it to be felt.
        weights: w_c, as those of ce.
        share: what its value is multiplied by.
    """

    def __init__(
        self,
        target: Target,
        activation: Activation,
        *,
        w0: float = 10.0,
        sigma: float = 5.0,
        weights: Weights = None,
        share: float = 1.0,
    ) -> None:
        super().__init__(target, activation, share=share)
        if target.kind == "multilabel":
            raise BadOption("border is for classes, of which a pixel has one; labels may overlap: write bce")
        check_border(w0, sigma)
        check_weights(weights, target)
        self.border, self.weights = (w0, sigma), weights

    def __call__(self, logits: Tensor, masks: Tensor, borders: Tensor | None) -> Tensor:
        if borders is None:
            raise BadOption("--loss border: needs a border map with each mask; unetkit.data.borders makes them")
        weight = self._weights(self.weights, masks, logits) + borders
        return mean_of_each(weight * self._surprise(logits, masks), masks)
