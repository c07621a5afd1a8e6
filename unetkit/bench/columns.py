"""What the rows of a run are read by: a Column for each factor that varies and for each figure.

What this promises to `show`, `report` and pandas: `columns_of` gives factors first, in the order of the grid, then the
columns of each metric, in the order of the header. `value` and `text` take any row of the run, failed ones too: the
number in the column's unit, or None; and what people read, with its unit, or "" (of a metric that failed alone
"failed"). A timed metric `latency` has the columns `latency` (the median), `latency-p90`, `latency-min`,
`latency-rate`, `latency-ratio` (to the baseline), `latency-ratio-low` and `-high` (its 95% interval),
`latency-verdict`, `latency-min-ratio`, `latency-fluctuation` and `latency-rounds`.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache

from unetkit.bench.results import BenchRow, BenchRun, Timing
from unetkit.bench.statistics import Estimate, estimate_ratio, fluctuation, format_interval, minimum_ratio, quantile
from unetkit.errors import OptionError, UnknownNameError, did_you_mean
from unetkit.registry import Better, MetricInfo
from unetkit.utils.formatting import format_digits, format_metric, format_ratio, format_seconds

Value = float | str | None

#: The rank of columns that are shown only where they are asked for.
HIDDEN = 9


@dataclass(frozen=True)
class TimingColumn:
    """One of the columns that every timed metric has.

    Attributes:
        suffix: after the metric's name and a dash; "" for the column with the metric's own name.
        summary: what it is.
        value, text: of a timing and its row.
        unit, better: as a Column's.
        ranks: as a Column's, for a run's first timed metric and for its others.
    """

    suffix: str
    summary: str
    value: Callable[[Timing, BenchRow], float | str]
    text: Callable[[Timing, BenchRow], str]
    unit: str = ""
    better: Better = "less"
    ranks: tuple[int, int] = (HIDDEN, HIDDEN)


@lru_cache(maxsize=8192)
def estimate_of(timing: Timing) -> Estimate:
    """The ratio to the baseline, worked out once, though numbers, texts and sorting all ask for it."""
    return estimate_ratio(timing)


def _p50(timing: Timing) -> float:
    return quantile(timing.candidate, 0.5)


def _p90(timing: Timing) -> float:
    return quantile(timing.candidate, 0.9)


def _rate(timing: Timing, row: BenchRow) -> float:
    return row.batch_size / _p50(timing)


def _judged(timing: Timing) -> str:
    return f"{format_interval(estimate_of(timing))} {estimate_of(timing).verdict}"


def _seconds(
    suffix: str, summary: str, of: Callable[[Timing], float], ranks: tuple[int, int] = (HIDDEN, HIDDEN)
) -> TimingColumn:
    return TimingColumn(suffix, summary, lambda t, row: of(t), lambda t, row: format_seconds(of(t)), "s", ranks=ranks)


def _ratio(suffix: str, summary: str, of: Callable[[Timing], float]) -> TimingColumn:
    return TimingColumn(suffix, summary, lambda t, row: of(t), lambda t, row: format_ratio(of(t)))


#: In the order of the columns.
TIMING_COLUMNS = (
    _seconds("", "median of the rounds", _p50, (0, 1)),
    _seconds("p90", "nine of ten rounds took no longer", _p90, (5, HIDDEN)),
    _seconds("min", "the fastest round", lambda t: min(t.candidate), (2, HIDDEN)),
    TimingColumn(
        "rate",
        "images a second: batch over median",
        _rate,
        lambda t, row: f"{format_digits(_rate(t, row))}/s",
        "images/s",
        "more",
        (4, HIDDEN),
    ),
    TimingColumn(
        "ratio",
        "to the baseline in the same rounds, with its 95% interval and verdict",
        lambda t, row: estimate_of(t).ratio,
        lambda t, row: _judged(t),
        ranks=(0, 1),
    ),
    _ratio("ratio-low", "lower end of the interval", lambda t: estimate_of(t).low),
    _ratio("ratio-high", "upper end of the interval", lambda t: estimate_of(t).high),
    TimingColumn(
        "verdict",
        "slower, faster, same or inconclusive against the baseline",
        lambda t, row: estimate_of(t).verdict,
        lambda t, row: estimate_of(t).verdict,
        better="",
    ),
    _ratio("min-ratio", "the fastest round over the baseline's fastest", minimum_ratio),
    TimingColumn(
        "fluctuation",
        "interquartile range over median: above 10% a row is noisy, above 25% unreliable",
        lambda t, row: fluctuation(t.candidate),
        lambda t, row: f"{fluctuation(t.candidate):.1%}",
    ),
    TimingColumn(
        "rounds", "rounds timed", lambda t, row: len(t.candidate), lambda t, row: str(len(t.candidate)), better=""
    ),
)


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
    value: Callable[[BenchRow], Value]
    text: Callable[[BenchRow], str]
    rank: int = 0
    summary: str = ""
    factor: bool = False


def columns_of(run: BenchRun) -> list[Column]:
    """Every column that a run has."""
    first = next((metric.name for metric in run.header.metrics if metric.timed), "")
    varied = varying(run)
    columns = [_factor(name, 0) for name in varied] + [_factor(name, HIDDEN) for name in constants(run)]
    for metric in run.header.metrics:
        if metric.timed:
            columns += [_timed(metric, aspect, aspect.ranks[metric.name != first]) for aspect in TIMING_COLUMNS]
        else:
            columns.append(_plain(metric))
    return columns


def varying(run: BenchRun) -> list[str]:
    """The factors in which rows differ, in the order of the grid; one that some rows have not is among them."""
    return varied([row.factors for row in run.rows])


def varied(found: Sequence[Mapping[str, str]]) -> list[str]:
    """The factors in which they differ, in order."""
    names = dict.fromkeys(name for factors in found for name in factors)
    return [name for name in names if len({factors.get(name) for factors in found}) > 1]


def constants(run: BenchRun) -> dict[str, str]:
    """The factors that all rows share."""
    varied = varying(run)
    return {name: run.rows[0].factors[name] for name in _factors(run) if name not in varied}


def _factors(run: BenchRun) -> list[str]:
    return list(dict.fromkeys(name for row in run.rows for name in row.factors))


def _factor(name: str, rank: int) -> Column:
    def value(row: BenchRow) -> Value:
        return _number(row.factors.get(name))

    def text(row: BenchRow) -> str:
        return row.factors.get(name, "")

    return Column(name, name.replace("_", " "), "", "", value, text, rank, "chosen by the grid", factor=True)


def _number(text: str | None) -> Value:
    """A factor's value: a number where it is written as one, so that batch 8 comes before 16."""
    if text is None or not re.fullmatch(r"\d+(\.\d+)?", text):
        return text
    return float(text) if "." in text else int(text)


def _plain(metric: MetricInfo) -> Column:
    def value(row: BenchRow) -> Value:
        return row.values.get(metric.name)

    def text(row: BenchRow) -> str:
        number = row.values.get(metric.name)
        return _missing(metric, row) if number is None else format_metric(number, metric.unit)

    return Column(metric.name, metric.name, metric.unit, metric.better, value, text, 3, metric.summary)


def _missing(metric: MetricInfo, row: BenchRow) -> str:
    return "failed" if metric.name in row.failures else ""


def _timed(metric: MetricInfo, aspect: TimingColumn, rank: int) -> Column:
    def value(row: BenchRow) -> Value:
        timing = row.timings.get(metric.name)
        return None if timing is None else aspect.value(timing, row)

    def text(row: BenchRow) -> str:
        timing = row.timings.get(metric.name)
        return _missing(metric, row) if timing is None else aspect.text(timing, row)

    name = f"{metric.name}-{aspect.suffix}".removesuffix("-")
    title = f"{metric.name} {aspect.suffix.replace('-', ' ') or 'p50'}"
    return Column(name, title, aspect.unit, aspect.better, value, text, rank, f"{metric.summary}: {aspect.summary}")


_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
    "=": operator.eq,
    "!=": operator.ne,
}
_FILTER = re.compile(r"\s*([^<>=!]+?)\s*(<=|>=|!=|==|<|>|=)\s*(.+?)\s*")
_NUMBER = re.compile(r"([-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)\s*(\S*)", re.IGNORECASE)
#: What may follow a number, by the column's unit.
_UNITS = {
    "s": {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0},
    "B": {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30},
    "": {"%": 1e-2, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12},
}


def find_column(columns: Sequence[Column], name: str, option: str) -> Column:
    """The column of that name. Raises UnknownNameError, which lists all."""
    for found in columns:
        if found.name == name or found.name.replace("_", "-") == name:
            return found
    names = [found.name for found in columns]
    raise UnknownNameError(
        f"{option}: no column is called {name!r}{did_you_mean(name, names)}; there are {', '.join(names)}"
    )


def select_columns(columns: Sequence[Column], names: str | None) -> list[Column]:
    """The columns that tell rows apart and those that `--columns a,b` names, or all that are shown unasked.

    Raises UnknownNameError.
    """
    if names is None:
        return [found for found in columns if found.rank < HIDDEN]
    named = [find_column(columns, name.strip(), "--columns") for name in names.split(",")]
    return [*(found for found in columns if found.factor and not found.rank and found not in named), *named]


def sort_rows(rows: Sequence[BenchRow], columns: Sequence[Column], names: str | None) -> list[BenchRow]:
    """The rows as `--sort a,-b` has them: by `a`, and where that is equal by `b` downwards.

    Rows without a figure come last in either direction, and rows that were not measured come after those.

    Raises UnknownNameError.
    """
    rows = list(rows)
    for name in reversed(names.split(",") if names else []):
        down = name.strip().startswith("-")
        value = find_column(columns, name.strip().removeprefix("-"), "--sort").value
        rows.sort(key=lambda row: _natural(value(row)), reverse=down)
        rows.sort(key=lambda row: value(row) is None)
    return sorted(rows, key=lambda row: not row.is_measured)


def filter_rows(rows: Sequence[BenchRow], columns: Sequence[Column], filters: Sequence[str]) -> list[BenchRow]:
    """The rows that pass every filter, as `latency<50ms`, `batch_size>=8`, `encoder=resnet*`. Raises OptionError."""
    asked = [_asked(columns, text) for text in filters]
    return [row for row in rows if all(passes(row) for passes in asked)]


def _natural(value: Value) -> tuple[object, ...]:
    """What to sort by: numbers before words, and resnet34 before resnet101."""
    if value is None or not isinstance(value, str):
        return (0, value or 0)
    parts = re.split(r"(\d+)", value)
    return (1, *((int(part), "") if part.isdigit() else (-1, part) for part in parts))


def _asked(columns: Sequence[Column], text: str) -> Callable[[BenchRow], bool]:
    """What one filter asks of a row."""
    found = _FILTER.fullmatch(text)
    if not found:
        raise OptionError(f"--filter {text!r}: write a column, one of < <= > >= = != and a value, as 'latency<50ms'")
    name, sign, wanted = found.groups()
    asked, sign = find_column(columns, name, f"--filter {text!r}"), "=" if sign == "==" else sign
    number = _parse_number(wanted, asked.unit)
    if number is None and sign not in ("=", "!="):
        units = ", ".join(_UNITS.get(asked.unit, [])) or asked.unit
        raise OptionError(f"--filter {text!r}: {wanted!r} is no number; what may follow one here: {units}")

    def passes(row: BenchRow) -> bool:
        value = asked.value(row)
        if value is None:
            return sign == "!="
        if isinstance(value, str) or number is None:
            return (sign in ("=", "!=")) and fnmatchcase(str(value), wanted) == (sign == "=")
        return _COMPARE[sign](value, number)

    return passes


def _parse_number(text: str, unit: str) -> float | None:
    """A number in the column's unit, from one with a unit of its own: 0.05 from 50ms."""
    found = _NUMBER.fullmatch(text)
    scale = {"": 1.0, unit: 1.0, **_UNITS.get(unit, {})}.get(found[2]) if found else None
    return None if found is None or scale is None else float(found[1]) * scale
