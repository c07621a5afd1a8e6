"""`unetkit plugins`: list the plugins, create a new one, and check one with the conformance kit."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from unetkit.cli.options import Group, forget_manager, get_manager, get_plugin_commands
from unetkit.errors import OptionError, did_you_mean
from unetkit.plugins import DISABLE, PluginManager, list_disabled
from unetkit.registry import BUILTIN, Plugin
from unetkit.scaffold import TITLES, new_plugin
from unetkit.utils.formatting import format_plural
from unetkit.utils.isolation import call_before_debugger, stdout_to_stderr
from unetkit.utils.tables import TableData, make_console, make_table, print_table

if TYPE_CHECKING:  # `unetkit --help` imports this module and does not need rich
    from rich.table import Table

    from unetkit.testing import CheckResult
    from unetkit.testing.runner import PendingCheck


def _complete_target(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete names of plugins, or files."""
    names = [plugin.name for plugin in get_manager(ctx).loaded_plugins() if plugin.name.startswith(incomplete)]
    return [*map(CompletionItem, names)] or [CompletionItem(incomplete, type="file")]


@click.group(cls=Group, invoke_without_command=True)
@click.option("-v", "--verbose", is_flag=True, help="Show the traceback of each failure.")
@click.option(
    "--disable",
    metavar="NAME",
    multiple=True,
    shell_complete=_complete_target,
    help="List the plugins without this one, and print how to leave it out of every command; may be repeated.",
)
@click.pass_context
def plugins(ctx: click.Context, verbose: bool, disable: tuple[str, ...]) -> None:
    """List the installed plugins and those given by --plugin: what each adds, and whether it loaded.

    A plugin that the variable UNETKIT_DISABLE names is left out of every command. It takes several names, separated by
    commas.

    \b
    unetkit plugins
    unetkit plugins --disable my-gate
    unetkit plugins new my-gate --kind fusion
    unetkit plugins check my-gate
    """
    if disable:
        if ctx.invoked_subcommand is not None:
            raise OptionError(f"--disable: cannot be used with `plugins {ctx.invoked_subcommand}`; leave it out")
        _disable(ctx, disable)
    if ctx.invoked_subcommand is None:
        _print_plugins(ctx, verbose or ctx.find_root().params["verbose"])
    if disable:
        click.echo(f"to leave {' and '.join(disable)} out of every command: export {DISABLE}={os.environ[DISABLE]}")


def _disable(ctx: click.Context, names: tuple[str, ...]) -> None:
    """Load the plugins anew without these, as every command does where UNETKIT_DISABLE names them."""
    found = [plugin for plugin in get_manager(ctx).plugins if plugin.name != BUILTIN]
    for name in names:
        if not name:
            raise OptionError("--disable: the name is empty; give the name of a plugin")
        if not any(plugin.is_called(name) for plugin in found):
            near = did_you_mean(name, [plugin.name for plugin in found]) or "; `unetkit plugins` lists them"
            raise OptionError(f"--disable {name}: no installed plugin is called {name}{near}")
    before = [os.environ[DISABLE]] if os.environ.get(DISABLE) else []
    os.environ[DISABLE] = ",".join([*before, *names])
    forget_manager(ctx)


def _print_plugins(ctx: click.Context, verbose: bool) -> None:
    manager, commands = get_manager(ctx), get_plugin_commands(ctx)
    found = sorted((p for p in manager.plugins if p.name != BUILTIN), key=lambda plugin: plugin.name)
    for name in list_disabled():
        if not any(plugin.is_called(name) for plugin in found):
            near = did_you_mean(name, [plugin.name for plugin in found])
            click.echo(f"{DISABLE}: no plugin is called {name}{near}", err=True)
    if not found:
        click.echo("no plugins are installed; `unetkit plugins new my-gate --kind fusion` creates one")
        return
    console, rows = make_console(), []
    for plugin in found:
        adds = [
            *_list_additions(manager, plugin),
            *(f"command {n}" for n, c in commands.items() if c.owner == plugin.name),
        ]
        installed = plugin.distribution or Path(plugin.target).name
        state = ("failing" if plugin.error else "loaded") if plugin.loaded else "failed"
        state = "disabled" if plugin.disabled else state
        rows.append([plugin.name, plugin.version, installed, "\n".join(adds), state])
    print_table(console, TableData(["name", "version", "distribution", "adds", "state"], rows))
    for plugin in found:
        for line in _list_problems(plugin):
            console.print(f"{plugin.name}: {line}", soft_wrap=True)
        if verbose and plugin.traceback:
            click.echo(plugin.traceback)


def _list_additions(manager: PluginManager, plugin: Plugin) -> list[str]:
    if not plugin.loaded:
        return []
    wraps = ["wraps models"] if manager.implements("unetkit_wrap_model", plugin) else []
    return [f"{entry.kind.title} {entry.name}" for entry in manager.parts.entries_of(plugin.name)] + wraps


def _list_problems(plugin: Plugin) -> Iterator[str]:
    if plugin.heavy_imports and not plugin.target.endswith(".py"):  # a file slows only commands that name it
        yield f"imports {plugin.heavy_imports[0]} when it registers, which slows every command"
    if plugin.error:
        yield plugin.error


def _complete_title(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(title) for title in TITLES if title.startswith(incomplete)]


@plugins.command()
@click.argument("name")
@click.option(
    "--kind", required=True, metavar="KIND", shell_complete=_complete_title, help=f"One of {', '.join(TITLES)}."
)
def new(name: str, kind: str) -> None:
    """Create a new plugin: an installable package with a working example of the given kind, and its tests.

    The package is written to the folder NAME. The part that it adds is called NAME too, less a leading "unetkit-".

    \b
    unetkit plugins new my-gate --kind fusion
    pip install -e my-gate
    pytest my-gate
    """
    folder = new_plugin(name, kind, Path())
    quoted = shlex.quote(str(folder))
    install = f"pip install -e {quoted} (or uv pip install -e {quoted})"
    click.echo(f"{folder} created; next: {install}, then pytest {quoted}")


@plugins.command()
@click.argument("target", shell_complete=_complete_target)
@click.option("-v", "--verbose", is_flag=True, help="Show where in the plugin's own code each failure comes from.")
@click.pass_context
def check(ctx: click.Context, target: str, verbose: bool) -> None:
    """Run the conformance kit on a plugin and every part that it adds.

    TARGET is the name of an installed plugin, a module, or a Python file; "unetkit" checks the built-in parts. The
    exit code is 1 if a check fails.

    \b
    unetkit plugins check my-gate
    unetkit plugins check ./gate.py
    """
    from unetkit.testing.runner import collect_plugin_checks

    with stdout_to_stderr():
        jobs = collect_plugin_checks(target)
    results = []
    for job in _with_progress(jobs):
        with stdout_to_stderr():  # keeps what a part prints out of the table
            results.append(job.run())
    console = make_console()
    for matrix in _matrices(jobs, results, console.width):
        console.print(matrix)
    reported = [result for result in results if result.message and not result.is_blocked]
    # Failures come last, where they are seen first.
    for result in sorted(reported, key=lambda result: result.outcome, reverse=True):
        line = f"{result.outcome}: {result.part}: {result.check}: {result.full_message}"
        console.print(line, soft_wrap=True, markup=False)
        if result.traceback and (
            verbose or ctx.find_root().params["verbose"] or (ctx.parent and ctx.parent.params["verbose"])
        ):
            click.echo(result.traceback)
    counts = [f"{sum(r.outcome == outcome for r in results)} {outcome}" for outcome in _OUTCOMES]
    rest = sum(result.is_blocked for result in results)
    after = f" ({rest} because a check that they depend on did not pass)" if rest else ""
    console.print(f"{format_plural(len(results), 'check')}: {', '.join(counts)}{after}")
    ctx.exit(int(any(result.outcome == "failed" for result in results)))


#: The text of each outcome, and its style.
_OUTCOMES = {"passed": ("ok", "green"), "failed": ("FAIL", "bold red"), "skipped": ("skip", "dim")}


def _with_progress(jobs: list[PendingCheck]) -> Iterator[PendingCheck]:
    from rich.console import Console
    from rich.progress import Progress

    watching = Console(stderr=True)
    with Progress(console=watching, transient=True, disable=not watching.is_terminal) as progress:
        restore = call_before_debugger(progress.stop)
        try:
            yield from progress.track(jobs, description="checking")
        finally:
            restore()


def _matrices(jobs: list[PendingCheck], results: list[CheckResult], width: int) -> Iterator[Table]:
    """Make tables with a row for each check and a column for each part, as many columns as fit."""
    from rich.text import Text

    cells = {(result.part, result.check): Text(*_OUTCOMES[result.outcome]) for result in results}
    titles = {job.check: job.title for job in jobs}
    parts = list(dict.fromkeys(result.part for result in results))
    while parts:
        shown = [parts.pop(0)]
        while parts and sum(len(part) + 2 for part in [*shown, parts[0]]) < width // 2:
            shown.append(parts.pop(0))
        matrix = make_table("check", "what it checks", *shown)
        for column in matrix.columns[2:]:
            column.no_wrap = True
        for name, title in titles.items():
            row = [cells.get((part, name)) for part in shown]
            if any(row):
                matrix.add_row(name, title, *row)
        yield matrix
