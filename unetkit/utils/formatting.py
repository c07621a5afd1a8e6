"""Numbers, sizes, units and places as text for people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

Size = tuple[int, int]


def format_count(number: int) -> str:
    """Format a count with three significant digits: 12.3 G for 12,300,000,000."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}" if number < 1000 * size else f"{number / size:.0f} {unit}"
    return str(number)


def format_plural(count: int, noun: str) -> str:
    """Format a count with its noun: 1 image, 2 images, 1,000 classes."""
    return f"{count:,} {noun if count == 1 else noun + ('es' if noun.endswith('s') else 's')}"


def format_names(names: Sequence[str]) -> str:
    """Format names as a phrase: "torch", "torch and numpy", "torch, numpy and scipy"."""
    return " and ".join([*([", ".join(names[:-1])] if names[1:] else []), *names[-1:]])


def format_type(value: object) -> str:
    """Format the type of a value with its article, for messages: a list, an int, or None."""
    name = type(value).__name__
    return "None" if value is None else f"{'an' if name[0] in 'aeioAEIO' else 'a'} {name}"


def format_bytes(number: int) -> str:
    """Format bytes in binary units: 1.5 MiB."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if number >= size:
            return f"{number / size:.4g} {unit}"
    return f"{number} B"


def format_size(size: Size) -> str:
    """Format a size with the height first: 572x388."""
    return f"{size[0]}x{size[1]}"


def format_metric(number: float, unit: str) -> str:
    """Format the number of a metric with its unit.

    12.3 ms, 97.8 MiB, 24.4 M, or 0.513 with the unit of a plugin's metric.
    """
    if unit == "s":
        return format_seconds(number)
    if unit == "B":
        return format_bytes(round(number))
    if not unit and number == int(number):
        return format_count(int(number))
    return f"{format_digits(number)} {unit}".strip()


def format_seconds(number: float) -> str:
    """Format seconds; below ten seconds as milliseconds, so that a column of them is easy to compare."""
    return f"{format_digits(number)} s" if number >= 10 else f"{format_digits(number * 1e3)} ms"


def format_digits(number: float) -> str:
    """Format three significant digits, without a power of ten if possible: 0.0123, 1.23, 12.3, 1,230."""
    rounded = float(f"{number:.3g}")
    if abs(rounded) >= 1000:
        return f"{rounded:,.0f}"
    return f"{rounded:#.3g}".rstrip(".") if abs(rounded) >= 0.001 else f"{rounded:g}"


def format_ratio(number: float) -> str:
    """Format a ratio: 0.97, 1.43, 12.3."""
    return f"{number:.2f}" if 0.1 <= number < 10 else f"{number:.3g}"


def format_place(file: str, line: int) -> str:
    """Format a place as "gate.py:12", relative to the current folder if the file is in it; "" if there is no file."""
    if not file:
        return ""
    path = Path(file)
    return f"{path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}:{line}"
