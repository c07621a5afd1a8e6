"""`unetkit plugins`: what is installed, what became of it, and a start and a check for one of your own."""

from __future__ import annotations

from pathlib import Path

import click
from rich.text import Text

from unetkit.cli.list import page, table
from unetkit.cli.words import commands_of, host_of
from unetkit.plugins import Host
from unetkit.registry import KINDS, Plugin

_KINDS = [*(kind.title for kind in KINDS), "wrap", "command"]


@click.group(invoke_without_command=True)
@click.option("-v", "--verbose", is_flag=True, help="Show the traceback of each failure.")
@click.pass_context
def plugins(ctx: click.Context, verbose: bool) -> None:
    """Show the plugins that are installed or named, what each adds, and whether it works.

    \b
    unetkit plugins
    unetkit plugins new my-gate --kind fusion
    unetkit plugins check my-gate
    """
    if ctx.invoked_subcommand is None:
        _show(ctx, verbose or ctx.find_root().params["verbose"])


def _show(ctx: click.Context, verbose: bool) -> None:
    host, commands = host_of(ctx), commands_of(ctx)
    found = [plugin for plugin in host.plugins if plugin.name != "unetkit"]
    if not found:
        click.echo("no plugins are installed; `unetkit plugins new my-gate --kind fusion` starts one")
        return
    listed = table("name", "version", "distribution", "adds", "state")
    for plugin in found:
        adds = [*_adds(host, plugin), *(f"command {n}" for n, c in commands.items() if c.owner == plugin.name)]
        installed = plugin.distribution or Path(plugin.target).name
        listed.add_row(*map(Text, (plugin.name, plugin.version, installed, "\n".join(adds), _state(plugin))))
    page().print(listed)
    for plugin in found:
        if verbose and plugin.traceback:
            click.echo(f"{plugin}:\n{plugin.traceback}")


def _adds(host: Host, plugin: Plugin) -> list[str]:
    if not plugin.loaded:
        return []
    wraps = ["wraps models"] if host.implements("unetkit_wrap_model", plugin) else []
    return [f"{entry.kind.title} {entry.name}" for entry in host.parts.of(plugin.name)] + wraps


def _state(plugin: Plugin) -> str:
    if not plugin.loaded:
        return f"failed: {plugin.error}"
    slow = f"; imports {plugin.heavy[0]} to register, which slows every command" if plugin.heavy else ""
    return "loaded" + slow + (f"; failed: {plugin.error}" if plugin.error else "")


@plugins.command()
@click.argument("name")
@click.option("--kind", required=True, type=click.Choice(_KINDS), help="What it adds.")
def new(name: str, kind: str) -> None:
    """Write a small distribution that adds one part, with tests: a start for a plugin of your own.

    It is written to a folder called NAME, and adds a part called NAME too ("unetkit-" before it is left out).

    \b
    unetkit plugins new my-gate --kind fusion
    pip install -e my-gate
    pytest my-gate
    """
    from unetkit.scaffold import new_plugin

    folder = new_plugin(name, kind, Path())
    click.echo(f"written to {folder}; next: pip install -e {folder} && pytest {folder}")
