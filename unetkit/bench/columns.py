"""What the rows of a run are read by: a Column for each factor that varies and for each figure.

What this promises to `show`, `report` and pandas: `columns_of` gives factors first, in the order of the grid, then the
columns of each metric, in the order of the header. `value` and `text` take any row of the run, failed ones too: the
number in the column's unit, or None; and what people read, with its unit, or "" (of a metric that failed alone
"failed"). A timed metric `latency` has the columns `latency` (the median), `latency-p90`, `latency-min`,
`latency-rate`, `latency-ratio` (to the baseline), `latency-ratio-low` and `-high` (its 95% interval),
`latency-verdict`, `latency-min-ratio`, `latency-fluctuation` and `latency-rounds`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from unetkit.bench.aspects import ASPECTS, HIDDEN, Aspect, Value
from unetkit.bench.rows import Better, MetricInfo, Row, Run
from unetkit.bench.texts import format_metric


@dataclass(frozen=True)
class Column:
    """One column of a run.

    Attributes:
        name: as `--columns`, `--sort` and `--filter` take it.
        title: its heading.
        unit: of `value`: "s", "B", "images/s", "" for counts and ratios, or a plugin's own.
        better: which numbers are better, "" where none are.
        value, text: of a row.
        rank: 0 where it is always shown; from 1 on where there is room, the greatest left out first; HIDDEN where it
            must be asked for.
        summary: what it is, in a line.
        factor: whether it tells rows apart, and is no figure.
    """

    name: str
    title: str
    unit: str
    better: Better
    value: Callable[[Row], Value]
    text: Callable[[Row], str]
    rank: int = 0
    summary: str = ""
    factor: bool = False


def columns_of(run: Run) -> list[Column]:
    """Every column that a run has."""
    first = next((metric.name for metric in run.header.metrics if metric.timed), "")
    varied = varying(run)
    columns = [_factor(name, 0) for name in varied] + [_factor(name, HIDDEN) for name in constants(run)]
    for metric in run.header.metrics:
        if metric.timed:
            columns += [_timed(metric, aspect, aspect.ranks[metric.name != first]) for aspect in ASPECTS]
        else:
            columns.append(_plain(metric))
    return columns


def varying(run: Run) -> list[str]:
    """The factors in which rows differ, in the order of the grid; one that some rows have not is among them."""
    return varied([row.factors for row in run.rows])


def varied(found: Sequence[Mapping[str, str]]) -> list[str]:
    """The factors in which they differ, in order."""
    names = dict.fromkeys(name for factors in found for name in factors)
    return [name for name in names if len({factors.get(name) for factors in found}) > 1]


def constants(run: Run) -> dict[str, str]:
    """The factors that all rows share."""
    varied = varying(run)
    return {name: run.rows[0].factors[name] for name in _factors(run) if name not in varied}


def _factors(run: Run) -> list[str]:
    return list(dict.fromkeys(name for row in run.rows for name in row.factors))


def _factor(name: str, rank: int) -> Column:
    def value(row: Row) -> Value:
        return _number(row.factors.get(name))

    def text(row: Row) -> str:
        return row.factors.get(name, "")

    return Column(name, name, "", "", value, text, rank, "chosen by the grid", factor=True)


def _number(text: str | None) -> Value:
    """A factor's value: a number where it is written as one, so that batch 8 comes before 16."""
    if text is None or not re.fullmatch(r"\d+(\.\d+)?", text):
        return text
    return float(text) if "." in text else int(text)


def _plain(metric: MetricInfo) -> Column:
    def value(row: Row) -> Value:
        return row.figures.get(metric.name)

    def text(row: Row) -> str:
        number = row.figures.get(metric.name)
        return _missing(metric, row) if number is None else format_metric(number, metric.unit)

    return Column(metric.name, metric.name, metric.unit, metric.better, value, text, 3, metric.summary)


def _missing(metric: MetricInfo, row: Row) -> str:
    return "failed" if metric.name in row.failures else ""


def _timed(metric: MetricInfo, aspect: Aspect, rank: int) -> Column:
    def value(row: Row) -> Value:
        timing = row.timings.get(metric.name)
        return None if timing is None else aspect.value(timing, row)

    def text(row: Row) -> str:
        timing = row.timings.get(metric.name)
        return _missing(metric, row) if timing is None else aspect.text(timing, row)

    name = f"{metric.name}-{aspect.suffix}".removesuffix("-")
    title = f"{metric.name} {aspect.suffix.replace('-', ' ') or 'p50'}"
    return Column(name, title, aspect.unit, aspect.better, value, text, rank, f"{metric.summary}: {aspect.summary}")
