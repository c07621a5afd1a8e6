"""A sweep as it goes on, and what it came to, on a terminal or in plain lines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from time import monotonic

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from tests.sweep.tally import TITLES, Row, failures, passed, slowest, totals
from unetkit.utils.formatting import format_count

#: Seconds between two lines where there is no terminal.
_PAUSE = 30.0
#: Columns of a file or a pipe.
_PAGE = 160


def followed(rows: Iterable[Row], total: int, console: Console) -> Iterator[Row]:
    """The same rows, while a bar or a line now and then tells how far they are."""
    return _bar(rows, total, console) if console.is_terminal else _lines(rows, total, console)


def _bar(rows: Iterable[Row], total: int, console: Console) -> Iterator[Row]:
    told = TextColumn("{task.fields[failed]} failed, {task.description}")
    columns = (BarColumn(), MofNCompleteColumn(), told, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    failed = 0
    with Progress(*columns, console=console, speed_estimate_period=1800) as progress:
        task = progress.add_task("", total=total, failed=0)
        for row in rows:
            yield row
            failed += not passed(row)
            progress.update(task, advance=1, failed=failed, description=row["name"])


def _lines(rows: Iterable[Row], total: int, console: Console) -> Iterator[Row]:
    start = said = monotonic()
    failed = 0
    for done, row in enumerate(rows, 1):
        yield row
        failed += not passed(row)
        now = monotonic()
        if now - said > _PAUSE or done == total:
            left = (now - start) / done * (total - done)
            console.print(f"{done} of {total}, {failed} failed, {left / 60:.0f} min left", highlight=False)
            said = now


def summary(rows: Sequence[Row]) -> None:
    """Print what rows come to."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _PAGE
    console.print(_shares(rows))
    if found := failures(rows):
        table = _table("failed at", "cause", "models")
        for failure in found:
            table.add_row(TITLES[failure.answer], failure.cause, _some(failure.names))
        console.print(table)
    table = _table("slowest to build", "seconds", "parameters")
    for row in slowest(rows):
        table.add_row(row["name"], f"{row['seconds']:.2f}", format_count(row.get("parameters", 0)))
    console.print(table)


def _shares(rows: Sequence[Row]) -> Table:
    table = _table("asked", "passed")
    for line in totals(rows):
        table.add_row(*line)
    return table


def _some(names: Sequence[str], most: int = 3) -> str:
    return f"{len(names)}: {', '.join(names[:most])}{' ...' if len(names) > most else ''}"


def _table(*heads: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for head in heads:
        table.add_column(head, overflow="fold")
    return table
