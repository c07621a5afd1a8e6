"""Training: losses, metrics, the training loop, and the folder that a run writes.

`run` trains a network, `resume` continues an interrupted run, and `read` opens the folder of a run.
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
