"""One real forward and backward pass of a built network."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from unetkit.errors import InputSizeError
from unetkit.summary.forward_hooks import input_size_for, network_of, tensors_of
from unetkit.utils.formatting import Size
from unetkit.utils.modules import preserve_mode


@dataclass(frozen=True)
class SanityCheck:
    """What a pass of a batch of two random images showed.

    Attributes:
        input, output: shapes.
        finite: whether every logit and every gradient is a finite number.
        parameters: how many parameter tensors there are.
        unreached: the names of those that no gradient reached.
    """

    input: tuple[int, ...]
    output: tuple[int, ...]
    finite: bool
    parameters: int
    unreached: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether all is finite and every parameter is reached."""
        return self.finite and not self.unreached

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "passed": self.passed}

    def __str__(self) -> str:
        shapes = f"{'x'.join(map(str, self.input))} gives {'x'.join(map(str, self.output))}"
        finite = "all finite" if self.finite else "NOT all finite"
        some = f"do NOT reach {', '.join(self.unreached[:5])}{' ...' if len(self.unreached) > 5 else ''}"
        reached = some if self.unreached else f"reach all {self.parameters} parameter tensors"
        return f"check {'passed' if self.passed else 'FAILED'}: {shapes}, {finite}, gradients {reached}"


def run_sanity_check(model: nn.Module, size: int | Size | None = None) -> SanityCheck:
    """Pass two random images forward and back, in training mode.

    The model keeps its mode and buffers; gradients are left at None.

    Args:
        model: as `unetkit.build` gives it, with real weights.
        size: height and width; the plan's own, the encoder's fixed one, or 256, if None.

    Raises:
        InputSizeError: the pass itself failed.
    """
    network = network_of(model)
    wanted = input_size_for(network, size)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    device = next(model.parameters()).device
    shape, dtype = (2, network.resolved_plan.in_channels or 3, *wanted), next(model.parameters()).dtype
    try:
        with preserve_mode(model), torch.inference_mode(False), torch.enable_grad():
            x = torch.randn(shape, device=device, dtype=dtype)
            out = model.train()(x)
            outs = tensors_of(out)
            torch.autograd.backward([each.float().pow(2).mean() for each in outs])
            return _judge(model, x, outs)
    except (RuntimeError, ValueError) as error:
        raise InputSizeError(f"--check: a real pass failed at {shape}: {str(error).splitlines()[0]}") from error
    finally:
        model.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])


def _judge(model: nn.Module, x: torch.Tensor, outs: list[torch.Tensor]) -> SanityCheck:
    parameters = dict(model.named_parameters())
    gradients = [p.grad for p in parameters.values() if p.grad is not None]
    finite = all(bool(t.isfinite().all()) for t in (*outs, *gradients))
    unreached = tuple(name for name, p in parameters.items() if p.requires_grad and p.grad is None)
    return SanityCheck(tuple(x.shape), tuple(outs[0].shape), finite, len(parameters), unreached)
