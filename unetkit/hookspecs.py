"""The hooks that a plugin may implement. All are optional; mark your functions with `@unetkit.hookimpl`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from click import Group
    from torch.nn import Module

    from unetkit.plan import Plan
    from unetkit.registry import Parts

hookspec = pluggy.HookspecMarker("unetkit")
hookimpl = pluggy.HookimplMarker("unetkit")


@hookspec
def unetkit_register(parts: Parts) -> None:
    """Add parts: `parts.fusions.add("gate", "my_package.gate:Gate")`.

    Losses, targets, augmentations, datasets, optimizers, metrics and formats are added in the same way, such as
    `parts.losses.add("tversky", "my_package.losses:Tversky")`.
    """


@hookspec
def unetkit_wrap_model(plan: Plan) -> Callable[[Module], Module] | None:
    """Return a function that takes a built model and returns its replacement, or None to leave the model unchanged.

    `plan` is the resolved plan of the model, which contains every choice. Return None unless it names a part of this
    plugin, so that the line of a model still describes the model completely.
    """


@hookspec
def unetkit_register_commands(cli: Group) -> None:
    """Add commands: decorate functions with `@cli.command()`. Import torch within the functions."""
