"""Functions that child processes of the sweep call in tests, instead of checking a network; they need no torch."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.sweep.config import CHECKS, SweepConfig

Emit = Callable[[dict[str, Any]], None]


def fine(name: str, config: SweepConfig, emit: Emit) -> None:
    """Pass every check."""
    emit({"built": "ok", "real": True, **dict.fromkeys(CHECKS, "ok")})


def strange(name: str, config: SweepConfig, emit: Emit) -> None:
    """Build, pass the check of the own size, and then end as the name says."""
    emit({"built": "ok", "real": True, "own": "ok"})
    if name == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "leaves":
        os._exit(3)
    if name == "raises":
        raise ZeroDivisionError("no such luck")
    if name == "hangs":
        time.sleep(600)
    if name == "stops":
        breakpoint()  # noqa: T100
    fine(name, config, emit)


def slowly(name: str, config: SweepConfig, emit: Emit) -> None:
    """Pass every check, slowly enough that the parent process can be killed."""
    time.sleep(0.2)
    fine(name, config, emit)


def lingers(name: str, config: SweepConfig, emit: Emit) -> None:
    """Write the process id to a file, and keep running."""
    Path(os.environ["LINGERS"], name).write_text(str(os.getpid()))
    time.sleep(600)


def method(name: str, config: SweepConfig, emit: Emit) -> None:
    """Emit how this process starts others, such as those that load data."""
    emit({"method": multiprocessing.get_start_method()})
