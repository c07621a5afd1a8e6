"""Equality of two float32 passes that compute the same in another order, on any processor."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unetkit.utils.rounding import float32_tolerance


def assert_equal_to_rounding(found: Tensor, expected: Tensor, model: nn.Module) -> None:
    """Compare outputs within 8 rounding errors for each layer of `model`, as a share of the largest output."""
    bound = 8 * float32_tolerance(model) * max(1.0, float(expected.detach().abs().max()))
    torch.testing.assert_close(found, expected, atol=bound, rtol=0)
