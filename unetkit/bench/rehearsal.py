"""`--dry-run`: what would be measured, which rows cannot be, and about how long it would take."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unetkit.bench.grid import Case
from unetkit.bench.leader import PROBE, Leader
from unetkit.bench.ledger import ResultsFile
from unetkit.bench.rows import Header
from unetkit.bench.slot import Slot
from unetkit.jobs.machine import cores

#: Rounds that a pair takes on a quiet machine, about, and those that are timed whatever the budget, warm-up included.
_ROUNDS, _LEAST = 40, 9
#: What a row does beside timing: seconds for its process and for building, and calls in which memory is measured.
_BESIDE, _CALLS = 4.0, 4


@dataclass(frozen=True)
class Rehearsal:
    """What a command would do.

    Attributes:
        left: the rows that it would measure, each with its examination: "line", "size", ("figures", "macs") ...
        failed: the rows that cannot be built, each with its cause.
        done: how many rows are measured already.
        baseline: the line that rows would be timed against.
        seconds: that it would take, about.
    """

    left: tuple[tuple[Case, dict[Any, Any]], ...]
    failed: tuple[tuple[Case, str], ...]
    done: int
    baseline: str
    seconds: float


def rehearse(leader: Leader, folder: Path | None) -> Rehearsal:
    """Examine every row that is not done, and time one pass of the baseline.

    Raises CannotBuild where the baseline cannot be built.
    """
    held = _held(leader, folder)
    left = [case for case in leader.cases if case.id not in held[1]]
    machine = leader.survey()
    failed = leader.examine(left)
    leader.settle(held[0])
    able = [case for case in left if case.id in leader.examined]
    slots = leader.slots(machine["gpus"]) or [Slot("cpu", (), len(cores()))]
    return Rehearsal(
        left=tuple((case, leader.examined[case.id]) for case in able),
        failed=tuple((ended.task.case, ended.cause) for ended in failed),
        done=len(leader.cases) - len(left),
        baseline=str(leader.baseline),
        seconds=_seconds(leader, able, slots[0]) / len(slots),
    )


def _held(leader: Leader, folder: Path | None) -> tuple[Header | None, set[str]]:
    """The header of a folder, and which cases it has already."""
    if folder is None or not folder.exists():
        return None, set()
    held, again = ResultsFile(folder), leader.choices.again
    return held.header, {case.id for case in leader.cases if held.done(case.id, leader.key(case), again=again)}


def _seconds(leader: Leader, able: list[Case], slot: Slot) -> float:
    """For all rows one after another, by the MACs of each and a call of the baseline."""
    timed = [metric.name for metric in leader.metrics if metric.timed]
    if not able:
        return 0.0
    first = able[0]
    probed = replace(leader.trial(first), case=replace(first, plan=replace(leader.baseline, size=first.plan.size)))
    [ended] = leader.children([probed], PROBE, [slot])
    rates = [ended.said[name] / max(1, ended.said["macs"]) for name in timed if name in ended.said]
    about = _BESIDE * len(able)
    for case in able:
        own: int = leader.examined[case.id]["macs"]
        both = own + ended.said.get("macs", 0) * _images(leader, case) / _images(leader, first)
        for rate in rates:
            about += max(_LEAST * both * rate, min(leader.choices.budget, _ROUNDS * both * rate)) + _CALLS * own * rate
    return about


def _images(leader: Leader, case: Case) -> int:
    """Pixels of an input."""
    height, width = leader.examined[case.id]["size"]
    return int(case.batch * height * width)
