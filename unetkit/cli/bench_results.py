"""`unetkit bench show`: the rows of a run as a table, or for other programs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from unetkit.errors import OptionError

if TYPE_CHECKING:
    from unetkit.bench.columns import Column
    from unetkit.bench.results import BenchRow, BenchRun


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
    from unetkit.bench.columns import columns_of, filter_rows, select_columns, sort_rows
    from unetkit.bench.results import read_results

    found = read_results(run)
    known = columns_of(found)
    rows = filter_rows(found.rows, known, filters)
    if effects and (sort or top):
        raise OptionError(f"--effects: is a table of its own; leave out {'--sort' if sort else '--top'}")
    if effects:
        _effects(replace(found, rows=tuple(rows)), columns, form)
        return
    everything = form in ("csv", "json") and columns is None
    picked = known if everything else select_columns(known, columns)
    _rows(found, sort_rows(rows, known, sort)[:top], picked, form, fits=columns is None)


def _rows(run: BenchRun, rows: list[BenchRow], columns: list[Column], form: str | None, fits: bool) -> None:
    """Print rows; `fits`: without the columns that a terminal has no room for."""
    from unetkit.bench.show import format_run, rows_to_csv, rows_to_json
    from unetkit.utils.tables import output_width, print_listing

    if form == "csv":
        click.echo(rows_to_csv(rows, columns), nl=False)
    elif form == "json":
        click.echo(rows_to_json(run, rows, columns))
    else:
        print_listing(format_run(run, rows, columns, output_width() if fits and form is None else None), form)


def _effects(run: BenchRun, names: str | None, form: str | None) -> None:
    from unetkit.bench.effects import effects_to_csv, effects_to_records, format_effects, list_effects
    from unetkit.utils.tables import print_listing

    told = list_effects(run, names)
    if form == "csv":
        click.echo(effects_to_csv(told), nl=False)
    elif form == "json":
        click.echo(json.dumps(effects_to_records(told), indent=2))
    else:
        print_listing(format_effects(run, told), form)


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", metavar="FILE.html", type=click.Path(path_type=Path), help="Default: report.html in RUN.")
def report(run: Path, out: Path | None) -> None:
    """Write a benchmark as one HTML file that works offline.

    RUN is the folder that `unetkit bench ... --out RUN` wrote, also while that still runs. The file holds the sortable
    table of rows, cost against cost with the Pareto front, the effect of each choice, the rounds, the machine, the
    warnings, and the command that repeats each row. It takes about 5 MB, most of it the drawing library.

    \b
    unetkit bench report runs/first
    unetkit bench report runs/first --out first.html
    """
    if out and out.suffix != ".html":
        raise OptionError(f"--out {out}: writes HTML; give a name that ends in .html")

    from unetkit.bench.report.page import write
    from unetkit.bench.results import read_results

    found = read_results(run)
    path = out or run / "report.html"
    write(found, path)
    click.echo(f"{len(found.rows)} rows written to {path}")


@click.command()
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option("--margin", metavar="SHARE", type=click.FloatRange(0, 1), help="Times within this are no change.")
@click.option("--unpaired", is_flag=True, help="Where baselines differ, show raw medians, without a verdict.")
@click.option("--all", "everything", is_flag=True, help="Show what did not change, too.")
@click.option("--json", "form", flag_value="json", help="Every figure as JSON.")
@click.option("--markdown", "form", flag_value="markdown", help="The same as Markdown.")
@click.pass_context
def diff(
    ctx: click.Context, /, a: Path, b: Path, margin: float | None, unpaired: bool, everything: bool, form: str | None
) -> None:
    """Compare run B with run A, row by row, the worst first.

    Exit code 0 says that nothing got worse, 1 that something did, 2 that the two cannot be compared. Times are
    compared as ratios to the baseline of both runs: worse only where the whole 95% interval of B over A lies beyond
    --margin (0.02 if unsaid). Counts and sizes must be equal; peak memory may differ by 5% or 16 MiB, as it does
    between processes that do the same.

    \b
    unetkit bench diff runs/before runs/after
    """
    from unetkit.bench.compare import MARGIN, diff_runs, diff_to_dict, format_diff
    from unetkit.bench.results import read_results
    from unetkit.utils.tables import print_listing

    found = diff_runs(read_results(a), read_results(b), margin=MARGIN if margin is None else margin, unpaired=unpaired)
    if form == "json":
        click.echo(json.dumps(diff_to_dict(found), indent=2))
    else:
        print_listing(format_diff(found, everything=everything), form)
    ctx.exit(1 if found.worse else 0)
