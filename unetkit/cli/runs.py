"""A trained network, as commands that use one are given it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from unetkit.cli.words import parts_of
from unetkit.registry import Parts

if TYPE_CHECKING:
    from unetkit.network import Network
    from unetkit.train.record import Run


def trained(ctx: click.Context, run: Run, weights: str, device: str | None) -> Network:
    """The network of a run with its "best" or "last" weights."""
    from unetkit.meta import usual_device
    from unetkit.train.record import BEST, LAST

    return run.network(usual_device(device), _parts(ctx, run.plugins), BEST if weights == "best" else LAST)


def _parts(ctx: click.Context, plugins: tuple[str, ...]) -> Parts:
    """What is installed, the plugins named before the command, and those that the run was trained with."""
    from unetkit.plugins import load_host

    given = tuple(map(str, ctx.find_root().params.get("plugins") or ()))
    if set(plugins) <= set(given):
        return parts_of(ctx)
    return load_host(tuple(dict.fromkeys((*plugins, *given)))).parts
