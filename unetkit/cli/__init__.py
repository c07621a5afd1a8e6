"""The command line. Each command is a file of its own, loaded when it is called."""

from __future__ import annotations

import sys
import traceback
from importlib import import_module

import click

from unetkit.errors import UnetkitError

_COMMANDS = {"build": "unetkit.cli.build:build", "list": "unetkit.cli.list:list_parts"}


class _Lazy(click.Group):
    """A group that imports a command when it is asked for, and answers a wrong name with the nearest."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*_COMMANDS]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        module, _, attr = _COMMANDS[name].partition(":")
        command: click.Command = getattr(import_module(module), attr)
        return command


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--plugin", "plugins", multiple=True, metavar="FILE|MODULE", help="Load a plugin; may be repeated.")
@click.option("-v", "--verbose", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="unetkit")
@click.pass_context
def cli(ctx: click.Context, plugins: tuple[str, ...], verbose: bool) -> None:
    """Any U-Net from one line of registered parts.

    \b
    unetkit build --encoder resnet101 --fuse add
    unetkit build --recipe unet-2015 --picture unet.svg
    unetkit list encoders 'resnet*'
    """
    ctx.obj = plugins


def main() -> None:
    """Run the command line. What unetkit refuses is one line on stderr and exit code 2."""
    try:
        cli.main(prog_name="unetkit", standalone_mode=True)
    except UnetkitError as error:
        if "-v" in sys.argv or "--verbose" in sys.argv:
            traceback.print_exc()
        click.echo(f"Error: {error}", err=True)
        sys.exit(2)
