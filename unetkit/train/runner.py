"""`unetkit.train.run` and `unetkit.train.resume`: prepare a training run, train, and write its folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from unetkit.builder import build_plan
from unetkit.data.augment import NONE, make_augment, split_steps
from unetkit.data.datasets import open_data
from unetkit.data.source import with_absolute_path
from unetkit.data.statistics import ImageStatistics, ValueRange, measure_statistics
from unetkit.data.types import DatasetSplits, fingerprint
from unetkit.errors import FileError, OptionError
from unetkit.network import Network
from unetkit.parts.encoders.normalization import NormalizationStats, get_normalization_stats
from unetkit.plan import PartSpec, Plan, ResolvedPlan
from unetkit.plugins import default_parts, load_parts
from unetkit.registry import Parts
from unetkit.resolve import canonical_spec, resolve
from unetkit.serialization import load
from unetkit.summary.forward_hooks import find_network
from unetkit.summary.trace import trace
from unetkit.train.checkpoint import BEST, HEADER, LAST, STATE, TrainRun, TrainState, read_run, read_state
from unetkit.train.config import TrainConfig
from unetkit.train.distributed import ProcessGroup, init_processes
from unetkit.train.losses import make_loss
from unetkit.train.optim import create_optimizer_config
from unetkit.train.trainer import RunParts, TrainCallback, Trainer
from unetkit.utils.formatting import Size
from unetkit.utils.isolation import stdout_to_stderr
from unetkit.utils.modules import check_device
from unetkit.utils.spatial import size_of

#: The number of input channels of pretrained weights.
_COLOURS = 3
#: The least share of the numbers from 0 to 1 that images use which were made for them.
_LEAST_RANGE = 0.2
#: The default side of a training crop, in pixels.
_CROP = 256
_VERSIONS = ("unetkit", "torch", "torchvision", "timm", "segmentation-models-pytorch")


def open_splits(config: TrainConfig, parts: Parts, progress: Callable[[int, int], None] | None = None) -> DatasetSplits:
    """Open the data set of a run; `progress` is called with the number of masks read, and their total number."""
    return open_data(
        config.data,
        seed=config.seed if config.split_seed is None else config.split_seed,
        val_fraction=config.val_fraction,
        group_by=config.group_by,
        ignore_index=config.ignore_index,
        nodata=config.nodata_value,
        channels=config.channels,
        progress=progress,
        parts=parts,
    )


def fit_plan(plan: Plan, data: DatasetSplits) -> Plan:
    """Set the classes and input channels of a plan to those of the data.

    Raises:
        OptionError: The plan has other classes or channels than the data.
    """
    if plan.in_channels not in (None, data.channels):
        what = f"--in-channels {plan.in_channels}: the images of {data.source} have {data.channels} channel(s)"
        raise OptionError(f"{what}; leave --in-channels out, or give {data.channels}")
    classes = plan.classes or data.target.outputs
    data.target.activation(classes)  # rejects a number of classes that the masks do not have
    return replace(plan, in_channels=data.channels, classes=classes)


def default_crop(data: DatasetSplits) -> Size:
    """Return the size of a training crop where none is given: the first image's, at most 256."""
    height, width = size_of(data.splits["train"][0].image)
    return min(height, _CROP), min(width, _CROP)


def create_run_parts(
    config: TrainConfig, plan: ResolvedPlan, data: DatasetSplits, value_range: ValueRange, parts: Parts
) -> tuple[TrainConfig, RunParts]:
    """Create loss, augmentation and optimizer, and complete the configuration with what follows from the data.

    Args:
        config: the configuration; one that is complete stays as it is.
        plan: the plan of the network, fitted to the data.
        data: the opened data set.
        value_range: the range of its training images.
        parts: the registered parts.

    Returns:
        The configuration with a crop and with every name in its shortest form, and what its names stand for.
    """
    crop = config.crop or default_crop(data)
    loss = make_loss(config.loss, data.target, plan.classes, parts)
    augment = make_augment(config.augment or data.augment, crop, parts, value_range)
    created = RunParts(loss, augment, create_optimizer_config(config.optimizer, parts))
    optimizer = str(canonical_spec("optimizer", PartSpec.parse(config.optimizer), parts))
    return replace(config, crop=crop, loss=loss.text, augment=augment.text, optimizer=optimizer), created


def find_owners(config: TrainConfig, parts: Parts) -> tuple[tuple[str, str], ...]:
    """Find the plugins that supply the data set, the loss, the augmentation and the optimizer, with their versions."""
    names = [("loss", spec.name) for spec in PartSpec.parse(config.loss).links]
    names += [("augment", PartSpec.parse(step).name) for step in split_steps(config.augment) if step != NONE]
    names += [("optimizer", PartSpec.parse(config.optimizer).name), ("data", config.data.partition(":")[0])]
    owners = {parts[kind].entries[name].owner for kind, name in names if name in parts[kind].entries} - {"unetkit"}
    return tuple((plugin.name, plugin.version) for plugin in parts.plugins if plugin.loaded and plugin.name in owners)


def list_fingerprints(data: DatasetSplits) -> tuple[tuple[str, str], ...]:
    """Compute the fingerprint of each split."""
    return tuple((name, fingerprint(images)) for name, images in data.splits.items())


def choose_normalization(network: Network, found: ImageStatistics) -> NormalizationStats:
    """Return mean and standard deviation of each channel: those of the pretrained weights, or those of the data.

    Pretrained weights expect colours from 0 to 1. Images that use little of that, such as 12-bit numbers in 16-bit
    files, or more, are normalized by their own statistics, which gives values of the same size.
    """
    low, high = min(found.range.low), max(found.range.high)
    if network.plan.pretrained and len(found.mean) == _COLOURS and low >= 0 and _LEAST_RANGE <= high <= 1:
        return get_normalization_stats(network.encoder) or (found.mean, found.std)
    return found.mean, found.std


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
    callback: TrainCallback | None = None,
    save_every: float = SAVE_EVERY,
    borders: str | Path | None = None,
    statistics: ImageStatistics | None = None,
    check_images: bool = True,
    **config: Any,
) -> TrainRun:
    """Train a network, and write a run folder for `unetkit eval` and `unetkit predict`.

    Args:
        plan: the plan of the network. The data determine its classes and channels; its seed fixes everything random.
        out: the folder to write, which must not contain a run.
        data: the value of `--data`, or an opened data set, which is then needed again to resume the run.
        parts: the registered parts; None for those that are installed and those of `plugins`.
        plugins: files and modules of plugins to load in addition to the installed ones.
        command: the command line, for the record.
        callback: receives the progress.
        save_every: seconds between two saves within an epoch; the state is also saved after each epoch.
        borders: a folder for border weights, which several runs may share; None for one in `out`.
        statistics: those of the training images, if they were measured before.
        check_images: whether to read all images of a folder in the background, to find damaged ones early.
        config: the fields of `TrainConfig`.

    Returns:
        The run; its `network()` method loads the network with its best weights.

    Raises:
        OptionError: Data, loss and network do not fit together, or the folder contains a run.
        FileError: An image cannot be read, or the folder cannot be written.
        UnetkitError: The loss became infinite or NaN.
    """
    folder, plan = Path(out), Plan.parse(plan) if isinstance(plan, str) else plan
    if folder.exists() and not folder.is_dir():
        raise OptionError(f"--out {folder}: is a file; give a folder")
    if (folder / HEADER).exists():
        raise OptionError(
            f"--out {folder} already contains a run; continue it with --resume {folder}, or give a new folder"
        )
    parts = parts or (load_parts(plugins) if plugins else default_parts())
    name = with_absolute_path(data, parts) if isinstance(data, str) else data.source
    crop = config.get("crop") or plan.size
    settings = TrainConfig(**{**config, "data": name, "crop": crop, "seed": plan.seed or 0})
    check_device(settings.device)
    if settings.tensorboard and not find_spec("tensorboard"):
        raise OptionError("--tensorboard: TensorBoard is not installed; run pip install 'unetkit[tensorboard]'")
    callback = callback or TrainCallback()
    with init_processes(settings.device) as group:
        splits = open_splits(settings, parts, callback.on_scan) if isinstance(data, str) else data
        resolved, _ = resolve(replace(fit_plan(plan, splits), seed=settings.seed), parts)
        found = statistics or measure_statistics(splits.splits["train"])
        settings, run_parts = create_run_parts(settings, resolved, splits, found.range, parts)
        with stdout_to_stderr():
            model = _first_process_first(group, lambda: build_plan(resolved, parts))
            trace(model, settings.crop)  # raises InputSizeError if the network does not take the crop
        network = find_network(model)
        mean, std = choose_normalization(network, found)
        begun = TrainRun(
            folder,
            network.plan,
            settings,
            target=splits.target,
            channels=splits.channels,
            mean=mean,
            std=std,
            value_range=found.range,
            splits=list_fingerprints(splits),
            plugins=tuple(os.path.abspath(name) if os.path.isfile(name) else str(name) for name in plugins),
            owners=find_owners(settings, parts),
            versions=tuple((name, version(name)) for name in _VERSIONS),
            command=command,
        )
        Trainer(
            begun, splits, model, run_parts, group, TrainState(), callback, save_every, borders, check_images
        ).train()
    return begun


def resume(
    folder: str | Path,
    *,
    data: DatasetSplits | str | None = None,
    parts: Parts | None = None,
    device: str | None = None,
    callback: TrainCallback | None = None,
    save_every: float = SAVE_EVERY,
    borders: str | Path | None = None,
    check_images: bool = True,
) -> TrainRun:
    """Continue an interrupted run; it ends with the weights that it would have had without the interruption.

    Args:
        folder: the folder of the run.
        data: the data set if it was given to `run` as an object, or the new path of a folder that was moved.
        device: another device; on another device, or with another number of threads, the last digits of the
            weights may differ.
        parts, callback, save_every, borders, check_images: as for `run`.

    Raises:
        FileError: The folder contains no run, or its files are damaged.
        PluginError: A plugin that the run uses is not loaded.
        OptionError: The data differ from those that the run began with.
    """
    begun = read_run(folder)
    device = device or begun.config.device
    check_device(device)
    parts = parts or (load_parts(begun.plugins) if begun.plugins else default_parts())
    begun.check_plugins(parts)
    callback = callback or TrainCallback()
    if isinstance(data, str):
        begun = replace(begun, config=replace(begun.config, data=with_absolute_path(data, parts)))
    with init_processes(device) as group:
        splits = data if isinstance(data, DatasetSplits) else open_splits(begun.config, parts, callback.on_scan)
        if (splits.target, list_fingerprints(splits)) != (begun.target, begun.splits):
            raise OptionError(
                f"{splits.source} is not the data of {folder}, or it has changed: its classes or images differ; "
                "give the original data, or start a new run"
            )
        resolved, _ = resolve(begun.plan, parts)
        _, run_parts = create_run_parts(begun.config, resolved, splits, begun.value_range, parts)
        state = _load_state(begun.folder)
        with stdout_to_stderr():
            # The file contains the pretrained weights; building with the plan would download them again.
            saved = state.model and (begun.folder / LAST).exists()
            model = load(begun.folder / LAST, parts=parts) if saved else build_plan(begun.plan, parts)
        Trainer(begun, splits, model, run_parts, group, state, callback, save_every, borders, check_images).train()
    return begun


def _load_state(folder: Path) -> TrainState:
    if (folder / STATE).exists():
        return read_state(folder / STATE)
    if (folder / BEST).exists():
        raise FileError(f"{folder} has weights but no {STATE} to continue from; start a new run in another folder")
    return TrainState()


def _first_process_first(group: ProcessGroup, make: Any) -> Any:
    """Call `make` in the first process before the others, which then find its downloads in the cache."""
    if group.size == 1:
        return make()
    made = make() if group.is_first else None
    group.all_gather(None)
    return made if group.is_first else make()
