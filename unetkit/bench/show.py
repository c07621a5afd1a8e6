"""A run as a listing: what stands for all rows, the table, those that failed, and what a reader should know."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from io import StringIO
from math import isfinite
from typing import TYPE_CHECKING, Any

from unetkit.bench.columns import HIDDEN, Column, columns_of, constants, varying
from unetkit.bench.results import BenchRow, BenchRun, Header
from unetkit.errors import UnetkitError
from unetkit.utils.formatting import format_bytes
from unetkit.utils.tables import Listing, TableData

if TYPE_CHECKING:
    from pandas import DataFrame


def format_run(run: BenchRun, rows: Sequence[BenchRow], columns: Sequence[Column], width: int | None = None) -> Listing:
    """Rows of a run, in the order given.

    Args:
        rows: some or all of run.rows.
        columns: some or all of columns_of(run).
        width: of the terminal; lesser columns are left out where all do not fit. None leaves out none.
    """
    numbers = {row.id: str(number) for number, row in enumerate(run.rows, 1)}
    measured = [row for row in rows if row.is_measured]
    table, dropped = _fitting(measured, columns, numbers, width)
    failed = _failed(run, [row for row in rows if not row.is_measured], numbers)
    notes = [*_notes(rows, numbers), *_dropped(dropped), *missing(run)]
    said = [f"{len(rows)} of {len(run.rows)} rows are shown"] if len(rows) < len(run.rows) else []
    return Listing([*head(run), *said], [cells for cells in (table, failed) if cells.rows], notes)


def head(run: BenchRun) -> list[str]:
    """What stands for all rows: baseline, machine, versions, the factors that do not vary, how many rows there are."""
    shared = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in constants(run).items())
    failed = sum(not row.is_measured for row in run.rows)
    done = f"{len(run.rows)} rows" + (f", {failed} of them without figures" if failed else "")
    return [
        f"baseline {run.header.baseline}, {run.header.baseline_mode}",
        machine(run.header, run.rows),
        f"{done}; in all of them {shared}" if shared else done,
    ]


def machine(header: Header, rows: Iterable[BenchRow] = ()) -> str:
    """The machine and the versions in a line; where rows ran, if that is one place."""
    known = header.machine
    places = {row.device for row in rows if row.device}
    return ", ".join(
        [
            *(["on " + places.pop()] if len(places) == 1 else dict.fromkeys(map(str, known.get("gpus") or ()))),
            *(_told(name, known[name]) for name in ("cpu", "cores", "memory", "system") if known.get(name)),
            *(f"{name} {version}" for name, version in header.versions.items()),
        ]
    )


def missing(run: BenchRun) -> list[str]:
    """How to go on, where rows are missing."""
    left = f"{run.num_missing} of {run.num_planned} rows are still to do"
    return [f"{left}; this goes on: {run.command}"] if run.num_missing else []


def _told(name: str, value: Any) -> str:
    if name == "memory" and isinstance(value, int | float):
        return format_bytes(int(value))
    return f"{value} cores" if name == "cores" else str(value)


def _fitting(
    rows: Sequence[BenchRow], columns: Sequence[Column], numbers: dict[str, str], width: int | None
) -> tuple[TableData, list[Column]]:
    """The table of those columns that fit, and the columns that do not."""
    kept, dropped = list(columns), list[Column]()
    texts = {column.name: [column.text(row) for row in rows] for column in columns}
    while True:
        lines = zip([numbers[row.id] for row in rows], *(texts[column.name] for column in kept), strict=True)
        table = TableData(["#", *(column.title for column in kept)], [list(line) for line in lines])
        least = max((column.rank for column in kept), default=0)
        if width is None or not least or table.width() <= width:
            return table, dropped
        last = max(index for index, column in enumerate(kept) if column.rank == least)
        dropped.insert(0, kept.pop(last))


def _failed(run: BenchRun, rows: Sequence[BenchRow], numbers: dict[str, str]) -> TableData:
    names = varying(run)
    lines = [[numbers[row.id], *(row.factors.get(name, "") for name in names), row.error] for row in rows]
    heads = ["#", *(name.replace("_", " ") for name in names), "error"]
    return TableData(heads, lines, f"without figures: {len(rows)}")


def _notes(rows: Iterable[BenchRow], numbers: dict[str, str]) -> list[str]:
    """What failed or is to be known of single rows, by their numbers."""
    said = ((row, [*(f"no {name}: {why}" for name, why in row.failures.items()), *row.warnings]) for row in rows)
    return [f"row {numbers[row.id]}: {note}" for row, notes in said for note in notes]


def _dropped(columns: Sequence[Column]) -> list[str]:
    names = ", ".join(column.name for column in columns if column.rank < HIDDEN)
    return [f"left out for want of room: {names}; --columns shows what it names"] if names else []


def row_to_record(row: BenchRow, columns: Sequence[Column]) -> dict[str, Any]:
    """One row by the names of the columns, with its id, its line, and why it has no figures."""
    values = {column.name: column.value(row) for column in columns}
    return {"id": row.id, **values, "line": row.line, "error": row.error}


def rows_to_csv(rows: Sequence[BenchRow], columns: Sequence[Column]) -> str:
    """A line a row under a line of headings, which give units in brackets: `latency [s]`."""
    out = StringIO()
    writer = csv.writer(out, lineterminator="\n")
    heads = [f"{column.name} [{column.unit}]" if column.unit else column.name for column in columns]
    writer.writerow(["id", *heads, "line", "error", "warnings"])
    for row in rows:
        writer.writerow([*row_to_record(row, columns).values(), "; ".join(row.warnings)])
    return out.getvalue()


def run_to_dict(run: BenchRun, rows: Sequence[BenchRow], columns: Sequence[Column]) -> dict[str, Any]:
    """Return the run's header, the columns with their units, and the rows, as JSON can hold them."""
    told = ("name", "title", "unit", "better", "summary")
    more = ("failures", "warnings", "command", "device")
    return {
        "header": asdict(run.header),
        "planned": run.num_planned,
        "done": len(run.rows),
        "command": run.command,
        "started_at": run.started_at,
        "columns": [{key: getattr(column, key) for key in told} for column in columns],
        "rows": [{**_finite(row_to_record(row, columns)), **{key: getattr(row, key) for key in more}} for row in rows],
    }


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinity, which an interval of few rounds may end in."""
    return {key: None if isinstance(value, float) and not isfinite(value) else value for key, value in values.items()}


def rows_to_dataframe(run: BenchRun) -> DataFrame:
    """A DataFrame with a row a combination: `id`, every column of `columns_of`, `line` and `cause`.

    Numbers are raw, in each column's unit (s, B); what a row has not is NaN or None. `attrs["units"]` says the units.

    Raises:
        UnetkitError: pandas is not installed.
    """
    try:
        from pandas import DataFrame
    except ImportError as error:
        raise UnetkitError("to_pandas needs pandas, which is not installed: pip install pandas") from error
    columns = columns_of(run)
    names = ["id", *(column.name for column in columns), "line", "error"]
    frame = DataFrame([row_to_record(row, columns) for row in run.rows], columns=names)
    frame.attrs["units"] = {column.name: column.unit for column in columns if column.unit}
    return frame
