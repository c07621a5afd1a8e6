"""Training: losses, metrics, the loop, and the folder that a run leaves.

`run` trains a plan and `resume` goes on with it; `read` opens the folder.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unetkit.train.checkpoint import TrainRun
    from unetkit.train.checkpoint import read_run as read
    from unetkit.train.runner import resume, run

_WHERE = {
    "TrainRun": ("unetkit.train.checkpoint", "TrainRun"),
    "read": ("unetkit.train.checkpoint", "read_run"),
    "resume": ("unetkit.train.runner", "resume"),
    "run": ("unetkit.train.runner", "run"),
}
__all__ = ["TrainRun", "read", "resume", "run"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _WHERE[name]
    return getattr(import_module(module), attribute)
