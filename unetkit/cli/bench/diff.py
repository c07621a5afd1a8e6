"""`unetkit bench diff`: two runs compared, for regressions."""

from __future__ import annotations

import json
from pathlib import Path

import click


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
    from unetkit.bench.diff import MARGIN, diff_runs
    from unetkit.bench.diff_listing import diff_to_dict, format_diff
    from unetkit.bench.ledger import read_results
    from unetkit.cli.bench.pages import put

    found = diff_runs(read_results(a), read_results(b), margin=MARGIN if margin is None else margin, unpaired=unpaired)
    if form == "json":
        click.echo(json.dumps(diff_to_dict(found), indent=2))
    else:
        put(format_diff(found, everything=everything), form)
    ctx.exit(1 if found.worse else 0)
