"""A run of a benchmark as tables for a terminal, and as JSON, CSV and a pandas DataFrame.

The listing of a run has a summary, a table of the measured rows, a table of the failed rows, and notes on failures,
warnings, hidden columns and rows that are not measured yet.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from io import StringIO
from math import isfinite
from typing import TYPE_CHECKING, Any

from unetkit.bench.columns import HIDDEN, SHORTENING, Column, find_constant_factors, find_varying_factors, make_columns
from unetkit.bench.quality import (
    describe_trainings,
    describe_uncertain_verdicts,
    image_iou,
    is_best_in_bold,
    load_scores,
    read_quality,
)
from unetkit.bench.results import BenchRow, BenchRun, Header, TrainingRecord
from unetkit.errors import OptionError, UnetkitError
from unetkit.utils.formatting import format_bytes, format_plural
from unetkit.utils.tables import Listing, TableData

if TYPE_CHECKING:
    from pandas import DataFrame


def format_run(run: BenchRun, rows: Sequence[BenchRow], columns: Sequence[Column], width: int | None = None) -> Listing:
    """Format rows of a run for people, in the given order.

    Args:
        run: the results of a benchmark.
        rows: some or all rows of the run.
        columns: some or all columns of the run.
        width: width of the terminal in characters. If the columns do not fit, those with the highest ranks are left
            out. None shows all columns.
    """
    numbers = {row_id: str(number) for row_id, number in run.numbers.items()}
    measured = [row for row in rows if row.is_measured]
    table, hidden = _fit_table(measured, columns, numbers, width)
    failed = _make_failed_table(run, [row for row in rows if not row.is_measured], numbers)
    notes = [
        *_describe_problems(rows, run),
        *_describe_failed_trainings(run, numbers),
        *(describe_uncertain_verdicts(quality) if (quality := read_quality(run)) else []),
        *_describe_hidden(hidden),
        *describe_missing_rows(run),
    ]
    verb = "is" if len(rows) == 1 else "are"
    selection = [f"{len(rows)} of {len(run.rows)} rows {verb} shown"] if len(rows) < len(run.rows) else []
    return Listing([*summarize_run(run), *selection], [table for table in (table, failed) if table.rows], notes)


def summarize_run(run: BenchRun) -> list[str]:
    """Return what applies to all rows: baseline, machine and versions, number of rows and constants, trainings.

    Args:
        run: the results of a benchmark.
    """
    constants = ", ".join(
        f"{name.replace('_', ' ')} {value}" for name, value in find_constant_factors(run.rows).items()
    )
    num_failed = sum(not row.is_measured for row in run.rows)
    count = format_plural(len(run.rows), "row") + (f", {num_failed} of which failed" if num_failed else "")
    return [
        f"baseline {run.header.baseline}, {run.header.baseline_mode}",
        format_machine(run.header, run.rows),
        f"{count}; common to all rows: {constants}" if constants else count,
        *(describe_trainings(quality) if (quality := read_quality(run)) else []),
    ]


def format_machine(header: Header, rows: Iterable[BenchRow] = ()) -> str:
    """Format the machine and the versions in one line.

    Args:
        header: header of a run.
        rows: rows of the run; if all were measured on one device, it is included.
    """
    machine = header.machine
    devices = {row.device for row in rows if row.device}
    return ", ".join(
        [
            *(["on " + devices.pop()] if len(devices) == 1 else dict.fromkeys(map(str, machine.get("gpus") or ()))),
            *(_format_fact(name, machine[name]) for name in ("cpu", "cores", "memory", "system") if machine.get(name)),
            *(f"{name} {version}" for name, version in header.versions.items()),
        ]
    )


def _format_fact(name: str, value: Any) -> str:
    if name == "memory" and isinstance(value, int | float):
        return format_bytes(int(value))
    return format_plural(value, "core") if name == "cores" else str(value)


def describe_missing_rows(run: BenchRun) -> list[str]:
    """Return a line that tells how to continue if planned rows are not measured or trained yet; no line otherwise.

    Args:
        run: the results of a benchmark.
    """
    if run.num_missing:
        verb = "is" if run.num_missing == 1 else "are"
        count = f"{run.num_missing} of {format_plural(run.num_planned, 'row')} {verb}"
        return [f"{count} not measured yet; continue with: {run.command}"]
    if (quality := read_quality(run)) and (missing := quality.count_missing()):
        verb = "is" if missing == 1 else "are"
        return [f"{format_plural(missing, 'training')} {verb} still to do; continue with: {run.command}"]
    return []


def _fit_table(
    rows: Sequence[BenchRow], columns: Sequence[Column], numbers: dict[str, str], width: int | None
) -> tuple[TableData, list[Column]]:
    """Return the table of the columns that fit, and the columns that do not."""
    shown, hidden, is_short = list(columns), list[Column](), False
    texts = {column.name: [column.text(row) for row in rows] for column in columns}
    while True:
        lines = zip([numbers[row.id] for row in rows], *(texts[column.name] for column in shown), strict=True)
        table = TableData(["#", *(column.title for column in shown)], [list(line) for line in lines])
        highest_rank = max((column.rank for column in shown), default=0)
        if width is None or table.width() <= width:
            return table, hidden
        if highest_rank <= SHORTENING and not is_short:
            is_short = True
            texts |= {one.name: [*map(one.short_text, rows)] for one in shown if one.short_text is not None}
            continue
        if not highest_rank:
            return table, hidden
        last = max(index for index, column in enumerate(shown) if column.rank == highest_rank)
        hidden.insert(0, shown.pop(last))


def _make_failed_table(run: BenchRun, rows: Sequence[BenchRow], numbers: dict[str, str]) -> TableData:
    names = find_varying_factors(run.rows)
    lines = [[numbers[row.id], *(row.factors.get(name, "") for name in names), row.error] for row in rows]
    headers = ["#", *(name.replace("_", " ") for name in names), "error"]
    return TableData(headers, lines, f"failed rows: {len(rows)}")


def _describe_problems(rows: Iterable[BenchRow], run: BenchRun) -> list[str]:
    """Return the failures of single metrics and the warnings, each with the numbers of its rows."""
    lines = []
    for text, found in fold_problems([replace(row, error="") for row in rows]):
        numbers = [str(run.numbers[row.id]) for row in found]
        name = f"row {numbers[0]}" if len(numbers) == 1 else f"rows {', '.join(numbers)}"
        lines.append(f"{name}: {text}")
    return lines


_NUMBER = re.compile(r"\d+(?:\.\d+)?")


def fold_problems(rows: Iterable[BenchRow]) -> list[tuple[str, list[BenchRow]]]:
    """Return the errors, failed metrics and warnings of rows, each once with its rows.

    Texts that differ only in their numbers become one, with the smallest and the largest of each: "38% to 90%".

    Args:
        rows: rows of a run.
    """
    groups: dict[str, list[tuple[str, BenchRow]]] = {}
    for row in rows:
        failed = [f"failed: {row.error}"] if row.error else []
        failures = [f"{name} failed: {error}" for name, error in row.failures.items()]
        for text in dict.fromkeys([*failed, *failures, *row.warnings]):
            key = _NUMBER.sub("#", text) if text in row.warnings else text
            groups.setdefault(key, []).append((text, row))
    return [(_join_texts([text for text, _ in found]), [row for _, row in found]) for found in groups.values()]


def _join_texts(texts: Sequence[str]) -> str:
    """Return one text for texts that differ only in their numbers."""
    columns = [sorted({*found}, key=float) for found in zip(*map(_NUMBER.findall, texts), strict=True)]
    pieces = _NUMBER.split(texts[0])
    joined = [pieces[0]]
    for numbers, piece in zip(columns, pieces[1:], strict=True):
        unit = "%" if piece.startswith("%") and len(numbers) > 1 else ""
        joined += [f"{numbers[0]}{unit} to {numbers[-1]}" if len(numbers) > 1 else numbers[0], piece]
    return "".join(joined)


def _describe_failed_trainings(run: BenchRun, numbers: dict[str, str]) -> list[str]:
    """Return the errors of trainings and of their metrics, each with the number of its row and its seed."""
    return [
        f"row {numbers[one.row_id]}, seed {one.seed}: {text}"
        for one in run.trainings
        for text in [
            *([one.error] if one.error else []),
            *(f"{name} failed: {why}" for name, why in one.failures.items()),
        ]
    ]


def _describe_hidden(columns: Sequence[Column]) -> list[str]:
    names = ", ".join(column.name for column in columns if column.rank < HIDDEN)
    return [f"columns hidden because the terminal is too narrow: {names}; --columns selects columns"] if names else []


def row_to_record(row: BenchRow, columns: Sequence[Column]) -> dict[str, Any]:
    """Return the values of a row by the names of the columns, with its id, its line, its error and its warnings.

    Args:
        row: row of a run.
        columns: some or all columns of the run.
    """
    values = {column.name: column.value(row) for column in columns}
    return {"id": row.id, **values, "line": row.line, "error": row.error, "warnings": "; ".join(row.warnings)}


def rows_to_csv(rows: Sequence[BenchRow], columns: Sequence[Column]) -> str:
    """Format rows as CSV, one line each, in seconds and bytes, with the names of the columns as headings.

    Args:
        rows: rows of a run.
        columns: some or all columns of the run.
    """
    out = StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["id", *(column.name for column in columns), "line", "error", "warnings"])
    writer.writerows(row_to_record(row, columns).values() for row in rows)
    return out.getvalue()


def rows_to_latex(run: BenchRun, rows: Sequence[BenchRow], columns: Sequence[Column]) -> str:
    r"""Format rows as a LaTeX table with the rules of the package booktabs.

    Of trained networks, the best mean is bold only if its verdict is "better" than the baseline, or if it is the
    baseline's and all other rows are worse.

    Args:
        run: the results of a benchmark.
        rows: some or all rows of the run; failed ones are left out.
        columns: some or all columns of the run.
    """
    quality = read_quality(run)
    bold = {row.id for row in rows if quality is not None and is_best_in_bold(quality, row)}
    lines = [[column.text(row) for column in columns] for row in rows if row.is_measured]
    for row, cells in zip([row for row in rows if row.is_measured], lines, strict=True):
        for index, column in enumerate(columns):
            cells[index] = _escape_latex(cells[index])
            if row.id in bold and quality is not None and column.name == quality.rules.metric:
                cells[index] = rf"\textbf{{{cells[index]}}}"
    heads = [_escape_latex(column.title) for column in columns]
    layout = "".join("l" if column.is_factor or (not column.unit and not column.better) else "r" for column in columns)
    body = [r" & ".join(cells) + r" \\" for cells in (heads, *lines)]
    notes = [f"% {line}" for line in summarize_run(run)]
    return "\n".join(
        [
            *notes,
            rf"\begin{{tabular}}{{{layout}}}",
            r"\toprule",
            body[0],
            r"\midrule",
            *body[1:],
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


_LATEX_ESCAPES = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "·": r"$\cdot$",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}


def _escape_latex(text: str) -> str:
    return "".join(_LATEX_ESCAPES.get(character, character) for character in text)


def run_to_dict(run: BenchRun, rows: Sequence[BenchRow], columns: Sequence[Column]) -> dict[str, Any]:
    """Return the header of a run, the columns with their units, and the rows, as plain data for JSON.

    Args:
        run: the results of a benchmark.
        rows: some or all rows of the run.
        columns: some or all columns of the run.
    """
    column_keys = ("name", "title", "unit", "better", "summary")
    row_keys = ("failures", "warnings", "command", "device")
    return {
        "header": asdict(run.header),
        "planned": run.num_planned,
        "done": len(run.rows),
        "command": run.command,
        "commands": [{**asdict(one), "planned": len(one.planned)} for one in run.commands],
        "started_at": run.started_at,
        "columns": [{key: getattr(column, key) for key in column_keys} for column in columns],
        "rows": [
            {**_replace_infinities(row_to_record(row, columns)), **{key: getattr(row, key) for key in row_keys}}
            for row in rows
        ],
        **({"trainings": [asdict(one) for one in run.trainings]} if run.header.training is not None else {}),
    }


def _replace_infinities(values: dict[str, Any]) -> dict[str, Any]:
    """Replace infinite numbers by None; JSON has none, but the interval of few rounds may have infinite bounds."""
    return {key: None if isinstance(value, float) and not isfinite(value) else value for key, value in values.items()}


def rows_to_dataframe(run: BenchRun, by: str = "row") -> DataFrame:
    """Return the rows, the trainings or the images of a run as a DataFrame.

    Numbers are in the unit of their column (s, B), and missing ones are NaN or None. `attrs["units"]` contains the
    units by column name.

    Args:
        run: the results of a benchmark.
        by: "row" for a line for each row, with the columns of `unetkit bench show --csv`; "seed" for a line for
            each training, with `id`, the factors, `seed`, the metrics of trained networks, `seconds` and `error`;
            "image" for a line for each scored image of each training, with `id`, the factors, `seed`, `image` and
            the IoU of each class, `iou:CLASS`, NaN where the class occurs in neither mask.

    Raises:
        OptionError: `by` is something else.
        UnetkitError: pandas is not installed.
    """
    try:
        from pandas import DataFrame
    except ImportError as error:
        raise UnetkitError("to_pandas needs pandas, which is not installed: pip install pandas") from error
    if by not in ("row", "seed", "image"):
        raise OptionError(f"to_pandas: by={by!r} must be 'row', 'seed' or 'image'")
    if by != "row":
        return DataFrame([*(_training_records(run) if by == "seed" else _image_records(run))])
    columns = make_columns(run)
    names = ["id", *(column.name for column in columns), "line", "error", "warnings"]
    frame = DataFrame([row_to_record(row, columns) for row in run.rows], columns=names)
    frame.attrs["units"] = {column.name: column.unit for column in columns if column.unit}
    return frame


def _training_records(run: BenchRun) -> Iterator[dict[str, Any]]:
    """Yield a record for each training of the rows of a run."""
    names = [metric.name for metric in run.header.metrics if metric.trained]
    for row, one in _trainings_of_rows(run):
        scores = {name: one.values.get(name) for name in names}
        yield {"id": row.id, **row.factors, "seed": one.seed, **scores, "seconds": one.seconds, "error": one.error}


def _image_records(run: BenchRun) -> Iterator[dict[str, Any]]:
    """Yield a record for each scored image of each training of the rows of a run."""
    for row, one in _trainings_of_rows(run):
        scores = load_scores(run.folder, row.id, one.seed)
        if scores is None or run.header.training is None:
            continue
        rates = image_iou(scores["confusion"])
        for name, rate in zip(scores["names"].tolist(), rates.tolist(), strict=True):
            classes = {f"iou:{label}": value for label, value in zip(run.header.training.classes, rate, strict=True)}
            yield {"id": row.id, **row.factors, "seed": one.seed, "image": name, **classes}


def _trainings_of_rows(run: BenchRun) -> Iterator[tuple[BenchRow, TrainingRecord]]:
    rows = {row.id: row for row in run.rows}
    return ((rows[one.row_id], one) for one in run.trainings if one.row_id in rows)
