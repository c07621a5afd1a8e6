"""Data sets from text: a folder, or `name:option=value` such as `cells:size=256`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from unetkit.data.folder import open_folder
from unetkit.data.mask_encoding import Progress
from unetkit.data.splits import SplitConfig
from unetkit.data.types import DatasetSplits, Target, find_sample_error, find_splits_error
from unetkit.errors import FileError, OptionError, PluginError, UnknownNameError, did_you_mean
from unetkit.options import format_value
from unetkit.plan import PartSpec
from unetkit.plugins import default_parts
from unetkit.registry import Parts
from unetkit.resolve import create, signature_of
from unetkit.utils.isolation import wrap_errors


def open_data(
    text: str,
    *,
    seed: int = 0,
    val_fraction: float | None = 0.2,
    group_by: str = "",
    ignore_index: int | None = None,
    nodata: float | None = None,
    channels: str = "",
    target: Target | None = None,
    progress: Progress | None = None,
    parts: Parts | None = None,
) -> DatasetSplits:
    """Open a data set.

    Write ./cells for a folder that has the name of a data set.

    Args:
        text: the path of a folder, or the name of a data set with its options.
        seed: the seed of the split if the data have none.
        val_fraction: the share of the images that is then used for validation. With None nothing is split, as for data
            on which a network is scored; images without a split are then "all".
        group_by: a regular expression; files whose names it matches alike are never split.
        ignore_index: a mask value to ignore in a folder, in addition to those of `unetkit.data.mask_encoding`.
        nodata: a number in the images of a folder that means that there are no data, such as -9999 or NaN, in addition
            to the one that a TIFF file declares (GDAL_NODATA). Such pixels are NaN, and ignored in masks.
        channels: "grey" or "rgb" converts images of a folder that have one or three channels.
        target: what the masks of a folder mean, if that is known, for instance from the run that is evaluated.
        progress: is called with the number of masks that were read, and their total number.
        parts: the registered parts; None for all that are installed.

    Raises:
        UnetkitError: The data set or an option does not exist, or files are damaged.
    """
    parts, rules = parts or default_parts(), SplitConfig(seed, val_fraction, group_by)
    return (
        _open_named(text, rules, ignore_index, nodata, channels, parts)
        if is_named_dataset(text, parts)
        else open_folder(text, rules, ignore_index, target, progress, nodata, channels)
    )


def with_absolute_path(text: str, parts: Parts | None = None) -> str:
    """Return the text with an absolute path, which is valid in any working directory."""
    if not is_named_dataset(text, parts):
        return str(Path(text).resolve())
    spec = PartSpec.parse(text)
    roots = {
        name: json.loads(value) if value.startswith('"') else value for name, value in spec.options if name == "root"
    }
    full = {name: format_value(str(Path(root).resolve())) for name, root in roots.items()}
    return str(spec.with_options(full)) if full else text


def is_named_dataset(text: str, parts: Parts | None = None) -> bool:
    """Return whether a text is the name of a data set and not a folder.

    Raises:
        UnknownNameError, FileError: It is neither.
    """
    name, colon, _ = text.partition(":")
    names = (parts or default_parts()).datasets.names()
    if name in names or Path(text).is_dir():
        return name in names
    if colon:
        known = ", ".join(names)
        raise UnknownNameError(
            f"{text}: no dataset is called {name!r}{did_you_mean(name, names) or f'; the datasets are {known}'}"
        )
    what = "is not a folder" if Path(text).exists() else "the folder does not exist"
    raise FileError(f"{text}: {what}; give one, or the name of a data set: {', '.join(names)}")


def _open_named(
    text: str, rules: SplitConfig, ignore_index: int | None, nodata: float | None, channels: str, parts: Parts
) -> DatasetSplits:
    spec = PartSpec.parse(text)
    if spec.chained:
        raise OptionError(f"--data {text}: a + separates parts; put a path that contains one in double quotes")
    splits = bool(signature_of("data", spec, parts).positional)
    defined = {
        "--ignore-index": "ignored pixels" if ignore_index is not None else "",
        "--nodata": "pixels without data" if nodata is not None else "",
        "--channels": "channels" if channels else "",
        "--group-by": "splits" if rules.group_by and not splits else "",
    }
    for flag, what in defined.items():
        if what:
            raise OptionError(f"{flag}: applies only to folders; {spec.name} defines its {what} itself")
    data = create("data", spec, parts, *([rules] if splits else []))
    owner = parts.datasets.get(spec.name).owner
    if why := find_splits_error(data):
        raise PluginError(f"--data {text} (of {owner}): {why}")
    for name, images in data.splits.items():
        with wrap_errors(f"--data {text} (of {owner}): reading the first image of {name} failed"):
            sample = images[0]
        if why := find_sample_error(sample, data):
            raise PluginError(f"--data {text} (of {owner}): the first image of {name}: {why}")
    opened: DatasetSplits = replace(data, source=text)
    return opened
