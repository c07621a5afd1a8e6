"""Integer division that rounds up. It takes the symbolic sizes of captured graphs too."""

from __future__ import annotations

from typing import Any, TypeVar


def ceil_div(number: int, divisor: int) -> int:
    """Divide by a positive integer and round up."""
    # Not -(-number // divisor): torch.export cannot simplify that.
    return (number - 1) // divisor + 1


def round_up(number: int, multiple: int) -> int:
    """Round up to a multiple of a positive integer."""
    return ceil_div(number, multiple) * multiple


def scale_side(side: int, numerator: int, denominator: int) -> int:
    """Multiply a side by a positive fraction and round to the nearest integer, a half up."""
    if numerator % denominator == 0:
        return side * (numerator // denominator)
    return (2 * side * numerator + denominator) // (2 * denominator)


T = TypeVar("T", bound=Any)


def mirror_indices(places: T, length: int) -> T:
    """Mirror positions outside an axis at its ends, which are not repeated, as often as necessary.

    Args:
        places: positions, an array or a tensor of integers.
        length: the length of the axis.
    """
    last = length - 1
    mirrored: T = last - abs(places % max(2 * last, 1) - last)
    return mirrored
