"""The checks of a sweep, for networks on real tensors or, for shapes alone, on meta tensors.

Sizes are (height, width).
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
from unetkit.utils.oom import is_oom

ODD_SIZE, SMALL_SIZE = (97, 131), (33, 65)
#: Size of a training step, unless the model accepts only its own size. It shows the same in a third of the time.
TRAINING_SIZE = (128, 128)
#: Prefix of the parameters of timm's model, in unetkit as in smp. Parameters around it get gradients in any case.
_MODEL_PREFIX = "encoder.model."
#: Learning rate that is small enough for one step of a deep network without norms.
_LEARNING_RATE = 1e-3


class CheckFailedError(UnetkitError):
    """A network runs, but its output or its gradients are wrong."""


@dataclass(frozen=True)
class CheckSizes:
    """The input sizes of the checks that depend on the model.

    Attributes:
        own: the input size of the model.
        training: size of a training step.
    """

    own: Size
    training: Size

    @classmethod
    def for_model(cls, name: str) -> CheckSizes:
        """Return the sizes for a model, from timm's default weights; its own size is 224x224 if timm has none.

        Args:
            name: name of a timm model.
        """
        config = timm.get_pretrained_cfg(name)
        height, width = config.input_size[-2:] if config else (224, 224)
        own = (int(height), int(width))
        return cls(own, own if config and config.fixed_input_size else TRAINING_SIZE)

    def run_check(self, check: str, model: Any) -> None:
        """Run one check of a network.

        Args:
            check: a name of CHECKS.
            model: the network.

        Raises:
            CheckFailedError: The output or the gradients are wrong.
            Exception: Whatever the network raises.
        """
        match check:
            case "own":
                check_forward(model, self.own)
            case "odd":
                check_forward(model, ODD_SIZE)
            case "small":
                check_forward(model, SMALL_SIZE)
            case "backward":
                self._check_training(model)

    def _check_training(self, model: Any) -> None:
        """Check a training step at the training size, or at the model's own size if it does not accept the former."""
        try:
            check_training_step(model, self.training)
        except Exception as error:  # libraries raise any type of error
            if self.training == self.own or is_oom(error) or isinstance(error, CheckFailedError):
                raise
            check_training_step(model, self.own)


def check_forward(model: Any, size: Size) -> None:
    """Run a network on one image in eval mode.

    Args:
        model: the network.
        size: height and width of the image.

    Raises:
        CheckFailedError: The output has another size, or values that are not finite.
    """
    with torch.no_grad():
        _check_output(model.eval()(_make_images(model, 1, size)), 1, size)


def check_training_step(model: Any, size: Size) -> None:
    """Run a training step of two images: forward, loss, backward, a step of SGD, and forward again.

    Args:
        model: the network.
        size: height and width of the images.

    Raises:
        CheckFailedError: An output has another size than the images; an output or a gradient is not finite; or no
            gradient other than 0 reaches timm's model in the encoder.
    """
    model.zero_grad(set_to_none=True)
    x = _make_images(model, 2, size)
    out = model.train()(x)
    _check_output(out, 2, size)
    loss = F.binary_cross_entropy_with_logits(out, (torch.rand_like(out) > 0.5).to(out.dtype))
    torch.autograd.backward(loss)
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    _check_gradients([gradient for name, gradient in gradients.items() if name.startswith(_MODEL_PREFIX)])
    if invalid := [name for name, gradient in gradients.items() if not _is_finite(gradient)]:
        raise CheckFailedError(f"the gradients of {len(invalid)} of {len(gradients)} parameters are not finite")
    # `foreach` would update all tensors at once, which needs more memory.
    torch.optim.SGD(model.parameters(), lr=_LEARNING_RATE, foreach=False).step()
    model.zero_grad(set_to_none=True)
    with torch.no_grad():
        _check_output(model(x), 2, size, "after one step of SGD, ")


def _make_images(model: Any, batch_size: int, size: Size) -> Tensor:
    return torch.randn(batch_size, 3, *size, device=next(model.parameters()).device)


def _check_output(out: Tensor, batch_size: int, size: Size, prefix: str = "") -> None:
    if out.dim() != 4 or (out.shape[0], *out.shape[2:]) != (batch_size, *size):
        shapes = _format_shape((batch_size, 3, *size)), _format_shape(tuple(out.shape))
        raise CheckFailedError(f"{prefix}an input of shape {shapes[0]} gives an output of shape {shapes[1]}")
    if not _is_finite(out):
        raise CheckFailedError(f"{prefix}the output contains values that are not finite")


def _check_gradients(gradients: list[Tensor]) -> None:
    if not gradients:
        raise CheckFailedError("no gradient reaches timm's model in the encoder")
    if not any(gradient.is_meta or bool(gradient.any()) for gradient in gradients):
        raise CheckFailedError(f"all {len(gradients)} gradients of timm's model in the encoder are 0")


def _format_shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _is_finite(tensor: Tensor) -> bool:
    return tensor.is_meta or bool(tensor.isfinite().all())
