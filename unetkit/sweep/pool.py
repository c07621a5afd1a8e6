"""Each name in a process of its own: one that dies or hangs is a row with its cause, and the others go on."""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Generator, Iterable
from importlib import import_module
from multiprocessing import connection, get_context
from multiprocessing.connection import Connection
from threading import Thread
from time import monotonic
from typing import Any

from unetkit.foreign import one_line
from unetkit.sweep.settings import ANSWERS, Settings
from unetkit.sweep.subjects import SUBJECTS

Row = dict[str, Any]
#: What a child calls, (name, settings, say): "module:function".
MEASURE = "unetkit.sweep.measure:measure"


def rows(names: Iterable[str], settings: Settings, ask: str = MEASURE) -> Generator[Row, None, None]:
    """A row for every name, in the order in which they are done.

    Children are forked from a server that has torch and timm imported already. Leaving early ends them all.
    """
    context = get_context("forkserver")
    if ask == MEASURE:
        context.set_forkserver_preload([MEASURE.split(":")[0], *SUBJECTS[settings.of].modules])
    waiting, running = deque(names), dict[Connection, _Child]()
    try:
        while waiting or running:
            while waiting and len(running) < settings.jobs:
                child = _Child(context, waiting.popleft(), settings, ask)
                running[child.said] = child
            _wait(running)
            for child in [child for child in running.values() if child.done]:
                del running[child.said]
                yield child.row
    finally:
        for child in running.values():
            child.end()


def _wait(running: dict[Connection, _Child]) -> None:
    """Until a child has said something or is overdue."""
    first = min(child.deadline for child in running.values())
    for ready in connection.wait([*running], timeout=max(0.0, first - monotonic())):
        running[ready].listen()  # type: ignore[index]
    for child in running.values():
        child.look_at_the_clock()


class _Child:
    """One process, and what it has said so far."""

    def __init__(self, context: Any, name: str, settings: Settings, ask: str) -> None:
        self.row: Row = {"name": name}
        self.done = False
        self.start = monotonic()
        self.timeout = settings.timeout
        self.deadline = self.start + settings.timeout
        self.said, theirs = context.Pipe()
        self.process = context.Process(target=_run, args=(theirs, name, settings, ask), daemon=True)
        self.process.start()
        theirs.close()  # or its end would never be seen

    def listen(self) -> None:
        """Take what it says. The end of the pipe is the end of the process."""
        if self.done:
            return
        try:
            self.row.update(self.said.recv())
        except (EOFError, OSError):
            self.process.join()
            self._finish(_cause_of_death(self.process.exitcode))

    def look_at_the_clock(self) -> None:
        if not self.done and monotonic() > self.deadline:
            self.end()
            self._finish(f"no answer within {self.timeout:g} s")

    def end(self) -> None:
        """Kill it, if it lives."""
        self.process.kill()
        self.process.join()
        self.said.close()

    def _finish(self, cause: str) -> None:
        """What it was busy with when it died is what failed; a child that said everything may end as it likes."""
        cause = self.row.pop(_OWN_WORDS, cause)
        missing = [answer for answer in ANSWERS if answer not in self.row]
        self.row.update(dict.fromkeys(missing[:1], cause) | dict.fromkeys(missing[1:], "not asked"))
        self.row.setdefault("real", False)
        self.row["took"] = round(monotonic() - self.start, 2)
        self.said.close()
        self.done = True


def _cause_of_death(code: int | None) -> str:
    if code is not None and code < 0:
        return f"its process was ended by {signal.Signals(-code).name}"
    return f"its process ended with exit code {code}"


#: A fact that is none: why a child failed, where it can tell.
_OWN_WORDS = "error"


def _run(said: Connection, name: str, settings: Settings, ask: str) -> None:
    """The child."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the leader is interrupted too, and ends this one
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    Thread(target=_leave_with, args=(said,), daemon=True).start()
    module, _, function = ask.partition(":")
    try:
        getattr(import_module(module), function)(name, settings, said.send)
    except Exception as error:  # whatever a library raises where no answer was expected of it
        said.send({_OWN_WORDS: one_line(error)})


def _leave_with(said: Connection) -> None:
    """End this process when its leader is gone, however it went."""
    try:
        said.recv()
    except (EOFError, OSError):
        os._exit(1)
