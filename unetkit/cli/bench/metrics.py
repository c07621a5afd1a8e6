"""`unetkit bench metrics`: what can be measured."""

from __future__ import annotations

import click

from unetkit.bench.metrics import metrics_of
from unetkit.cli.words import host_of


@click.command()
@click.pass_context
def metrics(ctx: click.Context) -> None:
    """List what can be measured: name, unit, and how."""
    from unetkit.bench.listing import Cells, Listing
    from unetkit.cli.bench.pages import put

    rows = []
    for metric in metrics_of(host_of(ctx)):
        owner = f" (of {metric.owner})" if metric.owner != "unetkit" else ""
        rows.append([metric.name, metric.info.unit, metric.info.summary + owner])
    put(Listing([], [Cells(["metric", "unit", "meaning"], rows)], []), None)
