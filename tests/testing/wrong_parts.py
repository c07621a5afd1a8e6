"""Parts that each break one promise of their kind, with the check that must fail and what it must say."""

from __future__ import annotations

import functools
import random
import threading
from collections.abc import Callable
from enum import Enum
from typing import Any, Literal, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unetkit.errors import BuildError
from unetkit.plan import Plan
from unetkit.protocols import Output
from unetkit.utils.formatting import Size

#: Kind, check, a pattern of the message, the part.
WRONG: list[tuple[str, str, str, Any]] = []

T = TypeVar("T")


def wrong(kind: str, check: str, message: str) -> Callable[[T], T]:
    def add(part: T) -> T:
        WRONG.append((kind, check, message, part))
        return part

    return add


class Gate(nn.Module):
    """A right fusion: the sum of two 1x1 convolutions."""

    def __init__(self, x_channels: int, skip_channels: int) -> None:
        super().__init__()
        self.x = nn.Conv2d(x_channels, skip_channels, 1)
        self.skip = nn.Conv2d(skip_channels, skip_channels, 1)
        self.out_channels = skip_channels

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        out: Tensor = self.x(x) + self.skip(skip)
        return out


class Block(nn.Module):
    """A right block: one convolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Any:
        return self.conv(x)


class Pyramid(nn.Module):
    """A right encoder: three strided convolutions."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.channels: Any = (4, 6, 8)
        self.strides: Any = (2, 4, 8)
        self.levels = nn.ModuleList(
            nn.Conv2d(i, o, 3, stride=2, padding=1) for i, o in ((in_channels, 4), (4, 6), (6, 8))
        )

    def forward(self, x: Tensor) -> Any:
        maps = []
        for level in self.levels:
            x = level(x)
            maps.append(x)
        return maps


class Fit(nn.Module):
    """A right align: the map, resampled to the skip's size."""

    def target_size(self, scaled: Size, skip: Size) -> Any:
        return skip

    def forward(self, x: Tensor, skip: Tensor) -> Any:
        return F.interpolate(x, skip.shape[-2:]), skip


class Grow(nn.Module):
    """A right upsampler: nearest."""

    def __init__(self, channels: int, scale: float) -> None:
        super().__init__()
        self.out_channels: Any = channels
        self.scale = scale

    def forward(self, x: Tensor, size: Size) -> Tensor:
        return F.interpolate(x, size)


class Head(nn.Module):
    """A right head: a 1x1 convolution."""

    def __init__(self, in_channels: int, classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return out


class Patches(nn.Module):
    """A right whole model: patches of four pixels, and back."""

    min_size: Any = 4
    multiple: Any = 4

    def __init__(self, in_channels: int, classes: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(in_channels, 8, 4, stride=4)
        self.up = nn.ConvTranspose2d(8, classes, 4, stride=4)

    def forward(self, x: Tensor) -> Any:
        return self.up(self.down(x))


RIGHT = {
    "fusion": Gate,
    "block": Block,
    "encoder": Pyramid,
    "align": Fit,
    "upsampler": Grow,
    "head": Head,
    "model": Patches,
}


class TwoOutputs(Head):
    """A right head of two outputs."""

    outputs = {"boundary": Output("boundary", "bce")}

    def __init__(self, in_channels: int, classes: int) -> None:
        super().__init__(in_channels, classes)
        self.boundary = nn.Conv2d(in_channels, 1, 1)

    def forward(self, x: Tensor) -> Any:
        return {"boundary": self.boundary(x), "mask": self.conv(x)}


# What the factory says of itself.


@wrong(
    "fusion", "signature", r"^accepts \*\*options, so unknown options would be accepted silently; declare each option$"
)
class Swallows(Gate):
    """Takes anything."""

    def __init__(self, x_channels: int, skip_channels: int, **options: Any) -> None:
        super().__init__(x_channels, skip_channels)


@wrong("fusion", "signature", r"^accepts \*channels; declare one named parameter for each positional argument$")
class Starred(Gate):
    """Takes any number of channels."""

    def __init__(self, *channels: int) -> None:
        super().__init__(*channels)


@wrong(
    "block",
    "signature",
    r"^'kernel' is positional, but not supplied by the builder; write it after a \* to make it an option$",
)
class Positional(Block):
    """Has an option that no line can set."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 3) -> None:
        super().__init__(in_channels, out_channels)


@wrong("fusion", "signature", r"^accepts \(channels\); the builder supplies \(x_channels, skip_channels\)$")
class Single(Gate):
    """Asks for less than the builder gives."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels)


@wrong("block", "signature", r"^option 'rate' has no default; add one, so that the name alone creates the part$")
class Demanding(Block):
    """Cannot be made without an option.

    Args:
        rate: of something.
    """

    def __init__(self, in_channels: int, out_channels: int, *, rate: float) -> None:
        super().__init__(in_channels, out_channels)


@wrong(
    "block",
    "option types",
    r"^option 'rates' is annotated dict\[str, int\], so its values cannot be read from text; ",
)
class Unreadable(Block):
    """Has an option that no line can write.

    Args:
        rates: of something.
    """

    def __init__(self, in_channels: int, out_channels: int, *, rates: dict[str, int] = {}) -> None:  # noqa: B006
        super().__init__(in_channels, out_channels)


@wrong("block", "option types", r"^option 'rate' has no annotation, so its values cannot be read from text; ")
class Unannotated(Block):
    """Has an option of no type.

    Args:
        rate: of something.
    """

    def __init__(self, in_channels: int, out_channels: int, *, rate=1) -> None:  # type: ignore[no-untyped-def]
        super().__init__(in_channels, out_channels)


@wrong("block", "option types", r"^the default None of option 'rate' is not an integer: `none` cannot be parsed back$")
class Optional(Block):
    """Has a default that is not of its type.

    Args:
        rate: of something.
    """

    def __init__(self, in_channels: int, out_channels: int, *, rate: int = None) -> None:  # type: ignore  # noqa: RUF013
        super().__init__(in_channels, out_channels)


@wrong("fusion", "documentation", r"^has no docstring; `unetkit list` shows its first line$")
class Silent(Gate):
    pass


@wrong(
    "block", "documentation", r"^option 'rate' has no help; add a line `rate: what it does` under Args: in the docstr"
)
class HalfSilent(Block):
    """Says nothing of its option."""

    def __init__(self, in_channels: int, out_channels: int, *, rate: int = 1) -> None:
        super().__init__(in_channels, out_channels)


def _forgiving(factory: Any) -> Any:
    @functools.wraps(factory)
    def make(*wiring: int, **options: Any) -> Any:
        return factory(*wiring)

    return make


@wrong("block", "unknown option", r"^accepts an unknown option \(no_such_option=1\) silently$")
@_forgiving
def forgives(in_channels: int, out_channels: int) -> nn.Module:
    """Hides behind a decorator that swallows options."""
    return Block(in_channels, out_channels)


def _mumbling(factory: Any) -> Any:
    @functools.wraps(factory)
    def make(*wiring: int, **options: Any) -> Any:
        known: dict[str, Any] = {}
        return factory(*wiring, **{name: known[name] for name in options})

    return make


@wrong("block", "unknown option", r"^an unknown option raises KeyError: 'no_such_option'; declare no \*\*kwargs")
@_mumbling
def mumbles(in_channels: int, out_channels: int) -> nn.Module:
    """Refuses an option with an error that says nothing."""
    return Block(in_channels, out_channels)


# What is made.


@wrong(
    "fusion",
    "construction",
    r"^with x_channels=8, skip_channels=8: construction fails with ZeroDivisionError.*with an UnetkitEr",
)
class Divides(Gate):
    """Falls over for channels that it might refuse."""

    def __init__(self, x_channels: int, skip_channels: int) -> None:
        super().__init__(x_channels, skip_channels)
        self.ratio = 1 / (x_channels - skip_channels)


@wrong(
    "block",
    "construction",
    r"^it rejects all positional arguments that were tried: with in_channels=12, out_channels=5: not today$",
)
class Refuses(Block):
    """Takes nothing."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        raise BuildError("not today")


@wrong(
    "block",
    "construction",
    r"^with in_channels=12, out_channels=5: returns a function; a part must be a torch\.nn\.Module$",
)
def bare(in_channels: int, out_channels: int) -> Any:
    """Makes no module."""
    return torch.relu_ if False else (lambda x: x)


@wrong("block", "construction", r"^with .*: weight is lazy; create layers with the given channels$")
def lazy(in_channels: int, out_channels: int) -> nn.Module:
    """Makes a layer whose shape nobody knows yet."""
    return nn.LazyConv2d(out_channels, 1)


@wrong(
    "upsampler",
    "construction",
    r"^with channels=8, scale=2: must declare out_channels, an int of at least 1; it is missing$",
)
class Undeclared(Grow):
    """Says nothing of its channels."""

    def __init__(self, channels: int, scale: float) -> None:
        super().__init__(channels, scale)
        del self.out_channels


@wrong("upsampler", "construction", r"must declare out_channels, an int of at least 1; it is 4\.0$")
class Halves(Grow):
    """Declares a float."""

    def __init__(self, channels: int, scale: float) -> None:
        super().__init__(channels, scale)
        self.out_channels = channels / 2


@wrong(
    "encoder",
    "construction",
    r"^with in_channels=3: declares strides \(8, 4, 2\); strides must increase from sh",
)
class UpsideDown(Pyramid):
    """Gives its maps deep to shallow."""

    def __init__(self, in_channels: int) -> None:
        super().__init__(in_channels)
        self.channels, self.strides = self.channels[::-1], self.strides[::-1]

    def forward(self, x: Tensor) -> Any:
        return super().forward(x)[::-1]


@wrong(
    "encoder", "construction", r"must declare channels as ints of at least 1, one per map; it is \[4\.0, 6\.0, 8\.0\]$"
)
class Listing(Pyramid):
    """Declares numbers that are no integers."""

    def __init__(self, in_channels: int) -> None:
        super().__init__(in_channels)
        self.channels = [4.0, 6.0, 8.0]


@wrong("encoder", "construction", r"declares 3 channels and 2 strides; expected equal numbers, at least two$")
class Miscounts(Pyramid):
    """Declares a stride too few."""

    def __init__(self, in_channels: int) -> None:
        super().__init__(in_channels)
        self.strides = (2, 4)


@wrong("align", "construction", r"^must define target_size\(scaled, skip\), the size that the upsampler should return$")
class Wantless(Fit):
    """Does not say what to ask for."""

    target_size = None  # type: ignore[assignment]


@wrong(
    "align", "construction", r"^target_size\(\(10, 14\), \(9, 13\)\) returns \(11, 15\); expected one of the two sizes$"
)
class WantsMore(Fit):
    """Asks for a size that nobody has."""

    def target_size(self, scaled: Size, skip: Size) -> Any:
        return scaled[0] + 1, scaled[1] + 1


# What passes.


@wrong(
    "block", "forward", r"^with in_channels=12, out_channels=5, a batch of 3 of 5x7 in eval: fails with RuntimeError: "
)
class EvenOnly(Block):
    """Takes even sizes alone."""

    def forward(self, x: Tensor) -> Any:
        return self.conv(x + F.pixel_shuffle(F.pixel_unshuffle(x, 2), 2))


@wrong("block", "forward", r"a batch of 2 of 1x1 in eval: fails with RuntimeError: .*[Pp]adding size should be less")
class Reflects(Block):
    """Cannot mirror a single pixel."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels)
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, padding_mode="reflect")


@wrong("block", "forward", r"a batch of 1 of 8x8 in training: fails with ValueError: Expected more than 1 value per")
class PoolsAndNorms(Block):
    """Cannot be trained on one image, whatever its size."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels)
        self.pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(in_channels))

    def forward(self, x: Tensor) -> Any:
        return self.conv(x + self.pooled(x))


@wrong("block", "forward", r"a batch of 3 of 5x7 in eval: returns a tuple; expected one tensor$")
class Pairs(Block):
    """Gives more than asked for."""

    def forward(self, x: Tensor) -> Any:
        return self.conv(x), x


@wrong("head", "forward", r"returns a tensor of shape 3x7; expected \(B, C, H, W\)$")
class Flat(Head):
    """Gives no map."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, 0, 0]


@wrong("encoder", "forward", r"a batch of 2 of 17x21 in eval: returns 2 tensors; expected 3$")
class Forgets(Pyramid):
    """Gives a map less than it declares."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x)[1:]


@wrong("align", "forward", r"^a batch of 3 of 10x14 and 9x13 in eval: returns a Tensor; expected 2 tensors$")
class Joins(Fit):
    """Does the fusion's work."""

    def forward(self, x: Tensor, skip: Tensor) -> Any:
        return torch.cat(super().forward(x, skip), 1)


# What comes out.


@wrong(
    "fusion",
    "channels",
    r"^with x_channels=12, skip_channels=5, a batch of 3 of 5x7 in eval: declares out_channels=17, b",
)
class Boastful(Gate):
    """Declares what it does not give."""

    def __init__(self, x_channels: int, skip_channels: int) -> None:
        super().__init__(x_channels, skip_channels)
        self.out_channels = x_channels + skip_channels


@wrong("head", "channels", r"is called with classes=5, but returns 2 channels$")
def two_classes(in_channels: int, classes: int) -> nn.Module:
    """Takes two classes for granted."""
    return Head(in_channels, 2)


@wrong("block", "channels", r"a batch of 3 of 5x7 in eval: returns a batch of 1; expected 3$")
class Averages(Block):
    """Loses the batch."""

    def forward(self, x: Tensor) -> Any:
        return self.conv(x).mean(0, keepdim=True)


@wrong(
    "encoder",
    "channels",
    r"declares channels=\(4, 6, 8\), but returns \(9, 5, 3\) channels; the maps appear to be NHWC: permut",
)
class ChannelsLast(Pyramid):
    """Gives maps of (B, H, W, C)."""

    def forward(self, x: Tensor) -> Any:
        return [m.permute(0, 2, 3, 1) for m in super().forward(x)]


@wrong("align", "channels", r"receives a map of 4 channels and a skip of 6, but returns \(4, 5\) channels$")
class Drops(Fit):
    """Loses a channel of the skip."""

    def forward(self, x: Tensor, skip: Tensor) -> Any:
        x, skip = super().forward(x, skip)
        return x, skip[:, 1:]


@wrong("fusion", "size", r"a batch of 3 of 5x7 in eval: returns 5x6; a fusion must keep height and width$")
class Short(Gate):
    """Loses a column."""

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return super().forward(x, skip)[..., :-1] if x.shape[-1] > 1 else super().forward(x, skip)


@wrong("block", "size", r"returns 6x8; a block must keep height and width, unless it declares valid = True$")
def even_kernel(in_channels: int, out_channels: int) -> nn.Module:
    """Has a kernel without a centre."""
    return nn.Conv2d(in_channels, out_channels, 2, padding=1)


@wrong("block", "size", r"a batch of 3 of 13x15 in eval: returns 15x17; a valid block must not enlarge the map$")
class Swells(Block):
    """Says that it shrinks, and grows."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels)
        self.valid = True
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=2)


@wrong(
    "upsampler",
    "size",
    r"^with channels=8, scale=4, .* of 5x7, target size 20x28 in eval: returns 10x14; the scale times th",
)
class Doubles(Grow):
    """Knows one scale."""

    def forward(self, x: Tensor, size: Size) -> Tensor:
        return F.interpolate(x, scale_factor=2.0)


@wrong(
    "upsampler",
    "size",
    r"of 5x7, target size 9x13 in eval: returns 14x18, which differs from the target size by more than the scale$",
)
class Overshoots(Grow):
    """Goes far beyond an odd size."""

    def forward(self, x: Tensor, size: Size) -> Tensor:
        exact = size[0] == round(x.shape[-2] * self.scale) and size[1] == round(x.shape[-1] * self.scale)
        return F.interpolate(x, size if exact else (size[0] + 5, size[1] + 5))


@wrong("align", "size", r"returns 10x14 and 9x13; both must have the same size$")
class LeavesThem(Fit):
    """Aligns nothing."""

    def forward(self, x: Tensor, skip: Tensor) -> Any:
        return x, skip


@wrong("align", "size", r"returns 12x12, which is not between the two input sizes$")
class Fixes(Fit):
    """Has a size of its own."""

    def forward(self, x: Tensor, skip: Tensor) -> Any:
        return F.interpolate(x, (12, 12)), F.interpolate(skip, (12, 12))


@wrong("encoder", "size", r"declares stride 16 for map 2, which is about 3x3, but returns 5x5$")
class WrongStride(Pyramid):
    """Declares a stride that it has not."""

    def __init__(self, in_channels: int) -> None:
        super().__init__(in_channels)
        self.strides = (2, 4, 16)


@wrong(
    "head",
    "logits",
    r"^with in_channels=8, classes=5: every output lies in \[0, 1\]: a head must return logits; leave sigmoid",
)
class Softmax(Head):
    """Gives probabilities."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).softmax(1)


# What a pass does beside its output.


@wrong(
    "fusion",
    "gradients",
    r"no gradient reaches unused\.weight, unused\.bias: it is unused, or cut off by detach or no_grad$",
)
class Unused(Gate):
    """Has a layer that it forgets."""

    def __init__(self, x_channels: int, skip_channels: int) -> None:
        super().__init__(x_channels, skip_channels)
        self.unused = nn.Conv2d(2, 2, 1)


@wrong("fusion", "gradients", r"no gradient reaches x\.weight, x\.bias: it is unused, or cut off by detach or no_grad$")
class Detached(Gate):
    """Cuts half of itself off."""

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        out: Tensor = self.x(x).detach() + self.skip(skip)
        return out


@wrong(
    "block",
    "gradients",
    r"^with in_channels=12, out_channels=5: its output has no gradient; something in it is det",
)
class Frozen(Block):
    """Learns nothing."""

    @torch.no_grad()
    def forward(self, x: Tensor) -> Any:
        return super().forward(x)


@wrong("block", "gradients", r"no gradient reaches its inputs, so the layers before it do not train$")
class Wall(Block):
    """Learns alone."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x.detach())


@wrong("block", "gradients", r"the gradient of power is not finite$")
class Explodes(Block):
    """Has a root at zero."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels)
        self.power = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Any:
        return super().forward(x) + self.power.sqrt()


@wrong(
    "block", "gradients", r"a batch of 3 of 5x7 in training: backward fails with RuntimeError: Trying to backward thr"
)
class Remembers(Block):
    """Keeps the graph of the pass before."""

    last: Any = 0.0

    def forward(self, x: Tensor) -> Any:
        out = super().forward(x)
        if not self.training:
            return out
        out = out + self.last
        self.last = out.mean()
        return out


@wrong(
    "block", "inputs", r"a batch of 3 of 5x7 in eval: changes its input in place, although other parts still use it$"
)
class InPlace(Block):
    """Writes on what it is given."""

    def forward(self, x: Tensor) -> Any:
        return self.conv(F.relu_(x))


@wrong(
    "fusion",
    "inputs",
    r"a batch of 3 of 5x7 in training: changes the skip in place, although other parts still use it$",
)
class InPlaceSkip(Gate):
    """Writes on the skip, in training alone."""

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        if self.training:
            skip.data.mul_(0.5)
        return super().forward(x, skip)


@wrong("block", "state", r"a pass in eval changes the buffer seen; update it only in training$")
class Counts(Block):
    """Counts its passes."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Any:
        self.seen: Tensor = self.seen + 1
        return super().forward(x)


@wrong("block", "state", r"a pass adds late\.weight, late\.bias to the state_dict; create every layer in __init__$")
class Late(Block):
    """Makes a layer when it is first called."""

    def forward(self, x: Tensor) -> Any:
        if not hasattr(self, "late"):
            self.late = nn.Conv2d(x.shape[1], x.shape[1], 1)
        return super().forward(self.late(x))


@wrong("block", "state", r"a pass in eval changes conv\.bias$")
class Learns(Block):
    """Changes its own weights."""

    def forward(self, x: Tensor) -> Any:
        self.conv.bias.data.add_(0.1)  # type: ignore[union-attr]
        return super().forward(x)


@wrong(
    "block",
    "state",
    r"two passes of one input differ by up to .*: it draws random numbers; check self\.training first$",
)
class AlwaysDrops(Block):
    """Drops out in eval too."""

    def forward(self, x: Tensor) -> Any:
        return F.dropout(super().forward(x))


@wrong("block", "state", r"two successive passes of one input differ by up to .*: it keeps state between calls, or dr")
class Rolls(Block):
    """Draws numbers that no seed of torch fixes."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x) * random.random()


@wrong(
    "block", "state", r"a batch of 1 of 8x8 fails \(RuntimeError: .*\), but passes through a new part: it keeps state"
)
class Caches(Block):
    """Keeps a grid of the first size."""

    grid: Any = None

    def forward(self, x: Tensor) -> Any:
        if self.grid is None:
            self.grid = torch.ones_like(x[:1])
        return super().forward(x + self.grid)


@wrong(
    "upsampler",
    "state",
    r"give different outputs \(by up to inf\) when run one after the other: it keeps state between",
)
class CachesSize(Grow):
    """Keeps the first size."""

    first: Any = None

    def forward(self, x: Tensor, size: Size) -> Tensor:
        self.first = self.first or size
        return F.interpolate(x, self.first)


@wrong(
    "block",
    "batch",
    r"a batch of 3 of 5x7 in eval: the output of sample 0 differs \(by up to .*\) from its output alone: samples",
)
class Mixes(Block):
    """Normalises over the batch in eval too."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels)
        self.norm = nn.BatchNorm2d(in_channels, track_running_stats=False)

    def forward(self, x: Tensor) -> Any:
        if x.shape[0] * x.shape[-1] * x.shape[-2] == 1:
            return super().forward(x)
        return super().forward(self.norm(x))


# What a second part is.


@wrong(
    "block",
    "seed",
    r"conv\.weight differs between two parts created with the same torch\.manual_seed; draw it with torch$",
)
class DrawsElsewhere(Block):
    """Draws its weights by numpy."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels)
        with torch.no_grad():
            self.conv.weight.mul_(float(np.random.default_rng().random()))


@wrong("block", "seed", r"its constructor sets torch's seed, which changes all later random numbers$")
class Seeds(Block):
    """Sets the seed of everybody."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        torch.manual_seed(42)
        super().__init__(in_channels, out_channels)


@wrong("block", "seed", r"in training two passes with the same torch\.manual_seed differ by up to")
class TrainsElsewhere(Block):
    """Augments with numbers that no seed fixes."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x) * (random.random() if self.training else 1.0)


@wrong("block", "seed", r"a pass sets torch's seed, which changes all later random numbers$")
class SeedsInPass(Block):
    """Sets the seed in every pass."""

    def forward(self, x: Tensor) -> Any:
        if self.training:
            torch.default_generator.manual_seed(0)
        return super().forward(x)


@wrong(
    "block",
    "registration",
    r"^convs holds a layer that is not registered, so .*; use ModuleList or ModuleDict$",
)
class Listed(Block):
    """Keeps layers in a list."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels)
        self.convs = [nn.Conv2d(in_channels, in_channels, 1)]

    def forward(self, x: Tensor) -> Any:
        return super().forward(self.convs[0](x))


@wrong("block", "registration", r"^scale holds a tensor that is not registered, so .*; use register_buffer \(")
class Loose(Block):
    """Keeps a random tensor that is no buffer."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels)
        self.scale = torch.rand(1)

    def forward(self, x: Tensor) -> Any:
        return super().forward(x) * self.scale.to(x)


@wrong("block", "state_dict", r"outputs that differ by up to .*: something is not in it$")
class Unsaved(Block):
    """Averages in training, and does not save what it found."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels)
        self.register_buffer("mean", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor) -> Any:
        if self.training:
            self.mean: Tensor = x.detach().mean()
        return super().forward(x - self.mean)


@wrong(
    "block",
    "state_dict",
    r"its state_dict does not load into another part: Error\(s\) in loading state_dict for Renames:",
)
class Renames(Block):
    """Numbers its layers through the whole process."""

    made = 0

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels)
        Renames.made += 1
        self.add_module(f"late{Renames.made}", nn.Conv2d(in_channels, in_channels, 1))

    def forward(self, x: Tensor) -> Any:
        late = next(module for name, module in self.named_children() if name.startswith("late"))
        return super().forward(late(x))


@wrong("block", "deepcopy", r"a deep copy still uses the original's weights: it keeps a lambda or a bound method")
class Binds(Block):
    """Keeps a lambda over its own layer."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels)
        self.way: Callable[[Tensor], Any] = lambda x: self.conv(x)

    def forward(self, x: Tensor) -> Any:
        return self.way(x)


@wrong("block", "deepcopy", r"copy\.deepcopy fails with TypeError: cannot pickle '_thread\.lock' object$")
class Locks(Block):
    """Holds what cannot be copied."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels)
        self.lock = threading.Lock()


@wrong(
    "block",
    "deepcopy",
    r"changing the weights of a deep copy changes the original's output by up to .*: they share memory",
)
class Shares(Block):
    """Copies nothing."""

    def __deepcopy__(self, memo: Any) -> Any:
        return self


# What it is in another form.


@wrong(
    "block",
    "dtype",
    r"in float64 \(part\.double\(\)\) it returns torch\.float32; create tensors with the dtype of the input",
)
class Floats(Block):
    """Gives float32 whatever it is given."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x).float()


@wrong(
    "block", "dtype", r"in float64 \(part\.double\(\)\) it fails with RuntimeError: expected scalar type|it fails with"
)
class Mats(Block):
    """Multiplies by a float32 matrix."""

    def forward(self, x: Tensor) -> Any:
        eye = torch.eye(x.shape[1], dtype=torch.float32, device=x.device)
        return super().forward(torch.einsum("bchw,cd->bdhw", x, eye))


@wrong(
    "block",
    "meta",
    r"a pass on the meta device \(which has shapes but no values, and detects tensors on a wrong device\) fails with",
)
class Cpu(Block):
    """Makes a tensor on the cpu."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x + torch.arange(x.shape[-1], dtype=x.dtype, device="cpu"))


@wrong("block", "meta", r"fails with RuntimeError: Tensor\.item\(\) cannot be called on meta tensors")
class Peeks(Block):
    """Reads a value."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x) * (2.0 if x.sum().item() > 1e9 else 1.0)


@wrong(
    "block",
    "meta",
    r"created under torch\.device\('meta'\), scale is on cpu; create tensors with torch's functions without",
)
class FromNumpy(Block):
    """Has a parameter made by numpy."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels)
        self.scale = nn.Parameter(torch.from_numpy(np.ones(1, dtype=np.float32)))

    def forward(self, x: Tensor) -> Any:
        return super().forward(x) * self.scale


@wrong(
    "block",
    "export",
    r"exported at 2 of 16x12, it does not accept 2 of 9x11 \(.*\): a size was fixed; read sizes from x\.",
)
class Branches(Block):
    """Goes another way on large maps."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x if x.shape[-1] > 11 else x * 2)


@wrong("upsampler", "export", r"exported at 2 of 16x12, target size 32x24, it does not accept 2 of 9x11")
class Ints(Grow):
    """Makes Python numbers of sizes."""

    def forward(self, x: Tensor, size: Size) -> Tensor:
        return F.interpolate(x, (int(size[0]), int(size[1])))


@wrong("block", "channels_last", r"in channels_last memory it fails with RuntimeError: view size is not compatible")
class Views(Block):
    """Takes every map for contiguous."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x.view(x.shape[0], -1).view(x.shape))


@wrong(
    "block",
    "options",
    r"^with norm=batch, in_channels=12, out_channels=5, a batch of 3 of 5x7 in eval: fails with Runt",
)
class BrokenChoice(Block):
    """Was never tried with its second choice.

    Args:
        norm: after the convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, *, norm: Literal["none", "batch"] = "none") -> None:
        super().__init__(in_channels, out_channels)
        self.norm = nn.BatchNorm2d(out_channels + 1) if norm == "batch" else nn.Identity()

    def forward(self, x: Tensor) -> Any:
        return self.norm(super().forward(x))


class Activation(Enum):
    NONE = "none"
    SQUEEZED = "squeezed"


@wrong("block", "options", r"^with act=squeezed, in_channels=12, .*: fails with ZeroDivisionError")
class BrokenMember(Block):
    """Was never tried with the second member of an Enum.

    Args:
        act: after the convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, *, act: Activation = Activation.NONE) -> None:
        super().__init__(in_channels, out_channels)
        self.act = act

    def forward(self, x: Tensor) -> Any:
        return super().forward(x) / (1 if self.act is Activation.NONE else 1 // 0)


@wrong(
    "block",
    "options",
    r"^with twice=true, in_channels=12, out_channels=5: no gradient reaches second\.weight, second\.b",
)
class IdleChoice(Block):
    """Has a switch that switches nothing.

    Args:
        twice: whether there is a second layer.
    """

    def __init__(self, in_channels: int, out_channels: int, *, twice: bool = False) -> None:
        super().__init__(in_channels, out_channels)
        self.second = nn.Conv2d(out_channels, out_channels, 1) if twice else None


class Recalls(Block):
    """Adds what it gave before, in training."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels)
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Any:
        y = self.conv(x)
        if not self.training:
            return y
        if self.last is not None and self.last.shape == y.shape:
            y = y + 0.1 * self.last
        self.last = self.kept(y)
        return y

    def kept(self, y: Tensor) -> Tensor:
        return y.detach()


wrong(
    "block",
    "seed",
    r"in training two successive passes of one input differ by up to .* with the same seed: it keeps state",
)(Recalls)


@wrong("block", "gradients", r"a batch of 3 of 5x7 in training: backward fails with RuntimeError: .* second time")
class RecallsAll(Recalls):
    """The same with its graph; eval mode and single passes do not show it."""

    def forward(self, x: Tensor) -> Any:
        y = self.conv(x)
        if not (self.training and torch.is_grad_enabled()):
            return y
        if self.last is not None and self.last.shape == y.shape:
            y = y + 0.1 * self.last
        self.last = y
        return y


@wrong("fusion", "gradients", r"its output depends on the skip, but no gradient reaches it$")
class CutsTheSkip(Gate):
    """Lets nothing learn through the skip."""

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return super().forward(x, skip.detach())


@wrong("fusion", "gradients", r"its output depends on the map, but no gradient reaches it$")
class CutsTheMap(Gate):
    """Lets nothing below learn."""

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return super().forward(x.detach(), skip)


@wrong("block", "forward", r"a batch of 3 of 5x7 in eval: returns values that are not finite$")
class Endless(Block):
    """Divides by zero."""

    def forward(self, x: Tensor) -> Any:
        return self.conv(x) + 1 / torch.zeros_like(x[:1, :1, :1, :1])


@wrong("head", "logits", r"every output lies in \[-1, 1\]: a head must return logits")
class Squashes(Head):
    """Ends in tanh."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x).tanh()


@wrong("head", "logits", r"every output is at most 0, as after log-softmax: a head must return logits")
class Logarithms(Head):
    """Ends in log-softmax, but for one class, where it would be 0."""

    def forward(self, x: Tensor) -> Any:
        y = super().forward(x)
        return y.log_softmax(dim=1) if y.shape[1] > 1 else -y.abs()


@wrong(
    "block",
    "construction",
    r"^it changes torch's default dtype for the whole process; leave these settings to the user$",
)
class Widens(Block):
    """Sets a default dtype."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels)
        torch.set_default_dtype(torch.float64)


@wrong(
    "block", "construction", r"^it changes torch's number of threads and torch's use of deterministic algorithms for"
)
class Slows(Block):
    """Sets what is the user's to set."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels)
        torch.set_num_threads(torch.get_num_threads() + 1)
        torch.use_deterministic_algorithms(True)


@wrong("block", "forward", r"SystemExit: 1")
class Leaves(Block):
    """Ends the process for a single pixel."""

    def forward(self, x: Tensor) -> Any:
        if x.shape[-1] == 1:
            raise SystemExit(1)
        return super().forward(x)


# What it is in a network.


@wrong(
    "block",
    "network",
    r"^in the network `--encoder 'plain:widths=\[4,8,16\]' --block '<Picky>'` it is rejected: .*one channel",
)
class Picky(Block):
    """Takes channels that no network has."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        if in_channels > 1:
            raise BuildError("only one channel")
        super().__init__(in_channels, out_channels)


@wrong("recipe", "plan", r"^its plan names the recipe unet-2015; write out its fields instead$")
def relays() -> Plan:
    """Leaves the work to another recipe."""
    return Plan.of(recipe="unet-2015", fuse="add")


@wrong("recipe", "plan", r"^returns a str; expected a Plan$")
def line() -> Any:
    """Gives the line itself."""
    return "--encoder plain"


@wrong(
    "recipe",
    "plan",
    r"^its line `--widths '\[64, 32\]'` cannot be parsed: --widths: must be integers such as 256,128,64",
)
def by_hand() -> Plan:
    """Fills a Plan with what nobody has read."""
    return Plan(widths=[64, 32])  # type: ignore[arg-type]


@wrong("recipe", "plan", r"^creating its plan fails with UnknownNameError: there is no option 'fusion'")
def misspelled() -> Plan:
    """Says a word that there is not."""
    return Plan.of(fusion="add")


@wrong("recipe", "input size", r"^it cannot be built: .*no encoder is called 'plainly' .did you mean plain")
def unknown_encoder() -> Plan:
    """Names a part that there is not."""
    return Plan.of(encoder="plainly")


@wrong(
    "recipe",
    "input size",
    r"^at its own size: input size 20x20 does not work: .*; the nearest sizes that work are 44x44 and 48x48$",
)
def too_small() -> Plan:
    """Is meant for a size that it does not take."""
    return Plan.of(encoder="plain:widths=[4,8,16],padding=0", block="double:padding=0", align="crop", size=20)


# Whole models.


@wrong("model", "signature", r"^accepts \(in_channels\); the builder supplies \(in_channels, classes\)$")
class Binary(Patches):
    """Has one class alone."""

    def __init__(self, in_channels: int) -> None:
        super().__init__(in_channels, 1)


@wrong(
    "model", "construction", r"^with in_channels=3, classes=5: declares multiple=4\.0; expected an int of at least 1$"
)
class Quarters(Patches):
    """Declares a float."""

    multiple = 16 / 4


@wrong(
    "model", "construction", r"^with in_channels=3, classes=5: declares size=32; expected \(height, width\) or None$"
)
class Square(Patches):
    """Declares one side of its size."""

    size = 32


@wrong("model", "forward", r"^with in_channels=3, classes=5, a batch of 3 of 16x20 in eval: fails with RuntimeError: ")
class Understates(Patches):
    """Takes multiples of 8, and declares 4."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x + F.pixel_shuffle(F.pixel_unshuffle(x, 8), 8))


@wrong(
    "model",
    "forward",
    r"^with in_channels=3, classes=5, a batch of 2 of 4x4 in eval: fails with RuntimeError: .*too small$",
)
class TooSmall(Patches):
    """Takes no map of one pixel, and does not say so."""

    def forward(self, x: Tensor) -> Any:
        y = self.down(x)
        return self.up(F.interpolate(F.avg_pool2d(y, 2), y.shape[-2:]))


@wrong("model", "forward", r"a batch of 3 of 16x20 in eval: returns a set; expected one tensor, or a dict of named")
class Collected(Patches):
    """Gives its logits in a set."""

    def forward(self, x: Tensor) -> Any:
        return {super().forward(x)}


@wrong(
    "model", "forward", r"returns the output 'aux' beside its prediction 'out', but declares no target and loss for it"
)
class AsTorchvision(Patches):
    """Gives its logits by name and others beside them, as torchvision's models do."""

    def forward(self, x: Tensor) -> Any:
        logits = super().forward(x)
        return {"out": logits, "aux": logits}


@wrong("model", "channels", r"a batch of 3 of 16x20 in eval: is called with classes=5, but returns 2 channels$")
class TwoClasses(Patches):
    """Knows foreground and background."""

    def __init__(self, in_channels: int, classes: int) -> None:
        super().__init__(in_channels, 2)


@wrong("model", "size", r"a batch of 3 of 16x20 in eval: returns 4x5; a model must keep height and width$")
class Coarse(Patches):
    """Leaves resizing to others, as some of the transformers do."""

    def forward(self, x: Tensor) -> Any:
        return F.avg_pool2d(super().forward(x), 4)


@wrong(
    "model",
    "logits",
    r"^with in_channels=1, classes=1: every output lies in \[0, 1\]: a model must return logits; leave",
)
class Probable(Patches):
    """Ends in a sigmoid where there is one class."""

    def forward(self, x: Tensor) -> Any:
        y = super().forward(x)
        return y.sigmoid() if y.shape[1] == 1 else y


@wrong(
    "model",
    "gradients",
    r"^with in_channels=3, classes=5: no gradient reaches aux\.weight, aux\.bias: it is unused, or",
)
class Auxiliary(Patches):
    """Has a head that nothing calls."""

    def __init__(self, in_channels: int, classes: int) -> None:
        super().__init__(in_channels, classes)
        self.aux = nn.Conv2d(8, classes, 1)


@wrong(
    "model", "export", r"exported at 2 of 72x68, it does not accept 2 of 64x64 .*: a size was fixed; read sizes from x"
)
class Tiles(Patches):
    """Goes another way on large images."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x if x.shape[-1] > 64 else x * 2)


@wrong("model", "network", r"^in the network `--model '<Paired>'` it is rejected: .*an odd number of classes alone$")
class Paired(Patches):
    """Takes numbers of classes that the network's is none of."""

    def __init__(self, in_channels: int, classes: int) -> None:
        if classes == 4:
            raise BuildError("an odd number of classes alone")
        super().__init__(in_channels, classes)


# Outputs beside the prediction.


@wrong(
    "head", "forward", r"in eval: returns the output 'boundary' beside its prediction 'mask', but declares no target"
)
class NoTarget(TwoOutputs):
    """Declares nothing."""

    outputs = {}


@wrong(
    "head", "forward", r"in training: declares the output 'boundary', but returns a Tensor in training; return a dict"
)
class OnlyMask(Head):
    """Declares an output that it does not have."""

    outputs = TwoOutputs.outputs


@wrong(
    "head", "forward", r"in training: returns a tuple of 2 outputs with 5, 1 channels in training, but each output in"
)
class TupleOfTwo(TwoOutputs):
    """Returns a tuple in training."""

    outputs = {}

    def forward(self, x: Tensor) -> Any:
        both = super().forward(x)
        return (both["mask"], both["boundary"]) if self.training else both["mask"]


@wrong("head", "construction", r"declares outputs=\{'boundary': 'bce'\}; expected a dict such as")
class OnlyLoss(TwoOutputs):
    """Declares a text."""

    outputs = {"boundary": "bce"}  # type: ignore[dict-item]


@wrong(
    "head", "outputs", r"its `outputs`: output 'boundary': target edges: no target is called 'edges'; the targets are"
)
class NoSuchTarget(TwoOutputs):
    """Declares a target that does not exist."""

    outputs = {"boundary": Output("edges", "bce")}


@wrong(
    "head", "outputs", r"its `outputs`: output 'boundary': loss mse: compares numbers, but the target has classes; wr"
)
class WrongLoss(TwoOutputs):
    """Declares a loss that does not fit its target."""

    outputs = {"boundary": Output("boundary", "mse")}


@wrong(
    "model", "outputs", r"output 'boundary': it has 3 channels, but target distance needs 1 \(regression: distance\);"
)
class WrongChannels(Patches):
    """Has an output with channels that its target does not have."""

    outputs = {"boundary": Output("distance")}

    def __init__(self, in_channels: int, classes: int) -> None:
        super().__init__(in_channels, classes)
        self.other = nn.ConvTranspose2d(8, 3, 4, stride=4)

    def forward(self, x: Tensor) -> Any:
        below = self.down(x)
        return {"mask": self.up(below), "boundary": self.other(below)}
