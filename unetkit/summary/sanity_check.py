"""A sanity check of a built network: one forward and backward pass with real weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from unetkit.errors import InputSizeError
from unetkit.summary.forward_hooks import collect_tensors, find_network, first_line, resolve_input_size
from unetkit.utils.formatting import Size
from unetkit.utils.modules import preserve_mode


@dataclass(frozen=True)
class SanityCheck:
    """Result of a forward and backward pass of two random images.

    Attributes:
        input: shape of the input.
        output: shape of the logits.
        finite: whether every logit and every gradient is a finite number.
        parameters: number of parameter tensors.
        unreached: names of the trainable parameters that received no gradient.
    """

    input: tuple[int, ...]
    output: tuple[int, ...]
    finite: bool
    parameters: int
    unreached: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """True if all values are finite and every trainable parameter received a gradient."""
        return self.finite and not self.unreached

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {**asdict(self), "passed": self.passed}

    def __str__(self) -> str:
        shapes = f"{'x'.join(map(str, self.input))} gives {'x'.join(map(str, self.output))}"
        finite = "all finite" if self.finite else "NOT all finite"
        missing = f"do NOT reach {', '.join(self.unreached[:5])}{' ...' if len(self.unreached) > 5 else ''}"
        reached = missing if self.unreached else f"reach all {self.parameters} parameter tensors"
        return f"check {'passed' if self.passed else 'FAILED'}: {shapes}, {finite}, gradients {reached}"


def run_sanity_check(model: nn.Module, size: int | Size | None = None) -> SanityCheck:
    """Run a forward and a backward pass of two random images in training mode.

    The model keeps its mode and its buffers; its gradients are None afterwards.

    Args:
        model: a model that `unetkit.build` returned, not on the meta device.
        size: height and width in pixels, or one number for both. None means the plan's size, else the only size that
            the encoder takes, else 256.

    Raises:
        InputSizeError: the pass failed.
    """
    network = find_network(model)
    input_size = resolve_input_size(network, size)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    device = next(model.parameters()).device
    shape, dtype = (2, network.resolved_plan.in_channels, *input_size), next(model.parameters()).dtype
    try:
        with preserve_mode(model), torch.inference_mode(False), torch.enable_grad():
            x = torch.randn(shape, device=device, dtype=dtype)
            outputs = collect_tensors(model.train()(x))
            torch.autograd.backward([each.float().pow(2).mean() for each in outputs])
            return _make_result(model, x, outputs)
    except Exception as error:  # a part may raise anything
        reason = first_line(error)
        raise InputSizeError(
            f"--check: a pass with an input of {'x'.join(map(str, shape))} failed: {reason}"
        ) from error
    finally:
        model.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])


def _make_result(model: nn.Module, x: torch.Tensor, outputs: list[torch.Tensor]) -> SanityCheck:
    parameters = dict(model.named_parameters())
    gradients = [p.grad for p in parameters.values() if p.grad is not None]
    finite = all(bool(t.isfinite().all()) for t in (*outputs, *gradients))
    unreached = tuple(name for name, p in parameters.items() if p.requires_grad and p.grad is None)
    return SanityCheck(tuple(x.shape), tuple(outputs[0].shape), finite, len(parameters), unreached)
