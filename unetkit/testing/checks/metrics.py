"""The check of a plugin's metrics: each is described, and measures a small network."""

from __future__ import annotations

import math
from typing import Any

from unetkit.bench.metrics import Metric, Metrics
from unetkit.errors import UnetkitError
from unetkit.testing.checks.plugins import Guest
from unetkit.testing.results import Nonconformity, NothingToCheck, one_line


def metrics(guest: Guest) -> None:
    """Each has a docstring, and gives what it should of a small network on the CPU.

    Raises NothingToCheck where one refuses that network with an UnetkitError, as for want of a GPU.
    """
    refusals = [refusal for metric in _added(guest) if (refusal := _tried(metric, guest))]
    if refusals:
        raise NothingToCheck("; ".join(refusals))


def _added(guest: Guest) -> list[Metric]:
    staged = Metrics(guest.plugin.name, Metrics.ours().entries)
    try:
        guest.host.hook("unetkit_register_metrics", guest.plugin)(metrics=staged)
    except Exception as error:
        raise Nonconformity(f"unetkit_register_metrics fails with {one_line(error)}") from error
    added = [metric for metric in staged if metric.owner == guest.plugin.name]
    if not added:
        raise Nonconformity("unetkit_register_metrics adds no metric: call metrics.add(name, function) within it")
    return added


def _tried(metric: Metric, guest: Guest) -> str:
    """Why it refuses a small network; "" where it measures it. Raises Nonconformity."""
    from unetkit.testing.world import world_kept

    said = f"metric {metric.name!r}"
    if not metric.info.summary:
        raise Nonconformity(f"{said} has no description; give its function a docstring")
    function = metric.load()
    with world_kept():
        try:
            fault = _fault(metric, function(_subject(guest)))
        except UnetkitError as error:
            return f"{said} refuses a small network on the CPU: {error}"
        except Exception as error:
            raise Nonconformity(f"{said} fails with {one_line(error)}") from error
    if fault:
        raise Nonconformity(f"{said} {fault}")
    return ""


def _fault(metric: Metric, found: Any) -> str:
    """What is wrong with what it gave; "" where nothing is."""
    gave = f"gives a {type(found).__name__}"
    if metric.timed:
        if not callable(found):
            return f"{gave}; promised is a callable without arguments, which is timed"
        found()
        found()  # it is called again and again
        return ""
    try:
        return "" if math.isfinite(float(found)) else f"gives {found}; promised is a finite number"
    except (TypeError, ValueError):
        return f"{gave}; promised is a number, and a callable only with timed=True"


def _subject(guest: Guest) -> Any:
    """A network that each metric is given anew, since it may change it."""
    import torch

    from unetkit.bench.mode import Mode
    from unetkit.bench.subject import Subject
    from unetkit.plan import Plan

    plan = Plan.of(encoder="plain:widths=[4,8]", size=32)
    return Subject(plan, 1, Mode(), torch.device("cpu"), guest.host.parts)
