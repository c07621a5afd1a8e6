"""The results of the checks: facts, the table, and the file. This imports no torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from unetkit.utils.files import atomic_write

Status = Literal["ok", "FAILED", "skipped", "not run"]


@dataclass(frozen=True)
class Fact:
    """One measured figure, and whether it is as expected.

    Attributes:
        figure: what was measured, as text.
        expected: what it has to be, as text.
        is_met: whether it is.
    """

    figure: str
    expected: str
    is_met: bool


@dataclass(frozen=True)
class CheckResult:
    """The result of one check.

    Attributes:
        name: name of the check.
        facts: what was measured until the check ended.
        error: why it ended early, was skipped or was not run, in one line; "" if it is complete.
        traceback: the traceback of the error.
        seconds: its duration, including its process.
        is_run: whether it was begun.
        is_skipped: whether it needs a GPU, and there is none.
    """

    name: str
    facts: tuple[Fact, ...] = ()
    error: str = ""
    traceback: str = ""
    seconds: float = 0.0
    is_run: bool = True
    is_skipped: bool = False

    @property
    def status(self) -> Status:
        """The result in a word. A check that gave no fact has failed."""
        if not self.is_run:
            return "skipped" if self.is_skipped else "not run"
        met = bool(self.facts) and all(fact.is_met for fact in self.facts)
        return "ok" if met and not self.error else "FAILED"


@dataclass(frozen=True)
class Report:
    """All checks of one machine.

    Attributes:
        machine: device, driver and versions, by name.
        results: the checks in order.
        missing: packages that are not installed.
        seconds: duration of all checks.
    """

    machine: dict[str, Any]
    results: tuple[CheckResult, ...]
    missing: tuple[str, ...]
    seconds: float

    @property
    def is_passed(self) -> bool:
        """True if every check was run, or skipped because it needs a GPU, and every fact is as expected."""
        return all(result.status in ("ok", "skipped") for result in self.results)

    def write(self, path: Path) -> None:
        """Write the report as JSON; an existing file is replaced only by a complete one."""
        values = asdict(self) | {"passed": self.is_passed}
        for value, result in zip(values["results"], self.results, strict=True):
            value["status"] = result.status
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(values, indent=2), encoding="utf-8")


def print_table(results: Sequence[CheckResult], console: Console) -> None:
    """Print a line for each fact, and one for each error."""
    table = Table("check", "figure", "expected", "result", "seconds")
    for result in results:
        lines = [(fact.figure, fact.expected, "ok" if fact.is_met else "FAILED") for fact in result.facts]
        if result.error or not lines:
            lines.append((result.error, "", result.status))
        for number, (figure, expected, status) in enumerate(lines):
            name, seconds = (result.name, f"{result.seconds:.1f}") if number == 0 else ("", "")
            style = "red" if status in ("FAILED", "not run") else ""
            table.add_row(name, figure, expected, status, seconds if result.is_run else "", style=style)
    console.print(table, markup=False)
