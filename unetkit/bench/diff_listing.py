"""What `unetkit bench diff` prints: a comparison as lines and tables, or as plain data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from unetkit.bench.changes import Change
from unetkit.bench.diff import Diff
from unetkit.bench.listing import Cells, Listing
from unetkit.bench.rows import Row
from unetkit.bench.texts import format_interval, format_metric, format_ratio

_HEADS = ["row", "metric", "A", "B", "B/A", "verdict"]
#: What is only counted unless all is asked for.
_QUIET = ("same", "inconclusive")


def format_diff(diff: Diff, *, everything: bool = False) -> Listing:
    """What differs, the changes, and what they come to. `everything`: what did not change, too."""
    shown = [change for change in diff.changes if everything or _told(change)]
    named = _namer(diff)
    rows = [[named(change.row), *_cells(change), change.verdict] for change in shown]
    title = f"{len(shown)} of {len(diff.changes)} figures, the worst first"
    tables = [Cells(_HEADS, rows, title)] if rows else []
    return Listing(
        [f"A is {diff.a}, B is {diff.b}", *diff.differences, *diff.notes],
        tables,
        [
            *(f"only in A: {named(row)}" for row in diff.only_a),
            *(f"only in B: {named(row)}" for row in diff.only_b),
            _total(diff),
        ],
    )


def diff_to_dict(diff: Diff) -> dict[str, Any]:
    """The same as plain data, every figure included."""
    return {
        "a": str(diff.a),
        "b": str(diff.b),
        "worse": diff.worse,
        "counts": diff.counts,
        "differences": diff.differences,
        "notes": diff.notes,
        "only_a": [row.line for row in diff.only_a],
        "only_b": [row.line for row in diff.only_b],
        "changes": [_change(change) for change in diff.changes],
    }


def _told(change: Change) -> bool:
    once = change.metric is not None and not change.metric.timed and change.verdict == "unpaired"
    return not once and change.verdict not in _QUIET


def _namer(diff: Diff) -> Callable[[Row], str]:
    """How a row is called: its line, and those of its conditions that differ between rows."""
    rows = [*(change.row for change in diff.changes), *diff.only_a, *diff.only_b]
    differ = [name for name in ("size", "batch", "mode") if len({row.factors[name] for row in rows}) > 1]
    return lambda row: ", ".join([row.line, *(f"{name} {row.factors[name]}" for name in differ)])


def _cells(change: Change) -> list[str]:
    """Metric, A, B, and B over A."""
    if change.metric is None:
        sides = ["measured", f"failed: {change.note}"]
        return ["the row", *(sides if change.verdict == "worse" else sides[::-1]), ""]
    return [change.metric.name, _side(change, 0), _side(change, 1), _ratio(change)]


def _side(change: Change, index: int) -> str:
    number = (change.a, change.b)[index]
    if number is None or change.metric is None:
        return f"none: {change.note}"
    text = format_metric(number, change.metric.unit)
    return f"{text}, ratio {format_ratio(change.ratios[index])}" if change.ratios else text


def _ratio(change: Change) -> str:
    if change.ratio:
        return format_interval(change.ratio)
    return format_ratio(change.b / change.a) if change.a and change.b else ""


def _total(diff: Diff) -> str:
    counts = ", ".join(f"{number} {verdict}" for verdict, number in diff.counts.items())
    return f"{len(diff.changes)} figures compared: {counts or 'none'}"


def _change(change: Change) -> dict[str, Any]:
    row, metric = change.row, change.metric
    return {
        "id": row.id,
        "line": row.line,
        "factors": row.factors,
        "metric": metric.name if metric else None,
        "unit": metric.unit if metric else None,
        **{key: getattr(change, key) for key in ("a", "b", "ratios", "verdict", "note")},
        "ratio": asdict(change.ratio) if change.ratio else None,
    }
