"""What a child is sent. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass

from unetkit.bench.grid import Case
from unetkit.bench.mode import Mode
from unetkit.bench.timing import Rules
from unetkit.plan import Plan, Size

#: What every child imports; smp takes seconds more, and is added where a row asks for it.
PRELOAD = ("unetkit.bench.trial", "timm")


@dataclass(frozen=True)
class Trial:
    """A case and all that its child needs to know.

    Attributes:
        case: what is measured.
        baseline: the network that it is timed against, under the size and batch of the case.
        baseline_mode: how that runs.
        size: of the input, where it is known already.
        metrics: the names of what is measured.
        rules: for how long and how precisely.
        plugins: named beside what is installed.
    """

    case: Case
    baseline: Plan
    baseline_mode: Mode
    size: Size | None
    metrics: tuple[str, ...]
    rules: Rules
    plugins: tuple[str, ...] = ()
