"""Losses from text: `bce+dice`, `border:w0=5+dice:share=0.5`; see docs/losses.md.

B batch, K outputs of the network, L labels or classes, H and W height and width.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from unetkit.data.border_weights import check_border
from unetkit.data.types import IGNORE, Activation, Target
from unetkit.errors import OptionError
from unetkit.plan import PartSpec
from unetkit.resolve import Menu

#: What a pixel of each class weighs: 1; as given, one a class; or so that the classes of an image weigh alike.
Weights = tuple[float, ...] | Literal["balanced"] | None


def nll(logits: Tensor, masks: Tensor, activation: Activation) -> Tensor:
    """-log p of what is true at each pixel, of the shape of the masks; of no meaning where they are IGNORE."""
    if activation == "softmax":
        return F.cross_entropy(logits, masks, ignore_index=IGNORE, reduction="none")
    planes = logits.reshape(masks.shape)  # (B, 1, H, W) has a mask (B, H, W)
    return F.binary_cross_entropy_with_logits(planes, masks.clamp_min(0).to(logits.dtype), reduction="none")


def mean_per_image(values: Tensor, masks: Tensor) -> Tensor:
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
    """Raise OptionError for weights that are not one a class."""
    if weights is None:
        return
    if target.kind == "multilabel":
        raise OptionError("weights are of classes, of which a pixel has one; these masks are labels that may overlap")
    if weights != "balanced" and len(weights) != len(target.names):
        names = ", ".join(target.names[:6]) + (" ..." if len(target.names) > 6 else "")
        raise OptionError(
            f"weights has {len(weights)} numbers for {len(target.names)} classes ({names}); give one each"
        )
    if weights != "balanced":
        check_numbers("weights", weights)


def check_numbers(name: str, numbers: tuple[float, ...]) -> None:
    """Raise OptionError for numbers that are below 0, infinite, or all 0."""
    if not all(0 <= number < float("inf") for number in numbers) or not any(numbers):
        raise OptionError(f"{name} takes numbers from 0 on, not all of them 0")


class LossTerm:
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
            raise OptionError(f"share must be above 0; got {share:g}")

    def __call__(self, logits: Tensor, masks: Tensor, borders: Tensor | None) -> Tensor:
        """The value for each image (B,), without the share; 0 where no pixel counts.

        Args:
            logits: (B, K, H, W), float32 or float64.
            masks: (B, H, W) or (B, L, H, W) int64; IGNORE counts nowhere.
            borders: border maps (B, H, W), where the loss wants them.
        """
        raise NotImplementedError

    def _surprise(self, logits: Tensor, masks: Tensor) -> Tensor:
        return nll(logits, masks, self.activation)

    def _weights(self, weights: Weights, masks: Tensor, logits: Tensor) -> Tensor:
        return weights_of(weights, masks, logits, len(self.target.names))


class CE(LossTerm):
    """Cross-entropy of classes by log-softmax, the mean over an image's pixels.

    Args:
        weights: of a pixel of each class, [1,5]; or balanced, so that the classes of each image weigh alike.
        share: what its value is multiplied by.
    """

    def __init__(self, target: Target, activation: Activation, *, weights: Weights = None, share: float = 1.0) -> None:
        super().__init__(target, activation, share=share)
        if activation == "sigmoid":
            instead = "write bce, or give the network --classes 2" if target.kind == "binary" else "write bce"
            raise OptionError(
                f"ce is for softmax, and {target.kind} masks on {target.outputs} output(s) for sigmoid; {instead}"
            )
        check_weights(weights, target)
        self.weights = weights

    def __call__(self, logits: Tensor, masks: Tensor, borders: Tensor | None) -> Tensor:
        return mean_per_image(self._surprise(logits, masks) * self._weights(self.weights, masks, logits), masks)


class BCE(LossTerm):
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
            raise OptionError(f"bce is for sigmoid, and {len(target.names)} classes a pixel for softmax; {instead}")
        self.positive = positive if isinstance(positive, tuple) else (positive,)
        if len(self.positive) not in (1, target.outputs):
            wanted = f"one, or one for each of {target.outputs} labels" if target.outputs > 1 else "one"
            raise OptionError(f"positive has {len(self.positive)} numbers; give {wanted}")
        check_numbers("positive", self.positive)

    def __call__(self, logits: Tensor, masks: Tensor, borders: Tensor | None) -> Tensor:
        weights = torch.where(masks == 1, logits.new_tensor(self.positive)[:, None, None], 1)
        return mean_per_image(self._surprise(logits, masks) * weights, masks)


class Dice(LossTerm):
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


class Focal(LossTerm):
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
            raise OptionError(f"gamma takes 0, or 1 and above; got {gamma:g}")
        check_weights(weights, target)
        self.gamma, self.weights = gamma, weights

    def __call__(self, logits: Tensor, masks: Tensor, borders: Tensor | None) -> Tensor:
        surprised = self._surprise(logits, masks)
        wrong = -torch.expm1(-surprised)  # 1 - p, to the last digit where p is nearly 1
        return mean_per_image(wrong**self.gamma * surprised * self._weights(self.weights, masks, logits), masks)


class Border(LossTerm):
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
            raise OptionError("border is for classes, of which a pixel has one; labels may overlap: write bce")
        check_border(w0, sigma)
        check_weights(weights, target)
        self.border, self.weights = (w0, sigma), weights

    def __call__(self, logits: Tensor, masks: Tensor, borders: Tensor | None) -> Tensor:
        if borders is None:
            raise OptionError(
                "--loss border: needs a border map with each mask; unetkit.data.border_weights makes them"
            )
        weight = self._weights(self.weights, masks, logits) + borders
        return mean_per_image(weight * self._surprise(logits, masks), masks)


TERMS = Menu("loss", "loss", "docs/losses.md", {"ce": CE, "bce": BCE, "dice": Dice, "focal": Focal, "border": Border})
#: What is taken where nothing is said.
DEFAULTS = {"sigmoid": "bce+dice", "softmax": "ce+dice"}


class Loss:
    """A sum of terms, one value an image: the mean over a batch is the mean over the parts that it is split into.

    Attributes:
        said: the shortest text that means it.
        border: w0 and sigma of the border maps that it wants, or None.
    """

    def __init__(self, terms: Sequence[LossTerm], said: str) -> None:
        self.terms, self.said = terms, said
        self.border = next((term.border for term in terms if term.border), None)

    def __call__(self, logits: Tensor, masks: Tensor, weights: Tensor | None = None) -> Tensor:
        """The loss of each image (B,): a mean over its own pixels; 0, with a gradient of 0, where none counts.

        Args:
            logits: (B, K, H, W) of any precision; all is computed in float32 at least.
            masks: (B, H, W) or (B, L, H, W) int64; IGNORE counts nowhere.
            weights: the border maps (B, H, W), w0 exp(...) alone, where `border` is not None.
        """
        with torch.autocast(logits.device.type, enabled=False):
            logits = logits if logits.dtype == torch.float64 else logits.float()
            values = [term.share * term(logits, masks, weights) for term in self.terms]
        return torch.stack(values).sum(0)


def make_loss(text: str, target: Target, outputs: int) -> Loss:
    """The loss that a text means; "" the one that suits the data.

    Args:
        text: terms with plus signs between them, each a name with options.
        target: what the masks mean.
        outputs: K.

    Raises:
        UnknownNameError: there is no such term.
        OptionError: an option is wrong, or the loss contradicts the data.
    """
    activation = target.activation(outputs)
    specs = PartSpec.parse(text or DEFAULTS[activation]).links
    terms = [_term(spec, target, activation) for spec in specs]
    if sum(term.border is not None for term in terms) > 1:
        raise OptionError(f"--loss {text}: border stands twice, and an image has one border map; leave one out")
    return Loss(terms, "+".join(map(TERMS.said, specs)))


def _term(spec: PartSpec, target: Target, activation: Activation) -> LossTerm:
    try:
        term: LossTerm = TERMS.make(spec, target, activation)
    except OptionError as error:
        said = str(error)
        raise OptionError(said if said.startswith("--") else f"--loss {spec}: {said}") from error
    return term
