"""What every network is asked, on real tensors or, for shapes alone, on meta.

B batch, H and W height and width; sizes are (H, W).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from unetkit.errors import UnetkitError
from unetkit.utils.formatting import Size
from unetkit.utils.system import is_oom

ODD, SMALL = (97, 131), (33, 65)
#: Where a model takes more than its own size, a training step at this one shows the same for a third of the time.
TRAINED = (128, 128)
#: Where the network of timm's is, in ours as in smp's: what stands around it learns even where it does not.
_MODEL = "encoder.model."
#: Small enough that one step cannot blow up a deep network that has no norm.
_RATE = 1e-3


class Unmet(UnetkitError):
    """A network that runs, and gives something else than it should."""


@dataclass(frozen=True)
class Sizes:
    """The sizes that a name of timm's is asked at: its own, and the one for a training step of two images."""

    own: Size
    trained: Size

    @classmethod
    def of(cls, name: str) -> Sizes:
        """What timm says of the name's first weights; 224x224 where it says nothing."""
        config = timm.get_pretrained_cfg(name)
        height, width = config.input_size[-2:] if config else (224, 224)
        own = (int(height), int(width))
        return cls(own, own if config and config.fixed_input_size else TRAINED)

    def ask(self, question: str, model: Any) -> None:
        """Ask a network one of the questions. Whatever it raises is the answer."""
        match question:
            case "own":
                passes(model, self.own)
            case "odd":
                passes(model, ODD)
            case "small":
                passes(model, SMALL)
            case "backward":
                self._train(model)

    def _train(self, model: Any) -> None:
        """A step at the size for training, or at its own where the model has one and takes no other."""
        try:
            learns(model, self.trained)
        except Exception as error:  # whatever a library raises
            if self.trained == self.own or is_oom(error) or isinstance(error, Unmet):
                raise
            learns(model, self.own)


def passes(model: Any, size: Size) -> None:
    """One image in eval mode. Raises Unmet where what comes back has another size, or a value is not finite."""
    with torch.no_grad():
        _check(model.eval()(_images(model, 1, size)), 1, size)


def learns(model: Any, size: Size) -> None:
    """A training step of two images: forward, a loss, backward, one step of SGD, and forward again.

    Raises:
        Unmet: a value, the loss's gradient of a parameter, or a value after the step is not finite, a map has another
            size than the images, or no gradient, or none but 0, reaches timm's model in the encoder.
    """
    model.zero_grad(set_to_none=True)
    x = _images(model, 2, size)
    out = model.train()(x)
    _check(out, 2, size)
    loss = F.binary_cross_entropy_with_logits(out, (torch.rand_like(out) > 0.5).to(out.dtype))
    torch.autograd.backward(loss)
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    _check_reached([gradient for name, gradient in gradients.items() if name.startswith(_MODEL)])
    if bad := [name for name, gradient in gradients.items() if not _finite(gradient)]:
        raise Unmet(f"the gradients of {len(bad)} of {len(gradients)} parameters are not finite")
    # One tensor at a time: what all of them cost at once is memory that a step does not need.
    torch.optim.SGD(model.parameters(), lr=_RATE, foreach=False).step()
    model.zero_grad(set_to_none=True)
    with torch.no_grad():
        _check(model(x), 2, size, "after one step of SGD, ")


def _images(model: Any, batch: int, size: Size) -> Tensor:
    return torch.randn(batch, 3, *size, device=next(model.parameters()).device)


def _check(out: Tensor, batch: int, size: Size, when: str = "") -> None:
    if out.dim() != 4 or (out.shape[0], *out.shape[2:]) != (batch, *size):
        raise Unmet(f"{when}an input of {_by((batch, 3, *size))} gives {_by(tuple(out.shape))}")
    if not _finite(out):
        raise Unmet(f"{when}not every value of the output is finite")


def _check_reached(gradients: list[Tensor]) -> None:
    if not gradients:
        raise Unmet("no gradient reaches the model in the encoder")
    if not any(gradient.is_meta or bool(gradient.any()) for gradient in gradients):
        raise Unmet(f"each of the {len(gradients)} gradients of the model in the encoder is 0")


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _finite(tensor: Tensor) -> bool:
    return tensor.is_meta or bool(tensor.isfinite().all())
