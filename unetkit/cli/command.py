"""Tools for command lines with or without registered parts: options of configurations, and errors in one line."""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
from bdb import BdbQuit
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import reduce
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click
from click.shell_completion import CompletionItem

from unetkit.errors import OptionError, UnetkitError, did_you_mean
from unetkit.utils.config_fields import ConfigField, list_config_fields
from unetkit.utils.files import check_requested_path
from unetkit.utils.isolation import one_line

F = TypeVar("F", bound=Callable[..., Any])


class FilePath(click.Path):
    """A path that is not empty, which would mean the current folder.

    Args:
        kind: what the path is converted to; str where the name of a data set may stand in its place.
        is_output: whether a file is written there, which is then tried before the command does its work.
    """

    def __init__(self, kind: type = Path, *, is_output: bool = False) -> None:
        super().__init__(path_type=kind)
        self.is_output = is_output

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path. Raises OptionError for an empty one, and FileError for one that cannot be written to."""
        option = param.get_error_hint(ctx).strip("'") if param and ctx else "path"
        if value == "":
            raise OptionError(f"{option}: the path is empty; give one")
        path: Any = super().convert(value, param, ctx)
        if self.is_output:
            check_requested_path(path, option)
        return path


class StrictCommand(click.Command):
    """A command that refuses an option which is given twice, of which click would drop the first value."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Parse the options, of which --help prints and ends."""
        with _exit_at_closed_pipe():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        with _exit_at_closed_pipe():
            return super().invoke(ctx)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        _, _, order = self.make_parser(ctx).parse_args([*args])
        seen: dict[str, click.Parameter] = {}
        for param in order:
            if not isinstance(param, click.Option) or param.multiple or param.count or param.is_bool_flag:
                continue
            if (other := seen.setdefault(param.name or "", param)) is not param:
                raise OptionError(f"{other.opts[0]} cannot be combined with {param.opts[0]}; leave one of them out")
            if order.count(param) > 1:
                raise OptionError(f"{param.opts[0]} is given twice; leave one of them out")
        return super().parse_args(ctx, args)


def config_options(config: type) -> Callable[[F], F]:
    """Add the options that set the fields of a configuration, such as TrainConfig, to a command."""
    options = [_make_config_option(one) for one in reversed(list_config_fields(config))]
    return lambda command: reduce(lambda wrapped, option: option(wrapped), options, command)


def _make_config_option(one: ConfigField) -> Callable[[F], F]:
    if one.type is bool:
        return click.option(one.flag, one.name, is_flag=True, help=one.help)
    complete: dict[str, Any] = {"shell_complete": _make_choice_completer(one.choices)} if one.choices else {}
    kind = FilePath(str) if one.metavar in ("FILE", "FOLDER|SET") else one.type
    return click.option(one.flag, one.name, type=kind, metavar=one.metavar, help=one.help, **complete)


def _make_choice_completer(choices: tuple[str, ...]) -> Callable[[Any, Any, str], list[CompletionItem]]:
    return lambda ctx, param, incomplete: [CompletionItem(one) for one in choices if one.startswith(incomplete)]


def take_config_values(config: type, given: dict[str, Any]) -> dict[str, Any]:
    """Remove the fields of a configuration from the options that were given, and return them, read from text.

    Raises:
        OptionError: A value is not one of its field.
    """
    values = {}
    for one in list_config_fields(config):
        if one.name in given:
            value = given.pop(one.name)
            try:
                values[one.name] = one.parse(value)
            except OptionError as error:
                raise OptionError(f"{one.flag} {value or repr(value)}: {error}") from None
    return values


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


def run_command(
    command: click.Command, name: str, find_foreign_frame: Callable[[BaseException], str] = lambda error: ""
) -> NoReturn:
    """Run a command line and exit. An error is printed as one line on stderr, and the exit code is 2.

    Args:
        command: the command.
        name: the name of the program.
        find_foreign_frame: returns where in the code of a plugin an exception passed, as "FILE:LINE"; "" if nowhere.
    """
    _open_missing_streams()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no temporary file is left behind
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without arrows shows question marks
    try:
        code = command.main(prog_name=name, standalone_mode=False)
    except (click.Abort, KeyboardInterrupt):
        _refuse("interrupted", 130)
    except BdbQuit:
        _refuse("ended in the debugger", 130)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        sys.exit(2)
    except click.UsageError as error:
        error.ctx = error.ctx or find_context(error)
        message = error.format_message().rstrip(".")
        if isinstance(error, click.NoSuchOption):
            near = did_you_mean(error.option_name, error.possibilities or ())
            message = f"No such option '{error.option_name}'{near}"
        _refuse(f"{message}. {_hint(error, name)}")
    except click.ClickException as error:
        _refuse(error.format_message())
    except UnetkitError as error:
        if "-v" in sys.argv or "--verbose" in sys.argv:
            traceback.print_exc()
        _refuse(str(error))
    except Exception as error:
        place = find_foreign_frame(error)
        if isinstance(error, OSError) and error.errno in _OUTPUT_ERRORS and not (place or error.filename):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the interpreter would report the error again at exit
            _refuse(f"the output cannot be written: {error.strerror or error}")
        if "-v" in sys.argv or "--verbose" in sys.argv or not (place or isinstance(error, OSError)):
            raise
        where = f"the plugin's code failed at {place}: " if place else ""
        _refuse(f"{where}{one_line(error)}; -v shows the traceback")
    sys.exit(code)


def find_context(error: BaseException) -> click.Context | None:
    """Return the context of the command that an error comes from; click sets it for some errors only."""
    found, step = None, error.__traceback__
    while step is not None:
        context = step.tb_frame.f_locals.get("ctx")
        found = context if isinstance(context, click.Context) else found
        step = step.tb_next
    return found


def _hint(error: click.UsageError, name: str) -> str:
    context = error.ctx
    if isinstance(error, click.NoSuchOption) and context and context.parent:
        flag, program = error.option_name, context.find_root().command
        if any(flag in param.opts for param in program.params):
            return f"Write {flag} before the command: {name} {flag} ... {context.info_name} ..."
    return f"`{context.command_path if context else name} --help` describes what it accepts."


def _refuse(message: str, code: int = 2) -> NoReturn:
    click.echo(f"Error: {' '.join(message.split())}", err=True)
    sys.exit(code)
