"""The progress and the summary of a sweep, on a terminal or as plain lines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from time import monotonic

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from tests.sweep.summary import TITLES, Row, find_slowest, group_failures, has_passed, summarize_checks
from unetkit.utils.formatting import format_count

#: Seconds between two lines if there is no terminal.
_SECONDS_BETWEEN_LINES = 30.0
#: Width of a table in characters if there is no terminal.
_TABLE_WIDTH = 160
#: Largest number of names of a group of failures to print.
_MAX_NAMES = 3


def with_progress(rows: Iterable[Row], total: int, console: Console) -> Iterator[Row]:
    """Yield each row and show progress: as a bar in a terminal, as a line every 30 seconds elsewhere.

    Args:
        rows: rows of a sweep.
        total: number of rows.
        console: where to show it.
    """
    return _with_bar(rows, total, console) if console.is_terminal else _with_lines(rows, total, console)


def _with_bar(rows: Iterable[Row], total: int, console: Console) -> Iterator[Row]:
    status = TextColumn("{task.fields[failed]} failed, {task.description}")
    times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    failed = 0
    columns = (BarColumn(), MofNCompleteColumn(), status, *times)
    with Progress(*columns, console=console, speed_estimate_period=1800) as progress:
        task = progress.add_task("", total=total, failed=0)
        for row in rows:
            yield row
            failed += not has_passed(row)
            progress.update(task, advance=1, failed=failed, description=row["name"])


def _with_lines(rows: Iterable[Row], total: int, console: Console) -> Iterator[Row]:
    start = last_printed = monotonic()
    failed = 0
    for done, row in enumerate(rows, 1):
        yield row
        failed += not has_passed(row)
        now = monotonic()
        if now - last_printed > _SECONDS_BETWEEN_LINES or done == total:
            left = (now - start) / done * (total - done)
            console.print(f"{done} of {total}, {failed} failed, {left / 60:.0f} min left", highlight=False)
            last_printed = now


def print_summary(rows: Sequence[Row]) -> None:
    """Print a summary of rows.

    Args:
        rows: rows of one library.
    """
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _TABLE_WIDTH
    table = _make_table("check", "passed")
    for line in summarize_checks(rows):
        table.add_row(*line)
    console.print(table)
    if failures := group_failures(rows):
        table = _make_table("failed check", "error", "models")
        for failure in failures:
            table.add_row(TITLES[failure.check], failure.error, _format_names(failure.names))
        console.print(table)
    table = _make_table("slowest to build", "seconds", "parameters")
    for row in find_slowest(rows):
        table.add_row(row["name"], f"{row['seconds']:.2f}", format_count(row.get("parameters", 0)))
    console.print(table)


def _format_names(names: Sequence[str]) -> str:
    return f"{len(names)}: {', '.join(names[:_MAX_NAMES])}{' ...' if len(names) > _MAX_NAMES else ''}"


def _make_table(*headings: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table
