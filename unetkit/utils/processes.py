"""Run each task in its own process: if one crashes or hangs, its result is an error, and the others continue."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import (
    connection,
    current_process,
    forkserver,
    get_all_start_methods,
    get_context,
    set_start_method,
)
from multiprocessing.connection import Connection
from pathlib import Path
from pkgutil import resolve_name
from threading import RLock, Thread, current_thread, main_thread
from time import monotonic
from typing import Any

from unetkit.errors import BuildError
from unetkit.utils.isolation import one_line, refuse_breakpoints

#: Sends facts from a child process. They are merged, and none is lost if the process dies.
Emit = Callable[[dict[Any, Any]], None]


@dataclass(frozen=True)
class TaskResult:
    """The result of a task.

    Attributes:
        task: the task.
        facts: the values that its process reported.
        error: why the process ended before it was done, in one line; "" if it completed.
        seconds: the duration.
    """

    task: Any
    facts: dict[str, Any]
    error: str
    seconds: float


def run_tasks(
    tasks: Iterable[Any],
    target: str,
    slots: Sequence[Any],
    *,
    timeout: float,
    preload: Sequence[str] = (),
    needs_script: bool = True,
) -> Generator[TaskResult, None, None]:
    """Run every task, and yield each result when it is complete, including failures.

    Processes are forked from a server that has imported `preload`, or are spawned on systems without fork. Leaving the
    generator early ends all of them.

    Args:
        tasks: objects that can be pickled.
        target: the function that a process calls with (task, slot, emit), as "module:function".
        slots: the places where tasks run, one at a time in each; a process receives its slot.
        timeout: seconds that one task may take.
        preload: modules to import first. They must not initialize a GPU, since a forked process could not use it.
        needs_script: whether each process imports the script by which this one was started, since tasks may contain
            what it defines. A script that starts processes outside of `if __name__ == "__main__":` then fails.
    """
    context = _make_context(preload, needs_script)
    waiting, free, running = deque(tasks), deque(slots), dict[Connection, _Child]()
    try:
        while waiting or running:
            while waiting and free:
                with _delay_interrupts():  # a process that is not in `running` would not be ended
                    child = _Child(context, waiting.popleft(), free.popleft(), target, timeout, needs_script)
                    running[child.pipe] = child
            _receive_reports(running)
            for child in [child for child in running.values() if child.ended]:
                del running[child.pipe]
                free.append(child.slot)
                yield child.result()
    finally:
        for child in running.values():
            child.kill()


def _make_context(preload: Sequence[str], needs_script: bool) -> Any:
    methods = get_all_start_methods()
    context = get_context("forkserver" if "forkserver" in methods else "spawn")
    if preload and "forkserver" in methods:
        if {*preload} - {*_preloaded}:
            _stop_server()
            _preloaded.update(dict.fromkeys(preload))
        _SERVER.set_forkserver_preload([*_preloaded])
    if "forkserver" in methods and current_thread() is main_thread():
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # or an interrupt while it imports is a traceback
        try:
            _start_process(_SERVER.ensure_running, needs_script)  # it may import the script itself
        finally:
            signal.signal(signal.SIGINT, before)
    return context


#: Not the server that multiprocessing shares: it may have children of others, and its modules are theirs to choose.
_SERVER = forkserver.ForkServer()
#: Modules that the server has imported, or will when it starts.
_preloaded: dict[str, None] = {}


def _stop_server() -> None:
    """Stop the server if it runs, so that one with more modules follows; otherwise each child would import them."""
    if hasattr(_SERVER, "_stop"):
        _SERVER._stop()


def _receive_reports(running: dict[Connection, _Child]) -> None:
    """Wait until a process has reported something, or has exceeded its time."""
    first = min(child.deadline for child in running.values())
    for ready in connection.wait([*running], timeout=max(0.0, first - monotonic())):
        running[ready].listen()  # type: ignore[index]
    for child in running.values():
        child.check_timeout()


class _Child:
    """One process, and what it has reported so far."""

    def __init__(self, context: Any, task: Any, slot: Any, target: str, timeout: float, needs_script: bool) -> None:
        self.task, self.slot, self.timeout = task, slot, timeout
        self.facts: dict[str, Any] = {}
        self.cause = ""
        self.seconds = 0.0
        self.ended = False
        self.start = monotonic()
        self.deadline = self.start + timeout
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_run_child, args=(theirs, task, slot, target), daemon=True)
        _start_process(self.process.start, needs_script)
        theirs.close()  # or its end would never be seen

    def listen(self) -> None:
        """Receive a report. The end of the pipe is the end of the process."""
        if self.ended:
            return
        try:
            self.facts.update(self.pipe.recv())
            if _DONE in self.facts:  # what still runs in it is none of the task's
                self.deadline = min(self.deadline, monotonic() + _EXIT_SECONDS)
        except (EOFError, OSError):
            self.process.join(_EXIT_SECONDS)
            self._kill_group()
            self._finish(_describe_exit(self.process.exitcode))

    def check_timeout(self) -> None:
        if not self.ended and monotonic() > self.deadline:
            self.kill()
            self._finish(f"no result within {self.timeout:g} s")

    def kill(self) -> None:
        """Kill the process and what it started, such as compilers."""
        self._kill_group()
        self.process.kill()
        self.process.join()
        self.pipe.close()

    def _kill_group(self) -> None:
        if hasattr(os, "killpg"):
            with suppress(OSError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def result(self) -> TaskResult:
        return TaskResult(self.task, self.facts, self.cause, self.seconds)

    def _finish(self, cause: str) -> None:
        """Store the result. A completed process may end in any way; its own error message has priority."""
        done = self.facts.pop(_DONE, False)
        begun = self.facts.pop(_BEGUN, False) or self.process.exitcode != 1
        own_words = self.facts.pop(_OWN_WORDS, cause if begun else f"{cause}{_NOT_STARTED_HINT}")
        self.cause = "" if done else own_words
        self.seconds = round(monotonic() - self.start, 2)
        self.pipe.close()
        self.ended = True


@contextmanager
def _hide_script(*, unless_file: bool) -> Iterator[None]:
    """Hide where the main module is from child processes, which then do not import it.

    Args:
        unless_file: hide only its path, and only if that is no file, such as a script from stdin, which they would fail
            to import. They still import a main module that has a name, even from a zip.
    """
    main: dict[str, Any] = vars(sys.modules["__main__"])
    before: dict[str, Any] = {name: main[name] for name in ("__file__", "__spec__") if name in main}
    path = before.get("__file__")
    if unless_file and (path is None or Path(path).is_file()):
        yield
        return
    main.pop("__file__", None)
    if not unless_file:
        main["__spec__"] = None
    try:
        yield
    finally:
        main.update(before)


def _start_process(start: Callable[[], object], needs_script: bool) -> None:
    try:
        with safe_path(), _use_own_server(), _hide_script(unless_file=needs_script):
            start()
    except (OSError, EOFError) as error:
        why = f"no process can be started: {one_line(error)}"
        raise BuildError(f"{why}; `python -c 'import torch, timm'` must work, and TMPDIR be a short path") from error


@contextmanager
def _delay_interrupts() -> Iterator[None]:
    """Let an interrupt take effect after the context; a process of which half was started would print a traceback."""
    if current_thread() is not main_thread() or signal.getsignal(signal.SIGINT) is None:
        yield
        return
    seen: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if seen:
            signal.raise_signal(signal.SIGINT)


@contextmanager
def _use_own_server() -> Iterator[None]:
    """Let multiprocessing fork from the server of this module, in the lock of `safe_path`."""
    shared = forkserver.connect_to_new_process
    forkserver.connect_to_new_process = _SERVER.connect_to_new_process
    try:
        yield
    finally:
        forkserver.connect_to_new_process = shared


@contextmanager
def safe_path() -> Iterator[None]:
    """Start processes of Python that import nothing from the current folder because it is current.

    `python -c`, by which multiprocessing starts them, puts that folder before the standard library. What is on this
    process's own path is on theirs, too. The setting also holds for what these processes start, such as compilers.
    """
    with _ENVIRONMENT_LOCK:
        before = os.environ.get(_SAFE_PATH)
        os.environ[_SAFE_PATH] = "1"
        try:
            yield
        finally:
            if before is None:
                del os.environ[_SAFE_PATH]
            else:
                os.environ[_SAFE_PATH] = before


_SAFE_PATH = "PYTHONSAFEPATH"
#: Held while the environment is changed, which belongs to the whole process.
_ENVIRONMENT_LOCK = RLock()


def _describe_exit(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name if -code in {*signal.Signals} else f"signal {-code}"
        return f"its process was killed by {name}"
    return f"its process ended with exit code {code}"


#: Seconds that a child process has to exit when all tasks are done.
_EXIT_SECONDS = 5.0
#: Facts that the pool itself sends: the child runs, it has finished, and the reason of a failure if it is known.
_BEGUN, _DONE, _OWN_WORDS = "_begun", "_done", "_error"
#: A spawned child first imports the script by which its parent was started.
_NOT_STARTED_HINT = ' before it began; in a script, what starts processes belongs under `if __name__ == "__main__":`'


def _run_child(connection: Connection, task: Any, slot: Any, target: str) -> None:
    """Run in the child process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the leader is interrupted too, and ends this one
    if hasattr(os, "setsid"):
        os.setsid()  # so that what it starts can be ended with it
    gc.freeze()  # or each collection would look at all objects of the preloaded modules, and so copy their memory
    current_process()._config["daemon"] = False  # type: ignore[attr-defined]  # or it could not load data in processes
    # Processes that load data are then started as in any other process: by the method of this one, each would import
    # torch anew, in every epoch.
    set_start_method(None, force=True)
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    connection.send({_BEGUN: True})  # which fails if the leader was interrupted while it started this process
    Thread(target=_exit_with_parent, args=(connection,), daemon=True).start()
    refuse_breakpoints()
    try:
        resolve_name(target)(task, slot, connection.send)
    except Exception as error:  # whatever a library raises where no answer was expected of it
        connection.send({_OWN_WORDS: one_line(error)})
    else:
        connection.send({_DONE: True})


def _exit_with_parent(connection: Connection) -> None:
    """End this process when its parent process has ended for any reason."""
    try:
        connection.recv()
    except (EOFError, OSError):
        if hasattr(os, "killpg"):
            os.killpg(0, signal.SIGKILL)
        os._exit(1)
