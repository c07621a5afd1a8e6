"""`unetkit bench`: measure, and with data train, every combination of a grid; and `unetkit bench metrics`."""

from __future__ import annotations

import hashlib
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from functools import reduce
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

from unetkit.bench.config import BenchConfig
from unetkit.bench.grid import AXES, Case, Mode, exclude_cases, make_cases, make_plans, parse_axis, split_axis
from unetkit.bench.metrics import collect_metrics, split_absent_metrics
from unetkit.bench.results import ResultsFile, ResultsWriter
from unetkit.bench.training import FIELDS, TRAINING_AXES, combine_trainings, parse_training_axis
from unetkit.cli.command import FilePath, config_options, take_config_values
from unetkit.cli.options import Command, Group, complete_part, get_manager, get_parts
from unetkit.errors import OptionError, UnetkitError, UnknownNameError
from unetkit.plan import PlanField
from unetkit.plugins import PluginManager
from unetkit.registry import BUILTIN, PART_FIELDS, MetricInfo, Parts
from unetkit.utils.config_fields import ConfigField, list_config_fields
from unetkit.utils.tables import page_width, print_listing

if TYPE_CHECKING:  # these import numpy, which `unetkit --help` does not need
    from unetkit.bench.runner import BenchRunner

F = TypeVar("F", bound=Callable[..., Any])
#: The commands under `unetkit bench`, and the module of each.
_SUBCOMMANDS = {
    "show": "unetkit.cli.bench_results",
    "report": "unetkit.cli.bench_results",
    "diff": "unetkit.cli.bench_results",
    "metrics": "unetkit.cli.bench",
    "plan": "unetkit.cli.bench",
    "selftest": "unetkit.cli.bench_selftest",
}


class _Group(Group):
    """A group that imports a subcommand when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*_SUBCOMMANDS]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _SUBCOMMANDS:
            return None
        command: click.Command = getattr(import_module(_SUBCOMMANDS[name]), name)
        return command


def grid_options(command: F) -> F:
    """Add the options that describe a model and its training to a command; each takes a list; they span the grid."""
    for name in reversed(TRAINING_AXES):
        command = _make_training_option(FIELDS[name])(command)
    help_text = "With --data: whether encoders start from pretrained weights: yes, no, or a file. Without a value, yes."
    flag: dict[str, Any] = {"is_flag": False, "flag_value": "yes"}
    command = click.option("--pretrained", metavar="[yes,no]", multiple=True, help=help_text, **flag)(command)
    return reduce(lambda wrapped, word: _make_grid_option(word)(wrapped), reversed(AXES), command)


def _make_training_option(field: ConfigField) -> Callable[[F], F]:
    metavar = field.metavar if field.name == "augment" else f"{field.metavar},..."
    return click.option(
        field.flag,
        field.name,
        metavar=metavar,
        multiple=True,
        help=f"With --data: {field.help[0].lower()}{field.help[1:]}",
    )


def _make_grid_option(word: PlanField) -> Callable[[F], F]:
    complete: dict[str, Any] = {}
    if word.name in PART_FIELDS:
        complete["shell_complete"] = _make_list_completer(word.name)
    listed = word.metavar if word.name == "widths" else f"{word.metavar},..."
    help_text = f"{word.help[0].upper()}{word.help[1:]}."
    return click.option(word.flag, word.name, metavar=listed, multiple=True, help=help_text, **complete)


def _make_list_completer(kind: str) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem]]:
    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        before, comma, last = incomplete.rpartition(",")
        found = complete_part(get_parts(ctx)[kind], last)
        return [CompletionItem(before + comma + item.value, help=item.help) for item in found]

    return complete


def bench_options(command: F) -> F:
    """Add the options of a grid, its conditions and its settings to a command."""
    size = "Input sizes.  [default: the network's own, or 256; of trained networks, the crop]"
    batch_size = "Batch sizes.  [default: 1, and 8 in trainings]"
    out = "Folder for the results.  [default: a new one in runs/]"
    options = (
        grid_options,
        click.option("--size", "sizes", multiple=True, metavar="HxW,...", help=size),
        click.option("--batch-size", "batch_size", multiple=True, metavar="N,...", help=batch_size),
        click.option(
            "--mode", "modes", multiple=True, metavar="MODE[+...],...", help="Execution modes.  [default: eager]"
        ),
        click.option("--exclude", multiple=True, metavar="LINE", help="Skip combinations that match LINE."),
        click.option("--limit", type=click.IntRange(1), metavar="N", help="Measure only the first N combinations."),
        config_options(BenchConfig),
        click.option("--out", type=FilePath(), metavar="FOLDER", help=out),
    )
    return reduce(lambda wrapped, option: option(wrapped), reversed(options), command)


@click.group(cls=_Group, invoke_without_command=True, subcommand_metavar="[COMMAND]")
@bench_options
@click.option("--dry-run", is_flag=True, help="Show what would be measured, and about how long it would take.")
@click.pass_context
def bench(ctx: click.Context, /, **values: Any) -> None:
    """Measure every combination of a grid, each in its own process and paired with a baseline; with --data, train it.

    Each option that describes a model takes a comma-separated list, may be repeated, and accepts globs such as
    'resnet*'; add/concat sets one part for each level. A --model, such as smp/unet, adds one row and does not combine
    with the parts. A --mode is eager or compiled, optionally followed by +channels_last, +bfloat16 or +float16; or
    onnxruntime or openvino, which runs the exported network. The same command continues a benchmark that was
    interrupted.

    With --data, every row is trained with each of --seeds, and the scores of --metrics such as miou are compared with
    those of the first row, seed by seed: better, worse, the same, or inconclusive. The options of `unetkit train` are
    part of the grid, too. A later command with the same --out adds rows, with the settings that are stored there.

    Whatever fails is stored and shown with its error, and does not end the benchmark. The exit code is then 1: if a
    row, a training, or a metric that --metrics names has failed.

    \b
    unetkit bench --encoder resnet18,resnet34 --up bilinear,transposed --fuse concat,add --out runs/first
    unetkit bench --encoder resnet18,resnet34 --fuse concat,add --data FOLDER --steps 2000 --seeds 6 --out runs/ablation
    unetkit bench --model smp/unet --out runs/ablation
    unetkit bench --encoder 'resnet*' --exclude '--encoder resnet152' --metrics parameters,macs,latency --dry-run
    unetkit bench show runs/first --sort latency
    unetkit bench report runs/first
    """
    given = {name: value for name, value in values.items() if value is not None and value is not False and value != ()}
    if ctx.invoked_subcommand is None:
        _run(ctx, given)
    elif given:
        first = next(param for param in ctx.command.params if param.name in given)
        raise OptionError(f"{first.opts[0]} cannot be combined with {ctx.invoked_subcommand}; leave one of them out")


#: Settings that a later command on the same folder takes from it, besides those of trainings.
_INHERITED = ("budget", "target_ci", "seed", "device", "jobs", "threads", "engine")


def inherit_settings(
    folder: Path, values: dict[str, Any], given: dict[str, Any], manager: PluginManager
) -> tuple[dict[str, Any], dict[str, Any], tuple[MetricInfo, ...]]:
    """Complete the settings of a command with those of the benchmark that a folder contains, if it contains one.

    Args:
        folder: the folder for the results.
        values: the fields of a BenchConfig that were given.
        given: all options that were given, which the grid is made of.
        manager: the loaded plugins.

    Returns:
        Both, completed, and the metrics of the folder that no plugin has any more; none of them if metrics were given.
    """
    header = ResultsFile(folder).header if folder.is_dir() else None
    if header is None:
        return values, given, ()
    stored = {name: header.settings[name] for name in _INHERITED if name in header.settings}
    stored["metrics"], absent = split_absent_metrics(header.metrics, manager)
    if header.training is not None:
        rules = header.training.rules
        looks = rules["looks"]
        stored |= {**header.training.settings, "data": header.training.data, "margin": rules["margin"]}
        is_auto = len(looks) > 1 or rules["race"]
        stored |= {"seeds": None, "max_seeds": looks[-1]} if is_auto else {"seeds": looks[0]}
        stored |= {"race": rules["race"]}
        given = {**header.training.grid, **given, "data": header.training.data}
    known = {one.name for one in list_config_fields(BenchConfig)}
    absent = () if "metrics" in values else absent
    return {**{name: value for name, value in stored.items() if name in known}, **values}, given, absent


_NOT_IN_FOLDER_NAME = ("retry_failed", "timeout", "ray_address")


def _run(ctx: click.Context, given: dict[str, Any]) -> None:
    """Measure the grid, or describe it for --dry-run. `given` holds the options that were given on the command line."""
    if str(given.get("out", "x")) in ("", "."):
        raise OptionError("--out: give a new folder, such as runs/first")
    runner = _make_runner(ctx, given)
    if given.get("dry_run"):
        _dry_run(runner, given.get("out"))
    else:
        named_metrics = take_config_values(BenchConfig, {**given}).get("metrics", ())
        folder = given.get("out") or Path("runs", _folder_name({**given, "plugins": runner.config.plugins}))
        _measure(runner, named_metrics, folder)


def _make_runner(ctx: click.Context, given: dict[str, Any]) -> BenchRunner:
    """Create the benchmark of a command line; `given` holds the options that were given."""
    from unetkit.bench.runner import BenchRunner

    manager = get_manager(ctx)
    plugins = tuple(map(str, ctx.find_root().params.get("plugins") or ()))
    values, absent = take_config_values(BenchConfig, {**given}), tuple[MetricInfo, ...]()
    if given.get("out"):
        values, given, absent = inherit_settings(given["out"], values, given, manager)
    advice = _advise_on_plugins(given["out"], manager) if given.get("out") else ""
    for metric in absent:
        line = f"metric {metric.name} of plugin {metric.owner} was not found, so it is not measured for new rows"
        click.echo(f"unetkit: {line}{advice}", err=True)
    config = BenchConfig(**values, plugins=plugins)
    try:
        return BenchRunner(parse_grid(given, manager.parts), config, manager, absent_metrics=absent)
    except UnknownNameError as error:
        raise UnknownNameError(f"{error}{advice}") from error


def _advise_on_plugins(folder: Path, manager: PluginManager) -> str:
    """Return which plugins of the rows in a folder were given by --plugin and are not loaded; "" if there are none."""
    loaded = {plugin.name for plugin in manager.loaded_plugins()}
    targets = ResultsFile(folder).plugins if folder.is_dir() else []
    names = [name for target in targets if (name := Path(target).name.removesuffix(".py")) not in loaded]
    if not names:
        return ""
    what = f"plugin {names[0]}; give it" if len(names) == 1 else f"plugins {', '.join(names)}; give them"
    return f"; this benchmark used the {what} again by --plugin"


def parse_grid(given: dict[str, Any], parts: Parts) -> list[Case]:
    """Make the cases of a command line, at least one. Raises OptionError where --exclude leaves none."""
    fields = {field.name: parse_axis(field.name, given.get(field.name, ()), parts) for field in AXES}
    modes = [Mode.parse(mode) for mode in split_axis("mode", given.get("modes", ("eager",)))]
    sizes, batch_sizes = split_axis("size", given.get("sizes", ())), [1]
    if "batch_size" in given:
        batch_sizes = [_parse_batch_size(text) for text in split_axis("batch_size", given["batch_size"])]
    axes = {name: parse_training_axis(name, given[name], parts) for name in TRAINING_AXES if name in given}
    weights = [
        {"yes": True, "no": None}.get(text, text) for text in split_axis("pretrained", given.get("pretrained", ()))
    ]
    plans = [replace(plan, pretrained=one) for plan in make_plans(fields, parts) for one in weights or [None]]
    found: list[Case] = []
    for batch_size in batch_sizes:  # in trainings, its default is that of `unetkit train`
        size_given = {"batch_size": [str(batch_size)]} if "batch_size" in given and given.get("data") else {}
        is_trained = bool(given.get("data"))
        trainings = combine_trainings({**axes, **size_given}, trained=is_trained)
        found += make_cases(plans, sizes, [batch_size], modes, parts, trainings, trained=is_trained)
    left = exclude_cases(found, given.get("exclude", ()))[: given.get("limit")]
    if not left:
        raise OptionError("--exclude skips every combination; exclude fewer")
    return left


def _parse_batch_size(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise OptionError(f"--batch-size {text}: must be a list of positive integers, such as 1,8")
    return int(text)


def _folder_name(given: dict[str, Any]) -> str:
    """Derive the name of the results folder from the options, so that the same command finds it again."""
    relevant = sorted((name, str(value)) for name, value in given.items() if name not in _NOT_IN_FOLDER_NAME)
    return hashlib.sha256(repr(relevant).encode()).hexdigest()[:8]


def _measure(runner: BenchRunner, named_metrics: Sequence[str], folder: Path) -> None:
    from unetkit.bench.progress import BenchProgress
    from unetkit.utils.formatting import format_plural

    command = shlex.join(["unetkit", *sys.argv[1:]])
    writer = ResultsWriter(folder)
    progress = BenchProgress(runner, folder)
    try:
        with closing(runner.measure_rows(writer, command)) as rows:
            progress.follow(rows)
        with closing(runner.train_rows(writer)) as records:
            progress.follow_trainings(records)
    except KeyboardInterrupt:
        trained = f" and {format_plural(len(writer.trainings), 'training')}" if runner.training else ""
        stored = f"{format_plural(len(writer.rows), 'row')}{trained} stored in {folder}"
        click.echo(f"Error: interrupted: {stored}; continue with the same command: {command}", err=True)
        sys.exit(130)
    finally:
        runner.close()
        writer.close()
    _print_results(folder)
    found = [*writer.trainings.values()]
    if found and all(record.error for record in found):
        first = found[0].error
        raise UnetkitError(f"all {len(found)} trainings failed; the first: {first}" if found[1:] else first)
    if _has_failures(runner, named_metrics, writer):
        raise click.exceptions.Exit(1)


def _has_failures(runner: BenchRunner, named_metrics: Sequence[str], writer: ResultsWriter) -> bool:
    """Return whether a row of the command, one of its trainings, or a metric that the command names has failed."""
    ids = {case.id for case in runner.cases}
    rows = [row for row in writer.rows.values() if row.id in ids]
    trainings = [record for record in writer.trainings.values() if record.row_id in ids]
    return any(row.error or row.failures.keys() & {*named_metrics} for row in rows) or any(
        record.error or record.failures for record in trainings
    )


def _dry_run(runner: BenchRunner, folder: Path | None) -> None:
    """Print the rows that would be measured, and how long that would take."""
    from unetkit.bench.columns import find_varying_factors
    from unetkit.bench.runner import dry_run
    from unetkit.utils.formatting import format_count, format_plural
    from unetkit.utils.tables import Listing, TableData

    found = dry_run(runner, folder)
    names = find_varying_factors(runner.cases)
    lines = [[*_factor_cells(case, names), format_count(results["macs"])] for case, results in found.pending]
    failed = [[*_factor_cells(case, names), error] for case, error in found.failed]
    heads = [name.replace("_", " ") for name in names]
    tables = [TableData([*heads, "macs"], lines), TableData([*heads, "error"], failed, "These cannot be built or run:")]
    about = _format_duration(found.estimated_seconds)
    summary = f"{format_plural(len(lines), 'row')} would be measured against {found.baseline}, in about {about}"
    if found.trainings[1]:
        least, most = found.trainings
        number = f"{least} to {format_plural(most, 'training')}" if least < most else format_plural(most, "training")
        done_text = f", {found.num_trained} done" if found.num_trained else ""
        summary += f"; {number}{done_text}; `unetkit bench plan` with the same options says how long they take"
    done = [f"already measured: {format_plural(found.num_done, 'row')}"] if found.num_done else []
    print_listing(Listing([], [cells for cells in tables if cells.rows], [*done, summary]), None)


def _format_duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _factor_cells(case: Case, names: list[str]) -> list[str]:
    return [dict(case.factors).get(name, "") for name in names]


def _print_results(folder: Path) -> None:
    """Print the results as `unetkit bench show` does."""
    from unetkit.bench.columns import make_columns, select_columns
    from unetkit.bench.results import read_results
    from unetkit.bench.show import format_run

    found = read_results(folder)
    print_listing(format_run(found, found.rows, select_columns(make_columns(found), None), page_width()), None)
    quoted = shlex.quote(str(folder))
    click.echo(f"`unetkit bench show {quoted}` shows more columns; `unetkit bench report {quoted}` writes charts")


@click.command(cls=Command)
@bench_options
@click.pass_context
def plan(ctx: click.Context, /, **values: Any) -> None:
    """Estimate the time of a benchmark that trains, and which differences it would find.

    Two seeds of two rows are trained, the first one and the most expensive one, in a temporary folder. If --out
    contains trainings, these are used instead, and nothing is trained. The options are those of `unetkit bench`.

    \b
    unetkit bench plan --encoder resnet18,resnet34 --fuse concat,add --data FOLDER --steps 2000
    """
    from rich.console import Console

    from unetkit.bench.planning import format_plan, plan_benchmark

    given = {name: value for name, value in values.items() if value is not None and value is not False and value != ()}
    runner = _make_runner(ctx, given)
    if runner.training is None:
        raise OptionError("bench plan: plans trainings; give --data, too")
    console = Console(stderr=True, highlight=False)
    done = 0

    def show(record: Any, total: int) -> None:
        nonlocal done
        done += 1
        console.print(f"pilot training {done} of {total}: {record.seconds:.0f} s", markup=False)

    runner.on_notice = lambda line: console.print(line, markup=False)
    found = plan_benchmark(runner, given.get("out"), show)
    print_listing(format_plan(found, runner.training.rules.metric), None)


@click.command(cls=Command)
@click.pass_context
def metrics(ctx: click.Context) -> None:
    """List the metrics that can be measured, with their units, which numbers are better, and their meanings.

    Metrics of a trained network need --data; that of a class is written with its name, such as iou:road.
    """
    from unetkit.utils.tables import Listing, TableData

    rows = []
    for metric in collect_metrics(get_manager(ctx), trained=True):
        owner = f" (of {metric.owner})" if metric.owner != BUILTIN else ""
        name = f"{metric.name}:CLASS" if metric.per_class else metric.name
        rows.append([name, metric.measures, metric.info.unit, metric.better, metric.info.summary + owner])
    print_listing(Listing([], [TableData(["metric", "measures", "unit", "better", "meaning"], rows)], []), None)
