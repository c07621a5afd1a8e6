"""`unetkit bench`: measure every combination of a grid; and the commands under it, which read what was measured."""

from __future__ import annotations

import hashlib
import shlex
import sys
from collections.abc import Callable
from contextlib import closing
from functools import reduce
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from unetkit.bench.config import BenchConfig
from unetkit.bench.grid import AXES, Case, Mode, exclude_cases, make_cases, make_plans, parse_axis, split_axis
from unetkit.bench.metrics import metrics_of
from unetkit.bench.results import ResultsWriter
from unetkit.bench.runner import BenchRunner
from unetkit.cli.options import complete_part, manager_of, parts_of
from unetkit.errors import OptionError
from unetkit.plan import PlanField
from unetkit.registry import KINDS, Parts
from unetkit.resolve import kind_of
from unetkit.utils.tables import output_width, print_listing

F = TypeVar("F", bound=Callable[..., Any])
#: The commands under `unetkit bench`, and the module of each.
_SUBCOMMANDS = {
    "show": "unetkit.cli.bench_results",
    "report": "unetkit.cli.bench_results",
    "diff": "unetkit.cli.bench_results",
    "metrics": "unetkit.cli.bench",
    "selftest": "unetkit.cli.bench_selftest",
}
_KINDS = {kind.word for kind in KINDS}


class _Group(click.Group):
    """A group that imports a command when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*_SUBCOMMANDS]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _SUBCOMMANDS:
            return None
        command: click.Command = getattr(import_module(_SUBCOMMANDS[name]), name)
        return command


def _axes(command: F) -> F:
    """Give a command an option for each word of a plan that a grid takes lists of, in order."""
    return reduce(lambda wrapped, word: _axis(word)(wrapped), reversed(AXES), command)


def _axis(word: PlanField) -> Callable[[F], F]:
    kind = kind_of(word.name)
    complete: dict[str, Any] = {"shell_complete": _completer(kind)} if kind in _KINDS else {}
    listed = word.metavar if word.name == "widths" else f"{word.metavar},..."
    said = f"{word.help[0].upper()}{word.help[1:]}."
    return click.option(word.flag, word.name, metavar=listed, multiple=True, help=said, **complete)


def _completer(kind: str) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem]]:
    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        before, comma, last = incomplete.rpartition(",")
        found = complete_part(parts_of(ctx)[kind], last)
        return [CompletionItem(before + comma + item.value, help=item.help) for item in found]

    return complete


@click.group(cls=_Group, invoke_without_command=True, subcommand_metavar="[COMMAND]")
@_axes
@click.option("--size", "sizes", multiple=True, metavar="HxW,...", help="Input sizes; a network's own, or 256.")
@click.option("--batch-size", "batches", multiple=True, metavar="N,...", help="Images in an input.  [default: 1]")
@click.option("--mode", "modes", multiple=True, metavar="MODE[+...],...", help="How a network runs: see above.")
@click.option("--exclude", "exclude", multiple=True, metavar="LINE", help="Leave out rows that say so.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Only the first so many rows.")
@click.option("--baseline", metavar="LINE", help="What each row is timed against; the first row's network.")
@click.option("--baseline-mode", metavar="MODE", help="How that runs; as the first row.")
@click.option("--metrics", metavar="NAME,...", help="What is measured; all that `unetkit bench metrics` lists.")
@click.option("--budget", type=float, metavar="S", help="Seconds for each timed metric of a row.  [default: 20]")
@click.option("--target-ci", type=float, metavar="X", help="Half-width of the interval to stop at.  [default: 0.02]")
@click.option("--timeout", type=float, metavar="S", help="Seconds that one row may take.  [default: 600 and more]")
@click.option("--device", metavar="NAME,...", help="cpu, cuda, or some of cuda:0,cuda:1; all GPUs, or the CPU.")
@click.option("--jobs", type=int, metavar="N", help="Rows at a time on a CPU, each with its share of the cores.")
@click.option("--threads", type=int, metavar="N", help="Of torch, for each row; as many as it has cores.")
@click.option("--seed", type=int, metavar="N", help="Fixes weights, input and order.  [default: 0]")
@click.option("--engine", metavar="local|ray", help="Where rows are measured.  [default: local]")
@click.option("--ray-address", metavar="ADDRESS", help="Of a Ray cluster: auto, or HOST:PORT.")
@click.option("--out", type=click.Path(path_type=Path), metavar="FOLDER", help="Where rows go; one in runs/.")
@click.option("--retry-failed", is_flag=True, help="Measure again what failed or ran out of budget.")
@click.option("--dry-run", is_flag=True, help="Measure nothing; show what would be, and how long it would take.")
@click.pass_context
def bench(ctx: click.Context, /, **asked: Any) -> None:
    """Measure every combination of a grid, each in a process of its own, in turns with a baseline.

    Words take lists, globs ('resnet*'), one word a level (add/concat), or stand several times. A --model, such as
    smp/unet, is a row beside those of parts. Modes are eager and compiled, then channels_last, bfloat16 and float16
    after a plus: eager,compiled+channels_last. Stopped in any way, the same command goes on where it was.

    \b
    unetkit bench --encoder resnet18,resnet34 --up bilinear,transposed --fuse concat,add --batch-size 1,8 --out runs/first
    unetkit bench --encoder 'resnet*' --exclude '--encoder resnet152' --metrics parameters,macs,latency --dry-run
    unetkit bench show runs/first --sort latency
    unetkit bench report runs/first
    """
    given = {name: value for name, value in asked.items() if value is not None and value is not False and value != ()}
    if ctx.invoked_subcommand is None:
        run(ctx, given)
    elif given:
        first = next(param for param in ctx.command.params if param.name in given)
        raise OptionError(f"{first.opts[0]} is for measuring; leave it out, or leave out {ctx.invoked_subcommand}")


_CHOSEN = (
    *("baseline", "baseline_mode", "budget", "target_ci", "timeout", "device", "jobs", "threads", "seed"),
    *("engine", "ray_address", "retry_failed"),
)

_NO_OTHER_ROWS = ("retry_failed", "timeout", "ray_address")


def run(ctx: click.Context, given: dict[str, Any]) -> None:
    """Plan, and measure or tell. `given` holds the options that stand on the command line."""
    host = manager_of(ctx)
    plugins = tuple(map(str, ctx.find_root().params.get("plugins") or ()))
    metrics = tuple(split_axis("metrics", [given["metrics"]] if "metrics" in given else []))
    if str(given.get("out", "x")) in ("", "."):
        raise OptionError("--out: takes a folder of its own, such as runs/first")
    chosen = {name: given[name] for name in _CHOSEN if name in given}
    choices = BenchConfig(metrics=metrics, plugins=plugins, **chosen)
    leader = BenchRunner(planned(given, host.parts), choices, host)
    if given.get("dry_run"):
        _rehearse(leader, given.get("out"))
    else:
        _measure(leader, given.get("out") or Path("runs", _name({**given, "plugins": plugins})))


def planned(given: dict[str, Any], parts: Parts) -> list[Case]:
    """The rows that a command line asks for, at least one."""
    words = {word.name: parse_axis(word.name, given.get(word.name, ()), parts) for word in AXES}
    modes = [Mode.parse(mode) for mode in split_axis("mode", given.get("modes", ("eager",)))]
    batches = [_batch(text) for text in split_axis("batch", given.get("batches", ("1",)))]
    found = make_cases(make_plans(words, parts), split_axis("size", given.get("sizes", ())), batches, modes)
    left = exclude_cases(found, given.get("exclude", ()))[: given.get("limit")]
    if not left:
        raise OptionError("--exclude leaves no row; leave out less")
    return left


def _batch(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise OptionError(f"--batch-size {text}: takes numbers of images, such as 1,8")
    return int(text)


def _name(given: dict[str, Any]) -> str:
    """A folder's name that the same command finds again."""
    told = sorted((name, str(value)) for name, value in given.items() if name not in _NO_OTHER_ROWS)
    return hashlib.sha256(repr(told).encode()).hexdigest()[:8]


def _measure(leader: BenchRunner, folder: Path) -> None:
    from unetkit.bench.progress import BenchProgress

    command = shlex.join(["unetkit", *sys.argv[1:]])
    ledger = ResultsWriter(folder)
    watch = BenchProgress(leader, folder)
    try:
        with closing(leader.rows(ledger, command)) as rows:
            watch.follow(rows)
    except KeyboardInterrupt:
        held = f"{len(ledger.rows)} rows are in {folder}"
        click.echo(f"Error: interrupted: {held}; the same command goes on from there: {command}", err=True)
        sys.exit(130)
    finally:
        ledger.close()
    _show(folder)


def _rehearse(leader: BenchRunner, folder: Path | None) -> None:
    """The rows that would be measured, and how long that would take."""
    from unetkit.bench.columns import varied
    from unetkit.bench.runner import dry_run
    from unetkit.utils.formatting import format_count
    from unetkit.utils.tables import Listing, TableData

    found = dry_run(leader, folder)
    names = varied([dict(case.factors) for case in leader.cases])
    lines = [[*_factors(case, names), format_count(said["macs"])] for case, said in found.left]
    failed = [[*_factors(case, names), cause] for case, cause in found.failed]
    tables = [TableData([*names, "macs"], lines), TableData([*names, "cause"], failed, "cannot be built or passed:")]
    about = _duration(found.seconds)
    told = f"{len(lines)} rows would be measured against {found.baseline}, in about {about}"
    done = [f"{found.done} rows are measured already"] if found.done else []
    print_listing(Listing([], [cells for cells in tables if cells.rows], [*done, told]), None)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _factors(case: Case, names: list[str]) -> list[str]:
    return [dict(case.factors).get(name, "") for name in names]


def _show(folder: Path) -> None:
    """What the rows come to, as `unetkit bench show` prints it."""
    from unetkit.bench.columns import columns_of, select_columns
    from unetkit.bench.results import read_results
    from unetkit.bench.show import format_run

    found = read_results(folder)
    print_listing(format_run(found, found.rows, select_columns(columns_of(found), None), output_width()), None)
    click.echo(f"`unetkit bench show {folder}` shows more; `unetkit bench report {folder}` draws it")


@click.command()
@click.pass_context
def metrics(ctx: click.Context) -> None:
    """List what can be measured: name, unit, and how."""
    from unetkit.utils.tables import Listing, TableData, print_listing

    rows = []
    for metric in metrics_of(manager_of(ctx)):
        owner = f" (of {metric.owner})" if metric.owner != "unetkit" else ""
        rows.append([metric.name, metric.info.unit, metric.info.summary + owner])
    print_listing(Listing([], [TableData(["metric", "unit", "meaning"], rows)], []), None)
