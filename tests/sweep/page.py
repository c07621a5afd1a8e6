"""The tables of docs/sweep.md, rendered from the files of sweeps."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tests.sweep.config import RESULTS
from tests.sweep.results import SweepResults, read_all_results
from tests.sweep.summary import (
    TITLES,
    Row,
    count_passed,
    find_slowest,
    group_failures,
    group_rows,
    summarize_checks,
)
from unetkit.errors import FileError
from unetkit.utils.files import atomic_write
from unetkit.utils.formatting import format_count

_BLOCK = re.compile(r"(<!-- rendered: sweep -->\n).*?(<!-- end -->)", re.DOTALL)
#: Largest number of names of a group of failures to write.
_MAX_NAMES = 12


def update_page(page: Path, files: Sequence[Path]) -> None:
    """Write the tables of sweeps between the markers of a page.

    Args:
        page: Markdown file with the markers `<!-- rendered: sweep -->` and `<!-- end -->`.
        files: files of sweeps.

    Raises:
        FileError: A file is not one of a sweep, or the page cannot be written or has no markers.
    """
    tables = render_tables(files)
    try:
        text = page.read_text(encoding="utf-8")
        if not _BLOCK.search(text):
            raise FileError(f"{page} has no `<!-- rendered: sweep -->` followed by `<!-- end -->`; add both markers")
        with atomic_write(page) as temporary:
            temporary.write_text(_BLOCK.sub(lambda m: f"{m[1]}\n{tables}\n\n{m[2]}", text), encoding="utf-8")
    except OSError as error:
        raise FileError(f"{page} cannot be written: {error.strerror or error}; give another --page") from error


def render_tables(files: Sequence[Path]) -> str:
    """Return the tables of sweeps as Markdown.

    Args:
        files: files of sweeps.

    Raises:
        FileError: A file does not exist or is not one of a sweep, or no file contains a row.
    """
    results = read_all_results(files)
    by_library: dict[str, list[Row]] = {}
    for (library, _), row in sorted(results.rows.items(), key=lambda item: (item[0][0] != "unetkit", item[0])):
        by_library.setdefault(library, []).append(row)
    if not by_library:
        raise FileError(f"{' and '.join(map(str, files))} contain no results; run `python -m tests.sweep` first")
    # Strides by name, of unetkit if it built the model: they also describe models that another library cannot build.
    strides = {
        row["name"]: str(row["strides"]) for rows in by_library.values() for row in rows[::-1] if "strides" in row
    }
    strides |= {row["name"]: str(row["strides"]) for row in by_library.get("unetkit", []) if "strides" in row}
    parts = [_render_totals(by_library), _render_headers(results)]
    for library, rows in by_library.items():
        parts += [f"### {library}", *_render_library(rows, strides)]
    return "\n\n".join(parts)


def _render_totals(by_library: dict[str, list[Row]]) -> str:
    totals = [dict(summarize_checks(rows)) for rows in by_library.values()]
    lines = ([title, *(library[title] for library in totals)] for title in totals[0])
    hours = (f"{sum(row['duration'] for row in rows) / 3600:.1f} h" for rows in by_library.values())
    return _render_table(["check", *by_library], *lines, ["total time of all models", *hours])


def _render_headers(results: SweepResults) -> str:
    used = {row["header_id"] for row in results.rows.values()}
    headers = [_fill_header(header) for id_, header in results.headers.items() if id_ in used]
    keys = [key for key in dict.fromkeys(key for header in headers for key in header) if key != "id"]
    lines = ([key, *(_format_item(header, key) for header in headers)] for key in keys)
    return _render_table(["measured with", *("" for _ in headers)], *lines)


def _fill_header(header: Row) -> Row:
    """Return a header with the keys that headers of earlier sweeps lack."""
    missing = [key for key in ("jobs", "memory", "real_up_to") if key not in header]
    missing += ["code"] if header["library"] == "unetkit" and "code" not in header else []
    return header | dict.fromkeys(missing, "not recorded")


def _format_item(header: Row, key: str) -> str:
    value = header.get(key)
    return "" if value is None else f"`{value}`" if key == "names" else str(value)


def _render_library(rows: list[Row], strides: dict[str, str]) -> Iterator[str]:
    """Yield the tables of one library."""
    if sizes := [row["parameters"] for row in rows if "meta_reason" in row]:
        smallest = format_count(min(sizes))
        yield f"{len(sizes)} models were checked only on meta tensors; the smallest has {smallest} parameters."
    for title, key in (("strides", lambda row: strides.get(row["name"], "unknown")), ("family", _get_family)):
        lines = ([name, *_count_results(group)] for name, group in group_rows(rows, key))
        yield _render_table([title, "models", "on real tensors", *TITLES.values()], *lines)
    failures = group_failures(rows)
    yield "#### Failures" if failures else "#### No failures"
    if failures:
        lines = (
            [TITLES[failure.check], _escape(failure.error), str(len(failure.names)), _format_names(failure.names)]
            for failure in failures
        )
        yield _render_table(["check", "error of the first model", "models", "names"], *lines)
    yield "#### The slowest to build"
    yield _render_table(["model", "seconds", "parameters"], *map(_make_build_time_cells, find_slowest(rows)))


def _count_results(rows: Sequence[Row]) -> Iterator[str]:
    yield str(len(rows))
    yield str(sum(row["real"] for row in rows))
    yield from (str(count_passed(rows, key)) for key in RESULTS)


def _get_family(row: Row) -> str:
    return str(row.get("family", "unknown"))


def _make_build_time_cells(row: Row) -> list[str]:
    return [row["name"], f"{row['seconds']:.2f}", format_count(row.get("parameters", 0))]


def _format_names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return f"{', '.join(names[:_MAX_NAMES])}{more}"


def _escape(text: str) -> str:
    """Escape the characters that have a meaning in Markdown."""
    return re.sub(r"([\\`*_<>\[\]])", r"\\\1", text)


def _render_table(*rows: Iterable[str]) -> str:
    head, *rest = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rest))
