"""Figures as people write them."""

from __future__ import annotations

from unetkit.plan import Size


def format_count(number: int) -> str:
    """12.3 G for 12,300,000,000, with three significant digits."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}" if number < 1000 * size else f"{number / size:.0f} {unit}"
    return str(number)


def format_bytes(number: int) -> str:
    """Bytes in binary units: 1.5 MiB."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if number >= size:
            return f"{number / size:.4g} {unit}"
    return f"{number} B"


def format_size(size: Size) -> str:
    """572x388, height first."""
    return f"{size[0]}x{size[1]}"
