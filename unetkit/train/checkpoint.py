"""All that training goes on from: written whole each time, so that a run may be killed at any moment."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unetkit.data.types import Target
from unetkit.errors import FileError
from unetkit.network import Network
from unetkit.plan import Plan
from unetkit.registry import Parts
from unetkit.serialization import load
from unetkit.train.config import TrainConfig
from unetkit.utils.files import atomic_write


@dataclass
class TrainState:
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
            FileError: it cannot be written; what was there stands.
        """
        held = {name: getattr(self, name) for name in self.__dataclass_fields__}
        try:
            with atomic_write(path) as temporary:
                torch.save(held, temporary)
        except (OSError, RuntimeError) as error:  # torch's writer raises the latter where a disk is full
            raise FileError(
                f"{path} cannot be written ({error}); what it held stands: make room, and --resume"
            ) from error


def read_state(path: Path) -> TrainState:
    """What `write` wrote, on the CPU. Nothing in it is run.

    Raises:
        FileError: it is damaged.
    """
    try:
        return TrainState(**torch.load(path, map_location="cpu", weights_only=True))
    except TypeError as error:
        raise FileError(f"{path} is of another version of unetkit; finish the run with that, or train anew") from error
    except Exception as error:  # pickle and torch raise any
        raise FileError(
            f"{path} is damaged ({type(error).__name__}); the weights beside it may still be whole"
        ) from error


#: What is in the folder.
HEADER, LOG, STATE, BEST, LAST = "run.json", "log.jsonl", "state.pt", "best.safetensors", "last.safetensors"


@dataclass(frozen=True)
class TrainRun:
    """What a training run was told, and what it found in its data before it began.

    Attributes:
        folder: where it is.
        plan: the line of its network, with the classes of its data.
        choices: all others.
        target: what its masks mean.
        channels: of its images.
        mean, std: of each channel of its images, which they are brought to 0 and 1 by.
        splits: what tells the images of each from others; see `fingerprint`.
        plugins: files and modules that were named with --plugin.
        versions: of unetkit and what results depend on.
        command: what was typed.
    """

    folder: Path
    plan: Plan
    choices: TrainConfig
    target: Target
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    splits: tuple[tuple[str, str], ...] = ()
    plugins: tuple[str, ...] = ()
    versions: tuple[tuple[str, str], ...] = ()
    command: str = ""

    def normalised(self, image: Tensor) -> Tensor:
        """An image (C, H, W), or several (B, C, H, W), as the network takes it."""
        mean, std = image.new_tensor(self.mean), image.new_tensor(self.std)
        return (image - mean[:, None, None]) / std[:, None, None]

    def network(self, device: Any = "cpu", parts: Parts | None = None, weights: str = BEST) -> Network:
        """The network with its best (or `LAST`) weights, in eval mode.

        Raises:
            FileError: the run has none yet, or they are no longer whole.
        """
        if not (self.folder / weights).exists():
            raise FileError(f"{self.folder} has no {weights}: its first epoch did not end; go on with --resume")
        return load(self.folder / weights, parts=parts, device=device).eval()

    def write(self) -> None:
        """Write what `read_run` reads."""
        target = {"kind": self.target.kind, "names": self.target.names, "colours": self.target.colours}
        said = {**vars(self), "plan": str(self.plan), "choices": self.choices.to_dict(), "target": target}
        said |= {"versions": dict(self.versions), "splits": dict(self.splits)}
        del said["folder"]
        with atomic_write(self.folder / HEADER) as temporary:
            temporary.write_text(json.dumps(said, indent=2), encoding="utf-8")


def read_run(folder: str | Path) -> TrainRun:
    """A run by its folder.

    Raises:
        FileError: there is none, or its header is damaged.
    """
    folder = Path(folder)
    path = folder / HEADER
    if not path.is_file():
        raise FileError(f"{folder} is no training run: it has no {HEADER}; give the folder that `unetkit train` wrote")
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        names = tuple(said["target"]["names"])
        colours = tuple(tuple(colour) for colour in said["target"]["colours"])
        said["target"] = Target(said["target"]["kind"], names, colours)
        said |= {"plan": Plan.parse(said["plan"]), "choices": TrainConfig.of(said["choices"])}
        said |= {name: tuple(said[name]) for name in ("mean", "std", "plugins")}
        said |= {name: tuple(said[name].items()) for name in ("versions", "splits")}
        return TrainRun(folder, **said)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FileError(f"{path} is damaged: {error}; the weights beside it may still be whole") from error
