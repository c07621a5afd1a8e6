"""Running others' code: what it raises becomes one kind of error, and what it prints goes to stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, active_count
from typing import TextIO

from unetkit.errors import PluginError, UnetkitError


def one_line(error: BaseException) -> str:
    """An error in one line: our own as it is, others with their type."""
    text = " ".join(str(error).split()) or "no message"
    return text if isinstance(error, UnetkitError) else f"{type(error).__name__}: {text}"


@contextmanager
def wrap_errors(what: str) -> Iterator[None]:
    """Run others' code within. Whatever it raises, sys.exit included, becomes a PluginError that begins with `what`.

    What is an UnetkitError already stays as it is; the keyboard passes through.
    """
    try:
        with stdout_to_stderr():
            yield
    except (KeyboardInterrupt, GeneratorExit, UnetkitError):
        raise
    except BaseException as error:  # pyo3 and pytest raise what is no Exception
        raise PluginError(f"{what}: {one_line(error)}") from error


_lock = Lock()
_inside = 0
#: What standard output was, and what it was turned to.
_before: TextIO | None = None
_turned: TextIO | None = None


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Within, what is printed goes to stderr: it must not mix with what a command prints.

    The stream belongs to the whole process. The first of several threads turns it, the last turns it back.
    """
    global _inside, _before, _turned
    with _lock:
        if _inside == 0:
            _before, _turned = sys.stdout, sys.stderr
            sys.stdout = sys.stderr
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            # A plugin may have put another stream there; so may another thread, which will put its own back.
            if _inside == 0 and (sys.stdout is _turned or active_count() == 1):
                sys.stdout = _before
