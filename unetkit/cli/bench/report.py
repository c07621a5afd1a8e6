"""`unetkit bench report`: a run as one HTML file."""

from __future__ import annotations

from pathlib import Path

import click

from unetkit.errors import BadOption


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
        raise BadOption(f"--out {out}: writes HTML; give a name that ends in .html")

    from unetkit.bench.ledger import read_results
    from unetkit.bench.report.page import write

    found = read_results(run)
    path = out or run / "report.html"
    write(found, path)
    click.echo(f"{len(found.rows)} rows written to {path}")
