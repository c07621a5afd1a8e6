"""The progress display of a benchmark.

In a terminal it shows a progress bar, the table of rows as it grows, and the fastest row so far; elsewhere it prints a
line for each row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import inf
from pathlib import Path
from time import monotonic

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from unetkit.bench.columns import BaselineTimes, find_varying_factors
from unetkit.bench.results import BenchRow, TrainingRecord
from unetkit.bench.runner import BenchRunner
from unetkit.bench.statistics import estimate_ratio, format_interval
from unetkit.utils.formatting import format_seconds

#: Number of rows that the table shows.
_VISIBLE_ROWS = 12
#: Seconds between two lines about rows that are checked, if there is no terminal.
_SECONDS_BETWEEN_LINES = 30.0


class BenchProgress:
    """A display of a runner's progress on stderr. It replaces the callbacks of the runner.

    Args:
        runner: the benchmark.
        folder: folder of its results.
    """

    def __init__(self, runner: BenchRunner, folder: Path) -> None:
        self.console = Console(stderr=True, highlight=False)
        self.rows: list[tuple[str, ...]] = []
        self._measured: list[BenchRow] = []
        self._row_names: dict[str, str] = {}
        self._trained = 0
        self._runner = runner
        self._best_ratio, self._best_line = inf, ""
        self._last_notice_time = monotonic()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bar = Progress(
            *columns, TextColumn("elapsed,"), TimeRemainingColumn(), TextColumn("left"), console=self.console
        )
        self._task = self._bar.add_task("checking", total=None)
        self._timed_metric = next((metric.name for metric in runner.metrics if metric.timed), "")
        self._varied = find_varying_factors(runner.cases)
        self._print_notice(f"{len(runner.cases)} row{'s' * (len(runner.cases) > 1)}, in {folder}")
        runner.on_notice = self._print_notice
        runner.on_dry_build = self._update_dry_build
        runner.on_plan = self._start_measuring
        runner.on_training_plan = self._start_training

    def follow(self, rows: Iterable[BenchRow]) -> None:
        """Take all rows from an iterator, and show each."""
        if not self.console.is_terminal:
            for row in rows:
                self._add_row(row)
                self._print_last_row()
            return
        with Live(self._render(), console=self.console, refresh_per_second=4, transient=True) as live:
            live.get_renderable = self._render  # type: ignore[method-assign]
            for row in rows:
                self._add_row(row)

    def follow_trainings(self, records: Iterable[TrainingRecord]) -> None:
        """Take all trainings from an iterator, and show each."""
        if not self.console.is_terminal:
            for record in records:
                self._add_training(record)
                self._print_notice(f"{self._trained} of {self._bar.tasks[0].total:.0f}: {': '.join(self.rows[-1])}")
            return
        self.rows.clear()
        self._best_line = ""
        with Live(self._render(), console=self.console, refresh_per_second=4, transient=True) as live:
            live.get_renderable = self._render  # type: ignore[method-assign]
            for record in records:
                self._add_training(record)

    def _add_training(self, record: TrainingRecord) -> None:
        self._trained += 1
        scores = ", ".join(f"{name} {value:.4g}" for name, value in record.values.items())
        failures = "; ".join(f"{name}: {why}" for name, why in record.failures.items())
        result = f"failed: {record.error}" if record.error else "; ".join(filter(None, (scores, failures)))
        name = f"{self._row_names.get(record.row_id, record.row_id)}, seed {record.seed}"
        self.rows.append((name, f"{result}, {format_seconds(record.seconds)}"))
        self._bar.advance(self._task)

    def _start_training(self, count: int) -> None:
        """Show that so many trainings follow."""
        for case in self._runner.cases:
            self._row_names[case.id] = self._name_of(dict(case.factors)) or str(case.plan)
        if not self._trained:
            self._bar.reset(self._task, description="training", total=count)
        else:
            self._bar.update(self._task, total=self._trained + count)

    def _add_row(self, row: BenchRow) -> None:
        self._measured.append(row)
        self.rows.append((self._row_name(row), *self._row_result(row)))
        timing = row.timings.get(self._timed_metric)
        ratio = estimate_ratio(timing).ratio if timing else inf
        if ratio < self._best_ratio:
            self._best_ratio, self._best_line = (
                ratio,
                f"fastest so far, relative to the baseline: {', '.join(self.rows[-1])}",
            )
        self._bar.advance(self._task)

    def _print_notice(self, line: str) -> None:
        self.console.print(Text(line), soft_wrap=True)

    def _update_dry_build(self, done: int, total: int) -> None:
        self._bar.update(self._task, completed=done, total=total)
        if not self.console.is_terminal and monotonic() - self._last_notice_time > _SECONDS_BETWEEN_LINES:
            self._last_notice_time = monotonic()
            self._print_notice(f"checked {done} of {total}")

    def _start_measuring(self, pending: int, total: int) -> None:
        """Restart the bar after all rows are checked.

        Args:
            pending: number of rows that have to be measured.
            total: number of all rows.
        """
        self._bar.reset(self._task, description="measuring", total=pending)
        if pending < total:
            done = total - pending
            self._print_notice(f"{done} of them {'was' if done == 1 else 'were'} measured before")

    def _print_last_row(self) -> None:
        name, *result = self.rows[-1]
        self._print_notice(f"{len(self.rows)} of {self._bar.tasks[0].total:.0f}: {name}: {', '.join(result)}")

    def _row_name(self, row: BenchRow) -> str:
        return self._name_of(row.factors) or row.line

    def _name_of(self, factors: Mapping[str, str]) -> str:
        return " ".join(factors[name] for name in self._varied if name in factors)

    def _row_result(self, row: BenchRow) -> list[str]:
        """Return the time of a row, normalized by the rows so far, and its ratio to the baseline, or its error."""
        timing = row.timings.get(self._timed_metric)
        if timing is None:
            return [row.error or row.failures.get(self._timed_metric, "") or "done"]
        estimate = estimate_ratio(timing)
        seconds = BaselineTimes(self._measured).level(row, self._timed_metric, estimate.ratio)
        return [format_seconds(seconds), f"{format_interval(estimate)} {estimate.verdict}"]

    def _render(self) -> Group:
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        table.add_column("row", overflow="fold")
        if self._trained:
            table.add_column("scores")
        else:
            table.add_column(self._timed_metric or "result", justify="right")
            table.add_column("ratio to the baseline")
        for row in self.rows[-_VISIBLE_ROWS:]:
            table.add_row(*map(Text, row))
        tables = [table] if self.rows else []
        return Group(*tables, Text(self._best_line), self._bar)
