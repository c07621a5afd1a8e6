"""The contract of encoders, which say of themselves what sizes they take."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from unetkit.plan import Size
from unetkit.testing.contract import Contract, Wiring
from unetkit.testing.inputs import Input, Shape, by
from unetkit.testing.results import NothingToCheck


class EncoderContract(Contract):
    """`(in_channels)`; maps shallow to deep, as many as it declares channels and strides."""

    title = "encoder"
    takes_images = True
    names = ("in_channels",)
    wirings = ((3,), (1,), (4,))

    def declares(self, part: Any) -> str:
        channels, strides = (getattr(part, name, None) for name in ("channels", "strides"))
        for name, numbers in (("channels", channels), ("strides", strides)):
            if not isinstance(numbers, tuple | list) or not all(isinstance(n, int) and n >= 1 for n in numbers):
                return f"must declare {name}, ints of at least 1, one a map; it has {numbers!r}"
        channels, strides = part.channels, part.strides
        if len(channels) != len(strides) or len(channels) < 2:
            counts = f"{len(channels)} channels and {len(strides)} strides"
            return f"declares {counts}; promised are as many of each, two at least"
        if any(a >= b for a, b in pairwise(strides)):
            return f"declares strides {strides}; promised are strides that increase, shallow to deep"
        if len(widths := getattr(part, "widths", channels)) != len(channels):
            return f"declares {len(widths)} widths for {len(channels)} maps"
        return ""

    def inputs(self, part: Any, wiring: Wiring) -> list[Input]:
        shapes = encoder_shapes(part)  # encoders are large: of other channels than three, the smallest input
        return [self.given(wiring, shape) for shape in (shapes if wiring == self.wirings[0] else shapes[1:2])]

    def few(self, inputs: list[Input]) -> list[Input]:
        return inputs[1:2] or inputs

    def exported(self, part: Any, wiring: Wiring) -> tuple[int, list[Input]]:
        if fixed := getattr(part, "size", None):
            raise NothingToCheck(f"it takes {by(fixed)} alone")
        (_, height, width), (_, least, _) = encoder_shapes(part)[:2]
        # Below twice the deepest stride a map may be of one pixel, which torch.export takes for a fixed size.
        least = least if getattr(part, "valid", False) else max(least, 2 * part.strides[-1])
        step = getattr(part, "multiple", 1)
        sizes = ((2 * height, 2 * width), (height, width), (height + 2 * step, 2 * width + step))
        return least, [self.given(wiring, (2, *size)) for size in sizes]

    def count(self, part: Any) -> int | None:
        return len(part.channels)

    def channels(self, part: Any, wiring: Wiring) -> tuple[int, ...]:
        return tuple(part.channels)

    def promise(self, part: Any, wiring: Wiring) -> str:
        return f"declares channels={part.channels}"

    def sizes(self, part: Any, wiring: Wiring, given: Input, gave: list[Size]) -> str:
        for index, (stride, size) in enumerate(zip(part.strides, gave, strict=True)):
            for side, whole in zip(size, given.size, strict=True):
                share = whole / stride
                # Models round up or down, and unpadded stems lose some: "about".
                short = share - side > max(1, share / 4) and not getattr(part, "valid", False)
                if side < 1 or short or side - share > max(1, share / 4):
                    about = by(-(-n // stride) for n in given.size)
                    return f"declares stride {stride} for map {index}, about {about}, but gives {by(size)}"
        return ""


def encoder_shapes(part: Any) -> list[Shape]:
    """What an encoder takes, by what it says of itself: an odd size, the smallest, and one four strides large."""
    deepest = part.strides[-1]
    if fixed := getattr(part, "size", None):
        return [(2, *fixed), (1, *fixed)]
    if getattr(part, "valid", False):
        least = 10 * deepest  # unpadded convolutions of a usual depth leave something of that
        return [(2, least + 4, least + 8), (1, least, least)]
    least, multiple = getattr(part, "min_size", deepest), getattr(part, "multiple", 1)

    def up(side: int) -> int:
        return int(-(-max(side, least) // multiple) * multiple)

    usual = max(least, 2 * deepest)
    return [(2, up(usual + 1), up(usual + 5)), (2, up(1), up(1)), (1, up(4 * deepest + 3), up(4 * deepest))]
