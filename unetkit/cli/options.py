"""The words of a plan as options of a command, with completion of part names."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

from unetkit.commands import PluginCommand, plugin_commands
from unetkit.errors import UnetkitError
from unetkit.plan import PLAN_FIELDS, PlanField
from unetkit.plugins import PluginManager, default_manager, load_manager
from unetkit.registry import KINDS, Entry, Parts, Registry
from unetkit.resolve import kind_of

if TYPE_CHECKING:
    from unetkit.network import Network
    from unetkit.train.checkpoint import TrainRun


F = TypeVar("F", bound=Callable[..., Any])
_WORDS = {kind.word for kind in KINDS}


def manager_of(ctx: click.Context) -> PluginManager:
    """What is installed, and the plugins named before the command; loaded once a command line."""
    root = ctx.find_root()
    plugins = root.params.get("plugins") or ()
    if "unetkit.host" not in root.meta:
        root.meta["unetkit.host"] = load_manager(plugins) if plugins else default_manager()
    host: PluginManager = root.meta["unetkit.host"]
    return host


def parts_of(ctx: click.Context) -> Parts:
    """The parts with those of the plugins named before the command."""
    return manager_of(ctx).parts


def commands_of(ctx: click.Context) -> dict[str, PluginCommand]:
    """The commands that plugins add, by name; registered once a command line."""
    root = ctx.find_root()
    if "unetkit.commands" not in root.meta:
        root.meta["unetkit.commands"] = plugin_commands(manager_of(ctx))
    commands: dict[str, PluginCommand] = root.meta["unetkit.commands"]
    return commands


def plan_options(command: F) -> F:
    """Give a command an option for each word of a plan, in order."""
    return reduce(lambda wrapped, word: _option(word)(wrapped), reversed(PLAN_FIELDS), command)


def _option(word: PlanField) -> Callable[[F], F]:
    extra: dict[str, Any] = {}
    if word.name == "pretrained":  # unprocessed, or click would make the text "True" of it
        extra = {"is_flag": False, "flag_value": True, "type": click.UNPROCESSED}
    if kind_of(word.name) in _WORDS:
        extra["shell_complete"] = _completer(kind_of(word.name))
    return click.option(
        word.flag, word.name, metavar=word.metavar, help=f"{word.help[0].upper()}{word.help[1:]}.", **extra
    )


def _completer(kind: str) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem]]:
    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return complete_part(parts_of(ctx)[kind], incomplete)

    return complete


def summary(entry: Entry) -> str:
    """What a part is; or why that is not known, since a plugin's module that does not load must not hide the others."""
    try:
        return entry.signature.summary
    except UnetkitError as error:
        return str(error)


def complete_part(registry: Registry, incomplete: str) -> list[CompletionItem]:
    """Names that begin so; after a colon, the options of the part; after a slash or plus, names again."""
    separators = {"encoder": "", "recipe": "", "model": "", "head": "", "block": "/+"}.get(registry.kind.word, "/")
    cut = 1 + max((incomplete.rfind(separator) for separator in separators), default=-1)
    before, last = incomplete[:cut], incomplete[cut:]
    name, colon, options = last.partition(":")
    if not colon:
        source, _, bare = name.rpartition("/")
        found = [entry for entry in registry.find(f"{bare}*") if source in ("", entry.source)]
        helps = [summary(entry) if len(found) < 50 else None for entry in found]
        names = [f"{source}/{entry.name}" if source else entry.qualified_name for entry in found]
        return [CompletionItem(before + name, help=help_) for name, help_ in zip(names, helps, strict=True)]
    given, comma, key = options.rpartition(",")
    head = f"{before}{name}:{given}{comma}"
    try:
        known = registry.get(name).signature.options
    except UnetkitError:
        return []
    return [CompletionItem(f"{head}{o.name}=", help=o.help) for o in known if o.name.startswith(key)]


def load_trained(ctx: click.Context, run: TrainRun, weights: str, device: str | None) -> Network:
    """The network of a run with its "best" or "last" weights."""
    from unetkit.train.checkpoint import BEST, LAST
    from unetkit.utils.modules import default_device

    return run.network(default_device(device), _parts(ctx, run.plugins), BEST if weights == "best" else LAST)


def _parts(ctx: click.Context, plugins: tuple[str, ...]) -> Parts:
    """What is installed, the plugins named before the command, and those that the run was trained with."""
    from unetkit.plugins import load_manager

    given = tuple(map(str, ctx.find_root().params.get("plugins") or ()))
    if set(plugins) <= set(given):
        return parts_of(ctx)
    return load_manager(tuple(dict.fromkeys((*plugins, *given)))).parts
