"""The exceptions that unetkit raises. Every message is one line for people.

What is wrong, where, and what to do instead.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UnetkitError(Exception):
    """The base class of all errors of unetkit. The command line prints it without a traceback and exits with code 2."""

    def __str__(self) -> str:
        # A message may quote a user's text or another library's error, which may have several lines.
        return " ".join(super().__str__().splitlines())


class UnknownNameError(UnetkitError):
    """No part, option or data set has this name."""


class OptionError(UnetkitError):
    """An option has a value that is not allowed."""


class BuildError(UnetkitError):
    """Parts do not fit together, or weights are not available."""


class InputSizeError(UnetkitError):
    """A network does not accept an input size."""


class ExportError(UnetkitError):
    """A network cannot be exported, or an exported file does not compute what the network does."""


class FileError(UnetkitError):
    """A file cannot be read or written, or has the wrong content."""


class PluginError(UnetkitError):
    """A plugin does not load, or two plugins register the same name."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return " (did you mean A or B?)" with the known names that are closest to `name`, or ""."""
    close = get_close_matches(name.lower(), list(known), n=3, cutoff=0.5)
    return f" (did you mean {' or '.join(close)}?)" if close else ""
