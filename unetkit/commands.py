"""The commands of the command line: those of unetkit, and those that plugins add."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import click

from unetkit.errors import PluginError
from unetkit.plugins import PluginManager, find_heavy_imports
from unetkit.utils.formatting import format_type

#: The built-in commands, and the module of each.
COMMANDS = {
    "build": "unetkit.cli.build:build",
    "data": "unetkit.cli.data:data",
    "train": "unetkit.cli.train:train",
    "eval": "unetkit.cli.eval:eval_run",
    "predict": "unetkit.cli.predict:predict",
    "export": "unetkit.cli.export:export",
    "eject": "unetkit.cli.eject:eject",
    "bench": "unetkit.cli.bench:bench",
    "list": "unetkit.cli.list:list_parts",
    "plugins": "unetkit.cli.plugins:plugins",
}


@dataclass(frozen=True)
class PluginCommand:
    """A command of a plugin."""

    command: click.Command
    owner: str


def plugin_commands(manager: PluginManager) -> dict[str, PluginCommand]:
    """Return the commands of plugins by name.

    A plugin whose hook fails, or whose command name is taken, is reported in one line.
    """
    commands: dict[str, PluginCommand] = {}
    for plugin in manager.loaded_plugins():
        with manager.isolate(plugin):
            staged = click.Group("unetkit")
            before = set(sys.modules)
            manager.call_one("unetkit_register_commands", plugin)(cli=staged)
            plugin.heavy_imports += find_heavy_imports(before)
            for name, command in staged.commands.items():
                owner = "unetkit" if name in COMMANDS else commands[name].owner if name in commands else ""
                if owner:
                    raise PluginError(f"command {name!r} of {plugin.name} is already registered by {owner}; rename it")
                if not isinstance(command, click.Command):
                    raise PluginError(f"command {name!r} is {format_type(command)}, not a click command")
                command.get_short_help_str()  # a failure here would otherwise break the help of all commands
            commands |= {name: PluginCommand(command, plugin.name) for name, command in staged.commands.items()}
    return commands
