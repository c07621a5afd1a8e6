"""The hooks that a plugin may implement. All are optional; mark yours with `@unetkit.hookimpl`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from torch.nn import Module

    from unetkit.plan import Plan
    from unetkit.registry import Parts

hookspec = pluggy.HookspecMarker("unetkit")
hookimpl = pluggy.HookimplMarker("unetkit")


@hookspec
def unetkit_register(parts: Parts) -> None:
    """Add parts: `parts.fusions.add("gate", "my_package.gate:Gate")`."""


@hookspec
def unetkit_wrap_model(plan: Plan) -> Callable[[Module], Module] | None:
    """Return what takes a built model and gives the one to use in its place, or None to leave it as it is."""
