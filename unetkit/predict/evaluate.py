"""Score a trained network on images with known masks.

Shapes: C channels, L classes or labels, H and W height and width.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from torch.utils.data import ConcatDataset

from unetkit.data.datasets import open_data
from unetkit.data.folder import read_classes
from unetkit.data.sample_checks import check_sample
from unetkit.data.source import is_named_dataset
from unetkit.data.types import Dataset, DatasetSplits, Sample, Target, fingerprint
from unetkit.errors import FileError, OptionError, UnknownNameError
from unetkit.network import Network
from unetkit.plugins import default_parts, load_parts
from unetkit.predict.engines import Engine
from unetkit.predict.torch_engine import TorchEngine, describe_run
from unetkit.registry import Parts
from unetkit.tiling.layout import TileRequirements
from unetkit.tiling.requirements import find_tile_requirements
from unetkit.tiling.stitching import InMemoryImage, iterate_windows, join_windows
from unetkit.train.checkpoint import TrainRun, read_run
from unetkit.train.metrics import Evaluation, ImageScores, describe_separation
from unetkit.utils.formatting import format_plural
from unetkit.utils.modules import check_device, default_device

#: The name of the union of all splits.
ALL = "all"


def open_evaluation(
    run: TrainRun, data: DatasetSplits | str | Path | None, parts: Parts, nodata: float | None = None
) -> DatasetSplits:
    """Open the data set to score a run on: its own with the same split, or another one with the same classes.

    The masks of a folder without classes.txt are read with the classes of the run, so not all of them need to occur.
    `nodata` is the number in images that means that there are no data; None for that of the run in a folder.

    Raises:
        OptionError: The data set has other classes or channels than the run.
        PluginError: A plugin that the run uses is not loaded.
    """
    if data is None:
        parts = run.prefer_plugins(parts)
    if data is None and not _is_known_data(run.config.data, parts):
        raise FileError(
            f"{run.folder} was trained on {run.config.data!r}, which is no folder or data set here; give the data "
            "by --data, and for a data set of a plugin its file by --plugin (one from Python needs such a plugin)"
        )
    opened = data if isinstance(data, DatasetSplits) else _open(run, str(data or run.config.data), parts, nodata)
    if _comparable(opened.target) != _comparable(run.target):
        raise OptionError(
            f"--data {opened.source}: has {_describe_target(opened.target)}, "
            f"but {run.folder} was trained on {_describe_target(run.target)}"
        )
    if opened.channels != run.channels:
        channels = f"images of {format_plural(opened.channels, 'channel')}, but {run.folder} needs {run.channels}"
        raise OptionError(f"--data {opened.source}: has {channels}")
    return opened


def _open(run: TrainRun, text: str, parts: Parts, nodata: float | None) -> DatasetSplits:
    choices = run.config
    target = run.target if not is_named_dataset(text, parts) and read_classes(Path(text)) is None else None
    val = (
        choices.val_fraction if is_same_data(text, choices.data) else None
    )  # what it was not trained on is not split either
    if nodata is None and not is_named_dataset(text, parts):
        nodata = choices.nodata_value
    group, ignore = choices.group_by if val is not None else "", choices.ignore_index
    return open_data(
        text,
        seed=choices.seed if choices.split_seed is None else choices.split_seed,
        val_fraction=val,
        group_by=group,
        ignore_index=ignore,
        nodata=nodata,
        channels="" if is_named_dataset(text, parts) else choices.channels,
        target=target,
        parts=parts,
    )


def _is_known_data(text: str, parts: Parts | None) -> bool:
    try:
        is_named_dataset(text, parts)
    except (FileError, UnknownNameError):
        return False
    return True


def select_images(run: TrainRun, data: DatasetSplits, split: str | None = None) -> tuple[str, Dataset]:
    """Return the images of a split and its name.

    By default "test" if it exists, "val" of the run's own data, else "all".

    Raises:
        OptionError: The split does not exist or is empty.
    """
    name = split or ("test" if "test" in data.splits else "val" if is_training_data(run, data.source) else ALL)
    if name != ALL and name not in data.splits:
        known = [split for split in data.splits if split != ALL]
        advice = f"has {', '.join(known)}; give one of them, or {ALL}" if known else f"has no splits; give {ALL}"
        raise OptionError(f"--split {name}: {data.source} {advice}")
    was = run.splits.get(name)
    if is_training_data(run, data.source) and was and was != fingerprint(data.splits[name]):
        raise OptionError(
            f"--split {name}: {data.source} contains other images than when {run.folder} was trained, so the network "
            f"may have seen some of these; restore them, or use --split {ALL}"
        )
    splits: Any = [*data.splits.values()]
    images: Any = ConcatDataset(splits) if name == ALL else data.splits[name]
    if not len(images):
        raise OptionError(f"--split {name}: {data.source} is empty")
    return name, images


def is_training_data(run: TrainRun, source: str) -> bool:
    """Return whether the run was trained on the data set of this name or path."""
    return is_same_data(source, run.config.data)


def is_same_data(source: str, trained: str) -> bool:
    """Return whether two texts are equal, or are paths of the same folder."""
    return source == trained or (Path(source).is_dir() and Path(source).resolve() == Path(trained).resolve())


def evaluate(
    run: TrainRun | str | Path,
    data: DatasetSplits | str | Path | None = None,
    *,
    split: str | None = None,
    boundary: float | None = None,
    nodata: float | None = None,
    weights: str = "best",
    device: str | None = None,
    parts: Parts | None = None,
    open_engine: Callable[[TrainRun, Network], Engine] | None = None,
    callback: Callable[[int, int], None] = lambda done, count: None,
) -> Evaluation:
    """Score the network of a training run on images with known masks, as `unetkit eval` does.

    Args:
        run: a run, or its folder.
        data: a folder or the name of a data set, or an opened data set; None for the training data.
        split: "test", "val", "train" or "all"; None for the test images, or if there are none, for the validation
            images of the training data, and for all images of other data.
        boundary: the tolerance of the boundary F-score in pixels; None for 0.75% of each image's diagonal.
        nodata: the number in images that means that there are no data; None for that of the training data.
        weights: "best", or "last" for those of the last epoch.
        device: the device; None for a GPU if there is one.
        parts: the registered parts; None for those that are installed and those that the run was trained with.
        open_engine: returns what computes the probabilities; None for the network itself.
        callback: is called with the number of images that are done, and their total number.

    Returns:
        The scores. `micro()` returns those over all pixels, `macro()` the means over images, and `images` those of
        each image.

    Raises:
        FileError: The run or an image cannot be read.
        OptionError: The data do not fit the run, or the split does not exist.
        PluginError: A plugin that the run uses is not loaded.
    """
    for flag, value, kinds, expected in (
        ("run", run, (TrainRun, str, Path), "the folder of a run, or what train.run returned"),
        ("--data", data, (DatasetSplits, str, Path, NoneType), "a folder or the name of a data set"),
        ("--boundary", boundary, (int, float, NoneType), "a number of pixels"),
        ("--nodata", nodata, (int, float, NoneType), "a number"),
    ):
        if not isinstance(value, kinds):
            raise OptionError(f"{flag} {value!r:.80}: must be {expected}")
    if boundary is not None and not 0 <= boundary < float("inf"):
        raise OptionError(f"--boundary {boundary:g}: must be 0 or more")
    run = run if isinstance(run, TrainRun) else read_run(run)
    parts = parts or (load_parts(run.plugins) if run.plugins else default_parts())
    check_device(device, meta=False)
    network = run.network(default_device(device), parts, weights)
    opened = open_evaluation(run, data, parts, nodata)
    name, images = select_images(run, opened, split)
    engine = open_engine(run, network) if open_engine else None
    scored = score_images(run, network, images, engine=engine, tolerance=boundary, callback=callback)
    scored.data, scored.split = opened.source, name
    return scored


def score_images(
    run: TrainRun,
    network: Network,
    images: Dataset,
    *,
    engine: Engine | None = None,
    tiles: TileRequirements | None = None,
    tolerance: float | None = None,
    outlines: bool = True,
    separation: bool = True,
    on_mask: Callable[[Any], object] | None = None,
    callback: Callable[[int, int], None] = lambda done, count: None,
) -> Evaluation:
    """Predict every image and compare with its mask.

    Args:
        run: the run of the network.
        network: the network, on any device; it is set to eval mode.
        images: images whose masks have the run's classes.
        engine: what computes the probabilities; None for the network.
        tiles: what the engine requires of tiles; None for what the network requires.
        tolerance: the tolerance of the boundary F-score in pixels; None for 0.75% of each image's diagonal.
        outlines: whether to compute the boundary F-score, which takes longer than the other scores.
        separation: whether to count the touching objects that are separated.
        on_mask: is called with each predicted mask, a NumPy array (H, W) or (L, H, W) of uint8.
        callback: is called with the number of images that are done, and their total number.

    Raises:
        FileError: An image cannot be read.
    """
    engine = engine or TorchEngine(network.eval(), describe_run(run, network))
    tiles = tiles or find_tile_requirements(network)
    found = Evaluation(run.target, outlines=outlines, tolerance=tolerance, apart=separation)
    for index in range(len(images)):
        callback(index, len(images))
        sample = images[index]
        if isinstance(sample, Sample) and len(sample.image) != run.channels:
            raise FileError(f"{sample.name}: has {len(sample.image)} channels, but {run.folder} needs {run.channels}")
        check_sample(sample, index, run.target, run.channels)
        source = InMemoryImage(run.normalize(sample.image).numpy())
        layout = tiles.layout(source.size)
        chances = torch.from_numpy(join_windows(iterate_windows(engine, source, layout), source.size))
        found.add(sample.name, chances, sample)
        if on_mask is not None:
            on_mask(run.target.to_mask(chances[None])[0].to(torch.uint8).numpy())
    callback(len(images), len(images))
    return found


def report(found: Evaluation) -> dict[str, Any]:
    """Return the scores, the confusion matrix, and the images, lowest scores first, as JSON can hold them."""
    classes = {"kind": found.target.kind, "classes": [*found.target.names]}
    return (
        classes
        | found.summary()
        | {"confusion": found.matrix.tolist(), "each": [*map(_image_to_dict, found.lowest_first())]}
    )


def _image_to_dict(image: ImageScores) -> dict[str, Any]:
    touching = {"touching": describe_separation(image.separated)} if image.separated else {}
    return {"name": image.name, **image.scores.to_dict(), "confusion": image.matrix.tolist(), **touching}


def _comparable(target: Target) -> tuple[str, tuple[str, ...]]:
    return target.kind, target.names


def _describe_target(target: Target) -> str:
    what = "labels" if target.kind == "multilabel" else "classes"
    return f"{len(target.names)} {what} ({', '.join(target.names)})"
