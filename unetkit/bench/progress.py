"""A run as it goes on: a bar, the table as it fills and the best so far on a terminal; a line a row elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from math import inf
from pathlib import Path
from time import monotonic

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from unetkit.bench.columns import varied
from unetkit.bench.results import BenchRow
from unetkit.bench.runner import BenchRunner
from unetkit.bench.statistics import estimate_ratio, format_interval, quantile
from unetkit.utils.formatting import format_seconds

#: Rows of the table that stay in sight.
_SEEN = 12
#: Seconds between two lines about what is examined, where there is no terminal.
_PAUSE = 30.0


class BenchProgress:
    """Follows a leader on stderr."""

    def __init__(self, leader: BenchRunner, folder: Path) -> None:
        self.console = Console(stderr=True, highlight=False)
        self.rows: list[tuple[str, ...]] = []
        self._best, self._least = inf, ""
        self._said = monotonic()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bar = Progress(
            *columns, TextColumn("gone,"), TimeRemainingColumn(), TextColumn("left"), console=self.console
        )
        self._task = self._bar.add_task("examining", total=None)
        self._timed = next((metric.name for metric in leader.metrics if metric.timed), "")
        self._varied = varied([dict(case.factors) for case in leader.cases])
        self._notice(f"{len(leader.cases)} row{'s' * (len(leader.cases) > 1)}, in {folder}")
        leader.notice, leader.progress, leader.planning = self._notice, self._examined, self._planned

    def follow(self, rows: Iterable[BenchRow]) -> None:
        """Take every row, and show it."""
        if not self.console.is_terminal:
            for row in rows:
                self._take(row)
                self._line()
            return
        with Live(self._shown(), console=self.console, refresh_per_second=4, transient=True) as live:
            live.get_renderable = self._shown  # type: ignore[method-assign]
            for row in rows:
                self._take(row)

    def _take(self, row: BenchRow) -> None:
        self.rows.append((self._named(row), *self._told(row)))
        timing = row.timings.get(self._timed)
        ratio = estimate_ratio(timing).ratio if timing else inf
        if ratio < self._best:
            self._best, self._least = ratio, f"fastest so far, by the ratio: {', '.join(self.rows[-1])}"
        self._bar.advance(self._task)

    def _notice(self, line: str) -> None:
        self.console.print(Text(line), soft_wrap=True)

    def _examined(self, done: int, total: int) -> None:
        self._bar.update(self._task, completed=done, total=total)
        if not self.console.is_terminal and monotonic() - self._said > _PAUSE:
            self._said = monotonic()
            self._notice(f"examined {done} of {total}")

    def _planned(self, left: int, total: int) -> None:
        """All are examined, and so many are left to be measured."""
        self._bar.reset(self._task, description="measuring", total=left)
        if left < total:
            self._notice(f"{total - left} of them were measured before")

    def _line(self) -> None:
        name, *told = self.rows[-1]
        self._notice(f"{len(self.rows)} of {self._bar.tasks[0].total:.0f}: {name}: {', '.join(told)}")

    def _named(self, row: BenchRow) -> str:
        return " ".join(row.factors[name] for name in self._varied if name in row.factors) or row.line

    def _told(self, row: BenchRow) -> list[str]:
        """What became of a row: its time and its ratio to the baseline, or its cause."""
        timing = row.timings.get(self._timed)
        if timing is None:
            return [row.cause or row.failures.get(self._timed, "") or "done"]
        estimate = estimate_ratio(timing)
        median = format_seconds(quantile(timing.candidate, 0.5))
        return [median, f"{format_interval(estimate)} {estimate.verdict}"]

    def _shown(self) -> Group:
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        table.add_column("row", overflow="fold")
        table.add_column(self._timed or "figures", justify="right")
        table.add_column("to the baseline")
        for row in self.rows[-_SEEN:]:
            table.add_row(*map(Text, row))
        shown = [table] if self.rows else []
        return Group(*shown, Text(self._least), self._bar)
