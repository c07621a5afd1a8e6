"""The command line. Each command is a module, which is imported when the command is called."""

from __future__ import annotations

import traceback
from bdb import BdbQuit
from importlib import import_module

import click
from click.shell_completion import CompletionItem

from unetkit import plugin_files
from unetkit.cli.command import find_context, run_command
from unetkit.cli.options import Group, get_manager, get_plugin_commands
from unetkit.commands import COMMANDS
from unetkit.errors import PluginError, UnetkitError
from unetkit.utils.isolation import one_line


class _LazyGroup(Group):
    """A group that imports a command when it is called; commands that are not built in come from plugins."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMMANDS, *sorted(get_plugin_commands(ctx))]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name in COMMANDS:
            module, _, attr = COMMANDS[name].partition(":")
            command: click.Command = getattr(import_module(module), attr)
            return command
        found = get_plugin_commands(ctx).get(name)
        return found.command if found else None

    def invoke(self, ctx: click.Context) -> None:
        """Run the command and drop its return value, which click would take for an exit code."""
        try:
            super().invoke(ctx)
        except (UnetkitError, click.ClickException, click.exceptions.Exit, click.Abort, *_PASS):
            raise
        except BaseException as error:
            found = get_plugin_commands(ctx).get(ctx.invoked_subcommand or "")
            if found is None:
                raise
            name = ctx.invoked_subcommand
            raise PluginError(f"`unetkit {name}` of plugin {found.owner} failed: {one_line(error)}") from error


#: Exceptions that end a command without meaning that it failed.
_PASS = (KeyboardInterrupt, SystemExit, BdbQuit)


# Eager, so that `unetkit --plugin mine.py --help` shows the commands of mine.py.
@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--plugin",
    "plugins",
    multiple=True,
    is_eager=True,
    metavar="FILE|MODULE",
    shell_complete=lambda ctx, param, incomplete: [CompletionItem(incomplete, type="file")],
    help="Load a plugin from a file or a module; may be repeated.",
)
@click.option("-v", "--verbose", is_flag=True, help="Show the traceback of errors.")
@click.version_option(package_name="unetkit")
@click.pass_context
def cli(ctx: click.Context, plugins: tuple[str, ...], verbose: bool) -> None:
    """Build, train, apply and benchmark any U-Net from one line of parts.

    \b
    unetkit build --encoder resnet101 --fuse add
    unetkit build --recipe unet-2015 --picture unet.svg
    unetkit list encoders 'resnet*'
    unetkit plugins new my-gate --kind fusion
    """
    if plugins:
        get_manager(ctx)  # a plugin that was asked for must load, also for commands that need no parts


def main() -> None:
    """Run the command line. An error is printed as one line on stderr, and the exit code is 2."""
    run_command(cli, "unetkit", _find_plugin_frame)


def _find_plugin_frame(error: BaseException) -> str:
    """Return the innermost place in the code of a plugin where an exception passed, as "FILE:LINE"; "" if none did."""
    packages: set[str] = set()
    if context := find_context(error):
        plugins = get_manager(context).plugins
        packages = {plugin.target.partition(":")[0].split(".")[0] for plugin in plugins} - {"unetkit"}
    found = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        name = str(frame.f_globals.get("__name__"))
        if name.startswith(plugin_files.PREFIX) or plugin_files.package_of(name) in packages:
            found = f"{frame.f_code.co_filename}:{line}"
    return found
