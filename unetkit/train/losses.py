"""Losses from text, such as `bce+dice` or `border:w0=5+dice:share=0.5`; see docs/losses.md.

Shapes: B batch, K outputs of the network, L labels or classes, H and W height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from unetkit.data.border_weights import check_border
from unetkit.data.sample_checks import describe_tensor
from unetkit.data.types import IGNORE, Activation, Target
from unetkit.errors import OptionError, PluginError
from unetkit.plan import PartSpec
from unetkit.plugins import default_parts
from unetkit.registry import BUILTIN, Parts
from unetkit.resolve import canonical_spec, create
from unetkit.utils.formatting import format_plural
from unetkit.utils.isolation import wrap_errors

#: Class weights: none, one number for each class, or "balanced", by which all classes of an image weigh the same.
Weights = tuple[float, ...] | Literal["balanced"] | None


def nll(logits: Tensor, masks: Tensor, activation: Activation) -> Tensor:
    """Compute the negative log-likelihood of the true class of each pixel, in the shape of the masks.

    Values at ignored pixels have no meaning.
    """
    if activation == "softmax":
        return F.cross_entropy(logits, masks, ignore_index=IGNORE, reduction="none")
    planes = logits.reshape(masks.shape)  # (B, 1, H, W) has a mask (B, H, W)
    return F.binary_cross_entropy_with_logits(planes, masks.clamp_min(0).to(logits.dtype), reduction="none")


def mean_per_image(values: Tensor, masks: Tensor) -> Tensor:
    """Compute the mean over the pixels of each image that are not ignored, (B,); 0 if there are none."""
    counts = masks != IGNORE
    return torch.where(counts, values, 0).flatten(1).sum(1) / counts.flatten(1).sum(1).clamp_min(1)


def one_hot_masks(masks: Tensor, activation: Activation, outputs: int) -> tuple[Tensor, Tensor]:
    """Return masks with a plane of 0 and 1 for each output (B, K, H, W), and the valid pixels (B, 1 or K, H, W)."""
    counts = (masks if masks.ndim == 4 else masks[:, None]) != IGNORE
    if activation == "softmax":
        classes = torch.arange(outputs, device=masks.device)[:, None, None]
        return masks[:, None] == classes, counts
    return masks.reshape(counts.shape) == 1, counts


def pixel_weights(weights: Weights, masks: Tensor, like: Tensor, classes: int) -> Tensor:
    """Return the weight of each pixel by its class, (B, H, W), or one number for all pixels.

    With "balanced", all classes of an image have the same total weight, and the mean weight of its pixels is 1.
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
    """Raise OptionError unless there is a weight for each class."""
    if weights is None:
        return
    if target.kind == "multilabel":
        raise OptionError(
            "weights apply to classes, but these masks have several labels for a pixel; leave weights out"
        )
    if weights != "balanced" and len(weights) != len(target.names):
        names = ", ".join(target.names[:6]) + (" ..." if len(target.names) > 6 else "")
        has = format_plural(len(weights), "number")
        raise OptionError(f"weights has {has} for {len(target.names)} classes ({names}); give one number for each")
    if weights != "balanced":
        check_numbers("weights", weights)


def check_numbers(name: str, numbers: tuple[float, ...]) -> None:
    """Raise OptionError for numbers that are negative or infinite, or if all are 0."""
    if not all(0 <= number < float("inf") for number in numbers) or not any(numbers):
        raise OptionError(f"{name} must be numbers of at least 0 that are not all 0")


class LossTerm:
    """The base class of loss terms.

    Args:
        target: what the masks mean.
        activation: the function that makes probabilities of logits.
        share: factor by which the value is multiplied.

    Attributes:
        target: what the masks mean.
        activation: the function that makes probabilities of logits.
        share: the factor by which the value is multiplied.
        border: w0 and sigma of the border weights that the term needs, or None.
        regression: whether the term compares numbers with maps for regression, which are float32 with NaN for ignored
            pixels, instead of logits with masks.
    """

    border: tuple[float, float] | None = None
    regression = False

    def __init__(self, target: Target, activation: Activation, *, share: float = 1.0) -> None:
        self.target, self.activation, self.share = target, activation, share
        if not 0 < share < inf:
            raise OptionError(f"share must be above 0; got {share:g}")

    def __call__(self, logits: Tensor, masks: Tensor, borders: Tensor | None) -> Tensor:
        """Compute the value for each image (B,), without the share; 0 if all pixels are ignored.

        Args:
            logits: (B, K, H, W), float32 or float64.
            masks: (B, H, W) or (B, L, H, W) int64, with IGNORE for ignored pixels.
            borders: border weights (B, H, W) if the term needs them.
        """
        raise NotImplementedError

    def _nll(self, logits: Tensor, masks: Tensor) -> Tensor:
        return nll(logits, masks, self.activation)

    def _weights(self, weights: Weights, masks: Tensor, logits: Tensor) -> Tensor:
        return pixel_weights(weights, masks, logits, len(self.target.names))


class CE(LossTerm):
    """Cross-entropy over classes from log-softmax, as a mean over the pixels of an image.

    Args:
        weights: weight of the pixels of each class, such as [1,5]; or balanced, for equal weights of an image's
            classes.
        share: factor by which the value is multiplied.
    """

    def __init__(
        self,
        target: Target,
        activation: Activation,
        *,
        weights: tuple[float, ...] | Literal["balanced"] | None = None,
        share: float = 1.0,
    ) -> None:
        super().__init__(target, activation, share=share)
        if activation == "sigmoid":
            instead = "write bce, or give the network --classes 2" if target.kind == "binary" else "write bce"
            where = f"{target.kind} masks on {format_plural(target.outputs, 'output')}"
            raise OptionError(f"ce needs a softmax, but {where} use a sigmoid; {instead}")
        check_weights(weights, target)
        self.weights = weights

    def __call__(self, logits: Tensor, masks: Tensor, borders: Tensor | None) -> Tensor:
        return mean_per_image(self._nll(logits, masks) * self._weights(self.weights, masks, logits), masks)


class BCE(LossTerm):
    """Binary cross-entropy of each output from log-sigmoid, as a mean over the pixels and labels of an image.

    Args:
        positive: weight of positive pixels, where negative ones weigh 1; for multi-label masks also a list, [1,5].
        share: factor by which the value is multiplied.
    """

    def __init__(
        self, target: Target, activation: Activation, *, positive: tuple[float, ...] | float = 1.0, share: float = 1.0
    ) -> None:
        super().__init__(target, activation, share=share)
        if activation == "softmax":
            instead = "write ce, or leave out --classes" if target.kind == "binary" else "write ce"
            raise OptionError(f"bce needs a sigmoid, but {len(target.names)} classes use a softmax; {instead}")
        self.positive = positive if isinstance(positive, tuple) else (positive,)
        if len(self.positive) not in (1, target.outputs):
            expected = f"one, or one for each of {target.outputs} labels" if target.outputs > 1 else "one"
            raise OptionError(f"positive has {len(self.positive)} numbers; give {expected}")
        check_numbers("positive", self.positive)

    def __call__(self, logits: Tensor, masks: Tensor, borders: Tensor | None) -> Tensor:
        weights = torch.where(masks == 1, logits.new_tensor(self.positive)[:, None, None], 1)
        return mean_per_image(self._nll(logits, masks) * weights, masks)


class Dice(LossTerm):
    """1 - Dice of probabilities (Milletari 2016), as a mean over the classes or labels in the true mask.

    Args:
        share: factor by which the value is multiplied.
    """

    def __call__(self, logits: Tensor, masks: Tensor, borders: Tensor | None) -> Tensor:
        truth, counts = one_hot_masks(masks, self.activation, logits.shape[1])
        chances = (logits.softmax(1) if self.activation == "softmax" else logits.sigmoid()) * counts
        both, true = (chances * truth).sum((2, 3)), truth.sum((2, 3))
        # A class that is present has at least one pixel, so the denominator needs no epsilon.
        lost = torch.where(true > 0, 1 - 2 * both / (chances.sum((2, 3)) + true).clamp_min(1), 0)
        return lost.sum(1) / (true > 0).sum(1).clamp_min(1)


class Focal(LossTerm):
    """Focal loss (1 - p)^gamma (-log p) (Lin 2017), which gives little weight to easy pixels.

    Args:
        gamma: exponent; 0 is the plain cross-entropy.
        weights: weights as for ce; the paper's alpha=0.25 is [0.75,0.25].
        share: factor by which the value is multiplied.
    """

    def __init__(
        self,
        target: Target,
        activation: Activation,
        *,
        gamma: float = 2.0,
        weights: tuple[float, ...] | Literal["balanced"] | None = None,
        share: float = 1.0,
    ) -> None:
        super().__init__(target, activation, share=share)
        if not (gamma == 0 or 1 <= gamma < inf):  # between 0 and 1, the gradient is unbounded at p = 1
            raise OptionError(f"gamma must be 0 or at least 1; got {gamma:g}")
        check_weights(weights, target)
        self.gamma, self.weights = gamma, weights

    def __call__(self, logits: Tensor, masks: Tensor, borders: Tensor | None) -> Tensor:
        surprised = self._nll(logits, masks)
        wrong = -torch.expm1(-surprised)  # 1 - p, without cancellation where p is near 1
        return mean_per_image(wrong**self.gamma * surprised * self._weights(self.weights, masks, logits), masks)


class Border(LossTerm):
    """Cross-entropy with pixel weights w_c + w0 exp(-(d1 + d2)^2 / (2 sigma^2)) (Ronneberger 2015).

    The paper's energy is a sum over pixels; this is the mean, divided by the number of pixels and not by the weights.

    Args:
        w0: additional weight where two objects touch.
        sigma: distance in pixels at which the additional weight decreases.
        weights: w_c, as for ce.
        share: factor by which the value is multiplied.
    """

    def __init__(
        self,
        target: Target,
        activation: Activation,
        *,
        w0: float = 10.0,
        sigma: float = 5.0,
        weights: tuple[float, ...] | Literal["balanced"] | None = None,
        share: float = 1.0,
    ) -> None:
        super().__init__(target, activation, share=share)
        if target.kind == "multilabel":
            raise OptionError("border needs one class for each pixel, but these masks have several labels; use bce")
        check_border(w0, sigma)
        check_weights(weights, target)
        self.border, self.weights = (w0, sigma), weights

    def __call__(self, logits: Tensor, masks: Tensor, borders: Tensor | None) -> Tensor:
        if borders is None:
            raise OptionError(
                "--loss border: needs a border map with each mask; unetkit.data.border_weights makes them"
            )
        weight = self._weights(self.weights, masks, logits) + borders
        return mean_per_image(weight * self._nll(logits, masks), masks)


class MSE(LossTerm):
    """Mean squared error of numbers, for outputs that are trained on a map such as a distance.

    Args:
        share: factor by which the value is multiplied.
    """

    regression = True

    def __call__(self, logits: Tensor, masks: Tensor, borders: Tensor | None) -> Tensor:
        return _mean_error(logits, masks, torch.square)


class L1(LossTerm):
    """Mean absolute error of numbers, for outputs that are trained on a map such as a distance.

    Args:
        share: factor by which the value is multiplied.
    """

    regression = True

    def __call__(self, logits: Tensor, masks: Tensor, borders: Tensor | None) -> Tensor:
        return _mean_error(logits, masks, torch.abs)


def _mean_error(numbers: Tensor, maps: Tensor, measure: Callable[[Tensor], Tensor]) -> Tensor:
    """Compute the mean over the numbers of each image whose true value is not NaN, (B,); 0 if there are none."""
    counts = ~maps.isnan()
    errors = torch.where(counts, measure(numbers - maps.nan_to_num()), 0)
    return errors.flatten(1).sum(1) / counts.flatten(1).sum(1).clamp_min(1)


#: The default loss by activation.
DEFAULTS = {"sigmoid": "bce+dice", "softmax": "ce+dice", "identity": "mse"}


class Loss:
    """A sum of loss terms with one value for each image.

    The mean over a batch is therefore the same however the batch is split.

    Attributes:
        text: the shortest text that describes the loss.
        border: w0 and sigma of the border weights that the loss needs, or None.
    """

    def __init__(self, terms: Sequence[LossTerm], text: str) -> None:
        self.terms, self.text = terms, text
        self.border = next((term.border for term in terms if term.border), None)

    def __call__(self, logits: Tensor, masks: Tensor, weights: Tensor | None = None) -> Tensor:
        """Compute the loss of each image (B,), a mean over its pixels; 0 with a zero gradient if all are ignored.

        Args:
            logits: (B, K, H, W) of any precision; the loss is computed in at least float32.
            masks: (B, H, W) or (B, L, H, W) int64, with IGNORE for ignored pixels; for regression (B, K, H, W) float32,
                with NaN for ignored pixels.
            weights: border weights (B, H, W), which are w0 exp(...) alone, if `border` is not None.
        """
        with torch.autocast(logits.device.type, enabled=False):
            logits = logits if logits.dtype == torch.float64 else logits.float()
            values = [term.share * term(logits, masks, weights) for term in self.terms]
        return torch.stack(values).sum(0)


class PluginTerm(LossTerm):
    """A term of a plugin; errors name it, and what it returns is checked."""

    def __init__(self, name: str, term: Any) -> None:
        self.name, self.term = name, term
        self.share, self.border = getattr(term, "share", 1.0), getattr(term, "border", None)

    def __call__(self, logits: Tensor, masks: Tensor, borders: Tensor | None = None) -> Tensor:
        with wrap_errors(f"--loss {self.name} failed"):
            values = self.term(logits, masks, borders)
        if not isinstance(values, Tensor) or values.shape != (len(logits),):
            found = describe_tensor(values)
            raise PluginError(f"--loss {self.name} returns {found}; expected a value for each of {len(logits)} images")
        return values


def make_loss(text: str, target: Target, outputs: int, parts: Parts | None = None) -> Loss:
    """Create a loss from text; "" selects the one that fits the data.

    Args:
        text: terms separated by plus signs, each a name with options.
        target: what the masks mean.
        outputs: the number of outputs of the network, K.
        parts: the registered parts; None for all that are installed.

    Raises:
        UnknownNameError: A term does not exist.
        OptionError: An option is wrong, or the loss does not fit the data.
    """
    parts, activation = parts or default_parts(), target.activation(outputs)
    specs = PartSpec.parse(text or DEFAULTS[activation]).links
    terms = [_create_term(spec, parts, target, activation) for spec in specs]
    if sum(term.border is not None for term in terms) > 1:
        raise OptionError(f"--loss {text}: border appears twice, but an image has only one border map; leave one out")
    return Loss(terms, "+".join(str(canonical_spec("loss", spec, parts)) for spec in specs))


def _create_term(spec: PartSpec, parts: Parts, target: Target, activation: Activation) -> LossTerm:
    entry = parts.losses.get(canonical_spec("loss", spec, parts).name)
    is_for_numbers, owner = getattr(entry.load(), "regression", False), entry.owner
    if is_for_numbers != (target.kind == "regression"):
        given, what = ("numbers", "classes") if is_for_numbers else ("classes", "numbers")
        instead = {"identity": "mse or l1", "sigmoid": "bce or dice", "softmax": "ce or dice"}[activation]
        raise OptionError(f"--loss {spec}: compares {given}, but the target has {what}; write {instead}")
    term: LossTerm = create("loss", spec, parts, target, activation)
    return term if owner == BUILTIN else PluginTerm(f"{spec} (of {owner})", term)
