"""`unetkit.train.run` and `unetkit.train.resume`: a training run, from what was said to its folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from unetkit.builder import build_plan
from unetkit.data.augment import make_augment
from unetkit.data.datasets import absolute, open_data
from unetkit.data.types import Dataset, DatasetSplits, fingerprint
from unetkit.errors import FileError, OptionError
from unetkit.network import Network
from unetkit.parts.encoders.normalization import Statistics, statistics_of
from unetkit.plan import Plan
from unetkit.plugins import default_parts, load_parts
from unetkit.registry import Parts
from unetkit.serialization import load
from unetkit.summary.forward_hooks import network_of
from unetkit.summary.trace import trace
from unetkit.train.checkpoint import BEST, HEADER, LAST, STATE, TrainRun, TrainState, read_run, read_state
from unetkit.train.config import TrainConfig
from unetkit.train.dataloader import check_finite
from unetkit.train.distributed import ProcessGroup, init_processes
from unetkit.train.losses import make_loss
from unetkit.train.optim import OPTIMIZERS
from unetkit.train.trainer import TrainCallback, Trainer
from unetkit.utils.isolation import stdout_to_stderr
from unetkit.utils.modules import check_device
from unetkit.utils.spatial import size_of

#: Images that the mean and the standard deviation are taken from.
_MEASURED = 200
#: Channels that pretrained weights are for.
_COLOURS = 3
#: Of a training crop, where none is asked for.
_CROP = 256
_VERSIONS = ("unetkit", "torch", "torchvision", "timm", "segmentation-models-pytorch")


def open_splits(choices: TrainConfig, progress: Callable[[int, int], None] | None = None) -> DatasetSplits:
    """The data set of a run. `progress` is told how many of its masks, of how many, are scanned."""
    rules: dict[str, Any] = {
        name: getattr(choices, name) for name in ("seed", "val_fraction", "group_by", "ignore_index")
    }
    return open_data(choices.data, **rules, progress=progress)


def plan_for_data(plan: Plan, data: DatasetSplits) -> Plan:
    """The plan with the classes and channels of the data.

    Raises:
        OptionError: it says others.
    """
    if plan.in_channels not in (None, data.channels):
        what = f"--in-channels {plan.in_channels}: the images of {data.said} have {data.channels}"
        raise OptionError(f"{what}; leave it out, or give that")
    if plan.classes is not None:
        data.target.activation(plan.classes)
    return replace(plan, in_channels=data.channels, classes=plan.classes or data.target.outputs)


def fill_defaults(choices: TrainConfig, plan: Plan, data: DatasetSplits) -> TrainConfig:
    """The choices with nothing left open that the data decide."""
    loss = make_loss(choices.loss, data.target, plan.classes or data.target.outputs).said
    crop = choices.crop or plan.size
    if crop is None:
        height, width = size_of(data.splits["train"][0].image)
        crop = min(height, _CROP), min(width, _CROP)
    optimizer, augment = OPTIMIZERS.said(choices.optimizer), make_augment(choices.augment or data.augment, crop).said
    return replace(choices, loss=loss, crop=crop, augment=augment, optimizer=optimizer)


def make_run(
    folder: Path, network: Network, choices: TrainConfig, data: DatasetSplits, plugins: tuple[str, ...], command: str
) -> TrainRun:
    """What is known of a run before its first step."""
    mean, std = choose_normalization(network_of(network), data)
    versions = tuple((name, version(name)) for name in _VERSIONS)
    plan = network_of(network).plan
    return TrainRun(
        folder,
        plan,
        choices,
        target=data.target,
        channels=data.channels,
        mean=mean,
        std=std,
        splits=check_fingerprints(data),
        plugins=plugins,
        versions=versions,
        command=command,
    )


def check_fingerprints(data: DatasetSplits) -> tuple[tuple[str, str], ...]:
    """What tells the images of each split from others."""
    return tuple((name, fingerprint(images)) for name, images in data.splits.items())


def choose_normalization(network: Network, data: DatasetSplits) -> Statistics:
    """Mean and standard deviation of each channel: those that pretrained weights were made with, or of the data."""
    known = statistics_of(network.encoder) if network.plan.pretrained and data.channels == _COLOURS else None
    return known or measure_normalization(data.splits["train"])


def measure_normalization(images: Dataset) -> Statistics:
    """Of each channel, over all pixels of up to 200 images, evenly taken; by NumPy, whatever the threads."""
    step, moments = -(-len(images) // _MEASURED), []
    for index in range(0, len(images), step):
        pixels = check_finite(images[index]).image.flatten(1).numpy().astype(np.float64)
        count = np.full(len(pixels), pixels.shape[1])
        moments.append(np.stack([pixels.sum(1), np.square(pixels).sum(1), count]))
    total, squares, number = np.sum(moments, 0)
    mean = total / number
    std = np.sqrt(np.maximum(squares / number - np.square(mean), 0))
    # A channel that never changes stays as it is.
    return tuple(mean.tolist()), tuple(np.where(std > 1e-8, std, 1.0).tolist())


#: Seconds between two saves within an epoch.
SAVE_EVERY = 300.0


def run(
    plan: Plan | str,
    out: str | Path,
    *,
    data: DatasetSplits | str = "cells",
    parts: Parts | None = None,
    plugins: Sequence[str] = (),
    command: str = "",
    watch: TrainCallback | None = None,
    save_every: float = SAVE_EVERY,
    **choices: Any,
) -> TrainRun:
    """Train a network, and leave a folder that `unetkit eval` and `unetkit predict` take.

    Args:
        plan: of the network; its classes and channels are those of the data, its seed is that of all that is random.
        out: the folder, which may hold no run yet.
        data: what `--data` takes, or a set that is opened already; a run of the latter needs it again to be resumed.
        parts: where the plan's names are looked up; all that is installed and in `plugins`, if None.
        plugins: files and modules to load beside what is installed.
        command: what was typed, for the record.
        watch: is told how it goes.
        save_every: seconds between two saves within an epoch; after each epoch all is saved.
        choices: as in `Choices`.

    Returns:
        The run; `.network()` gives the network with its best weights.

    Raises:
        OptionError: data, loss and network do not fit together, or the folder holds a run.
        FileError: an image cannot be read, or the folder cannot be written.
        UnetkitError: the loss became infinite or no number.
    """
    folder, plan = Path(out), Plan.parse(plan) if isinstance(plan, str) else plan
    if (folder / HEADER).exists():
        raise OptionError(f"--out {folder} holds a run; go on with it by --resume {folder}, or give another folder")
    name = absolute(data) if isinstance(data, str) else data.said
    asked = TrainConfig(**{**choices, "data": name, "seed": plan.seed or 0})
    check_device(asked.device)
    if asked.tensorboard and not find_spec("tensorboard"):
        raise OptionError("--tensorboard: it is not installed; pip install 'unetkit[tensorboard]'")
    parts = parts or (load_parts(plugins) if plugins else default_parts())
    told = watch or TrainCallback()
    with init_processes(asked.device) as world:
        found: DatasetSplits = open_splits(asked, told.scan) if isinstance(data, str) else data
        plan = replace(plan_for_data(plan, found), seed=asked.seed)
        asked = fill_defaults(asked, plan, found)
        with stdout_to_stderr():
            network = _in_turn(world, lambda: build_plan(plan, parts))
            trace(network, asked.crop)  # refuses crops that do not pass
        begun = make_run(folder, network, asked, found, tuple(plugins), command)
        return _train(begun, found, network, world, TrainState(), told, save_every)


def resume(
    folder: str | Path,
    *,
    data: DatasetSplits | str | None = None,
    parts: Parts | None = None,
    device: str | None = None,
    watch: TrainCallback | None = None,
    save_every: float = SAVE_EVERY,
) -> TrainRun:
    """Go on with a run that was stopped in any way, to the end that it would have come to.

    Args:
        folder: of the run.
        data: as it was given to `run`, where it was opened already; or where the same folder lies now.
        device: another than before; on another, or with other threads, numbers may differ in their last digits.
        parts, watch, save_every: as for `run`.

    Raises:
        FileError: there is no run, or its files are damaged.
    """
    begun = read_run(folder)
    device = device or begun.choices.device
    check_device(device)
    parts = parts or (load_parts(begun.plugins) if begun.plugins else default_parts())
    told = watch or TrainCallback()
    with init_processes(device) as world:
        if isinstance(data, str):
            begun = replace(begun, choices=replace(begun.choices, data=absolute(data)))
        found = data if isinstance(data, DatasetSplits) else open_splits(begun.choices, told.scan)
        if (found.target, check_fingerprints(found)) != (begun.target, begun.splits):
            raise OptionError(f"{found.said} is no longer what {folder} began with (classes or images); train anew")
        state = _state_of(begun.folder)
        with stdout_to_stderr():
            # A file knows the weights that pretraining gave; the plan would have them downloaded again.
            saved = state.model and (begun.folder / LAST).exists()
            network = load(begun.folder / LAST, parts=parts) if saved else build_plan(begun.plan, parts)
        return _train(begun, found, network, world, state, told, save_every)


def _state_of(folder: Path) -> TrainState:
    if (folder / STATE).exists():
        return read_state(folder / STATE)
    if (folder / BEST).exists():
        raise FileError(f"{folder} has weights and no {STATE} to go on from; train anew into another folder")
    return TrainState()


def _train(
    begun: TrainRun,
    data: DatasetSplits,
    network: Any,
    world: ProcessGroup,
    state: TrainState,
    watch: TrainCallback,
    save_every: float,
) -> TrainRun:
    trainer = Trainer(begun, data, network, world, state, watch if world.first else TrainCallback(), save_every)
    trainer.train()
    return begun


def _in_turn(world: ProcessGroup, make: Any) -> Any:
    """What `make` gives, the first process before the others: what it downloads, they find in the cache."""
    if world.size == 1:
        return make()
    made = make() if world.first else None
    world.all_gather(None)
    return made if world.first else make()
