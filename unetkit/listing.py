"""What there is: the registered parts as data, for `unetkit list` and `unetkit.list_parts`."""

from __future__ import annotations

from unetkit.plugins import default_parts
from unetkit.registry import Entry, Parts


def list_parts(kind: str, pattern: str = "*", *, parts: Parts | None = None) -> list[Entry]:
    """The registered parts of a kind ("encoders", "fuse" ...) whose names match a glob.

    Each has a name, an owner, and a signature with its summary, options, file and line; reading them imports no
    torch.

    Raises:
        BadOption: there is no such kind.
    """
    return (parts or default_parts())[kind].find(pattern)
