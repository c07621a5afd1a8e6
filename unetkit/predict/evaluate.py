"""A trained network scored on images whose masks are known.

C channels, L classes or labels, H and W height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from unetkit.data.datasets import is_named_dataset, open_data
from unetkit.data.folder import read_classes
from unetkit.data.types import Dataset, DatasetSplits, Sample, Target, fingerprint
from unetkit.errors import FileError, OptionError
from unetkit.network import Network
from unetkit.tiling.sliding_window import tiled
from unetkit.train.checkpoint import TrainRun
from unetkit.train.metrics import Evaluation, ImageScores, describe_separation

#: All splits together.
ALL = "all"


class Together:
    """Several splits as one."""

    def __init__(self, splits: Sequence[Dataset]) -> None:
        self.splits = splits

    def __len__(self) -> int:
        return sum(map(len, self.splits))

    def __getitem__(self, index: int, /) -> Sample:
        for split in self.splits:
            if index < len(split):
                return split[index]
            index -= len(split)
        raise IndexError(index)


def open_evaluation(run: TrainRun, text: str | None = None) -> DatasetSplits:
    """The data set to score a run on: its own, split as it was, or another with the same classes.

    The masks of a folder that names no classes are read by those of the run, so that none need occur in them.

    Raises:
        OptionError: it has other classes or channels than the run.
    """
    choices = run.config
    text = text or choices.data
    target = run.target if not is_named_dataset(text) and read_classes(Path(text)) is None else None
    val = (
        choices.val_fraction if same_place(text, choices.data) else None
    )  # what it was not trained on is not split either
    group, ignore = choices.group_by if val is not None else "", choices.ignore_index
    data = open_data(text, seed=choices.seed, val_fraction=val, group_by=group, ignore_index=ignore, target=target)
    if _meaning(data.target) != _meaning(run.target):
        raise OptionError(
            f"--data {text}: has {_said(data.target)}, and {run.folder} was trained on {_said(run.target)}"
        )
    if data.channels != run.channels:
        channels = f"images of {data.channels} channel(s), and {run.folder} takes {run.channels}"
        raise OptionError(f"--data {text}: has {channels}")
    return data


def chosen(run: TrainRun, data: DatasetSplits, split: str | None = None) -> tuple[str, Dataset]:
    """The images of a split, and its name: "test" where there is one, "val" of the run's own data, else "all".

    Raises:
        OptionError: there is no such split, or it is empty.
    """
    name = split or ("test" if "test" in data.splits else "val" if own(run, data) else ALL)
    if name != ALL and name not in data.splits:
        raise OptionError(f"--split {name}: {data.source} has {', '.join(data.splits)}; give one of them, or {ALL}")
    was = dict(run.splits).get(name)
    if own(run, data) and was and was != fingerprint(data.splits[name]):
        raise OptionError(
            f"--split {name}: {data.source} holds other images than when {run.folder} was trained, which may have seen "
            f"some of these; put them back, or give --split {ALL}"
        )
    images = Together([*data.splits.values()]) if name == ALL else data.splits[name]
    if not len(images):
        raise OptionError(f"--split {name}: {data.source} has no image in it")
    return name, images


def own(run: TrainRun, data: DatasetSplits) -> bool:
    """Whether it is what the run was trained on."""
    return same_place(data.source, run.config.data)


def same_place(said: str, trained: str) -> bool:
    """Whether two texts are the same, or paths of one folder."""
    return said == trained or (Path(said).is_dir() and Path(said).resolve() == Path(trained).resolve())


def evaluate(
    run: TrainRun,
    network: Network,
    images: Dataset,
    *,
    tolerance: float | None = None,
    tell: Callable[[int, int], None] = lambda done, count: None,
) -> Evaluation:
    """Pass every image and compare.

    Args:
        run: whose network it is.
        network: in eval mode, on any device.
        images: with the masks of the run's classes.
        tolerance: of the boundary F-score in pixels; 0.75% of each image's diagonal, if None.
        tell: told how many images of how many are done.

    Raises:
        FileError: an image cannot be read.
    """
    found = Evaluation(run.target, outlines=True, tolerance=tolerance, apart=True)
    for index in range(len(images)):
        tell(index, len(images))
        sample = images[index]
        if len(sample.image) != run.channels:
            raise FileError(f"{sample.name}: has {len(sample.image)} channels, and {run.folder} takes {run.channels}")
        found.add(sample.name, probabilities(run, network, sample.image), sample)
    tell(len(images), len(images))
    return found


def probabilities(run: TrainRun, network: Network, image: Tensor) -> Tensor:
    """Of an image (C, H, W) as it was read, (L, H, W) on the CPU; what `unetkit predict` gives of it."""
    return tiled(network, run.normalize(image), then=run.target.probabilities)


def report(found: Evaluation) -> dict[str, Any]:
    """All that there is to say, as JSON can hold it: the scores, the confusion, and the images, worst first."""
    classes = {"kind": found.target.kind, "classes": [*found.target.names]}
    return classes | found.summary() | {"confusion": found.matrix.tolist(), "each": [*map(_each, found.lowest_first())]}


def _each(image: ImageScores) -> dict[str, Any]:
    touching = {"touching": describe_separation(image.separated)} if image.separated else {}
    return {"name": image.name, **image.scores.to_dict(), "confusion": image.matrix.tolist(), **touching}


def _meaning(target: Target) -> tuple[str, tuple[str, ...]]:
    return target.kind, target.names


def _said(target: Target) -> str:
    what = "labels" if target.kind == "multilabel" else "classes"
    return f"{len(target.names)} {what} ({', '.join(target.names)})"
