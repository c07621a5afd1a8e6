"""Summaries of the rows of a sweep: shares that passed, failures with the same error, and the slowest models."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from tests.sweep.config import CHECKS, RESULTS

Row = dict[str, Any]
#: Titles of the results.
TITLES = {
    "built": "built",
    "own": "own size",
    "odd": "97x131",
    "small": "33x65",
    "backward": "training step",
}
#: Results that follow from an earlier failure.
_CONSEQUENCES = ("not built", "not run")


@dataclass(frozen=True)
class FailureGroup:
    """Models that fail in the same way.

    Attributes:
        check: the result that failed, a name of RESULTS.
        error: error of the first model.
        names: names of all models, sorted.
    """

    check: str
    error: str
    names: tuple[str, ...]


def count_passed(rows: Iterable[Row], check: str) -> int:
    """Return the number of rows whose result is "ok".

    Args:
        rows: any rows.
        check: a name of RESULTS.
    """
    return sum(row[check] == "ok" for row in rows)


def has_passed(row: Row) -> bool:
    """Return whether all results of a row are "ok".

    Args:
        row: results of a model.
    """
    return all(row[key] == "ok" for key in RESULTS)


def summarize_checks(rows: Iterable[Row]) -> list[tuple[str, str]]:
    """Return a title and the share that passed, for each check of all models, of real tensors and of meta tensors.

    Args:
        rows: rows of one library.
    """
    rows = [*rows]
    built = [row for row in rows if row["built"] == "ok"]
    real_rows = [row for row in rows if row["real"]]
    meta_rows = [row for row in built if not row["real"]]
    lines = [(TITLES["built"], format_share(count_passed(rows, "built"), len(rows)))]
    for check in CHECKS:
        for suffix, part in (("", rows), (", on real tensors", real_rows), (", on meta tensors", meta_rows)):
            lines.append((TITLES[check] + suffix, format_share(count_passed(part, check), len(part))))
    num_real = sum(row["real"] for row in built)
    return [*lines, ("built models that were checked on real tensors", format_share(num_real, len(built)))]


def format_share(part: int, total: int) -> str:
    """Format a share as "39 of 60 (65.0%)", rounded down so that only all are 100%.

    Args:
        part: a number from 0 to `total`.
        total: 0 or more.
    """
    return f"{part} of {total} ({math.floor(1000 * part / total) / 10:.1f}%)" if total else "0 of 0"


def group_failures(rows: Iterable[Row]) -> list[FailureGroup]:
    """Group failures by check and error, the most frequent error of a check first.

    Errors that differ only in numbers or in the name of the model belong to one group.

    Args:
        rows: rows of one library.
    """
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        for check in RESULTS:
            if row[check] not in ("ok", *_CONSEQUENCES):
                groups[check, re.sub(r"\d+", "0", row[check].replace(row["name"], "NAME"))].append(row)
    failures = [
        FailureGroup(check, group[0][check], tuple(sorted(row["name"] for row in group)))
        for (check, _), group in groups.items()
    ]
    return sorted(failures, key=lambda failure: (RESULTS.index(failure.check), -len(failure.names), failure.error))


def find_slowest(rows: Iterable[Row], number: int = 10) -> list[Row]:
    """Return the rows with the longest times to build the network on the meta device, the longest first.

    Args:
        rows: any rows.
        number: largest number of rows to return.
    """
    return sorted((row for row in rows if "seconds" in row), key=lambda row: (-row["seconds"], row["name"]))[:number]


def group_rows(rows: Iterable[Row], key: Callable[[Row], str]) -> list[tuple[str, list[Row]]]:
    """Group rows by a key, the largest group first.

    Args:
        rows: any rows.
        key: returns the key of a row.
    """
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
