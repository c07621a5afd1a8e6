"""`unetkit.train.run` and `unetkit.train.resume`: prepare a training run, train, and write its folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from torch import nn

from unetkit.builder import build_plan
from unetkit.data.augment import NONE, make_augment, split_steps
from unetkit.data.datasets import open_data
from unetkit.data.source import with_absolute_path
from unetkit.data.statistics import ImageStatistics, ValueRange, measure_statistics
from unetkit.data.types import DatasetSplits, Target, fingerprint
from unetkit.errors import FileError, OptionError
from unetkit.network import Network
from unetkit.parts.encoders.normalization import NormalizationStats, get_normalization_stats
from unetkit.plan import PLAN_FIELDS, PartSpec, Plan, ResolvedPlan
from unetkit.plugins import absolute_target, default_parts, load_parts
from unetkit.registry import BUILTIN, Parts
from unetkit.resolve import canonical_spec, resolve
from unetkit.serialization import check_has_names, load
from unetkit.summary.forward_hooks import find_network
from unetkit.summary.outputs import describe_output_source
from unetkit.summary.trace import trace
from unetkit.train.checkpoint import (
    BEST,
    HEADER,
    LAST,
    STATE,
    TrainRun,
    TrainState,
    digest_plugins,
    read_run,
    read_state,
)
from unetkit.train.config import CHANGEABLE, TrainConfig
from unetkit.train.distributed import ProcessGroup, init_processes
from unetkit.train.init_weights import load_init_weights
from unetkit.train.losses import make_loss
from unetkit.train.optim import create_optimizer_config
from unetkit.train.outputs import OutputLoss, find_output_owners, make_output_losses
from unetkit.train.step import RunParts
from unetkit.train.trainer import TrainCallback, Trainer
from unetkit.utils.config_fields import flag_of, make_config, parse_values
from unetkit.utils.formatting import Size, format_plural
from unetkit.utils.isolation import ignore_breakpoints, stdout_to_stderr
from unetkit.utils.modules import check_device, set_threads
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
        has = format_plural(data.channels, "channel")
        what = f"--in-channels {plan.in_channels}: the images of {data.source} have {has}"
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


def _add_output_losses(
    run_parts: RunParts, model: nn.Module, crop: Size | None, target: Target, parts: Parts
) -> RunParts:
    """Add what trains the outputs of a model beside the prediction.

    Raises:
        InputSizeError: The network does not take the crop.
        UnetkitError: A target or a loss does not exist, or does not fit the output or the masks.
    """
    with stdout_to_stderr(), ignore_breakpoints():  # breakpoints are for the passes of the training
        traced = trace(model, crop)
    source = describe_output_source(model, find_network(model))
    output_losses = make_output_losses(traced.outputs, target, parts, source)
    return run_parts._replace(output_losses=output_losses, further=traced.further)


def find_owners(
    config: TrainConfig, parts: Parts, output_losses: dict[str, OutputLoss], network: Network
) -> dict[str, str]:
    """Find the plugins of the network, data set, losses, targets, augmentation and optimizer, with their versions."""
    names = [("loss", spec.name) for spec in PartSpec.parse(config.loss).links]
    names += [("augment", PartSpec.parse(step).name) for step in split_steps(config.augment) if step != NONE]
    names += [("optimizer", PartSpec.parse(config.optimizer).name), ("data", config.data.partition(":")[0])]
    found = [(parts[kind].entries, name) for kind, name in names]
    owners = {entry.owner for entries, name in found for entry in entries.values() if name in entry.names}
    owners |= find_output_owners(output_losses, parts) | {plugin.name for plugin in network.plugins}
    owners -= {BUILTIN}
    return {plugin.name: plugin.version for plugin in parts.plugins if plugin.loaded and plugin.name in owners}


def list_fingerprints(data: DatasetSplits) -> dict[str, str]:
    """Compute the fingerprint of each split."""
    return {name: fingerprint(images) for name, images in data.splits.items()}


def choose_normalization(network: Network, statistics: ImageStatistics) -> NormalizationStats:
    """Return mean and standard deviation of each channel: those of the pretrained weights, or those of the data.

    Pretrained weights expect colours from 0 to 1. Images that use little of that, such as 12-bit numbers in 16-bit
    files, or more, are normalized by their own statistics, which gives values of the same size.
    """
    low, high = min(statistics.range.low), max(statistics.range.high)
    if network.plan.pretrained and len(statistics.mean) == _COLOURS and low >= 0 and _LEAST_RANGE <= high <= 1:
        return get_normalization_stats(network.encoder) or (statistics.mean, statistics.std)
    return statistics.mean, statistics.std


def _check_freeze(network: Network, config: TrainConfig) -> None:
    """Raise OptionError if there is nothing to freeze, or nothing else to train."""
    if not config.freeze_encoder:
        return
    frozen = {id(parameter) for parameter in network.pretrained_parameters()}
    if not frozen:
        raise OptionError(
            "--freeze-encoder: freezes weights that were loaded, and all weights of this encoder are random; "
            "give --pretrained or --init-weights, or leave it out"
        )
    if all(id(parameter) in frozen for parameter in network.parameters() if parameter.requires_grad):
        raise OptionError("--freeze-encoder: leaves nothing to train, since all of this model was loaded; leave it out")


def _check_environment(config: TrainConfig) -> None:
    """Raise OptionError if this machine lacks what a configuration needs."""
    check_device(config.device, meta=False)
    if config.tensorboard and not find_spec("tensorboard"):
        raise OptionError("--tensorboard: TensorBoard is not installed; run pip install 'unetkit[tensorboard]'")


#: Seconds between two saves within an epoch.
SAVE_EVERY = 300.0
#: Fields of a TrainConfig whose defaults follow from the data.
_COMPLETED = ("crop", "loss", "augment", "optimizer")


def run(
    plan: Plan | str,
    out: str | Path,
    *,
    data: DatasetSplits | str | Path = "cells",
    parts: Parts | None = None,
    plugins: Sequence[str] = (),
    command: str = "",
    callback: TrainCallback | None = None,
    save_every: float = SAVE_EVERY,
    borders: str | Path | None = None,
    statistics: ImageStatistics | None = None,
    check_images: bool = True,
    **options: Any,
) -> TrainRun:
    """Train a network, and write a run folder for `unetkit eval` and `unetkit predict`.

    If the folder contains a run with the same plan, data and configuration, that run is continued; if it is finished,
    nothing is trained. A run that was stopped before it saved a step is replaced.

    Args:
        plan: the plan of the network. The data determine its classes and channels; its seed fixes everything random.
        out: the folder to write.
        data: the value of `--data`, or an opened data set, which is then needed again to resume the run.
        parts: the registered parts; None for those that are installed and those of `plugins`.
        plugins: files and modules of plugins to load in addition to the installed ones.
        command: the command line, for the record.
        callback: receives the progress.
        save_every: seconds between two saves within an epoch; the state is also saved after each epoch.
        borders: a folder for border weights, which several runs may share; None for one in `out`.
        statistics: those of the training images, if they were measured before.
        check_images: whether to read all images of a folder in the background, to find damaged ones early.
        options: the other options of `unetkit train`, such as `batch_size=4`; see `TrainConfig`.

    Returns:
        The run; its `network()` method loads the network with its best weights.

    Raises:
        OptionError: Data, loss and network do not fit together, or the folder contains another run.
        FileError: An image cannot be read, or the folder cannot be written.
        UnetkitError: The loss became infinite or NaN.
    """
    folder, plan = Path(out), Plan.parse(plan) if isinstance(plan, str) else plan
    if folder.exists() and not folder.is_dir():
        raise OptionError(f"--out {folder}: is a file; give a folder")
    parts = parts or (load_parts(plugins) if plugins else default_parts())
    data = data if isinstance(data, DatasetSplits) else str(data)
    name = with_absolute_path(data, parts) if isinstance(data, str) else data.source
    crop = options.get("crop") or plan.size
    seed = plan.seed if plan.seed is not None else options.get("seed", 0)
    init = str(Path(options["init_weights"]).absolute()) if options.get("init_weights") else ""
    given = {**options, "data": name, "crop": crop, "seed": seed, "init_weights": init}
    config = make_config(TrainConfig, given, "train.run")
    _check_environment(config)
    callback = callback or TrainCallback()
    earlier, state = (read_run(folder), _load_state(folder)) if (folder / HEADER).exists() else (None, TrainState())
    with init_processes(config.device) as group, set_threads(config.threads):
        splits = open_splits(config, parts, callback.on_scan) if isinstance(data, str) else data
        resolved = resolve(replace(fit_plan(plan, splits), seed=config.seed), parts)
        if earlier and (run_parts := _match_command(earlier, state, resolved, config, splits, parts)):
            changes = {name: getattr(config, name) for name in ("data", *CHANGEABLE)}
            train_run = replace(earlier, config=replace(earlier.config, **changes))
            model, run_parts = _restore(train_run, state, run_parts, parts, callback if group.is_first else None)
        else:
            state, statistics = TrainState(), statistics or measure_statistics(splits.splits["train"])
            config, run_parts = create_run_parts(config, resolved, splits, statistics.range, parts)
            with stdout_to_stderr(), ignore_breakpoints():  # breakpoints are for the passes of the training
                model = _first_process_first(group, lambda: build_plan(resolved, parts))
            run_parts = _add_output_losses(run_parts, model, config.crop, splits.target, parts)
            network = find_network(model)
            not_loaded = load_init_weights(model, config.init_weights) if config.init_weights else {}
            _check_freeze(network, config)
            mean, std = choose_normalization(network, statistics)
            check_has_names(network.plan)
            owners = find_owners(config, parts, run_parts.output_losses, network)
            train_run = TrainRun(
                folder,
                network.plan,
                config,
                target=splits.target,
                channels=splits.channels,
                mean=mean,
                std=std,
                value_range=statistics.range,
                splits=list_fingerprints(splits),
                plugins=tuple(absolute_target(str(name)) for name in plugins),
                owners=owners,
                code=digest_plugins(owners, parts),
                versions={name: version(name) for name in _VERSIONS},
                command=command,
                loaded=network.loaded,
                not_loaded=not_loaded,
            )
        Trainer(train_run, splits, model, run_parts, group, state, callback, save_every, borders, check_images).train()
    return train_run


def resume(
    folder: str | Path,
    *,
    data: DatasetSplits | str | Path | None = None,
    parts: Parts | None = None,
    callback: TrainCallback | None = None,
    save_every: float = SAVE_EVERY,
    borders: str | Path | None = None,
    check_images: bool = True,
    **options: Any,
) -> TrainRun:
    """Continue an interrupted run; it ends with the weights that it would have had without the interruption.

    Args:
        folder: the folder of the run.
        data: the data set if it was given to `run` as an object, or the new path of a folder that was moved.
        parts, callback, save_every, borders, check_images: as for `run`.
        options: other values of the options that do not change what is trained, such as `device="cpu"`; see
            `unetkit.train.config.CHANGEABLE`. On another device, or with another number of threads, the last digits of
            the weights may differ.

    Raises:
        FileError: The folder contains no run, or its files are damaged.
        PluginError: A plugin that the run uses is not loaded.
        OptionError: The data differ from those that the run began with, or another option would change.
    """
    train_run = read_run(folder)
    given = {name: value for name, value in options.items() if value is not None}
    changes = parse_values(TrainConfig, given, "train.resume")
    if fixed := [name for name in changes if name not in CHANGEABLE]:
        raise OptionError(f"{flag_of(fixed[0])}: cannot be changed when a run is resumed; leave it out")
    config = replace(train_run.config, **changes)
    _check_environment(config)
    parts = parts or (load_parts(train_run.plugins) if train_run.plugins else default_parts())
    parts = train_run.prefer_plugins(parts)
    callback = callback or TrainCallback()
    if data is not None and not isinstance(data, DatasetSplits):
        config = replace(config, data=with_absolute_path(str(data), parts))
    train_run = replace(train_run, config=config)
    with init_processes(config.device) as group, set_threads(config.threads):
        splits = data if isinstance(data, DatasetSplits) else open_splits(config, parts, callback.on_scan)
        _check_data(train_run, splits)
        state = _load_state(train_run.folder)
        resolved = resolve(train_run.plan, parts)
        _, run_parts = create_run_parts(config, resolved, splits, train_run.value_range, parts)
        model, run_parts = _restore(train_run, state, run_parts, parts, callback if group.is_first else None)
        Trainer(train_run, splits, model, run_parts, group, state, callback, save_every, borders, check_images).train()
    return train_run


def _match_command(
    earlier: TrainRun, state: TrainState, plan: ResolvedPlan, config: TrainConfig, data: DatasetSplits, parts: Parts
) -> RunParts | None:
    """Create loss, augmentation and optimizer of a command that continues the run in its folder.

    Returns:
        None if the command differs, and replaces the run, which has saved no step.

    Raises:
        OptionError: The command differs from that of a run that has saved a step.
    """
    try:
        return _create_same_parts(earlier, plan, config, data, parts)
    except OptionError:
        if state.epochs_done or state.steps_done:
            raise
        return None


def _create_same_parts(
    earlier: TrainRun, plan: ResolvedPlan, config: TrainConfig, data: DatasetSplits, parts: Parts
) -> RunParts:
    """Create loss, augmentation and optimizer of a command. Raise OptionError if an option differs from a run's."""

    def refuse(flag: str, new: str, old: str) -> NoReturn:
        had, has = (f"with {one}" if one else "without it" for one in (old, new))
        advice = "give the options that it was started with to continue it, or another --out"
        raise OptionError(f"{flag}: the run in {earlier.folder} was started {had}, not {has}; {advice}")

    def check_fields(config: TrainConfig, names: Iterable[str]) -> None:
        for name in names:
            if getattr(config, name) != getattr(earlier.config, name):
                refuse(flag_of(name), config.format_option(name), earlier.config.format_option(name))

    names = [one.name for one in fields(TrainConfig) if one.name not in ("data", *_COMPLETED, *CHANGEABLE)]
    check_fields(config, names)
    _check_data(earlier, data)
    config, run_parts = create_run_parts(config, plan, data, earlier.value_range, parts)
    with stdout_to_stderr():
        named = find_network(build_plan(plan, parts, device="meta", check=False)).plan
    for word in PLAN_FIELDS:
        new, old = (str(Plan(**{word.name: getattr(one, word.name)})) for one in (named, earlier.plan))
        if new != old:
            refuse(word.flag, new, old)
    check_fields(config, _COMPLETED)
    return run_parts


def _check_data(train_run: TrainRun, data: DatasetSplits) -> None:
    """Raise OptionError if data are not those of a run."""
    if (data.target, list_fingerprints(data)) != (train_run.target, train_run.splits):
        raise OptionError(
            f"{data.source} is not the data of {train_run.folder}, or it has changed: its classes or images differ; "
            "give the original data, or start a new run"
        )


def _restore(
    train_run: TrainRun, state: TrainState, run_parts: RunParts, parts: Parts, callback: TrainCallback | None
) -> tuple[nn.Module, RunParts]:
    """Load the model of a run, or build it if none was saved, and add what trains its outputs."""
    if callback and (changed := train_run.list_changed_plugins(parts)):
        has = "has" if len(changed) == 1 else "have"
        callback.on_note(
            f"the code of {' and '.join(changed)} {has} changed since this run began, so that its weights may differ "
            "from those of a run that was not interrupted"
        )
    is_saved = state.model and (train_run.folder / LAST).exists()
    with stdout_to_stderr(), ignore_breakpoints():
        # The file contains the pretrained weights; building with the plan would download them again.
        model = load(train_run.folder / LAST, parts=parts) if is_saved else build_plan(train_run.plan, parts)
    if not is_saved and train_run.config.init_weights:
        load_init_weights(model, train_run.config.init_weights)
    network = find_network(model)
    network.loaded = train_run.loaded
    if network.plugins:  # only parts and wrappers of plugins have several outputs
        run_parts = _add_output_losses(run_parts, model, train_run.config.crop, train_run.target, parts)
    return model, run_parts


def _load_state(folder: Path) -> TrainState:
    """Read the state that a run is continued from."""
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
