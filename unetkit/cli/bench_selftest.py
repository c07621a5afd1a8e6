"""`unetkit bench selftest`: check that timings on this machine, and verdicts on trained networks, can be trusted."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import click

from unetkit.cli.command import FilePath
from unetkit.cli.options import Command, emit_json, get_parts, json_options
from unetkit.errors import OptionError

if TYPE_CHECKING:
    from unetkit.bench.selftest import SelftestResult
    from unetkit.plan import Plan
    from unetkit.registry import Parts

_NETWORK = "--encoder plain:widths=[8,16,32] --size 64"
#: Seconds between two lines of progress if there is no terminal.
_SECONDS_BETWEEN_LINES = 30.0


@click.command(cls=Command)
@click.argument("run", required=False, type=FilePath())
@click.option("--quality", is_flag=True, help="Check the verdicts on trained networks instead, see above.")
@click.option(
    "--runs",
    metavar="N",
    type=click.IntRange(2),
    help="Number of runs of each comparison.  [default: 20, and 2000 with --quality]",
)
@click.option(
    "--budget",
    metavar="S",
    type=click.FloatRange(0, min_open=True),
    default=20,
    show_default=True,
    help="Time limit for a run, in seconds.",
)
@click.option(
    "--target-ci",
    metavar="SHARE",
    type=click.FloatRange(0, 1),
    default=0.02,
    show_default=True,
    help="Stop a run at this half-width of the 95% interval.",
)
@click.option("--network", metavar="LINE", default=_NETWORK, show_default=True, help="Model to time.")
@click.option("--size", metavar="N|HxW", help="Input size.  [default: the model's own]")
@click.option("--device", metavar="NAME", default="cpu", show_default=True, help="Device, such as cpu or cuda:0.")
@click.option("--threads", metavar="N", type=click.IntRange(1), help="Number of torch's threads.  [default: all cores]")
@click.option("--seed", metavar="N", type=int, default=0, show_default=True, help="Seed of weights, inputs and order.")
@click.option("--out", metavar="FILE.jsonl", type=FilePath(is_output=True), help="Append every sample to this file.")
@click.option("--markdown", "form", flag_value="markdown", help="Print the table as Markdown.")
@json_options
@click.pass_context
def selftest(
    ctx: click.Context,
    /,
    run: Path | None,
    quality: bool,
    runs: int | None,
    budget: float,
    target_ci: float,
    network: str,
    size: str | None,
    device: str,
    threads: int | None,
    seed: int,
    out: Path | None,
    form: str | None,
    as_json: bool,
    json_out: Path | None,
) -> None:
    """Check that timings on this machine can be trusted, by timing a model against itself.

    Each run builds two copies of a model in a new process, and times 20 calls of one against 20, 21 or 24 calls of the
    other. The table shows how often the verdict is right; for comparison, it also shows the verdicts of an ordinary
    script, which times one copy after the other and compares the means. The exit code is 1 if more than 5% of the runs
    with equal work are called different, or fewer than 80% of the runs with 5% more work are called slower.

    With --quality, whole benchmarks of trained networks are simulated from the scores of 24 real trainings, or of those
    in RUN, the folder of a benchmark: how often networks without a difference are called different, how often
    differences of 0.5, 1 and 2 points are found, and how many trainings --seeds auto and --race save. The exit code is
    1 if more than 5% of the verdicts are false, or too few intervals contain the truth.

    \b
    unetkit bench selftest
    unetkit bench selftest --quality
    unetkit bench selftest --runs 5 --device cuda:0 --network '--encoder resnet18 --size 224'
    """
    if quality:
        _run_quality(ctx, run, runs, form, as_json, json_out)
    if run is not None:
        raise OptionError(f"{run}: a folder is only read with --quality; give that, too, or leave it out")
    runs = runs or 20
    from unetkit.bench.devices import Slot
    from unetkit.bench.selftest import format_selftest, has_passed, make_tasks, measure_tasks, summarize_results
    from unetkit.bench.timing import TimingConfig
    from unetkit.utils.system import available_cores
    from unetkit.utils.tables import print_listing

    plan = _parse_network(network, size, get_parts(ctx))
    plugins = tuple(ctx.find_root().params.get("plugins") or ())
    planned = make_tasks(plan, TimingConfig(budget, target_ci, seed), runs, plugins)
    gpu = "cuda:0" if device == "cuda" else device  # the name by which other benchmarks know it
    slot = Slot(gpu, available_cores(), threads or len(available_cores()))
    with closing(measure_tasks(planned, slot, lambda line: click.echo(line, err=True))) as measured:
        found = [*_with_progress(_append_to_file(measured, out), len(planned))]
    tallies = summarize_results(found)
    written = emit_json([asdict(tally) for tally in tallies], as_json, json_out)
    if not as_json:
        print_listing(format_selftest(tallies, plan, slot), form)
        click.echo(written, nl=bool(written))
    ctx.exit(0 if has_passed(tallies) else 1)


def _run_quality(
    ctx: click.Context, run: Path | None, runs: int | None, form: str | None, as_json: bool, json_out: Path | None
) -> None:
    """Check the verdicts on trained networks, and exit."""
    from unetkit.bench.quality_selftest import format_quality_selftest, has_passed, load_matrices, simulate
    from unetkit.utils.tables import print_listing

    matrices = load_matrices() if run is None else _read_matrices(run)
    click.echo("simulating benchmarks, which takes up to a minute", err=True)
    result = simulate(matrices, runs or 2000)
    written = emit_json(_without_nan(asdict(result)), as_json, json_out)
    if not as_json:
        print_listing(format_quality_selftest(result), form)
        click.echo(written, nl=bool(written))
    ctx.exit(0 if has_passed(result) else 1)


def _without_nan(value: Any) -> Any:
    """Replace NaN, which JSON does not have, by None, also in lists and dicts."""
    if isinstance(value, dict):
        return {str(key): _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and value != value else value


def _read_matrices(folder: Path) -> dict[str, Any]:
    """Read the confusion matrices of the rows of a benchmark, the baseline first. Raises OptionError without any."""
    import numpy

    from unetkit.bench.quality import read_quality
    from unetkit.bench.quality_statistics import MIN_SEEDS
    from unetkit.bench.results import read_results

    quality, matrices = read_quality(read_results(folder)), dict[str, Any]()
    if quality is None:
        raise OptionError(f"{folder} contains no trainings; give the folder of a benchmark with --data")
    header = quality.header
    for row in sorted(quality.run.rows, key=lambda row: row.id != header.baseline_row):
        seeds = range(header.seed, header.seed + len(quality.of(row, quality.rules.metric).scores))
        whole = [one for seed in seeds if (one := quality.load_counts(row.id, seed)) is not None]
        if len(whole) >= MIN_SEEDS and quality.has_common_images:
            options = (f"--{option.replace('_', '-')} {value}" for option, value in row.training.items())
            matrices[" ".join((row.line, *options))] = numpy.stack(whole)
    if not matrices:
        raise OptionError(f"{folder}: no row has confusion matrices of the same images for {MIN_SEEDS} seeds or more")
    common = min(len(one) for one in matrices.values())
    return {name: one[:common] for name, one in matrices.items()}


def _parse_network(network: str, size: str | None, parts: Parts) -> Plan:
    """Read and check the model to time, before any process is started."""
    from unetkit.plan import Plan
    from unetkit.resolve import resolve

    plan = Plan.parse(network)
    plan = replace(plan, size=Plan.of(size=size).size) if size else plan
    resolve(plan, parts)
    return plan


def _append_to_file(found: Iterable[SelftestResult], out: Path | None) -> Iterator[SelftestResult]:
    """Yield each result after it was appended to `out`, if that is given."""
    from unetkit.utils.json_lines import JsonLinesWriter

    if out is None:
        yield from found
        return
    with closing(JsonLinesWriter(out, "selftest")) as lines:
        for result in found:
            lines.append(asdict(result))
            yield result


def _with_progress(found: Iterable[SelftestResult], total: int) -> Iterator[SelftestResult]:
    """Yield each result and show progress on stderr: continuously in a terminal, every 30 seconds elsewhere."""
    start = last_line = monotonic()
    terminal = sys.stderr.isatty()
    for done, result in enumerate(found, 1):
        yield result
        now = monotonic()
        left = (now - start) / done * (total - done)
        line = f"{done} of {total} runs, {left / 60:.0f} min {left % 60:.0f} s left"
        if terminal:
            click.echo(f"\r{line}\x1b[K" if done < total else "\r\x1b[K", nl=False, err=True)
        elif now - last_line > _SECONDS_BETWEEN_LINES or done == total:
            click.echo(line, err=True)
            last_line = now
