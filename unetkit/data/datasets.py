"""A data set from the text that names it: a folder, or `name:option=value`, such as `cells:size=256`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from unetkit.data.folder import open_folder
from unetkit.data.mask_encoding import Progress
from unetkit.data.splits import SplitConfig
from unetkit.data.types import DatasetSplits, Target
from unetkit.errors import FileError, OptionError, UnknownNameError, did_you_mean
from unetkit.options import format_value
from unetkit.plan import PartSpec
from unetkit.resolve import Menu

#: Sets that are named, and what makes each: its keyword-only parameters are the options.
SOURCES = Menu(
    "data",
    "set",
    "docs/data.md",
    {
        "cells": "unetkit.data.synthetic_cells:cells",
        "voc": "unetkit.data.torchvision_datasets:voc",
        "pet": "unetkit.data.torchvision_datasets:pet",
        "cityscapes": "unetkit.data.torchvision_datasets:cityscapes",
    },
)


def open_data(
    text: str,
    *,
    seed: int = 0,
    val_fraction: float | None = 0.2,
    group_by: str = "",
    ignore_index: int | None = None,
    target: Target | None = None,
    progress: Progress | None = None,
) -> DatasetSplits:
    """Open a data set.

    A folder whose name is also that of a set is written ./cells.

    Args:
        text: a folder's path, or the name of a set with its options.
        seed: of the split, where the data have none.
        val_fraction: the share that is set aside for validation then; None sets nothing aside, as for data that a network is
            scored on: what has no split is "all" then.
        group_by: a regular expression; names in which it finds the same stay on one side.
        ignore_index: the number in a folder's masks that counts nowhere, beside what `unetkit.data.mask_encoding` says.
        target: what a folder's masks mean, where that is known, as from the run that is evaluated.
        progress: told how many masks of how many are scanned.

    Raises:
        UnetkitError: there is no such set or option, or its files are not whole.
    """
    rules = SplitConfig(seed, val_fraction, group_by)
    return _made(text, rules, ignore_index) if named(text) else open_folder(text, rules, ignore_index, target, progress)


def absolute(text: str) -> str:
    """The text with the full path of its folder, which is the same from anywhere."""
    if not named(text):
        return str(Path(text).resolve())
    spec = PartSpec.parse(text)
    roots = {name: json.loads(said) if said.startswith('"') else said for name, said in spec.options if name == "root"}
    full = {name: format_value(str(Path(said).resolve())) for name, said in roots.items()}
    return str(spec.with_options(full)) if full else text


def named(text: str) -> bool:
    """Whether a text names a set, and not a folder. Raises UnknownNameError, FileError where it is neither."""
    name, colon, _ = text.partition(":")
    names = SOURCES.factories
    if name in names or Path(text).is_dir():
        return name in names
    if colon:
        known = ", ".join(names)
        raise UnknownNameError(f"{text}: there is no set {name!r}{did_you_mean(name, names) or f'; there are {known}'}")
    what = "is no folder" if Path(text).exists() else "there is no such folder"
    raise FileError(f"{text}: {what}; give one, or a set by name: {', '.join(names)}")


def _made(text: str, rules: SplitConfig, ignore_index: int | None) -> DatasetSplits:
    spec = PartSpec.parse(text)
    if spec.then:
        raise OptionError(f"--data {text}: a + would start another part; put a path that holds one in double quotes")
    splits = bool(SOURCES.signature(spec).positional)
    if ignore_index is not None or (rules.group_by and not splits):
        flag = "--ignore-index" if ignore_index is not None else "--group-by"
        raise OptionError(
            f"{flag}: is for folders; {spec.name} says itself {'what counts' if ignore_index else 'its splits'}"
        )
    data: DatasetSplits = SOURCES.make(spec, *([rules] if splits else []))
    return replace(data, said=text)
