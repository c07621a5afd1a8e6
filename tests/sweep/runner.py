"""Run the checks of each model in its own process."""

from __future__ import annotations

from collections.abc import Generator, Iterable

from tests.sweep.config import RESULTS, SweepConfig
from tests.sweep.libraries import LIBRARIES
from tests.sweep.summary import Row
from unetkit.utils.processes import TaskResult, run_tasks

#: The function that a child process calls with a name, the configuration and a function to emit facts.
MEASURE = "tests.sweep.measure:measure_model"


def measure_models(names: Iterable[str], config: SweepConfig, target: str = MEASURE) -> Generator[Row, None, None]:
    """Yield a row for every model as soon as it is measured, even if its process is killed or hangs.

    Closing the generator ends the child processes.

    Args:
        names: names of timm models.
        config: configuration of the sweep.
        target: function that a child process calls, as "module:name".
    """
    preload = [MEASURE.split(":")[0], *LIBRARIES[config.library].modules] if target == MEASURE else []
    results = run_tasks(names, target, [config] * config.jobs, timeout=config.timeout, preload=preload)
    try:
        for result in results:
            yield _make_row(result)
    finally:
        results.close()


def _make_row(result: TaskResult) -> Row:
    """Return the row of a model. If its process ended early, the first check without a result has failed."""
    row = {"name": result.task, **result.facts}
    missing = [key for key in RESULTS if key not in row]
    row.update(dict.fromkeys(missing[:1], result.error) | dict.fromkeys(missing[1:], "not run"))
    return {"real": False, **row, "duration": result.seconds}
