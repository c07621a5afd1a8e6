"""The contract of whole models, which say of themselves what sizes they take."""

from __future__ import annotations

from typing import Any

from unetkit.testing.contract import Contract, Wiring
from unetkit.testing.inputs import Input, Shape, by
from unetkit.testing.results import NothingToCheck


class ModelContract(Contract):
    """`(in_channels, classes)`; logits of the input's size, for the sizes that a network would pass on to it."""

    title = "model"
    takes_images = True
    names = ("in_channels", "classes")
    wirings = ((3, 5), (1, 1), (4, 2))

    def declares(self, part: Any) -> str:
        for name in ("min_size", "multiple"):
            if not _is_side(found := getattr(part, name, 1)):
                return f"declares {name}={found!r}; promised is an int of at least 1"
        size = getattr(part, "size", None)
        if size is not None and not (isinstance(size, tuple | list) and len(size) == 2 and all(map(_is_side, size))):
            return f"declares size={size!r}; promised is (height, width), or None"
        return ""

    def inputs(self, part: Any, wiring: Wiring) -> list[Input]:
        shapes = model_shapes(part)  # models are large: of other channels, the smallest input
        return [self.given(wiring, shape) for shape in (shapes if wiring == self.wirings[0] else shapes[1:2])]

    def few(self, inputs: list[Input]) -> list[Input]:
        return inputs[1:2] or inputs

    def exported(self, part: Any, wiring: Wiring) -> tuple[int, list[Input]]:
        if fixed := getattr(part, "size", None):
            raise NothingToCheck(f"it takes {by(fixed)} alone")
        least, multiple = _least(part), getattr(part, "multiple", 1)
        # Large enough that no map within is of one pixel, which torch.export takes for a fixed size.
        side, near, far = (_up(part, 2 * max(least, 32) + more) for more in (0, 1, multiple + 2))
        return side, [self.given(wiring, (2, *size)) for size in ((far, near), (side, side), (near, far))]


def model_shapes(part: Any) -> list[Shape]:
    """What a model takes, by what it says of itself: a usual size, the smallest, and a larger one.

    Never one image alone, whose pooled maps no batch norm takes in training.
    """
    if fixed := getattr(part, "size", None):
        return [(3, *fixed), (2, *fixed)]
    usual, multiple = max(_least(part), 12), getattr(part, "multiple", 1)
    shapes = (3, usual + 1, usual + multiple + 1), (2, 1, 1), (2, 2 * usual + multiple + 2, 2 * usual + 1)
    return [(batch, _up(part, height), _up(part, width)) for batch, height, width in shapes]


def _least(part: Any) -> int:
    return int(getattr(part, "min_size", 1))


def _up(part: Any, side: int) -> int:
    """A side as a network pads it."""
    multiple = getattr(part, "multiple", 1)
    return int(-(-max(side, _least(part)) // multiple) * multiple)


def _is_side(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
