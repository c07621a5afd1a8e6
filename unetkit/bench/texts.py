"""Figures of a benchmark as people write them: three digits and a unit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unetkit.inspect.figures import format_bytes, format_count

if TYPE_CHECKING:
    from unetkit.bench.statistics import Estimate


def format_metric(number: float, unit: str) -> str:
    """A metric's number: 12.3 ms, 97.8 MiB, 24.4 M, or 0.513 of whatever unit a plugin's metric has."""
    if unit == "s":
        return format_seconds(number)
    if unit == "B":
        return format_bytes(round(number))
    if not unit and number == int(number):
        return format_count(int(number))
    return f"{format_digits(number)} {unit}".strip()


def format_seconds(number: float) -> str:
    """Milliseconds below ten seconds, so that a column of them can be compared at a glance."""
    return f"{format_digits(number)} s" if number >= 10 else f"{format_digits(number * 1e3)} ms"


def format_digits(number: float) -> str:
    """Three significant digits, never as a power of ten where that can be helped: 0.0123, 1.23, 12.3, 1,230."""
    rounded = float(f"{number:.3g}")
    if abs(rounded) >= 1000:
        return f"{rounded:,.0f}"
    return f"{rounded:#.3g}".rstrip(".") if abs(rounded) >= 0.001 else f"{rounded:g}"


def format_ratio(number: float) -> str:
    """0.97, 1.43, 12.3."""
    return f"{number:.2f}" if 0.1 <= number < 10 else f"{number:.3g}"


def format_interval(estimate: Estimate) -> str:
    """1.43 (1.41 to 1.46)."""
    return f"{format_ratio(estimate.ratio)} ({format_ratio(estimate.low)} to {format_ratio(estimate.high)})"
