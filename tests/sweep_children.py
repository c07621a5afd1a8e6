"""What children do in the tests of the sweep, in place of asking a network. They import this, so it is light."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.sweep.settings import QUESTIONS, Settings

Say = Callable[[dict[str, Any]], None]


def fine(name: str, settings: Settings, say: Say) -> None:
    """A child that answers all well."""
    say({"built": "ok", "real": True, **dict.fromkeys(QUESTIONS, "ok")})


def strange(name: str, settings: Settings, say: Say) -> None:
    """A child that builds, passes its own size, and then ends as its name says."""
    say({"built": "ok", "real": True, "own": "ok"})
    if name == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "leaves":
        os._exit(3)
    if name == "raises":
        raise ZeroDivisionError("no such luck")
    if name == "hangs":
        time.sleep(600)
    fine(name, settings, say)


def slowly(name: str, settings: Settings, say: Say) -> None:
    """A child that leaves its leader time to be killed."""
    time.sleep(0.2)
    fine(name, settings, say)


def lingers(name: str, settings: Settings, say: Say) -> None:
    """A child that tells its process in a file, and stays."""
    Path(os.environ["LINGERS"], name).write_text(str(os.getpid()))
    time.sleep(600)
