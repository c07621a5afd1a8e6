"""`unetkit bench show`, `report` and `diff`: read, draw and compare the results of a benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from unetkit.cli.command import FilePath
from unetkit.cli.options import Command, emit_json, json_options
from unetkit.errors import OptionError
from unetkit.utils.formatting import format_plural

if TYPE_CHECKING:
    from unetkit.bench.results import BenchRow, BenchRun


@click.command(cls=Command)
@click.argument("run", type=FilePath())
@click.option("--sort", metavar="COLUMN", help="Sort by COLUMN[,COLUMN...], ascending; -COLUMN sorts descending.")
@click.option(
    "--filter",
    "filters",
    metavar="TEST",
    multiple=True,
    help="Show rows that pass TEST, such as 'latency<0.05'; may be repeated.",
)
@click.option("--top", metavar="N", type=click.IntRange(1), help="Show only the first N rows.")
@click.option("--columns", metavar="NAME,...", help="Columns to show.")
@click.option(
    "--effects", is_flag=True, help="Show how much each choice changes each metric, or only the metrics in --columns."
)
@click.option("--csv", "form", flag_value="csv", help="Print all columns as CSV, in seconds and bytes.")
@click.option("--markdown", "form", flag_value="markdown", help="Print the table as Markdown.")
@click.option("--latex", "form", flag_value="latex", help="Print the table as LaTeX, for the package booktabs.")
@json_options
def show(
    run: Path,
    sort: str | None,
    filters: tuple[str, ...],
    top: int | None,
    columns: str | None,
    effects: bool,
    form: str | None,
    as_json: bool,
    json_out: Path | None,
) -> None:
    """Show the results of a benchmark, in the order of its grid.

    RUN is the folder that `unetkit bench ... --out RUN` wrote; the benchmark may still be running. A TEST compares a
    column with a plain number, in seconds or bytes as in --csv, or with a name; = and != accept globs. Rows that failed
    come last, with the error. With --latex, a score is bold only if its verdict says that it is better.

    \b
    unetkit bench show runs/first --sort latency-ratio --top 5
    unetkit bench show runs/first --filter 'encoder=resnet*' --filter 'memory<500e6'
    unetkit bench show runs/first --columns encoder,fuse,latency,latency-min --markdown
    """
    from unetkit.bench.columns import filter_rows, make_columns, select_columns, sort_rows
    from unetkit.bench.results import read_results
    from unetkit.bench.show import format_run, rows_to_csv, rows_to_latex, run_to_dict
    from unetkit.utils.tables import page_width, print_listing

    found = read_results(run)
    known = make_columns(found)
    rows = filter_rows(found.rows, known, filters)
    if effects and form == "latex":
        raise OptionError("--effects cannot be combined with --latex; use --markdown or --csv")
    if effects and (sort or top):
        raise OptionError(f"--effects cannot be combined with {'--sort' if sort else '--top'}; leave one of them out")
    if form and (as_json or json_out):
        raise OptionError(f"--{form} cannot be combined with --json{'' if as_json else '-out'}; leave one of them out")
    if effects:
        _print_effects(found, rows, columns, form, as_json, json_out)
        return
    rows = sort_rows(rows, known, sort)[:top]
    shown = select_columns(known, columns)
    all_or_shown = known if columns is None else shown
    if as_json or json_out:
        written = emit_json(run_to_dict(found, rows, all_or_shown), as_json, json_out)
        click.echo(written, nl=bool(written), err=True)
    if form == "csv":
        click.echo(rows_to_csv(rows, all_or_shown), nl=False)
    elif form == "latex":
        click.echo(rows_to_latex(found, rows, shown), nl=False)
    elif not as_json:
        fits_terminal = columns is None and form is None
        print_listing(format_run(found, rows, shown, page_width() if fits_terminal else None), form)


def _print_effects(
    run: BenchRun,
    rows: Sequence[BenchRow],
    names: str | None,
    form: str | None,
    as_json: bool,
    json_out: Path | None,
) -> None:
    from unetkit.bench.effects import effects_to_csv, effects_to_records, format_effects, list_effects
    from unetkit.bench.quality_effects import (
        list_quality_effects,
        quality_effects_table,
        quality_effects_to_records,
    )
    from unetkit.utils.tables import print_listing

    effects, of_quality = list_effects(run, names, rows), list_quality_effects(run, names, rows)
    records = quality_effects_to_records(of_quality)
    if as_json or json_out:
        written = emit_json([*effects_to_records(effects), *records], as_json, json_out)
        click.echo(written, nl=bool(written), err=True)
    if form == "csv":
        click.echo(effects_to_csv(effects, records), nl=False)
    elif not as_json:
        print_listing(format_effects(run, effects, quality_effects_table(of_quality)), form)


@click.command(cls=Command)
@click.argument("run", type=FilePath())
@click.option(
    "--out", metavar="FILE.html", type=FilePath(is_output=True), help="File to write.  [default: report.html in RUN]"
)
def report(run: Path, out: Path | None) -> None:
    """Write the results of a benchmark to one HTML file that works offline.

    RUN is the folder that `unetkit bench ... --out RUN` wrote; the benchmark may still be running. The file contains a
    sortable table of the rows, charts of one cost against another with the Pareto front, the effect of each choice,
    all timing rounds, the machine, the warnings, and the command that repeats each row. Of trained rows it also shows
    the differences to the baseline, learning curves, scores by class and, with --keep-weights, the images on which rows
    differ most. Its size is about 5 MB, mostly the plotting library.

    \b
    unetkit bench report runs/first
    unetkit bench report runs/first --out first.html
    """
    if out and out.suffix != ".html":
        raise OptionError(f"--out {out}: only HTML can be written; give a file name that ends in .html")

    from unetkit.bench.report.page import require_plotly, write_report
    from unetkit.bench.results import read_results

    require_plotly()
    found = read_results(run)
    path = out or run / "report.html"
    write_report(found, path)
    click.echo(f"{format_plural(len(found.rows), 'row')} written to {path}")


@click.command(cls=Command)
@click.argument("a", type=FilePath())
@click.argument("b", type=FilePath())
@click.option(
    "--margin",
    metavar="SHARE",
    type=click.FloatRange(0, 1),
    help="Relative change of a time that counts as no change.  [default: 0.02]",
)
@click.option("--unpaired", is_flag=True, help="If the baselines differ, show raw medians without a verdict.")
@click.option("--all", "everything", is_flag=True, help="Also show what did not change.")
@click.option("--markdown", "form", flag_value="markdown", help="Print the tables as Markdown.")
@json_options
@click.pass_context
def diff(
    ctx: click.Context,
    /,
    a: Path,
    b: Path,
    margin: float | None,
    unpaired: bool,
    everything: bool,
    form: str | None,
    as_json: bool,
    json_out: Path | None,
) -> None:
    """Compare run B with run A, row by row, with the worst changes first.

    The exit code is 0 if nothing got worse, 1 if something did, and 2 if the runs cannot be compared. Times are
    compared as ratios to the baseline that both runs share: a row is worse only if the whole 95% interval of B over A
    lies beyond --margin. Counts and sizes must be equal. Peak memory may differ by 5% or 16 MiB, as it does between
    two processes that do the same work. Scores of trained networks are paired by seed.

    \b
    unetkit bench diff runs/before runs/after
    """
    from unetkit.bench.compare import MARGIN, diff_runs, diff_to_dict, format_diff
    from unetkit.bench.results import read_results
    from unetkit.utils.tables import print_listing

    found = diff_runs(read_results(a), read_results(b), margin=MARGIN if margin is None else margin, unpaired=unpaired)
    written = emit_json(diff_to_dict(found), as_json, json_out)
    if not as_json:
        print_listing(format_diff(found, everything=everything), form)
        click.echo(written, nl=bool(written))
    ctx.exit(1 if found.is_worse else 0)
