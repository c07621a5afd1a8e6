"""The contract of each kind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from unetkit.testing.catalog import Nonconformity, SkipCheck
from unetkit.utils.formatting import Size
from unetkit.utils.spatial import size_of

#: A batch, and the height and width of a map.
Shape = tuple[int, int, int]

#: Of a part that keeps the size. The first is the one that most checks take.
SHAPES: tuple[Shape, ...] = ((3, 5, 7), (1, 8, 8), (2, 1, 1), (1, 1, 1))
#: Of a part of valid convolutions, which takes pixels off.
VALID_SHAPES: tuple[Shape, ...] = ((3, 13, 15), (1, 16, 16))


@dataclass(frozen=True)
class PartInput:
    """What a part is called with.

    Attributes:
        tensors: of the call, (B, C, H, W) each.
        asked: the size that an upsampler is asked for.
    """

    tensors: tuple[Tensor, ...]
    asked: Size | None = None

    def map(self, change: Callable[[Tensor], Any]) -> PartInput:
        """The same input with each tensor changed."""
        return PartInput(tuple(change(tensor) for tensor in self.tensors), self.asked)

    def fresh(self) -> PartInput:
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


Wiring = tuple[Any, ...]
Outputs = tuple[Tensor, ...]


class Contract:
    """Of a kind whose parts take maps of one size and give one tensor.

    Attributes:
        title: of the kind.
        names: of the wiring, in order.
        wirings: to try; the first is the one that checks of one wiring take. A part may refuse some.
        takes_images: whether parts are given images, not maps: they are large, so that one wiring has to do for most
            checks, and nothing before them learns.
    """

    title = ""
    takes_images = False
    names: tuple[str, ...] = ()
    wirings: tuple[Wiring, ...] = ()

    def declares(self, part: Any) -> str:
        """What is wrong with what a part says of itself; "" where nothing is."""
        return ""

    def inputs(self, part: Any, wiring: Wiring) -> list[PartInput]:
        """What to pass, the usual one first. Batch norm in training refuses one value a channel: see `trains`."""
        shapes = VALID_SHAPES if getattr(part, "valid", False) else SHAPES
        return [self.given(wiring, shape) for shape in shapes]

    def few(self, inputs: list[PartInput]) -> list[PartInput]:
        """Of these, the ones that suffice to try an option or a gradient with."""
        return inputs

    def given(self, wiring: Wiring, shape: Shape) -> PartInput:
        """The input of a shape."""
        batch, *size = shape
        return PartInput((drawn(batch, wiring[0], *size),))

    def asking(self, given: PartInput, wiring: Wiring) -> PartInput:
        """The same input, with the size that a stage would ask for where the kind is asked for one."""
        return given

    def exported(self, part: Any, wiring: Wiring) -> tuple[int, list[PartInput]]:
        """For torch.export: the smallest side, and inputs, of which the first is the example."""
        taken = 10 if getattr(part, "valid", False) else 0
        shapes = [(2, height + taken, width + taken) for height, width in ((16, 12), (9, 11), (7, 6))]
        return 4 + taken, [self.asking(self.given(wiring, shape), wiring) for shape in shapes]

    def call(self, part: Any, given: PartInput) -> Any:
        """The call that a network makes."""
        return part(*given.tensors)

    def outputs(self, part: Any, given: PartInput) -> Outputs:
        """What comes back, as tensors. Raises Nonconformity where it is something else."""
        out = self.call(part, given)
        count = self.count(part)
        if count is None:
            if not isinstance(out, Tensor):
                raise Nonconformity(f"gives a {type(out).__name__}; promised is one tensor")
            out = (out,)
        if not isinstance(out, list | tuple) or not all(isinstance(tensor, Tensor) for tensor in out):
            raise Nonconformity(f"gives a {type(out).__name__}; promised are {count} tensors")
        if count is not None and len(out) != count:
            raise Nonconformity(f"gives {len(out)} tensors; promised are {count}")
        if flat := [tensor for tensor in out if tensor.ndim != 4]:
            raise Nonconformity(f"gives a tensor of shape {by(flat[0].shape)}; promised is (B, C, H, W)")
        return tuple(out)

    def count(self, part: Any) -> int | None:
        """How many tensors come back in a list or tuple; None for one tensor by itself."""
        return None

    def channels(self, part: Any, wiring: Wiring) -> tuple[int, ...]:
        """Those promised, a number for each output."""
        return (wiring[1],)

    def promise(self, part: Any, wiring: Wiring) -> str:
        """The same in words."""
        return f"is asked for {self.names[1]}={wiring[1]}"

    def channel_fault(self, part: Any, wiring: Wiring, given: PartInput, outputs: Outputs) -> str:
        """What is wrong with batch and channels; "" where nothing is."""
        if wrong := [len(out) for out in outputs if len(out) != given.batch]:
            return f"gives a batch of {wrong[0]}; promised is one of {given.batch}"
        promised, gave = self.channels(part, wiring), tuple(out.shape[1] for out in outputs)
        if promised == gave:
            return ""
        last = tuple(out.shape[-1] for out in outputs)
        hint = "; its maps look NHWC: permute them to NCHW" if last == promised else ""
        return f"{self.promise(part, wiring)}, but gives {_plain(gave)} channels{hint}"

    def size_fault(self, part: Any, wiring: Wiring, given: PartInput, outputs: Outputs) -> str:
        """What is wrong with heights and widths; "" where nothing is."""
        return self.sizes(part, wiring, given, [size_of(out) for out in outputs])

    def sizes(self, part: Any, wiring: Wiring, given: PartInput, gave: list[Size]) -> str:
        """The same, from the sizes alone."""
        if gave[0] == given.size:
            return ""
        return f"gives {by(gave[0])}; a {self.title} keeps height and width"


def _plain(numbers: Sequence[int]) -> str:
    return str(numbers[0]) if len(numbers) == 1 else str(tuple(numbers))


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

    def inputs(self, part: Any, wiring: Wiring) -> list[PartInput]:
        shapes = encoder_shapes(part)  # encoders are large: of other channels than three, the smallest input
        return [self.given(wiring, shape) for shape in (shapes if wiring == self.wirings[0] else shapes[1:2])]

    def few(self, inputs: list[PartInput]) -> list[PartInput]:
        return inputs[1:2] or inputs

    def exported(self, part: Any, wiring: Wiring) -> tuple[int, list[PartInput]]:
        if fixed := getattr(part, "size", None):
            raise SkipCheck(f"it takes {by(fixed)} alone")
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

    def sizes(self, part: Any, wiring: Wiring, given: PartInput, gave: list[Size]) -> str:
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

    def inputs(self, part: Any, wiring: Wiring) -> list[PartInput]:
        shapes = model_shapes(part)  # models are large: of other channels, the smallest input
        return [self.given(wiring, shape) for shape in (shapes if wiring == self.wirings[0] else shapes[1:2])]

    def few(self, inputs: list[PartInput]) -> list[PartInput]:
        return inputs[1:2] or inputs

    def exported(self, part: Any, wiring: Wiring) -> tuple[int, list[PartInput]]:
        if fixed := getattr(part, "size", None):
            raise SkipCheck(f"it takes {by(fixed)} alone")
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

    def given(self, wiring: Wiring, shape: Shape) -> PartInput:
        batch, *size = shape
        return PartInput((drawn(batch, wiring[0], *size), drawn(batch, wiring[1], *size) - 0.5))


class BlockContract(Contract):
    """`(in_channels, out_channels)`; keeps the size, unless it is valid."""

    title = "block"
    names = ("in_channels", "out_channels")
    wirings = ((12, 5), (5, 12), (8, 8), (1, 1))

    def sizes(self, part: Any, wiring: Wiring, given: PartInput, gave: list[Size]) -> str:
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

    def inputs(self, part: Any, wiring: Wiring) -> list[PartInput]:
        found = super().inputs(part, wiring)
        x, (height, width) = found[0].tensors, self._scaled(found[0], wiring)
        # An odd skip is one pixel short of twice the map below it; logits may be wanted one pixel larger.
        near = [PartInput(x, (height + d, width + e)) for d, e in ((-1, -1), (0, -1), (1, 1))]
        return [self.asking(given, wiring) for given in found] + near

    def asking(self, given: PartInput, wiring: Wiring) -> PartInput:
        return PartInput(given.tensors, self._scaled(given, wiring))

    def _scaled(self, given: PartInput, wiring: Wiring) -> Size:
        height, width = given.size
        return round(height * wiring[1]), round(width * wiring[1])

    def call(self, part: Any, given: PartInput) -> Any:
        return part(*given.tensors, given.asked)

    def sizes(self, part: Any, wiring: Wiring, given: PartInput, gave: list[Size]) -> str:
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

    def inputs(self, part: Any, wiring: Wiring) -> list[PartInput]:
        batches = (3, 1, 2, 1, 2)
        pairs = zip(batches, self.PAIRS, strict=True)
        return [PartInput((drawn(batch, 4, *x), drawn(batch, 6, *skip))) for batch, (x, skip) in pairs]

    def exported(self, part: Any, wiring: Wiring) -> tuple[int, list[PartInput]]:
        pairs = (((16, 12), (30, 26)), ((9, 11), (17, 22)), ((14, 12), (14, 12)), ((8, 8), (7, 7)))
        return 4, [PartInput((drawn(2, 4, *x), drawn(2, 6, *skip))) for x, skip in pairs]

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

    def sizes(self, part: Any, wiring: Wiring, given: PartInput, gave: list[Size]) -> str:
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
