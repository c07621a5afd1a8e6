"""Data sets from text: a folder, or `name:option=value` such as `cells:size=256`."""

from __future__ import annotations

from dataclasses import replace

from unetkit.data.folder import open_folder
from unetkit.data.mask_encoding import Progress
from unetkit.data.sample_checks import find_sample_error, find_splits_error
from unetkit.data.source import is_named_dataset
from unetkit.data.splits import SplitConfig
from unetkit.data.types import DatasetSplits, Target
from unetkit.errors import OptionError, PluginError
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
        if why := find_sample_error(sample, data.target, data.channels):
            raise PluginError(f"--data {text} (of {owner}): the first image of {name}: {why}")
    opened: DatasetSplits = replace(data, source=text, is_split=data.is_split and not splits)
    return opened
