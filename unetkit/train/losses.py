"""Losses from text: `bce+dice`, `border:w0=5+dice:share=0.5`; see docs/losses.md.

B batch, K outputs of the network, L labels or classes, H and W height and width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unetkit.chosen import Menu
from unetkit.data.target import Activation, Target
from unetkit.errors import BadOption
from unetkit.plan import PartSpec
from unetkit.train.terms import BCE, CE, Dice, Term
from unetkit.train.weighted import Border, Focal

TERMS = Menu("loss", "loss", "docs/losses.md", {"ce": CE, "bce": BCE, "dice": Dice, "focal": Focal, "border": Border})
#: What is taken where nothing is said.
DEFAULTS = {"sigmoid": "bce+dice", "softmax": "ce+dice"}


class Loss:
    """A sum of terms, one value an image: the mean over a batch is the mean over the parts that it is split into.

    Attributes:
        said: the shortest text that means it.
        border: w0 and sigma of the border maps that it wants, or None.
    """

    def __init__(self, terms: Sequence[Term], said: str) -> None:
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
        UnknownName: there is no such term.
        BadOption: an option is wrong, or the loss contradicts the data.
    """
    activation = target.activation(outputs)
    specs = PartSpec.parse(text or DEFAULTS[activation]).links
    terms = [_term(spec, target, activation) for spec in specs]
    if sum(term.border is not None for term in terms) > 1:
        raise BadOption(f"--loss {text}: border stands twice, and an image has one border map; leave one out")
    return Loss(terms, "+".join(map(TERMS.said, specs)))


def _term(spec: PartSpec, target: Target, activation: Activation) -> Term:
    try:
        term: Term = TERMS.make(spec, target, activation)
    except BadOption as error:
        said = str(error)
        raise BadOption(said if said.startswith("--") else f"--loss {spec}: {said}") from error
    return term
