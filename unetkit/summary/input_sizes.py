"""Which sizes a network takes: the smallest, the nearest to one that it does not, and whether its own passes."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from unetkit.errors import CannotBuild, CannotPass, UnetkitError
from unetkit.inspect.figures import format_size
from unetkit.inspect.observe import Observation, meta_input, network_of, observe, size_for
from unetkit.inspect.promises import culprit, misdeclared
from unetkit.meta import meta_copy
from unetkit.plan import Size

#: No known network refuses a size for being too small from here on.
_LARGEST = 2048


def smallest(ghost: nn.Module) -> int | None:
    """The smallest height and width that a model on meta takes; None where it takes none up to 2048."""
    least = 1 + bisect_left(range(1, _LARGEST + 1), x=True, key=lambda side: passes(ghost, (side, side)))
    return least if least <= _LARGEST else None


def passes(ghost: nn.Module, size: Size, *, whole: bool = False) -> bool:
    """Whether a model on meta takes a size; `whole` also asks that no pool leaves out a row or column."""
    with torch.no_grad():
        seen = observe(ghost, meta_input(network_of(ghost), size))
    return seen.error is None and not (whole and seen.dropped())


def nearest_sizes(ghost: nn.Module, size: Size) -> tuple[Size, ...]:
    """The two sizes nearest to one that pass and leave nothing out, smaller first; fewer where there are not two."""
    least = smallest(ghost) if network_of(ghost).valid else 1
    if least is None:
        return ()
    heights, widths = (_nearest(ghost, side, least) for side in size)
    return tuple(dict.fromkeys(zip(heights, widths, strict=False)))


def _nearest(ghost: nn.Module, side: int, least: int) -> list[int]:
    # The strides' phases repeat, so among twice the deepest there is a size of every kind.
    reach = 2 * network_of(ghost).period + 2
    if side >= least and _first(ghost, [side]):
        return [side, side]
    below = _first(ghost, range(side - 1, max(least, side - reach) - 1, -1))
    above = _first(ghost, range(max(side + 1, least), max(side + 1, least) + reach))
    return below + above if below or not above else above + _first(ghost, range(above[0] + 1, above[0] + reach))


def _first(ghost: nn.Module, sides: Iterable[int]) -> list[int]:
    return next(([side] for side in sides if passes(ghost, (side, side), whole=True)), [])


def refusal(ghost: nn.Module, size: Size, seen: Observation) -> CannotPass:
    """What to raise for a pass that failed: where it broke, on what, and the sizes that pass."""
    failure = seen.failure()
    if isinstance(seen.error, CannotPass) and network_of(ghost).size:
        return seen.error  # says what is too large for the encoder
    if sizes := nearest_sizes(ghost, size):
        nearest = " and ".join(map(format_size, sizes))
        return CannotPass(
            f"size {format_size(size)} does not pass: {failure}; the nearest sizes that pass are {nearest}"
        )
    return CannotPass(f"no size passes: at {format_size(size)}, {failure}")


def prove(model: nn.Module, *, any_size: bool) -> None:
    """Pass the size that a network is meant for through it, on meta.

    Args:
        model: as it was built.
        any_size: whether it is enough that some size passes.

    Raises:
        CannotPass: it breaks; says where and on what shapes.
        CannotBuild: a part gives something else than it promises, or fails in a way that no size mends.
    """
    ghost = meta_copy(model).eval()
    network = network_of(ghost)
    size = size_for(network, None)
    with torch.no_grad():
        seen = observe(ghost, meta_input(network, size))
    if re.search(r"\bmeta tensor|\bon meta\b|'Meta' backend|meta device", str(seen.error)):
        return  # a part that looks at values cannot be followed without them
    if wrong := misdeclared(network, seen):
        raise CannotBuild(wrong) from seen.error
    if isinstance(seen.error, NotImplementedError):  # no size mends that
        raise CannotBuild(f"{culprit(network, seen)}{seen.failure()}") from seen.error
    if seen.error is not None and not (any_size and nearest_sizes(ghost, size)):
        if not isinstance(seen.error, RuntimeError | ValueError | UnetkitError):  # a mistake in the code of a part
            raise CannotBuild(f"{culprit(network, seen)}{seen.failure()}") from seen.error
        raise refusal(ghost, size, seen) from seen.error
    if seen.error is None and not isinstance(seen.output, Tensor):
        return  # a plugin's wrapper may give several outputs
    if seen.output is not None and seen.output.shape[1] != network.whole.classes:
        raise CannotBuild(f"the logits have {seen.output.shape[1]} channels for {network.whole.classes} classes")
