"""The contract of each kind."""

from __future__ import annotations

from typing import Any

from unetkit.plan import Size
from unetkit.sizes import size_of
from unetkit.testing.contract import Contract, Wiring
from unetkit.testing.encoders import EncoderContract
from unetkit.testing.inputs import Input, Shape, by, drawn
from unetkit.testing.models import ModelContract


class _Declaring(Contract):
    """A kind that declares how many channels it gives."""

    def declares(self, part: Any) -> str:
        out_channels = getattr(part, "out_channels", None)
        if isinstance(out_channels, int) and not isinstance(out_channels, bool) and out_channels >= 1:
            return ""
        what = "has none" if out_channels is None else f"has {out_channels!r}"
        return f"must declare out_channels, an int of at least 1; it {what}"

    def channels(self, part: Any, wiring: Wiring) -> tuple[int, ...]:
        return (part.out_channels,)

    def promise(self, part: Any, wiring: Wiring) -> str:
        return f"declares out_channels={part.out_channels}"


class FusionContract(_Declaring):
    """`(x_channels, skip_channels)`; two maps of one size become one."""

    title = "fusion"
    names = ("x_channels", "skip_channels")
    wirings = ((12, 5), (5, 12), (8, 8), (1, 1))

    def given(self, wiring: Wiring, shape: Shape) -> Input:
        batch, *size = shape
        return Input((drawn(batch, wiring[0], *size), drawn(batch, wiring[1], *size) - 0.5))


class BlockContract(Contract):
    """`(in_channels, out_channels)`; keeps the size, unless it is valid."""

    title = "block"
    names = ("in_channels", "out_channels")
    wirings = ((12, 5), (5, 12), (8, 8), (1, 1))

    def sizes(self, part: Any, wiring: Wiring, given: Input, gave: list[Size]) -> str:
        if gave[0] == given.size:
            return ""
        if not getattr(part, "valid", False):
            return f"gives {by(gave[0])}; a block keeps height and width, unless it declares valid = True"
        grown = any(side > had for side, had in zip(gave[0], given.size, strict=True))
        return f"gives {by(gave[0])}; a valid block makes a map smaller, never larger" if grown else ""


class HeadContract(Contract):
    """`(in_channels, classes)`; logits of the same size."""

    title = "head"
    names = ("in_channels", "classes")
    wirings = ((8, 5), (8, 1), (5, 2), (1, 2))


class UpsamplerContract(_Declaring):
    """`(channels, scale)`; the size asked for, or what is nearest to it."""

    title = "upsampler"
    names = ("channels", "scale")
    wirings = ((8, 2.0), (8, 4), (6, 1.5), (5, 2.0), (8, 1.0), (1, 2.0))

    def inputs(self, part: Any, wiring: Wiring) -> list[Input]:
        found = super().inputs(part, wiring)
        x, (height, width) = found[0].tensors, self._scaled(found[0], wiring)
        # An odd skip is one pixel short of twice the map below it; logits may be wanted one pixel larger.
        near = [Input(x, (height + d, width + e)) for d, e in ((-1, -1), (0, -1), (1, 1))]
        return [self.asking(given, wiring) for given in found] + near

    def asking(self, given: Input, wiring: Wiring) -> Input:
        return Input(given.tensors, self._scaled(given, wiring))

    def _scaled(self, given: Input, wiring: Wiring) -> Size:
        height, width = given.size
        return round(height * wiring[1]), round(width * wiring[1])

    def call(self, part: Any, given: Input) -> Any:
        return part(*given.tensors, given.asked)

    def sizes(self, part: Any, wiring: Wiring, given: Input, gave: list[Size]) -> str:
        exact = self._scaled(given, wiring)
        if given.asked == exact:
            return "" if gave[0] == exact else f"gives {by(gave[0])}; the scale times the input is {by(exact)}"
        far = [side for side, want in zip(gave[0], given.asked or exact, strict=True) if abs(side - want) > wiring[1]]
        return f"gives {by(gave[0])}, more than a scale away from what is asked for" if far else ""


class AlignContract(Contract):
    """`()`; the upsampled map and the skip come out with one size."""

    title = "align"
    wirings = ((),)
    #: Of the map and the skip: equal, an odd skip, a skip that was larger or much larger, single pixels.
    PAIRS = (((10, 14), (9, 13)), ((10, 14), (10, 14)), ((8, 8), (9, 9)), ((6, 4), (12, 11)), ((2, 2), (1, 1)))

    def inputs(self, part: Any, wiring: Wiring) -> list[Input]:
        batches = (3, 1, 2, 1, 2)
        pairs = zip(batches, self.PAIRS, strict=True)
        return [Input((drawn(batch, 4, *x), drawn(batch, 6, *skip))) for batch, (x, skip) in pairs]

    def exported(self, part: Any, wiring: Wiring) -> tuple[int, list[Input]]:
        pairs = (((16, 12), (30, 26)), ((9, 11), (17, 22)), ((14, 12), (14, 12)), ((8, 8), (7, 7)))
        return 4, [Input((drawn(2, 4, *x), drawn(2, 6, *skip))) for x, skip in pairs]

    def declares(self, part: Any) -> str:
        if not callable(wanted := getattr(part, "wanted", None)):
            return "must have wanted(scaled, skip), the size to ask the upsampler for"
        for scaled, skip in self.PAIRS:
            if (gave := wanted(scaled, skip)) not in (scaled, skip):
                return f"wanted({scaled}, {skip}) gives {gave!r}; it must be one of the two sizes"
        return ""

    def count(self, part: Any) -> int | None:
        return 2

    def channels(self, part: Any, wiring: Wiring) -> tuple[int, ...]:
        return 4, 6

    def promise(self, part: Any, wiring: Wiring) -> str:
        return "is given a map of 4 channels and a skip of 6"

    def sizes(self, part: Any, wiring: Wiring, given: Input, gave: list[Size]) -> str:
        if gave[0] != gave[1]:
            return f"gives {by(gave[0])} and {by(gave[1])}; both must come out with one size"
        sides = zip(gave[0], *(size_of(tensor) for tensor in given.tensors), strict=True)
        outside = any(not min(a, b) <= side <= max(a, b) for side, a, b in sides)
        return f"gives {by(gave[0])}, which is beyond both of the sizes given" if outside else ""


CONTRACTS: dict[str, Contract] = {
    contract.title: contract
    for contract in (
        EncoderContract(),
        UpsamplerContract(),
        FusionContract(),
        AlignContract(),
        BlockContract(),
        HeadContract(),
        ModelContract(),
    )
}
