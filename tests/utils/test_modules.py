"""Devices and memory formats of models."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from unetkit.train.distributed import init_processes
from unetkit.utils.modules import numbered_device, to_channels_last


class Planes(nn.Module):
    """A 3-D convolution between 2-D ones, as LambdaNetworks have it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)
        self.between = nn.Conv3d(1, 1, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.last(self.between(self.first(x)[:, None])[:, 0])
        return out


def test_channels_last_leaves_weights_of_five_dimensions() -> None:
    model, x = Planes(), torch.randn(2, 3, 8, 8)
    with pytest.raises(RuntimeError, match="rank 4"):
        copy.deepcopy(model).to(memory_format=torch.channels_last)
    last = to_channels_last(copy.deepcopy(model))
    assert last.first.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last(x), model(x))


def test_a_gpu_without_a_number_is_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    # This is the rule of torch that a device without a number breaks; no GPU is needed to see it.
    with pytest.raises(ValueError, match="index"):
        torch.cuda.set_device(torch.device("cuda"))
    used: list[torch.device] = []
    set_device: Callable[[torch.device], None] = used.append
    monkeypatch.setattr(torch.cuda, "set_device", set_device)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    with init_processes("cuda") as group:
        assert used == [group.device] == [torch.device("cuda:1")]
    assert numbered_device("cuda:3") == torch.device("cuda:3")
    assert numbered_device("cpu") == torch.device("cpu")
