"""The columns of a benchmark, for factors of the grid and for metrics, and how rows are sorted and filtered by them.

`make_columns` returns the factors first, in the order of the grid, and then the columns of each metric, in the order of
the header. A timed metric `latency` has the columns `latency` (median), `latency-p90`, `latency-rate`, `latency-ratio`
(to the baseline), `latency-ratio-low` and `latency-ratio-high` (bounds of its 95% confidence interval),
`latency-verdict`, `latency-raw`, `latency-min`, `latency-min-ratio`, `latency-fluctuation` and `latency-rounds`. A
metric of trained networks such as `miou` has the columns `miou` (mean over seeds), `miou-difference` (to the baseline),
`miou-verdict` and others. Every column accepts every row of the run, including failed ones. The tables, the report,
CSV, JSON and pandas use them.

Times other than `latency-raw` and `latency-min` are normalized by those of the baseline (`BaselineTimes`), so that they
agree with the ratios.
"""

from __future__ import annotations

import functools
import operator
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from math import isfinite

from unetkit.bench.grid import AXES, OWN_SIZE, Case
from unetkit.bench.metrics import check_measured
from unetkit.bench.quality import RowQuality, RunQuality, read_quality
from unetkit.bench.results import BenchRow, BenchRun, Timing
from unetkit.bench.statistics import Estimate, estimate_ratio, format_interval, minimum_ratio, quantile, relative_iqr
from unetkit.bench.training import TRAINING_AXES
from unetkit.errors import OptionError, UnknownNameError, did_you_mean
from unetkit.registry import Better, MetricInfo
from unetkit.utils.formatting import format_digits, format_metric, format_ratio, format_seconds

Value = float | str | None

#: All factors of a grid, in order.
FACTORS = (*(one.name for one in AXES), "pretrained", *TRAINING_AXES, "size", "batch_size", "mode")
#: Rank of the columns that are shown only on request.
HIDDEN = 9
#: Ranks of metrics that are not timed: parameters and MACs are left out last. All others have rank 6.
_VALUE_RANKS = {"parameters": 1, "macs": 2, "memory": 3}
#: Rank up to which columns are kept if shorter texts make room for them.
SHORTENING = 3


@dataclass(frozen=True)
class Column:
    """A column of a run.

    Attributes:
        name: name in `--columns`, `--sort` and `--filter`.
        title: heading.
        unit: unit of `value`: "s", "B", "images/s", "" for counts and ratios, or the unit of a plugin's metric.
        better: which numbers are better, "less" or "more"; "" if neither is.
        value: returns the number or name of a row, in the column's unit; None if the row has none.
        text: returns the text of a row for people, with its unit; "" if the row has none, "failed" if only this metric
            failed.
        rank: 0 if the column is always shown. Columns with higher ranks are shown if there is room, the highest rank
            being left out first. HIDDEN columns are shown only on request.
        short_text: returns a shorter text, for a terminal that is too narrow for `text` although only columns up to
            rank SHORTENING are left; None if there is none.
        summary: description, in one line.
        is_factor: True for a factor of the grid, False for a column of a metric.
    """

    name: str
    title: str
    unit: str
    better: Better
    value: Callable[[BenchRow], Value]
    text: Callable[[BenchRow], str]
    rank: int = 0
    summary: str = ""
    is_factor: bool = False
    short_text: Callable[[BenchRow], str] | None = None


def make_columns(run: BenchRun) -> list[Column]:
    """Return all columns of a run.

    Args:
        run: the results of a benchmark.
    """
    first_timed = next((metric.name for metric in run.header.metrics if metric.timed), "")
    varying = find_varying_factors(run.rows)
    columns = [_make_factor_column(name, 0) for name in varying]
    others = dict.fromkeys(name for row in run.rows for name in row.factors if name not in varying)
    columns += [_make_factor_column(name, HIDDEN) for name in others]
    quality, times = read_quality(run), BaselineTimes(run.rows)
    for metric in run.header.metrics:
        if metric.trained:
            columns += _make_quality_columns(metric, quality) if quality is not None else []
        elif metric.timed:
            is_first = metric.name == first_timed
            columns += [_make_timing_column(metric, column, is_first, times) for column in TIMING_COLUMNS]
        else:
            columns.append(_make_value_column(metric))
    if any("--metrics" in one.command for one in run.commands):  # then all are named, and hidden last
        named = {metric.name for metric in run.header.metrics}
        columns = [replace(one, rank=min(one.rank, SHORTENING)) if one.name in named else one for one in columns]
    return columns


def _make_quality_columns(metric: MetricInfo, quality: RunQuality) -> list[Column]:
    """Return the columns of a metric of trained networks."""
    name, is_ruling = metric.name, metric.name == quality.rules.metric

    def column(
        suffix: str,
        summary: str,
        value: Callable[[RowQuality], Value],
        text: Callable[[RowQuality], str],
        rank: int = HIDDEN,
        better: Better = "",
    ) -> Column:
        return Column(
            f"{name}-{suffix}".removesuffix("-"),
            f"{name} {suffix.replace('-', ' ')}".strip(),
            metric.unit,
            better,
            lambda row: value(quality.of(row, name)),
            lambda row: text(quality.of(row, name)),
            rank,
            f"{metric.summary} {summary}",
        )

    def images(row: BenchRow, index: int) -> Value:
        interval = quality.image_interval(row, name)
        return None if interval is None else interval[index]

    def images_text(row: BenchRow) -> str:
        interval = quality.image_interval(row, name)
        return "" if interval is None else f"{interval[0]:+.4f} to {interval[1]:+.4f}"

    def images_bound_text(row: BenchRow, index: int) -> str:
        interval = quality.image_interval(row, name)
        return "" if interval is None else f"{interval[index]:+.4f}"

    compared = functools.partial(_of_comparison, number="{:+.4f}")
    images_rank = 6 if any(map(images_text, quality.run.rows)) else HIDDEN
    others = "Also for other images: the 95% interval of the difference if seeds and images are resampled"
    return [
        column("", "Mean over the seeds.", lambda q: q.mean, _format_scores, 0 if is_ruling else 3, metric.better),
        column("std", "Standard deviation over the seeds.", lambda q: q.std, lambda q: format_score(q.std)),
        column("seeds", "Number of seeds.", lambda q: len(q.scores), lambda q: str(len(q.scores))),
        column(
            "difference",
            "Mean difference to the baseline over the seeds, with its 95% confidence interval.",
            *_of_comparison("difference", "{:+.4f}")[:1],
            _format_difference,
            0 if is_ruling else 4,
            metric.better,
        ),
        column("difference-low", "Lower bound of that interval.", *compared("low")),
        column("difference-high", "Upper bound of that interval.", *compared("high")),
        *(
            [column("verdict", "Verdict by the rules of the run.", lambda q: q.verdict, lambda q: q.verdict, 0)]
            if is_ruling
            else []
        ),
        column(
            "correlation", "Correlation with the baseline over the seeds.", *_of_comparison("correlation", "{:.2f}")
        ),
        Column(f"{name}-images", f"{name} for other images", "", "", images_text, images_text, images_rank, others),
        *(
            Column(
                f"{name}-images-{bound}",
                f"{name} for other images, {bound}",
                metric.unit,
                "",
                functools.partial(images, index=index),
                functools.partial(images_bound_text, index=index),
                HIDDEN,
                f"{others}: its {'lower' if index == 0 else 'upper'} bound",
            )
            for index, bound in enumerate(("low", "high"))
        ),
    ]


def _of_comparison(attribute: str, number: str) -> tuple[Callable[[RowQuality], Value], Callable[[RowQuality], str]]:
    """Return functions to the number and to the text of an attribute of a row's comparison."""

    def value(quality: RowQuality) -> Value:
        found = None if quality.comparison is None else float(getattr(quality.comparison, attribute))
        return None if found is None or not isfinite(found) else found

    def text(quality: RowQuality) -> str:
        found = value(quality)
        return "" if found is None else number.format(found)

    return value, text


def format_score(score: float | None) -> str:
    """Format a score with four digits; "" for None."""
    return "" if score is None else f"{score:.4f}"


def _format_scores(quality: RowQuality) -> str:
    if quality.mean is None:
        return "" if not quality.failed else "failed"
    return format_score(quality.mean) + (f" ± {format_score(quality.std)}" if quality.std is not None else "")


def _format_difference(quality: RowQuality) -> str:
    found = quality.comparison
    if found is None:
        return ""
    return f"{found.difference:+.4f} ({found.low:+.4f} to {found.high:+.4f})"


def find_chosen_factors(rows: Iterable[BenchRow | Case]) -> list[str]:
    """Return the factors that a command set in any row, in the order of the grid.

    What no command set has its default in all rows, or follows from a recipe.

    Args:
        rows: rows of a run, or cases of a grid.
    """
    rows = [*rows]
    chosen = {name for row in rows for name in dict(row.factors) if name not in row.defaults}
    if len({dict(row.factors).get("model") for row in rows}) > 1:
        chosen.add("model")
    found = dict.fromkeys(name for row in rows for name in dict(row.factors) if name in chosen)
    return sorted(found, key=lambda name: FACTORS.index(name) if name in FACTORS else len(FACTORS))


def find_varying_factors(rows: Iterable[BenchRow | Case]) -> list[str]:
    """Return the factors in which rows differ and that a command set, including those that only some rows have.

    Args:
        rows: rows of a run, or cases of a grid.
    """
    rows = [*rows]
    return [name for name in find_chosen_factors(rows) if len(_find_values(rows, name)) > 1]


def find_constant_factors(rows: Sequence[BenchRow]) -> dict[str, str]:
    """Return the factors that a command set and that have one value in all rows, with this value.

    Args:
        rows: all rows of a run.
    """
    values = {name: _find_values(rows, name) for name in find_chosen_factors(rows)}
    return {name: found[0] for name, found in values.items() if len(found) == 1 and found[0] is not None}


def _find_values(rows: Sequence[BenchRow | Case], name: str) -> list[str | None]:
    """Return the values of a factor in order of appearance; the unknown input size of a failed row is left out."""
    values = [*dict.fromkeys(dict(row.factors).get(name) for row in rows)]
    return [value for value in values if (name, value) != ("size", OWN_SIZE)] or values


def _make_factor_column(name: str, rank: int) -> Column:
    def value(row: BenchRow) -> Value:
        return _parse_factor(row.factors.get(name))

    def text(row: BenchRow) -> str:
        return row.factors.get(name, "")

    return Column(name, name.replace("_", " "), "", "", value, text, rank, "set by the grid", is_factor=True)


def _parse_factor(text: str | None) -> Value:
    """Convert the value of a factor to a number if it is one, so that batch size 8 is sorted before 16."""
    if text is None or not re.fullmatch(r"\d+(\.\d+)?", text):
        return text
    return float(text) if "." in text else int(text)


def _make_value_column(metric: MetricInfo) -> Column:
    """Return the column of a metric that is not timed."""

    def value(row: BenchRow) -> Value:
        return row.values.get(metric.name)

    def text(row: BenchRow) -> str:
        number = row.values.get(metric.name)
        return _missing_text(metric, row) if number is None else format_metric(number, metric.unit)

    rank = _VALUE_RANKS.get(metric.name, 6)
    return Column(metric.name, metric.name, metric.unit, metric.better, value, text, rank, metric.summary)


def _missing_text(metric: MetricInfo, row: BenchRow) -> str:
    return "failed" if metric.name in row.failures else ""


@dataclass(frozen=True)
class TimingColumn:
    """One of the columns that every timed metric has.

    Attributes:
        suffix: follows the metric's name and a dash; "" for the column that has the metric's own name.
        summary: description, in one line.
        value: returns the number or verdict of a timing, given its row and the factor that levels its times.
        text: returns its text for people, given the same.
        unit: unit of `value`, as in `Column`.
        better: "less", "more" or "", as in `Column`.
        ranks: ranks as in `Column`, for the first timed metric of a run and for the others.
    """

    suffix: str
    summary: str
    value: Callable[[Timing, BenchRow, float], float | str]
    text: Callable[[Timing, BenchRow, float], str]
    unit: str = ""
    better: Better = "less"
    ranks: tuple[int, int] = (HIDDEN, HIDDEN)


def _make_timing_column(metric: MetricInfo, column: TimingColumn, is_first: bool, times: BaselineTimes) -> Column:
    """Return a column of a timed metric; `is_first` tells whether it is the first timed metric of the run."""

    def value(row: BenchRow) -> Value:
        timing = row.timings.get(metric.name)
        return None if timing is None else column.value(timing, row, times.factor(row, metric.name))

    def text(row: BenchRow) -> str:
        timing = row.timings.get(metric.name)
        return (
            _missing_text(metric, row) if timing is None else column.text(timing, row, times.factor(row, metric.name))
        )

    name = f"{metric.name}-{column.suffix}".removesuffix("-")
    title = f"{metric.name} {column.suffix.replace('-', ' ') or 'p50'}"
    rank = column.ranks[0 if is_first else 1]
    short = _make_short_text(metric.name) if column.suffix == "ratio" else None
    summary = f"{metric.summary}: {column.summary}"
    return Column(name, title, column.unit, column.better, value, text, rank, summary, short_text=short)


def _make_short_text(metric: str) -> Callable[[BenchRow], str]:
    """Return a function that formats the ratio of a row without its interval."""

    def short_text(row: BenchRow) -> str:
        if (timing := row.timings.get(metric)) is None:
            return "failed" if metric in row.failures else ""
        estimate = estimate_ratio_cached(timing)
        return f"{format_ratio(estimate.ratio)} {estimate.verdict}"

    return short_text


@lru_cache(maxsize=8192)
def estimate_ratio_cached(timing: Timing) -> Estimate:
    """Return `estimate_ratio(timing)`, computed only once, since values, texts and sorting all need it.

    Args:
        timing: paired samples of a candidate and the baseline.
    """
    return estimate_ratio(timing)


class BaselineTimes:
    """The median time of the baseline for each metric, input and device, over all rows of a run.

    The speed of a machine changes while rows are measured one after the other, so a row's own times may contradict its
    ratio. The ratio multiplied by this time is comparable between rows.

    Args:
        rows: rows that were timed against one baseline.
    """

    def __init__(self, rows: Iterable[BenchRow]) -> None:
        found: dict[tuple[object, ...], list[float]] = {}
        for row in rows:
            for name, timing in row.timings.items():
                found.setdefault(_timing_key(row, name), []).append(quantile(timing.baseline, 0.5))
        self._seconds = {key: quantile(values, 0.5) for key, values in found.items()}

    def level(self, row: BenchRow, metric: str, ratio: float) -> float:
        """Return a ratio to the baseline as a time.

        Args:
            row: one of the rows, or one with the same input and device.
            metric: name of a metric for which the row was timed.
            ratio: ratio to the baseline.
        """
        own = row.timings[metric].baseline
        return ratio * self._seconds.get(_timing_key(row, metric), quantile(own, 0.5))

    def factor(self, row: BenchRow, metric: str) -> float:
        """Return the factor by which the row's measured times are multiplied."""
        timing = row.timings[metric]
        return self.level(row, metric, estimate_ratio_cached(timing).ratio) / _p50(timing)


def _timing_key(row: BenchRow, metric: str) -> tuple[object, ...]:
    """Return what the time of the baseline depends on; the cores of a machine are alike."""
    return metric, row.size, row.batch_size, re.sub(r" cores [\d,-]+,", "", row.device)


def _p50(timing: Timing) -> float:
    return quantile(timing.candidate, 0.5)


def _p90(timing: Timing) -> float:
    return quantile(timing.candidate, 0.9)


def _throughput(timing: Timing, row: BenchRow, factor: float) -> float:
    return row.batch_size / (_p50(timing) * factor)


def _format_ratio_and_verdict(timing: Timing) -> str:
    estimate = estimate_ratio_cached(timing)
    return f"{format_interval(estimate)} {estimate.verdict}"


def _seconds_column(
    suffix: str,
    summary: str,
    statistic: Callable[[Timing], float],
    ranks: tuple[int, int] = (HIDDEN, HIDDEN),
    *,
    normalized: bool = True,
) -> TimingColumn:
    def value(timing: Timing, row: BenchRow, factor: float) -> float:
        return statistic(timing) * factor if normalized else statistic(timing)

    return TimingColumn(suffix, summary, value, lambda t, row, f: format_seconds(value(t, row, f)), "s", ranks=ranks)


def _ratio_column(suffix: str, summary: str, statistic: Callable[[Timing], float]) -> TimingColumn:
    return TimingColumn(suffix, summary, lambda t, row, f: statistic(t), lambda t, row, f: format_ratio(statistic(t)))


#: The columns of a timed metric, in this order.
TIMING_COLUMNS = (
    _seconds_column("", "median of the rounds: ratio times the time of the baseline in all rows", _p50, (0, 5)),
    _seconds_column("p90", "90th percentile of the rounds, normalized like the median", _p90, (8, HIDDEN)),
    TimingColumn(
        "rate",
        "images per second, the batch size divided by the median",
        _throughput,
        lambda t, row, f: f"{format_digits(_throughput(t, row, f))}/s",
        "images/s",
        "more",
        (7, HIDDEN),
    ),
    TimingColumn(
        "ratio",
        "ratio to the baseline in the same rounds, with its 95% confidence interval and verdict",
        lambda t, row, f: estimate_ratio_cached(t).ratio,
        lambda t, row, f: _format_ratio_and_verdict(t),
        ranks=(0, 4),
    ),
    _ratio_column(
        "ratio-low", "lower bound of the ratio's 95% confidence interval", lambda t: estimate_ratio_cached(t).low
    ),
    _ratio_column(
        "ratio-high", "upper bound of the ratio's 95% confidence interval", lambda t: estimate_ratio_cached(t).high
    ),
    TimingColumn(
        "verdict",
        "slower, faster, same or inconclusive, compared with the baseline",
        lambda t, row, f: estimate_ratio_cached(t).verdict,
        lambda t, row, f: estimate_ratio_cached(t).verdict,
        better="",
    ),
    _seconds_column(
        "raw", "median of the rounds as measured, which the machine's speed affects", _p50, normalized=False
    ),
    _seconds_column("min", "minimum of the rounds as measured", lambda t: min(t.candidate), normalized=False),
    _ratio_column("min-ratio", "ratio of the minimum to the baseline's minimum", minimum_ratio),
    TimingColumn(
        "fluctuation",
        "interquartile range divided by the median; above 10% a row is noisy, above 25% unreliable",
        lambda t, row, f: relative_iqr(t.candidate),
        lambda t, row, f: f"{relative_iqr(t.candidate):.1%}",
    ),
    TimingColumn(
        "rounds",
        "number of timed rounds",
        lambda t, row, f: len(t.candidate),
        lambda t, row, f: str(len(t.candidate)),
        better="",
    ),
)


def find_column(columns: Sequence[Column], name: str, option: str) -> Column:
    """Return the column with a name, in which dashes may stand for underscores.

    Args:
        columns: the columns to choose from.
        name: name of the column.
        option: option that contains the name, for the error message.

    Raises:
        UnknownNameError: There is no such column.
    """
    for column in columns:
        if name in (column.name, column.name.replace("_", "-")):
            return column
    names = [column.name for column in columns]
    check_measured(name, names, option)
    advice = did_you_mean(name, names) or f"; the columns are {', '.join(names)}"
    raise UnknownNameError(f"{option}: there is no column {name!r}{advice}")


def select_columns(columns: Sequence[Column], names: str | None) -> list[Column]:
    """Return the columns to show.

    Args:
        columns: all columns of a run.
        names: names of columns, separated by commas, as in `--columns`. The factors that vary are shown before them.
            None selects all columns that are not HIDDEN.

    Raises:
        UnknownNameError: There is no such column.
    """
    if names is None:
        return [column for column in columns if column.rank < HIDDEN]
    named = [find_column(columns, name.strip(), "--columns") for name in names.split(",")]
    varying = [column for column in columns if column.is_factor and column.rank == 0 and column not in named]
    return [*varying, *named]


def sort_rows(rows: Sequence[BenchRow], columns: Sequence[Column], names: str | None) -> list[BenchRow]:
    """Return the rows sorted by columns.

    In either direction, rows without a value come after those with one, and failed rows come last.

    Args:
        rows: rows of a run.
        columns: all columns of the run.
        names: names of columns, separated by commas, as in `--sort`; the first has priority. A dash before a name sorts
            in descending order. None keeps the order.

    Raises:
        UnknownNameError: There is no such column.
    """
    rows = list(rows)
    for name in reversed(names.split(",") if names else []):
        is_descending = name.strip().startswith("-")
        value = find_column(columns, name.strip().removeprefix("-"), "--sort").value
        rows.sort(key=lambda row: _natural_sort_key(value(row)), reverse=is_descending)
        rows.sort(key=lambda row: value(row) is None)
    return sorted(rows, key=lambda row: not row.is_measured)


def _natural_sort_key(value: Value) -> tuple[object, ...]:
    """Return a key that sorts numbers before names, and resnet34 before resnet101."""
    if value is None or not isinstance(value, str):
        return (0, value or 0)
    parts = re.split(r"(\d+)", value)
    return (1, *((int(part), "") if part.isdigit() else (-1, part) for part in parts))


def filter_rows(rows: Sequence[BenchRow], columns: Sequence[Column], filters: Sequence[str]) -> list[BenchRow]:
    """Return the rows that pass all filters.

    Args:
        rows: rows of a run.
        columns: all columns of the run.
        filters: tests as in `--filter`: "latency<0.05", "batch_size>=8", "encoder=resnet*".

    Raises:
        OptionError: A filter cannot be parsed.
        UnknownNameError: There is no such column.
    """
    tests = [_parse_filter(columns, text) for text in filters]
    return [row for row in rows if all(test(row) for test in tests)]


_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
    "=": operator.eq,
    "!=": operator.ne,
}
#: Names of units in messages.
_UNIT_NAMES = {"s": "seconds", "B": "bytes"}
_FILTER_PATTERN = re.compile(r"\s*([^<>=!]+?)\s*(<=|>=|!=|==|<|>|=)\s*(.+?)\s*")


def _parse_filter(columns: Sequence[Column], text: str) -> Callable[[BenchRow], bool]:
    """Return the test of a row that a filter describes."""
    match = _FILTER_PATTERN.fullmatch(text)
    if not match:
        raise OptionError(
            f"--filter {text!r} is not a test; give a column, one of < <= > >= = != and a value, such as 'latency<0.05'"
        )
    name, sign, operand = match.groups()
    column, sign = find_column(columns, name, f"--filter {text!r}"), "=" if sign == "==" else sign
    number = None
    try:
        number = float(operand)
    except ValueError:
        if sign not in ("=", "!="):
            unit = f" in {_UNIT_NAMES.get(column.unit, column.unit)}" if column.unit else ""
            raise OptionError(
                f"--filter {text!r}: {operand!r} is not a number; give one{unit}, or compare by = or !="
            ) from None

    def test(row: BenchRow) -> bool:
        value = column.value(row)
        if value is None:
            return sign == "!="
        if isinstance(value, str) or number is None:
            return (sign in ("=", "!=")) and fnmatchcase(str(value), operand) == (sign == "=")
        return _OPERATORS[sign](value, number)

    return test
