"""Figures of a benchmark as people write them: three digits and a unit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unetkit.inspect.figures import count, memory

if TYPE_CHECKING:
    from unetkit.bench.statistics import Estimate


def figure(number: float, unit: str) -> str:
    """A metric's number: 12.3 ms, 97.8 MiB, 24.4 M, or 0.513 of whatever unit a plugin's metric has."""
    if unit == "s":
        return seconds(number)
    if unit == "B":
        return memory(round(number))
    if not unit and number == int(number):
        return count(int(number))
    return f"{digits(number)} {unit}".strip()


def seconds(number: float) -> str:
    """Milliseconds below ten seconds, so that a column of them can be compared at a glance."""
    return f"{digits(number)} s" if number >= 10 else f"{digits(number * 1e3)} ms"


def digits(number: float) -> str:
    """Three significant digits, never as a power of ten where that can be helped: 0.0123, 1.23, 12.3, 1,230."""
    rounded = float(f"{number:.3g}")
    if abs(rounded) >= 1000:
        return f"{rounded:,.0f}"
    return f"{rounded:#.3g}".rstrip(".") if abs(rounded) >= 0.001 else f"{rounded:g}"


def ratio(number: float) -> str:
    """0.97, 1.43, 12.3."""
    return f"{number:.2f}" if 0.1 <= number < 10 else f"{number:.3g}"


def interval(estimate: Estimate) -> str:
    """1.43 (1.41 to 1.46)."""
    return f"{ratio(estimate.ratio)} ({ratio(estimate.low)} to {ratio(estimate.high)})"
