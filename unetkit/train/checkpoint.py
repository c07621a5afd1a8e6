"""All that training goes on from: written whole each time, so that a run may be killed at any moment."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from unetkit.atomic import written_whole
from unetkit.errors import BadFile


@dataclass
class State:
    """Where a run is.

    Attributes:
        model, optimiser, scaler: their state_dicts; empty before the first save.
        epoch: of those that ended, how many.
        step: of those of the next epoch that were done, how many.
        losses: of those steps.
        best: the highest score so far, None before the first; a class that never occurs gives none.
        best_epoch: the epoch that it ended.
        ended: why no epoch follows; "" where one does.
        world: how many processes trained.
    """

    model: dict[str, Any] = field(default_factory=dict)
    optimiser: dict[str, Any] = field(default_factory=dict)
    scaler: dict[str, Any] = field(default_factory=dict)
    epoch: int = 0
    step: int = 0
    losses: list[float] = field(default_factory=list)
    best: float | None = None
    best_epoch: int = 0
    ended: str = ""
    world: int = 1

    def write(self, path: Path) -> None:
        """Write what `read_state` reads.

        Raises:
            BadFile: it cannot be written; what was there stands.
        """
        held = {name: getattr(self, name) for name in self.__dataclass_fields__}
        try:
            with written_whole(path) as temporary:
                torch.save(held, temporary)
        except (OSError, RuntimeError) as error:  # torch's writer raises the latter where a disk is full
            raise BadFile(
                f"{path} cannot be written ({error}); what it held stands: make room, and --resume"
            ) from error


def read_state(path: Path) -> State:
    """What `write` wrote, on the CPU. Nothing in it is run.

    Raises:
        BadFile: it is damaged.
    """
    try:
        return State(**torch.load(path, map_location="cpu", weights_only=True))
    except TypeError as error:
        raise BadFile(f"{path} is of another version of unetkit; finish the run with that, or train anew") from error
    except Exception as error:  # pickle and torch raise any
        raise BadFile(
            f"{path} is damaged ({type(error).__name__}); the weights beside it may still be whole"
        ) from error
