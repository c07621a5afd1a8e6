"""Run code of others: convert their exceptions to one kind of error, and redirect their output to stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, active_count
from typing import TextIO

from unetkit.errors import PluginError, UnetkitError


def one_line(error: BaseException) -> str:
    """Format an exception as one line, with its type unless it is an UnetkitError."""
    text = " ".join(str(error).split()) or "no message"
    return text if isinstance(error, UnetkitError) else f"{type(error).__name__}: {text}"


@contextmanager
def wrap_errors(what: str) -> Iterator[None]:
    """Convert any exception, including SystemExit, to a PluginError that begins with `what`.

    An UnetkitError is not converted, and KeyboardInterrupt passes through.
    """
    try:
        with stdout_to_stderr():
            yield
    except (KeyboardInterrupt, GeneratorExit, UnetkitError):
        raise
    except BaseException as error:  # pyo3 and pytest raise what is no Exception
        raise PluginError(f"{what}: {one_line(error)}") from error


_lock = Lock()
_depth = 0
#: The original standard output, and the stream that replaces it.
_original_stdout: TextIO | None = None
_redirected_stdout: TextIO | None = None


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Redirect stdout to stderr within the context, since it must not mix with the output of a command.

    The stream belongs to the whole process. The first of several threads redirects it, and the last restores it.
    """
    global _depth, _original_stdout, _redirected_stdout
    with _lock:
        if _depth == 0:
            _original_stdout, _redirected_stdout = sys.stdout, sys.stderr
            sys.stdout = sys.stderr
        _depth += 1
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            # A plugin or another thread may have replaced the stream in the meantime; it will restore its own.
            if _depth == 0 and (sys.stdout is _redirected_stdout or active_count() == 1):
                sys.stdout = _original_stdout
