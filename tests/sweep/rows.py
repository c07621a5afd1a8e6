"""A row of answers for every name, whatever becomes of its process."""

from __future__ import annotations

from collections.abc import Generator, Iterable

from tests.sweep.settings import ANSWERS, Settings
from tests.sweep.subjects import SUBJECTS
from tests.sweep.tally import Row
from unetkit.utils.processes import TaskResult, run_tasks

#: What a child calls, (name, settings, say).
MEASURE = "tests.sweep.measure:measure"


def rows(names: Iterable[str], settings: Settings, ask: str = MEASURE) -> Generator[Row, None, None]:
    """A row for every name, in the order in which they are done. Leaving early ends the children."""
    preload = [MEASURE.split(":")[0], *SUBJECTS[settings.of].modules] if ask == MEASURE else []
    measured = run_tasks(names, ask, [settings] * settings.jobs, timeout=settings.timeout, preload=preload)
    try:
        for ended in measured:
            yield _row(ended)
    finally:
        measured.close()


def _row(ended: TaskResult) -> Row:
    """What a child was busy with when it died is what failed."""
    row = {"name": ended.task, **ended.facts}
    missing = [answer for answer in ANSWERS if answer not in row]
    row.update(dict.fromkeys(missing[:1], ended.error) | dict.fromkeys(missing[1:], "not asked"))
    return {"real": False, **row, "took": ended.seconds}
