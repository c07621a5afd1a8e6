"""The folder that training leaves, read: what was learned, and all that is needed to use it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from unetkit.atomic import written_whole
from unetkit.data.target import Target
from unetkit.deploy.files import load
from unetkit.errors import BadFile
from unetkit.network import Network
from unetkit.plan import Plan
from unetkit.registry import Parts
from unetkit.train.choices import Choices

#: What is in the folder.
HEADER, LOG, STATE, BEST, LAST = "run.json", "log.jsonl", "state.pt", "best.safetensors", "last.safetensors"


@dataclass(frozen=True)
class Run:
    """What a training run was told, and what it found in its data before it began.

    Attributes:
        folder: where it is.
        plan: the line of its network, with the classes of its data.
        choices: all others.
        target: what its masks mean.
        channels: of its images.
        mean, std: of each channel of its images, which they are brought to 0 and 1 by.
        splits: what tells the images of each from others; see `known_by`.
        plugins: files and modules that were named with --plugin.
        versions: of unetkit and what results depend on.
        command: what was typed.
    """

    folder: Path
    plan: Plan
    choices: Choices
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
            BadFile: the run has none yet, or they are no longer whole.
        """
        if not (self.folder / weights).exists():
            raise BadFile(f"{self.folder} has no {weights}: its first epoch did not end; go on with --resume")
        return load(self.folder / weights, parts=parts, device=device).eval()

    def write(self) -> None:
        """Write what `read_run` reads."""
        target = {"kind": self.target.kind, "names": self.target.names, "colours": self.target.colours}
        said = {**vars(self), "plan": str(self.plan), "choices": self.choices.as_dict(), "target": target}
        said |= {"versions": dict(self.versions), "splits": dict(self.splits)}
        del said["folder"]
        with written_whole(self.folder / HEADER) as temporary:
            temporary.write_text(json.dumps(said, indent=2), encoding="utf-8")


def read_run(folder: str | Path) -> Run:
    """A run by its folder.

    Raises:
        BadFile: there is none, or its header is damaged.
    """
    folder = Path(folder)
    path = folder / HEADER
    if not path.is_file():
        raise BadFile(f"{folder} is no training run: it has no {HEADER}; give the folder that `unetkit train` wrote")
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        names = tuple(said["target"]["names"])
        colours = tuple(tuple(colour) for colour in said["target"]["colours"])
        said["target"] = Target(said["target"]["kind"], names, colours)
        said |= {"plan": Plan.parse(said["plan"]), "choices": Choices.of(said["choices"])}
        said |= {name: tuple(said[name]) for name in ("mean", "std", "plugins")}
        said |= {name: tuple(said[name].items()) for name in ("versions", "splits")}
        return Run(folder, **said)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadFile(f"{path} is damaged: {error}; the weights beside it may still be whole") from error
