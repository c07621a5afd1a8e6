"""From what was said to what a run needs to begin: data opened, the network's classes and channels, normalisation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from unetkit.data.augment import make_augment
from unetkit.data.opening import open_data
from unetkit.data.sample import Data, Images, known_by
from unetkit.errors import BadOption
from unetkit.inspect.observe import network_of
from unetkit.network import Network
from unetkit.parts.encoders.statistics import Statistics, statistics_of
from unetkit.plan import Plan
from unetkit.sizes import size_of
from unetkit.train.batches import finite
from unetkit.train.choices import Choices
from unetkit.train.losses import make_loss
from unetkit.train.optimising import OPTIMIZERS
from unetkit.train.record import Run

#: Images that the mean and the standard deviation are taken from.
_MEASURED = 200
#: Channels that pretrained weights are for.
_COLOURS = 3
#: Of a training crop, where none is asked for.
_CROP = 256
_VERSIONS = ("unetkit", "torch", "torchvision", "timm", "segmentation-models-pytorch")


def opened(choices: Choices, progress: Callable[[int, int], None] | None = None) -> Data:
    """The data set of a run. `progress` is told how many of its masks, of how many, are scanned."""
    rules: dict[str, Any] = {name: getattr(choices, name) for name in ("seed", "val", "group", "ignore")}
    return open_data(choices.data, **rules, progress=progress)


def fitted(plan: Plan, data: Data) -> Plan:
    """The plan with the classes and channels of the data.

    Raises:
        BadOption: it says others.
    """
    if plan.in_channels not in (None, data.channels):
        what = f"--in-channels {plan.in_channels}: the images of {data.said} have {data.channels}"
        raise BadOption(f"{what}; leave it out, or give that")
    if plan.classes is not None:
        data.target.activation(plan.classes)
    return replace(plan, in_channels=data.channels, classes=plan.classes or data.target.outputs)


def completed(choices: Choices, plan: Plan, data: Data) -> Choices:
    """The choices with nothing left open that the data decide."""
    loss = make_loss(choices.loss, data.target, plan.classes or data.target.outputs).said
    crop = choices.crop or plan.size
    if crop is None:
        height, width = size_of(data.splits["train"][0].image)
        crop = min(height, _CROP), min(width, _CROP)
    optimizer, augment = OPTIMIZERS.said(choices.optimizer), make_augment(choices.augment or data.augment, crop).said
    return replace(choices, loss=loss, crop=crop, augment=augment, optimizer=optimizer)


def run_of(folder: Path, network: Network, choices: Choices, data: Data, plugins: tuple[str, ...], command: str) -> Run:
    """What is known of a run before its first step."""
    mean, std = normalisation(network_of(network), data)
    versions = tuple((name, version(name)) for name in _VERSIONS)
    plan = network_of(network).plan
    return Run(
        folder,
        plan,
        choices,
        target=data.target,
        channels=data.channels,
        mean=mean,
        std=std,
        splits=identities(data),
        plugins=plugins,
        versions=versions,
        command=command,
    )


def identities(data: Data) -> tuple[tuple[str, str], ...]:
    """What tells the images of each split from others."""
    return tuple((name, known_by(images)) for name, images in data.splits.items())


def normalisation(network: Network, data: Data) -> Statistics:
    """Mean and standard deviation of each channel: those that pretrained weights were made with, or of the data."""
    known = statistics_of(network.encoder) if network.plan.pretrained and data.channels == _COLOURS else None
    return known or measured(data.splits["train"])


def measured(images: Images) -> Statistics:
    """Of each channel, over all pixels of up to 200 images, evenly taken; by NumPy, whatever the threads."""
    step, moments = -(-len(images) // _MEASURED), []
    for index in range(0, len(images), step):
        pixels = finite(images[index]).image.flatten(1).numpy().astype(np.float64)
        count = np.full(len(pixels), pixels.shape[1])
        moments.append(np.stack([pixels.sum(1), np.square(pixels).sum(1), count]))
    total, squares, number = np.sum(moments, 0)
    mean = total / number
    std = np.sqrt(np.maximum(squares / number - np.square(mean), 0))
    # A channel that never changes stays as it is.
    return tuple(mean.tolist()), tuple(np.where(std > 1e-8, std, 1.0).tolist())
