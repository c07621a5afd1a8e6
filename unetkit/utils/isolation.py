"""Run plugin code: convert its exceptions to one kind of error, and redirect its output to stderr."""

from __future__ import annotations

import os
import sys
from bdb import BdbQuit
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock, active_count
from typing import Any, TextIO

from unetkit.errors import PluginError, UnetkitError

#: Exceptions by which a user ends what is going on; the last is raised when a debugger is left.
INTERRUPTS = (KeyboardInterrupt, GeneratorExit, BdbQuit)


class BreakpointError(BdbQuit, UnetkitError):
    """The code of a part calls `breakpoint()` in a process that has no terminal."""


def refuse_breakpoints() -> None:
    """Let `breakpoint()` raise BreakpointError in this process, which has no terminal."""
    sys.breakpointhook = _raise_breakpoint_error


def _raise_breakpoint_error(*_: object, **__: object) -> None:
    frame = sys._getframe(1)
    raise BreakpointError(
        f"breakpoint() in {frame.f_code.co_filename}:{frame.f_lineno} needs a terminal, which this process does not "
        "have; remove it, or debug with `unetkit train` or in Python"
    )


@contextmanager
def ignore_breakpoints() -> Iterator[None]:
    """Let `breakpoint()` do nothing within the context, for passes that only try a network out."""
    hook = sys.breakpointhook
    sys.breakpointhook = lambda *_, **__: None
    try:
        yield
    finally:
        sys.breakpointhook = hook


def call_before_debugger(action: Callable[[], None]) -> Callable[[], None]:
    """Let `breakpoint()` call a function first, such as one that stops a progress bar, which would hide the prompt.

    Returns:
        A function that restores the former behavior.
    """
    former = sys.breakpointhook

    def open_debugger(*args: Any, **kwargs: Any) -> None:
        action()
        if former is sys.__breakpointhook__ and not os.environ.get("PYTHONBREAKPOINT"):
            from pdb import Pdb

            Pdb().set_trace(sys._getframe(1))  # the hook itself would stop here, not in the part
        else:
            former(*args, **kwargs)

    def restore() -> None:
        if sys.breakpointhook is open_debugger:
            sys.breakpointhook = former

    sys.breakpointhook = open_debugger
    return restore


def one_line(error: BaseException) -> str:
    """Format an exception as one line, with its type unless it is an UnetkitError."""
    text = " ".join(str(error).split()) or "no message"
    return text if isinstance(error, UnetkitError) else f"{type(error).__name__}: {text}"


@contextmanager
def wrap_errors(what: str) -> Iterator[None]:
    """Convert any exception, including SystemExit, to a PluginError that begins with `what`.

    An UnetkitError is not converted, and what ends a program on purpose passes through.
    """
    try:
        with stdout_to_stderr():
            yield
    except (*INTERRUPTS, UnetkitError):
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
