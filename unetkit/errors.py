"""What unetkit raises. Every message is one line meant for a person: what, where, and what to do instead."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UnetkitError(Exception):
    """Anything unetkit refuses. The command line prints it without a traceback and exits with 2."""

    def __str__(self) -> str:
        # A message may quote what a user or another library said, which need not be one line.
        return " ".join(super().__str__().splitlines())


class UnknownNameError(UnetkitError):
    """A name that no part, option or word has."""


class OptionError(UnetkitError):
    """An option or word with a value that it cannot take."""


class BuildError(UnetkitError):
    """Parts that do not fit together, or weights that cannot be had."""


class InputSizeError(UnetkitError):
    """An input size that a network cannot take."""


class FileError(UnetkitError):
    """A file that is not a whole, untouched model of ours."""


class PluginError(UnetkitError):
    """A plugin that does not load, or a name that two plugins claim."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """'did you mean' for a message: the up to three known names nearest to `name`, or ''."""
    close = get_close_matches(name.lower(), list(known), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(close)}?" if close else ""
