"""Rows as raw numbers in base units (s, B), for other programs: records, CSV, JSON, pandas."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict
from io import StringIO
from math import isfinite
from typing import TYPE_CHECKING, Any

from unetkit.bench.columns import Column, columns_of
from unetkit.bench.rows import Row, Run
from unetkit.errors import UnetkitError

if TYPE_CHECKING:
    from pandas import DataFrame


def row_to_record(row: Row, columns: Sequence[Column]) -> dict[str, Any]:
    """One row by the names of the columns, with its id, its line, and why it has no figures."""
    values = {column.name: column.value(row) for column in columns}
    return {"id": row.id, **values, "line": row.line, "cause": row.cause}


def rows_to_csv(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """A line a row under a line of headings, which give units in brackets: `latency [s]`."""
    out = StringIO()
    writer = csv.writer(out, lineterminator="\n")
    heads = [f"{column.name} [{column.unit}]" if column.unit else column.name for column in columns]
    writer.writerow(["id", *heads, "line", "cause", "warnings"])
    for row in rows:
        writer.writerow([*row_to_record(row, columns).values(), "; ".join(row.warnings)])
    return out.getvalue()


def rows_to_json(run: Run, rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """The run's header, the columns with their units, and the rows."""
    told = ("name", "title", "unit", "better", "summary")
    more = ("failures", "warnings", "command", "where")
    data = {
        "header": asdict(run.header),
        "planned": run.planned,
        "done": len(run.rows),
        "command": run.command,
        "began": run.began,
        "columns": [{key: getattr(column, key) for key in told} for column in columns],
        "rows": [{**_finite(row_to_record(row, columns)), **{key: getattr(row, key) for key in more}} for row in rows],
    }
    return json.dumps(data, indent=2)


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinity, which an interval of few rounds may end in."""
    return {key: None if isinstance(value, float) and not isfinite(value) else value for key, value in values.items()}


def rows_to_dataframe(run: Run) -> DataFrame:
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
    names = ["id", *(column.name for column in columns), "line", "cause"]
    frame = DataFrame([row_to_record(row, columns) for row in run.rows], columns=names)
    frame.attrs["units"] = {column.name: column.unit for column in columns if column.unit}
    return frame
