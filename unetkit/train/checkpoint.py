"""The files of a training run: its header `run.json`, and the state from which it can be resumed.

Each file is written under a temporary name and then renamed, so that a run can be killed at any moment.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unetkit.data.statistics import ValueRange
from unetkit.data.types import Target
from unetkit.errors import FileError, OptionError, PluginError
from unetkit.network import Network
from unetkit.plan import Plan
from unetkit.plugin_files import digest_plugin
from unetkit.registry import Parts
from unetkit.serialization import describe_other_files, load
from unetkit.train.config import TrainConfig
from unetkit.utils.files import atomic_write
from unetkit.utils.parsing import describe_read_error


@dataclass
class TrainState:
    """The progress of a run, and everything that is needed to resume it.

    Attributes:
        model, optimizer, scaler: the state_dicts; empty before the first save.
        epochs_done: the number of completed epochs.
        steps_done: the number of completed steps of the epoch in progress.
        losses: the losses of these steps.
        output_losses: those of each named output, the prediction first; empty without names.
        best: the highest score so far; None before the first one.
        best_epoch: the epoch that has the highest score.
        stop_reason: why no epoch follows; "" while the run is not finished.
        world_size: the number of processes that trained.
    """

    model: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    scaler: dict[str, Any] = field(default_factory=dict)
    epochs_done: int = 0
    steps_done: int = 0
    losses: list[float] = field(default_factory=list)
    output_losses: dict[str, list[float]] = field(default_factory=dict)
    best: float | None = None
    best_epoch: int = 0
    stop_reason: str = ""
    world_size: int = 1

    def write(self, path: Path) -> None:
        """Write the file that `read_state` reads.

        Raises:
            FileError: The file cannot be written; an existing one is unchanged.
        """
        held = {name: getattr(self, name) for name in self.__dataclass_fields__}
        try:
            with atomic_write(path) as temporary:
                torch.save(held, temporary)
        except (OSError, RuntimeError) as error:  # torch raises RuntimeError if the disk is full
            raise FileError(
                f"{path} cannot be written ({error}); the previous state is unchanged; free some space and use --resume"
            ) from error


def read_state(path: Path) -> TrainState:
    """Read a state onto the CPU. Nothing in the file is executed.

    Raises:
        FileError: The file is damaged.
    """
    try:
        return TrainState(**torch.load(path, map_location="cpu", weights_only=True))
    except TypeError as error:
        raise FileError(
            f"{path} was written by another version of unetkit; finish the run with that version, or start a new run"
        ) from error
    except Exception as error:  # pickle and torch may raise anything
        raise FileError(
            f"{path} cannot be read, or is damaged; the weights in the same folder may still be intact"
        ) from error


#: The files in the folder of a run.
HEADER, LOG, STATE, BEST, LAST = "run.json", "log.jsonl", "state.pt", "best.safetensors", "last.safetensors"
_WEIGHTS = {"best": BEST, "last": LAST}
#: The file that `unetkit bench` writes in the folder of a training when it is finished.
BENCH_RESULT = "result.json"


def digest_plugins(names: Collection[str], parts: Parts) -> dict[str, str]:
    """Return the digest of the source of each of these plugins that is loaded, by name."""
    loaded = [plugin for plugin in parts.plugins if plugin.loaded and plugin.name in names]
    return {plugin.name: digest_plugin(plugin.target) for plugin in loaded}


@dataclass(frozen=True)
class TrainRun:
    """The configuration of a training run, and what it found in its data before it began.

    Attributes:
        folder: the folder of the run.
        plan: the plan of the network, with the classes of the data.
        config: the configuration of the training.
        target: what the masks mean.
        channels: the number of image channels.
        mean, std: the mean and standard deviation by which each channel is normalized.
        value_range: the range of the values of each channel in the training images, which is 0 to 1 for augmentations.
        splits: the fingerprint of each split; see `fingerprint`.
        plugins: the files and modules that were given by --plugin.
        owners: the name and version of each plugin that supplies a part of the network, the data set, a loss, a target,
            the augmentation or the optimizer.
        code: the digest of the source of each plugin in `owners`.
        versions: the versions of unetkit and of the libraries that affect the result.
        command: the command line.
        loaded: the modules and tensors of the network that began with weights that were loaded; see `Network.loaded`.
        not_loaded: tensors of `--init-weights`, or of the network, that were not loaded from there, with the reason.
    """

    folder: Path
    plan: Plan
    config: TrainConfig
    target: Target
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    value_range: ValueRange
    splits: dict[str, str] = field(default_factory=dict)
    plugins: tuple[str, ...] = ()
    owners: dict[str, str] = field(default_factory=dict)
    code: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    command: str = ""
    loaded: tuple[str, ...] = ()
    not_loaded: dict[str, str] = field(default_factory=dict)

    def normalize(self, image: Tensor) -> Tensor:
        """Normalize an image (C, H, W) or a batch (B, C, H, W) as the network expects it; NaN (no data) becomes 0."""
        mean, std = image.new_tensor(self.mean), image.new_tensor(self.std)
        normalized = (image - mean[:, None, None]) / std[:, None, None]
        return normalized.masked_fill_(normalized.isnan(), 0)

    def network(self, device: Any = "cpu", parts: Parts | None = None, weights: str = "best") -> Network:
        """Load the network in eval mode.

        Args:
            device: where it is created.
            parts: the registered parts; None for all that are installed.
            weights: "best" for the weights of the best epoch, or "last" for those of the last one.

        Raises:
            OptionError: `weights` is something else.
            FileError: The run has no such weights yet, or they are damaged.
        """
        return load(self.weights_path(weights), parts=parts, device=device).eval()

    def weights_path(self, weights: str = "best") -> Path:
        """Return the file of the weights of the best epoch, or of the last one ("last"). For errors see `network`."""
        if weights not in _WEIGHTS:
            raise OptionError(f"weights={weights!r}: must be {' or '.join(_WEIGHTS)}")
        path = self.folder / _WEIGHTS[weights]
        if not path.exists():
            if (self.folder / BENCH_RESULT).exists():
                raise FileError(
                    f"{self.folder} has no {path.name}: its training is finished, and `unetkit bench` removed the "
                    "weights, which it keeps of the best row only; benchmark with --keep-weights"
                )
            raise FileError(
                f"{self.folder} has no {path.name} yet, because no epoch is complete; continue the run with --resume"
            )
        return path

    def prefer_plugins(self, parts: Parts) -> Parts:
        """Return parts in which a name that plugins share means the part of the plugin that the run was trained with.

        Raises:
            PluginError: A plugin that the run was trained with is not loaded.
        """
        loaded = {plugin.name for plugin in parts.plugins if plugin.loaded}
        for name, plugin_version in self.owners.items():
            if name not in loaded:
                raise PluginError(
                    f"{self.folder} was trained with plugin {f'{name} {plugin_version}'.strip()}, which is not loaded; "
                    f"install it, or give its file by --plugin{describe_other_files(parts, self.owners)}"
                )
        return parts.prefer(self.owners)

    def list_changed_plugins(self, parts: Parts) -> list[str]:
        """Return the plugins of the run whose source has changed since it began."""
        now = digest_plugins(self.owners, parts)
        return [name for name, digest in self.code.items() if now.get(name, digest) != digest]

    def write(self) -> None:
        """Write the header that `read_run` reads."""
        target = {"kind": self.target.kind, "names": self.target.names, "colours": self.target.colours}
        values = {**vars(self), "plan": str(self.plan), "config": asdict(self.config), "target": target}
        del values["folder"]
        with atomic_write(self.folder / HEADER) as temporary:
            temporary.write_text(json.dumps(values, indent=2), encoding="utf-8")


def read_run(folder: str | Path) -> TrainRun:
    """Open the folder of a run.

    Raises:
        FileError: The folder contains no run, or its header is damaged.
    """
    folder = Path(folder)
    path = folder / HEADER
    if not path.is_file():
        seeds = sorted(folder.glob(f"seed-*/{HEADER}"))
        advice = seeds[0].parent if seeds else "the folder that `unetkit train` wrote"
        raise FileError(f"{folder} is not a training run: it does not contain {HEADER}; give {advice}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        names = tuple(values["target"]["names"])
        colours = tuple(tuple(colour) for colour in values["target"]["colours"])
        values["target"] = Target(values["target"]["kind"], names, colours)
        values |= {"plan": Plan.parse(values["plan"]), "config": TrainConfig.from_dict(values["config"])}
        values |= {name: tuple(values[name]) for name in ("mean", "std", "plugins", "loaded")}
        values["value_range"] = ValueRange(*map(tuple, values["value_range"]))
        values |= {name: dict(values[name]) for name in ("splits", "owners", "versions")}
        return TrainRun(folder, **values)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FileError(
            f"{path} is damaged: {describe_read_error(error)}; the weights in the same folder may still be intact"
        ) from error
