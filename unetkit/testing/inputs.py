"""What parts are tried on: small random maps of odd and even sizes, alone and in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unetkit.plan import Size
from unetkit.sizes import size_of

#: A batch, and the height and width of a map.
Shape = tuple[int, int, int]

#: Of a part that keeps the size. The first is the one that most checks take.
SHAPES: tuple[Shape, ...] = ((3, 5, 7), (1, 8, 8), (2, 1, 1), (1, 1, 1))
#: Of a part of valid convolutions, which takes pixels off.
VALID_SHAPES: tuple[Shape, ...] = ((3, 13, 15), (1, 16, 16))


@dataclass(frozen=True)
class Input:
    """What a part is called with.

    Attributes:
        tensors: of the call, (B, C, H, W) each.
        asked: the size that an upsampler is asked for.
    """

    tensors: tuple[Tensor, ...]
    asked: Size | None = None

    def map(self, change: Callable[[Tensor], Any]) -> Input:
        """The same input with each tensor changed."""
        return Input(tuple(change(tensor) for tensor in self.tensors), self.asked)

    def fresh(self) -> Input:
        """A copy that a part may spoil."""
        return self.map(torch.clone)

    @property
    def size(self) -> Size:
        """Of the first tensor."""
        return size_of(self.tensors[0])

    @property
    def batch(self) -> int:
        """How many samples there are."""
        return len(self.tensors[0])

    def __str__(self) -> str:
        sizes = dict.fromkeys(by(size_of(tensor)) for tensor in self.tensors)
        asked = f", asked for {by(self.asked)}" if self.asked else ""
        return f"{self.batch} of {' and '.join(sizes)}{asked}"


def by(size: Iterable[int]) -> str:
    """A size as people write it: 5x7."""
    return "x".join(map(str, size))


def drawn(*shape: int) -> Tensor:
    """Normal numbers, the same for a shape each time."""
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, device="cpu", dtype=torch.float32)
