"""`unetkit bench show`: the rows of a run as a table, or for other programs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from unetkit.errors import BadOption

if TYPE_CHECKING:
    from unetkit.bench.columns import Column
    from unetkit.bench.rows import Row, Run


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--sort", metavar="COLUMN", help="Least first; -COLUMN: greatest first; or COLUMN,COLUMN.")
@click.option(
    "--filter", "filters", metavar="TEST", multiple=True, help="'latency<50ms', 'encoder=resnet*'; repeatable."
)
@click.option("--top", metavar="N", type=click.IntRange(1), help="The first so many rows alone.")
@click.option("--columns", metavar="NAMES", help="These columns, with commas between them.")
@click.option("--effects", is_flag=True, help="What each choice changes, on all metrics or those of --columns.")
@click.option("--csv", "form", flag_value="csv", help="Raw numbers in s and B, every column.")
@click.option("--json", "form", flag_value="json", help="The same with all that is known of the run.")
@click.option("--markdown", "form", flag_value="markdown", help="The table as Markdown.")
def show(
    run: Path,
    sort: str | None,
    filters: tuple[str, ...],
    top: int | None,
    columns: str | None,
    effects: bool,
    form: str | None,
) -> None:
    """Show the rows of a benchmark, in the order of its grid.

    RUN is the folder that `unetkit bench ... --out RUN` wrote, also while that still runs. Numbers in a TEST may have
    a unit; = and != take globs. Rows without figures come last, with their cause.

    \b
    unetkit bench show runs/first --sort latency-ratio --top 5
    unetkit bench show runs/first --filter 'encoder=resnet*' --filter 'memory<500MiB'
    unetkit bench show runs/first --columns encoder,fuse,latency,latency-min --markdown
    """
    from unetkit.bench import choose
    from unetkit.bench.columns import columns_of
    from unetkit.bench.ledger import read

    found = read(run)
    known = columns_of(found)
    rows = choose.kept(found.rows, known, filters)
    if effects and (sort or top):
        raise BadOption(f"--effects: is a table of its own; leave out {'--sort' if sort else '--top'}")
    if effects:
        _effects(replace(found, rows=tuple(rows)), columns, form)
        return
    everything = form in ("csv", "json") and columns is None
    picked = known if everything else choose.pick(known, columns)
    _rows(found, choose.ordered(rows, known, sort)[:top], picked, form, fits=columns is None)


def _rows(run: Run, rows: list[Row], columns: list[Column], form: str | None, fits: bool) -> None:
    """Print rows; `fits`: without the columns that a terminal has no room for."""
    from unetkit.bench import frame
    from unetkit.bench.show import listing
    from unetkit.cli.bench.pages import put, width

    if form == "csv":
        click.echo(frame.to_csv(rows, columns), nl=False)
    elif form == "json":
        click.echo(frame.to_json(run, rows, columns))
    else:
        put(listing(run, rows, columns, width() if fits and form is None else None), form)


def _effects(run: Run, names: str | None, form: str | None) -> None:
    from unetkit.bench import effect_listing
    from unetkit.cli.bench.pages import put

    told = effect_listing.effects(run, names)
    if form == "csv":
        click.echo(effect_listing.to_csv(told), nl=False)
    elif form == "json":
        click.echo(json.dumps(effect_listing.records(told), indent=2))
    else:
        put(effect_listing.listing(run, told), form)
