"""How listings leave a command."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from unetkit.bench.listing import Listing


def width() -> int:
    """Of the terminal, or of a page where there is none."""
    from unetkit.cli.list import page

    return page().width


def put(listing: Listing, form: str | None) -> None:
    """Print a listing, as Markdown if `form` says so."""
    from unetkit.bench.listing import draw, markdown
    from unetkit.cli.list import page

    if form == "markdown":
        click.echo(markdown(listing))
    else:
        draw(listing, page())
