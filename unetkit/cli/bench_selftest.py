"""`unetkit bench selftest`: whether its timings can be believed, on this machine, now."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

import click

from unetkit.cli.options import parts_of

if TYPE_CHECKING:
    from unetkit.bench.selftest import SelftestResult
    from unetkit.plan import Plan
    from unetkit.registry import Parts

_NETWORK = "--encoder plain:widths=[8,16,32] --size 64"
#: Seconds between two lines of progress where there is no terminal.
_PAUSE = 30.0


@click.command()
@click.option(
    "--runs", metavar="N", type=click.IntRange(2), default=20, show_default=True, help="Of each of the three."
)
@click.option(
    "--budget", metavar="S", type=click.FloatRange(0, min_open=True), default=20, show_default=True, help="Of a run."
)
@click.option(
    "--target-ci", metavar="SHARE", type=click.FloatRange(0, 1), default=0.02, show_default=True, help="Ends a run."
)
@click.option("--network", metavar="LINE", default=_NETWORK, show_default=True, help="What is timed.")
@click.option("--size", metavar="N|HxW", help="Of its input.")
@click.option("--device", metavar="NAME", default="cpu", show_default=True, help="Such as cuda:0.")
@click.option("--threads", metavar="N", type=click.IntRange(1), help="Of torch's; as many as there are cores.")
@click.option("--seed", metavar="N", type=int, default=0, show_default=True, help="Fixes the order of everything.")
@click.option("--out", metavar="FILE.jsonl", type=click.Path(path_type=Path), help="Add every sample to this file.")
@click.option("--json", "form", flag_value="json", help="The figures as JSON.")
@click.option("--markdown", "form", flag_value="markdown", help="The table as Markdown.")
@click.pass_context
def selftest(
    ctx: click.Context,
    /,
    runs: int,
    budget: float,
    precision: float,
    network: str,
    size: str | None,
    device: str,
    threads: int | None,
    seed: int,
    out: Path | None,
    form: str | None,
) -> None:
    """Time a network against itself, and against 5% and 20% more of itself.

    Each run builds two copies in a new process and times 20 calls of one against 20, 21 or 24 of the other. The table
    says how often the verdict is right, and beside it what means of one after the other, as scripts take them, say of
    the same samples. Exit code 1 where the aims are missed: at most 5% of the runs of the same called different, at
    least 80% of those of 5% more called slower.

    \b
    unetkit bench selftest
    unetkit bench selftest --runs 5 --device cuda:0 --network '--encoder resnet18 --size 224'
    """
    from unetkit.bench.devices import Slot
    from unetkit.bench.selftest import format_selftest, make_tasks, measure_tasks, passed, tally_results
    from unetkit.bench.timing import TimingConfig
    from unetkit.utils.system import available_cores
    from unetkit.utils.tables import print_listing

    plan = _plan(network, size, parts_of(ctx))
    plugins = tuple(ctx.find_root().params.get("plugins") or ())
    planned = make_tasks(plan, TimingConfig(budget, precision, seed), runs, plugins)
    slot = Slot(device, available_cores(), threads or len(available_cores()))
    with closing(measure_tasks(planned, slot, lambda line: click.echo(line, err=True))) as measured:
        found = [*_told(_kept(measured, out), len(planned))]
    tallies = tally_results(found)
    if form == "json":
        click.echo(json.dumps([asdict(tally) for tally in tallies], indent=2))
    else:
        print_listing(format_selftest(tallies, plan, slot), form)
    ctx.exit(0 if passed(tallies) else 1)


def _plan(network: str, size: str | None, parts: Parts) -> Plan:
    """What is timed; refused before any process is started."""
    from unetkit.plan import Plan
    from unetkit.resolve import resolve

    plan = Plan.parse(network)
    plan = replace(plan, size=Plan.of(size=size).size) if size else plan
    resolve(plan, parts)
    return plan


def _kept(found: Iterable[SelftestResult], out: Path | None) -> Iterator[SelftestResult]:
    """The same, each on disk first, where that is asked."""
    from unetkit.utils.files import JsonLinesWriter

    if out is None:
        yield from found
        return
    with closing(JsonLinesWriter(out, "selftest")) as lines:
        for result in found:
            lines.append(asdict(result))
            yield result


def _told(found: Iterable[SelftestResult], total: int) -> Iterator[SelftestResult]:
    """The same, while a line tells on stderr how far they are: over and over on a terminal, else now and then."""
    start = said = monotonic()
    terminal = sys.stderr.isatty()
    for done, result in enumerate(found, 1):
        yield result
        now = monotonic()
        left = (now - start) / done * (total - done)
        line = f"{done} of {total} runs, {left / 60:.0f} min {left % 60:.0f} s left"
        if terminal:
            click.echo(f"\r{line}\x1b[K" if done < total else "\r\x1b[K", nl=False, err=True)
        elif now - said > _PAUSE or done == total:
            click.echo(line, err=True)
            said = now
