"""Which rows of a run are read, in which order, and which of their columns."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

from unetkit.bench.aspects import HIDDEN, Value
from unetkit.bench.columns import Column
from unetkit.bench.rows import Row
from unetkit.errors import BadOption, UnknownName, nearest

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
    """The column of that name. Raises UnknownName, which lists all."""
    for found in columns:
        if found.name == name:
            return found
    names = [found.name for found in columns]
    raise UnknownName(f"{option}: no column is called {name!r}{nearest(name, names)}; there are {', '.join(names)}")


def select_columns(columns: Sequence[Column], names: str | None) -> list[Column]:
    """The columns that tell rows apart and those that `--columns a,b` names, or all that are shown unasked.

    Raises UnknownName.
    """
    if names is None:
        return [found for found in columns if found.rank < HIDDEN]
    named = [find_column(columns, name.strip(), "--columns") for name in names.split(",")]
    return [*(found for found in columns if found.factor and not found.rank and found not in named), *named]


def sort_rows(rows: Sequence[Row], columns: Sequence[Column], names: str | None) -> list[Row]:
    """The rows as `--sort a,-b` has them: by `a`, and where that is equal by `b` downwards.

    Rows without a figure come last, whichever way; those that were not measured after all others. Raises UnknownName.
    """
    rows = list(rows)
    for name in reversed(names.split(",") if names else []):
        down = name.strip().startswith("-")
        value = find_column(columns, name.strip().removeprefix("-"), "--sort").value
        rows.sort(key=lambda row: _natural(value(row)), reverse=down)
        rows.sort(key=lambda row: value(row) is None)
    return sorted(rows, key=lambda row: not row.measured)


def filter_rows(rows: Sequence[Row], columns: Sequence[Column], filters: Sequence[str]) -> list[Row]:
    """The rows that pass every filter, as `latency<50ms`, `batch>=8`, `encoder=resnet*`. Raises BadOption."""
    asked = [_asked(columns, text) for text in filters]
    return [row for row in rows if all(passes(row) for passes in asked)]


def _natural(value: Value) -> tuple[object, ...]:
    """What to sort by: numbers before words, and resnet34 before resnet101."""
    if value is None or not isinstance(value, str):
        return (0, value or 0)
    parts = re.split(r"(\d+)", value)
    return (1, *((int(part), "") if part.isdigit() else (-1, part) for part in parts))


def _asked(columns: Sequence[Column], text: str) -> Callable[[Row], bool]:
    """What one filter asks of a row."""
    found = _FILTER.fullmatch(text)
    if not found:
        raise BadOption(f"--filter {text!r}: write a column, one of < <= > >= = != and a value, as 'latency<50ms'")
    name, sign, wanted = found.groups()
    asked, sign = find_column(columns, name, f"--filter {text!r}"), "=" if sign == "==" else sign
    number = _parse_number(wanted, asked.unit)
    if number is None and sign not in ("=", "!="):
        units = ", ".join(_UNITS.get(asked.unit, [])) or asked.unit
        raise BadOption(f"--filter {text!r}: {wanted!r} is no number; what may follow one here: {units}")

    def passes(row: Row) -> bool:
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
