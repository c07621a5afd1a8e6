"""`unetkit bench metrics`: what can be measured."""

from __future__ import annotations

import click

from unetkit.bench.metrics import metrics_of
from unetkit.cli.words import host_of


@click.command()
@click.pass_context
def metrics(ctx: click.Context) -> None:
    """List what can be measured: name, unit, and how."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from unetkit.inspect.table import PAGE

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = PAGE
    table = Table("metric", "unit", "what it is", box=SIMPLE_HEAD, pad_edge=False)
    for metric in metrics_of(host_of(ctx)):
        owner = f" (of {metric.owner})" if metric.owner != "unetkit" else ""
        table.add_row(metric.name, metric.info.unit, metric.info.summary + owner)
    console.print(table)
