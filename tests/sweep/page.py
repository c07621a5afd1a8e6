"""The table of docs/sweep.md, made from the files that sweeps wrote."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tests.sweep.record import Recorded, combined
from tests.sweep.settings import ANSWERS
from tests.sweep.tally import TITLES, Row, failures, groups, ok, slowest, totals
from unetkit.errors import FileError
from unetkit.utils.files import atomic_write
from unetkit.utils.formatting import format_count

_BLOCK = re.compile(r"(<!-- rendered: sweep -->\n).*?(<!-- end -->)", re.DOTALL)
#: Names of one failure that are written out.
_NAMED = 12


def refresh(page: Path, files: Sequence[Path]) -> None:
    """Write the table of `files` between the marks of a page.

    Raises:
        FileError: a file is none of a sweep's, or the page cannot be written or has no marks.
    """
    table = rendered(files)
    try:
        text = page.read_text(encoding="utf-8")
        if not _BLOCK.search(text):
            raise FileError(f"{page} has no `<!-- rendered: sweep -->` with an `<!-- end -->` to write between")
        with atomic_write(page) as temporary:
            temporary.write_text(_BLOCK.sub(lambda b: f"{b[1]}\n{table}\n\n{b[2]}", text), encoding="utf-8")
    except OSError as error:
        raise FileError(f"{page} cannot be written: {error.strerror or error}; --page says which page") from error


def rendered(files: Sequence[Path]) -> str:
    """The table as Markdown.

    Raises:
        FileError: a file is not there, or none of a sweep's, or none holds a row.
    """
    recorded = combined(files)
    asked: dict[str, list[Row]] = {}
    for (of, _), row in sorted(recorded.rows.items(), key=lambda item: (item[0][0] != "unetkit", item[0])):
        asked.setdefault(of, []).append(row)
    if not asked:
        raise FileError(f"{' and '.join(map(str, files))} holds no row; `python -m tests.sweep` measures some")
    known = {row["name"]: str(row["strides"]) for rows in asked.values() for row in rows[::-1] if "strides" in row}
    known |= {row["name"]: str(row["strides"]) for row in asked.get("unetkit", []) if "strides" in row}
    parts = [_totals(asked), _made_with(recorded)]
    for of, rows in asked.items():
        parts += [f"### {of}", *_one(rows, known)]
    return "\n\n".join(parts)


def _totals(asked: dict[str, list[Row]]) -> str:
    of_each = [dict(totals(rows)) for rows in asked.values()]
    lines = ([title, *(found[title] for found in of_each)] for title in of_each[0])
    hours = (f"{sum(row['took'] for row in rows) / 3600:.1f} h" for rows in asked.values())
    return _table(["asked", *asked], *lines, ["time, one after another", *hours])


def _made_with(recorded: Recorded) -> str:
    used = {row["at"] for row in recorded.rows.values()}
    headers = [_whole(header) for key, header in recorded.headers.items() if key in used]
    keys = [key for key in dict.fromkeys(key for header in headers for key in header) if key != "id"]
    return _table(
        ["measured with", *("" for _ in headers)], *([key, *(_said(h, key) for h in headers)] for key in keys)
    )


def _whole(header: Row) -> Row:
    """A header, with what those of earlier sweeps lack."""
    lacks = [key for key in ("jobs", "memory", "real_up_to") if key not in header]
    lacks += ["code"] if header["of"] == "unetkit" and "code" not in header else []
    return header | dict.fromkeys(lacks, "not recorded")


def _said(header: Row, key: str) -> str:
    value = header.get(key)
    return "" if value is None else f"`{value}`" if key == "names" else str(value)


def _one(rows: list[Row], known: dict[str, str]) -> Iterator[str]:
    """The tables of one library."""
    if ghosts := [row["parameters"] for row in rows if "why" in row]:
        smallest = format_count(min(ghosts))
        yield f"On meta, for shapes without values: {len(ghosts)}, the smallest of {smallest} parameters."
    for title, key in (("strides", lambda row: known.get(row["name"], "not known")), ("family", _family)):
        counts = ([name, *_counts(same)] for name, same in groups(rows, key))
        yield _table([title, "models", "on real tensors", *TITLES.values()], *counts)
    found = failures(rows)
    yield "#### Failures" if found else "#### No failures"
    if found:
        lines = ([TITLES[f.answer], _plain(f.cause), str(len(f.names)), _named(f.names)] for f in found)
        yield _table(["at", "cause, in the words of the first", "models", "which"], *lines)
    yield "#### The slowest to build"
    yield _table(["model", "seconds", "parameters"], *map(_slow, slowest(rows)))


def _counts(rows: Sequence[Row]) -> Iterator[str]:
    yield str(len(rows))
    yield str(sum(row["real"] for row in rows))
    yield from (str(ok(rows, answer)) for answer in ANSWERS)


def _family(row: Row) -> str:
    return str(row.get("family", "not known"))


def _slow(row: Row) -> list[str]:
    return [row["name"], f"{row['seconds']:.2f}", format_count(row.get("parameters", 0))]


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more}"


def _plain(text: str) -> str:
    """Text that Markdown leaves as it is."""
    return re.sub(r"([\\`*_<>\[\]])", r"\\\1", text)


def _table(*rows: Iterable[str]) -> str:
    head, *rest = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rest))
