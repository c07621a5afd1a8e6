"""Options that several commands share, completion of part names, and the network of a training run."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

from unetkit.cli.command import FilePath, StrictCommand
from unetkit.commands import PluginCommand, plugin_commands
from unetkit.errors import OptionError, UnetkitError, UnknownNameError, did_you_mean
from unetkit.plan import PLAN_FIELDS, PlanField
from unetkit.plugins import PluginManager, default_manager, load_manager
from unetkit.predict.engines import AUTO, ENGINES
from unetkit.registry import PART_FIELDS, Entry, Parts, Registry
from unetkit.utils.files import write_requested_file
from unetkit.utils.parsing import parse_nodata

if TYPE_CHECKING:
    from unetkit.train.checkpoint import TrainRun


F = TypeVar("F", bound=Callable[..., Any])


class Command(StrictCommand):
    """A command that says how an encoder is given where its name stands alone."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        given = [*args]
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            takes_encoder = any(param.name == "encoder" for param in self.params)
            if "unexpected extra argument" not in error.message or not takes_encoder:
                raise
            _, left, _ = self.make_parser(ctx).parse_args(given)
            if _is_encoder(get_parts(ctx), left[0]):
                raise click.UsageError(f"{error.message}; write --encoder {left[0]}", ctx) from error
            raise


def _is_encoder(parts: Parts, text: str) -> bool:
    try:
        return bool(parts.encoders.get(text.partition(":")[0]))
    except UnknownNameError:
        return False


class Group(Command, click.Group):
    """A group of such commands, which suggests the nearest one for a command that does not exist."""

    command_class = Command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that the arguments name. Raises click.UsageError with the nearest names."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = did_you_mean(args[0], self.list_commands(ctx))
            raise click.UsageError(error.message.rstrip(".") + near, ctx) from error


def get_manager(ctx: click.Context) -> PluginManager:
    """Return the manager of the installed plugins and of those given by --plugin; they are loaded once."""
    root = ctx.find_root()
    plugins = root.params.get("plugins") or ()
    if "unetkit.manager" not in root.meta:
        # `unetkit plugins` and the help of all commands show what else there is.
        strict = root.invoked_subcommand not in (None, "plugins") and not ctx.resilient_parsing
        root.meta["unetkit.manager"] = load_manager(plugins, strict=strict) if plugins else default_manager()
    manager: PluginManager = root.meta["unetkit.manager"]
    return manager


def forget_manager(ctx: click.Context) -> None:
    """Load the plugins anew when they are next needed."""
    default_manager.cache_clear()
    for key in ("unetkit.manager", "unetkit.commands"):
        ctx.find_root().meta.pop(key, None)


def get_parts(ctx: click.Context) -> Parts:
    """Return the registered parts, including those of the plugins given by --plugin."""
    return get_manager(ctx).parts


def get_plugin_commands(ctx: click.Context) -> dict[str, PluginCommand]:
    """Return the commands that plugins add, by name; they are registered once."""
    root = ctx.find_root()
    if "unetkit.commands" not in root.meta:
        root.meta["unetkit.commands"] = plugin_commands(get_manager(ctx))
    commands: dict[str, PluginCommand] = root.meta["unetkit.commands"]
    return commands


def plan_options(command: F) -> F:
    """Add the options that describe a model, such as --encoder and --fuse, to a command."""
    return reduce(lambda wrapped, word: _make_option(word)(wrapped), reversed(PLAN_FIELDS), command)


def _make_option(word: PlanField) -> Callable[[F], F]:
    extra: dict[str, Any] = {}
    if word.name == "pretrained":  # unprocessed, or click would make the text "True" of it
        extra = {"is_flag": False, "flag_value": True, "type": click.UNPROCESSED}
    if word.name in PART_FIELDS:
        extra["shell_complete"] = _make_completer(word.name)
    return click.option(
        word.flag, word.name, metavar=word.metavar, help=f"{word.help[0].upper()}{word.help[1:]}.", **extra
    )


def _make_completer(kind: str) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem]]:
    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return complete_part(get_parts(ctx)[kind], incomplete)

    return complete


def nodata_option(default: str) -> Callable[[F], F]:
    """Add the option `--nodata`, whose value is a float, or None if it was not given."""

    def parse(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
        try:
            return None if value is None else parse_nodata(value)
        except OptionError as error:
            raise OptionError(f"--nodata {value}: {error}") from None

    help_text = f"Number in images that means that there are no data, such as -9999 or nan.  [default: {default}]"
    return click.option("--nodata", metavar="VALUE", callback=parse, help=help_text)


def trained_options(engine: str) -> Callable[[F], F]:
    """Add the options of commands that use a trained network: --weights, --engine with its default, and --device."""
    return lambda command: _add_trained_options(command, engine)


def _add_trained_options(command: F, engine: str) -> F:
    device = "Device, such as cpu, cuda or cuda:1.  [default: a GPU if there is one]"
    weights: dict[str, Any] = {"type": click.Choice(["best", "last"]), "default": "best", "show_default": True}
    command = click.option("--device", metavar="NAME", help=device)(command)
    command = click.option(
        "--engine",
        type=click.Choice([AUTO, *ENGINES]),
        default=engine,
        show_default=True,
        help="What runs the network. auto times those that are installed on the first tiles, if there are many.",
    )(command)
    return click.option("--weights", help="Weights of the run to use.", **weights)(command)


def json_options(command: F) -> F:
    """Add --json, which prints the result as JSON, and --json-out, which writes it to a file."""
    command = click.option(
        "--json-out", metavar="FILE", type=FilePath(is_output=True), help="Write the result as JSON to FILE."
    )(command)
    return click.option("--json", "as_json", is_flag=True, help="Print the result as JSON and nothing else.")(command)


def emit_json(data: Any, as_json: bool, json_out: Path | None) -> str:
    """Print `data` as JSON if `as_json`, and write it to `json_out` if that is given.

    Returns:
        A line that says what was written; "" where no file was.
    """
    text = json.dumps(data, indent=2, allow_nan=False)
    if json_out is not None:
        with write_requested_file(json_out, "--json-out") as temporary:
            temporary.write_text(f"{text}\n", encoding="utf-8")
    if as_json:
        click.echo(text)
    return f"JSON written to {json_out}" if json_out is not None else ""


def summarize_entry(entry: Entry) -> str:
    """Return a part's one-line summary, or the error where its module fails to load: it must not hide other parts."""
    try:
        return entry.signature.summary
    except UnetkitError as error:
        return str(error)


#: The characters after which another name begins in the value of an option.
_SEPARATORS = {"up": "/", "fuse": "/", "align": "/", "block": "/+", "loss": "+", "augment": ",", "metrics": ","}


def complete_part(registry: Registry, incomplete: str) -> list[CompletionItem]:
    """Complete a part's name, and its options after a colon; after a slash or a plus another part begins."""
    separators = _SEPARATORS.get(registry.kind.field, "")
    cut = 1 + max((incomplete.rfind(separator) for separator in separators), default=-1)
    before, last = incomplete[:cut], incomplete[cut:]
    name, colon, options = last.partition(":")
    if not colon:
        source, _, bare = name.rpartition("/")
        found = [entry for entry in registry.find(f"{bare}*") if source in ("", entry.library)]
        helps = [summarize_entry(entry) if len(found) < 50 else None for entry in found]
        names = [f"{source}/{entry.name}" if source else entry.qualified_name for entry in found]
        return [CompletionItem(before + name, help=help_) for name, help_ in zip(names, helps, strict=True)]
    given, comma, key = options.rpartition(",")
    head = f"{before}{name}:{given}{comma}"
    try:
        known = registry.get(name).signature.options
    except UnetkitError:
        return []
    return [CompletionItem(f"{head}{o.name}=", help=o.help) for o in known if o.name.startswith(key)]


def get_run_parts(ctx: click.Context, run: TrainRun) -> Parts:
    """Return the parts of installed plugins, of those given by --plugin, and of those that the run was trained with."""
    from unetkit.plugins import load_manager

    given = tuple(map(str, ctx.find_root().params.get("plugins") or ()))
    get_manager(ctx)  # raises if one of them does not load
    names = {Path(name).name for name in given}  # a file that has moved is given anew
    missing = tuple(name for name in run.plugins if Path(name).name not in names)
    return load_manager((*missing, *given)).parts if missing else get_parts(ctx)
