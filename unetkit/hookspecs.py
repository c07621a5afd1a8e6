"""The hooks that a plugin may implement. All are optional; mark yours with `@unetkit.hookimpl`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from click import Group
    from torch.nn import Module

    from unetkit.plan import Plan
    from unetkit.registry import Metrics, Parts

hookspec = pluggy.HookspecMarker("unetkit")
hookimpl = pluggy.HookimplMarker("unetkit")


@hookspec
def unetkit_register(parts: Parts) -> None:
    """Add parts: `parts.fusions.add("gate", "my_package.gate:Gate")`."""


@hookspec
def unetkit_wrap_model(plan: Plan) -> Callable[[Module], Module] | None:
    """Return what takes a built model and gives the one to use in its place, or None to leave it as it is.

    `plan` is the whole plan of the model: it says every word. Answer None unless it names a part of yours, so that
    the line of a model still says all that the model is.
    """


@hookspec
def unetkit_register_commands(cli: Group) -> None:
    """Add commands: `@cli.command()` above a function. Import torch within it."""


@hookspec
def unetkit_register_metrics(metrics: Metrics) -> None:
    """Add what `unetkit bench` can measure: `metrics.add("energy", "my_package.energy:joules", unit="J")`.

    The function is given a `unetkit.bench.builtin_metrics.BenchModel` (`.model`, `.x`, `.device`, `.forward()`) and
    returns a number; with `timed=True` it returns what is timed in turns with the baseline's.
    """
