"""Benchmarks: measure what models cost, each in its own process and paired with a baseline.

`run` measures plans and returns their rows; `read` reads the rows of a folder that `unetkit bench` or `run` wrote.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unetkit.bench.results import BenchRow, BenchRun, Header, Timing
    from unetkit.bench.runner import BenchRows, read, run
    from unetkit.registry import MetricInfo

_MODULES = {
    "MetricInfo": "unetkit.registry",
    **dict.fromkeys(("BenchRows", "read", "run"), "unetkit.bench.runner"),
    **dict.fromkeys(("BenchRow", "BenchRun", "Header", "Timing"), "unetkit.bench.results"),
}
__all__ = ["BenchRow", "BenchRows", "BenchRun", "Header", "MetricInfo", "Timing", "read", "run"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
