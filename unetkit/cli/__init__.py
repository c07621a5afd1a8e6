"""The command line. Each command is a module, which is imported when the command is called."""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
from bdb import BdbQuit
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from io import TextIOWrapper
from typing import Any, NoReturn

import click
from click.shell_completion import CompletionItem

from unetkit import plugin_files
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

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Parse the options, of which --help prints and ends."""
        with _exit_at_closed_pipe():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> None:
        """Run the command and drop its return value, which click would take for an exit code."""
        try:
            with _exit_at_closed_pipe():
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
#: Errors of writing. Files are written by functions that say which one; without a name, it is the output.
_OUTPUT_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EPIPE}
#: The exit code of a command whose output is read no further, as shells have it: 128 + SIGPIPE.
_CLOSED_PIPE = 141


@contextmanager
def _exit_at_closed_pipe() -> Iterator[None]:
    """Exit without a message if the reader of the output has ended, as `head` does; a code of click would mean more."""
    try:
        yield
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the interpreter would report the error again at exit
        sys.exit(_CLOSED_PIPE)


def _open_missing_streams() -> None:
    """Open the null device in place of standard streams that are closed, so that no file takes their number."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  open until the process ends


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
    _open_missing_streams()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no temporary file is left behind
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without arrows shows question marks
    try:
        code = cli.main(prog_name="unetkit", standalone_mode=False)
    except (click.Abort, KeyboardInterrupt):
        _refuse("interrupted", 130)
    except BdbQuit:
        _refuse("ended in the debugger", 130)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        sys.exit(2)
    except click.UsageError as error:
        error.ctx = error.ctx or _find_context(error)
        message = error.format_message().rstrip(".")
        _refuse(f"{message}{'' if message.endswith('?') else '.'} {_hint(error)}")
    except click.ClickException as error:
        _refuse(error.format_message())
    except UnetkitError as error:
        if "-v" in sys.argv or "--verbose" in sys.argv:
            traceback.print_exc()
        _refuse(str(error))
    except Exception as error:
        place = _find_plugin_frame(error)
        if isinstance(error, OSError) and error.errno in _OUTPUT_ERRORS and not (place or error.filename):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the interpreter would report the error again at exit
            _refuse(f"the output cannot be written: {error.strerror or error}")
        if "-v" in sys.argv or "--verbose" in sys.argv or not (place or isinstance(error, OSError)):
            raise
        of = f" in the plugin's code ({place})" if place else ""
        _refuse(f"{one_line(error)}{of}; -v shows the traceback")
    sys.exit(code)


def _find_context(error: BaseException) -> click.Context | None:
    """Return the context of the command that an error comes from; click sets it for some errors only."""
    found, step = None, error.__traceback__
    while step is not None:
        context = step.tb_frame.f_locals.get("ctx")
        found = context if isinstance(context, click.Context) else found
        step = step.tb_next
    return found


def _find_plugin_frame(error: BaseException) -> str:
    """Return the innermost place in the code of a plugin where an exception passed, as "FILE:LINE"; "" if none did."""
    packages: set[str] = set()
    if context := _find_context(error):
        plugins = get_manager(context).plugins
        packages = {plugin.target.partition(":")[0].split(".")[0] for plugin in plugins} - {"unetkit"}
    found = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        name = str(frame.f_globals.get("__name__"))
        if name.startswith(plugin_files.PREFIX) or plugin_files.package_of(name) in packages:
            found = f"{frame.f_code.co_filename}:{line}"
    return found


def _hint(error: click.UsageError) -> str:
    command = error.ctx.command_path if error.ctx else "unetkit"
    before = [word for word in ("--plugin", "-v", "--verbose") if word in error.message]
    if before and command != "unetkit":
        return f"Write {before[0]} before the command: unetkit {before[0]} ... {command.split()[-1]} ..."
    return f"`{command} --help` describes what it accepts."


def _refuse(message: str, code: int = 2) -> NoReturn:
    click.echo(f"Error: {' '.join(message.split())}", err=True)
    sys.exit(code)
