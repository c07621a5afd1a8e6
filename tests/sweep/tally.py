"""What the rows of a sweep come to: shares, failures by their cause, the slowest to build."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from tests.sweep.settings import ANSWERS, QUESTIONS

Row = dict[str, Any]
#: What each answer is about, in words.
TITLES = {
    "built": "built",
    "own": "own size",
    "odd": "97x131",
    "small": "33x65",
    "backward": "training step",
}
#: What follows from an earlier failure, and is no cause of its own.
_FOLLOWS = ("not built", "not asked")


@dataclass(frozen=True)
class Failure:
    """Models that fail alike: at what, why in the words of the first, and which."""

    answer: str
    cause: str
    names: tuple[str, ...]


def ok(rows: Iterable[Row], answer: str) -> int:
    """How many rows answer "ok"."""
    return sum(row[answer] == "ok" for row in rows)


def real(rows: Iterable[Row]) -> str:
    """Of the models that were built, how many were asked on real tensors."""
    built = [row for row in rows if row["built"] == "ok"]
    return share(sum(row["real"] for row in built), len(built))


def totals(rows: Iterable[Row]) -> list[tuple[str, str]]:
    """What was asked, and the share that passed: of all, and apart for real tensors and for shapes alone, on meta."""
    rows = [*rows]
    truly = [row for row in rows if row["real"]]
    ghosts = [row for row in rows if not row["real"] and row["built"] == "ok"]
    found = [(TITLES["built"], share(ok(rows, "built"), len(rows)))]
    for question in QUESTIONS:
        of_all = (("", rows), (", on real tensors", truly), (", shapes only, on meta", ghosts))
        found += [(TITLES[question] + how, share(ok(asked, question), len(asked))) for how, asked in of_all]
    return [*found, ("on real tensors, of those built", real(rows))]


def passed(row: Row) -> bool:
    """Whether every answer is "ok"."""
    return all(row[answer] == "ok" for answer in ANSWERS)


def share(part: int, whole: int) -> str:
    """39 of 60 (65.0%); never rounded up to all."""
    return f"{part} of {whole} ({math.floor(1000 * part / whole) / 10:.1f}%)" if whole else "0 of 0"


def failures(rows: Iterable[Row]) -> list[Failure]:
    """By answer and cause, the most frequent first; causes that differ in numbers or in the model's name are one."""
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        for answer in ANSWERS:
            if row[answer] not in ("ok", *_FOLLOWS):
                groups[answer, re.sub(r"\d+", "0", row[answer].replace(row["name"], "NAME"))].append(row)
    found = [Failure(a, same[0][a], tuple(sorted(row["name"] for row in same))) for (a, _), same in groups.items()]
    return sorted(found, key=lambda failure: (ANSWERS.index(failure.answer), -len(failure.names), failure.cause))


def slowest(rows: Iterable[Row], number: int = 10) -> list[Row]:
    """The rows that took longest to build on meta, the longest first."""
    return sorted((row for row in rows if "seconds" in row), key=lambda row: (-row["seconds"], row["name"]))[:number]


def groups(rows: Iterable[Row], key: Callable[[Row], str]) -> list[tuple[str, list[Row]]]:
    """Rows that have a key in common, the largest group first."""
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        found[key(row)].append(row)
    return sorted(found.items(), key=lambda item: (-len(item[1]), item[0]))
