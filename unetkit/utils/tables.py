"""Lines and tables for a terminal, a file or a Markdown page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text


#: A number with its unit, which is aligned to the right; "1.43 (1.41 to 1.46) slower" is not.
_NUMBER = re.compile(r"|failed|-?[\d.,]+(e[-+]?\d+)?%?( ?\S+)?")
#: The number of spaces between two columns.
_GAP = 2
#: Columns that are not wider than this are never folded; wider ones are if the table does not fit.
_SHORT = 12
#: On a terminal with fewer columns, a table that does not fit is printed as a line for each cell.
_NARROW_BELOW = 60
#: The colour of each verdict with which a cell may end.
_STYLES = {"faster": "green", "better": "green", "slower": "red", "worse": "red", "inconclusive": "dim"}


@dataclass(frozen=True)
class TableData:
    """A table of texts: column headings, rows with a cell for each heading, and a title."""

    headers: list[str]
    rows: list[list[str]]
    title: str = ""

    def is_numeric(self, index: int) -> bool:
        """Return whether all cells of a column are numbers."""
        return all(_NUMBER.fullmatch(row[index]) for row in self.rows)

    def width(self) -> int:
        """Return the number of terminal columns that the table needs without folding."""
        from rich.cells import cell_len

        heads = [max(head.split(), key=cell_len) for head in self.headers]
        return sum(max(map(cell_len, column)) + _GAP for column in zip(heads, *self.rows, strict=True))

    def is_readable(self, width: int) -> bool:
        """Return whether the table fits, or is folded on a terminal that is wide enough for that."""
        return width >= _NARROW_BELOW or self.width() <= width

    def to_lines(self) -> list[str]:
        """Return a line for each cell with its heading, for terminals that are too narrow for a table."""
        lines = []
        for row in self.rows:
            lines += [
                f"{head}: {', '.join(cell.splitlines())}" for head, cell in zip(self.headers, row, strict=True) if cell
            ]
            lines.append("")
        return lines


@dataclass(frozen=True)
class Listing:
    """Lines, followed by tables, followed by notes."""

    head: list[str]
    tables: list[TableData]
    notes: list[str]


def render_listing(listing: Listing, console: Console) -> None:
    """Print a listing to a console; cells are folded if it is too narrow."""
    for line in listing.head:
        console.print(_plain_text(line), soft_wrap=True)
    for cells in listing.tables:
        if cells.title:
            console.print(_plain_text(cells.title))
        if not cells.is_readable(console.width):
            print_lines(console, cells.to_lines())
        else:
            console.print(_table(cells), "")
    for line in listing.notes:
        console.print(_plain_text(line), soft_wrap=True)


def print_table(console: Console, cells: TableData) -> None:
    """Print a table of plain texts; a terminal that is too narrow for it gets a line for each cell."""
    if not cells.is_readable(console.width):
        print_lines(console, cells.to_lines())
        return
    table = make_table(*cells.headers)
    for row in cells.rows:
        table.add_row(*map(_plain_text, row))
    console.print(table)


def print_lines(console: Console, lines: list[str]) -> None:
    """Print lines of plain text, which the terminal folds between words."""
    for line in lines:
        console.print(_plain_text(line))


def _plain_text(text: str) -> Text:
    """Return a plain text; rich would read markup in texts of plugins."""
    from rich.text import Text

    return Text(text, style=_STYLES.get(text.rpartition(" ")[2], ""))


def _table(cells: TableData) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    for index, head in enumerate(cells.headers):
        short = max((len(row[index]) for row in cells.rows), default=0) <= _SHORT
        justify: Literal["left", "right"] = "right" if cells.is_numeric(index) else "left"
        table.add_column(_plain_text("\n".join(head.split())), overflow="fold", no_wrap=short, justify=justify)
    for row in cells.rows:
        table.add_row(*map(_plain_text, row))
    return table


def to_markdown(listing: Listing) -> str:
    """Format a listing as GitHub's Markdown."""
    blocks = [_paragraph(listing.head), *map(_markdown_table, listing.tables), _paragraph(listing.notes)]
    return "\n\n".join(block for block in blocks if block)


def _paragraph(lines: list[str]) -> str:
    return "\n".join(f"- {_escape_markdown(line)}" for line in lines)


def _markdown_table(cells: TableData) -> str:
    rules = ["---:" if cells.is_numeric(index) else "---" for index in range(len(cells.headers))]
    lines = "\n".join(_markdown_lines([cells.headers, rules, *cells.rows]))
    return f"{_escape_markdown(cells.title)}\n\n{lines}" if cells.title else lines


def _markdown_lines(rows: list[list[str]]) -> Iterator[str]:
    for index, row in enumerate(rows):
        yield f"| {' | '.join(row if index == 1 else map(_escape_markdown, row))} |"


def _escape_markdown(text: str) -> str:
    r"""Escape characters that Markdown would interpret: a|b becomes a\|b."""
    return re.sub(r"([|<*`\[\]_])", r"\\\1", " ".join(text.split()))


def page_width() -> int:
    """Return the width of the terminal, or that of a page if there is no terminal."""
    return make_console().width


def print_listing(listing: Listing, form: str | None) -> None:
    """Print a listing, as Markdown if `form` is "markdown"."""
    if form == "markdown":
        click.echo(to_markdown(listing))
    else:
        render_listing(listing, make_console())


def make_console() -> Console:
    """Return a console for tables: as wide as the terminal, or 160 columns without one."""
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    console.on_broken_pipe = _raise_broken_pipe  # type: ignore[method-assign]
    if not console.is_terminal:
        console.width = 160
    return console


def _raise_broken_pipe() -> None:
    """Raise the error that a console of rich would turn into exit code 1, which has a meaning in some commands."""
    raise BrokenPipeError


def make_table(*columns: str) -> Table:
    """Return an empty table whose cells fold."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    made = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        made.add_column(column, overflow="fold")
    return made
