"""Check a sample, a mask and the splits of a data set, and describe in words what is wrong."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from unetkit.data.types import IGNORE, NOT_FINITE, Dataset, DatasetSplits, Sample, Target, has_finite_values
from unetkit.errors import FileError
from unetkit.utils.formatting import format_type


def describe_tensor(value: Any) -> str:
    """Describe a tensor for a message, as in "int64 of 32x32", or what a value is instead."""
    if not isinstance(value, Tensor):
        return "missing" if value is None else format_type(value)
    return f"{str(value.dtype).removeprefix('torch.')} of {_format_shape(value.shape)}"


def _format_shape(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape)) or "no dimensions"


class CheckedImages:
    """The images of a split, each checked when it is read: one that does not fit would fail later, deep in a loss."""

    def __init__(self, images: Dataset, target: Target, channels: int) -> None:
        self.images, self.target, self.channels = images, target, channels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int, /) -> Sample:
        return check_sample(self.images[index], index, self.target, self.channels)


def check_sample(sample: Sample, index: int, target: Target, channels: int) -> Sample:
    """Return a sample. Raise FileError with its name if it does not fit the target or the number of channels."""
    if why := find_sample_error(sample, target, channels):
        raise FileError(f"{getattr(sample, 'name', f'image {index}')}: {why}")
    return sample


def find_sample_error(sample: Any, target: Target, channels: int) -> str:
    """Say in words what is wrong with a sample of a data set; "" if nothing is."""
    if not isinstance(sample, Sample):
        return f"is {format_type(sample)}; expected a unetkit.data.types.Sample"
    image: Any = sample.image
    fits = isinstance(image, torch.Tensor) and image.dtype == torch.float32 and image.ndim == 3
    if not fits or len(image) != channels:
        return f"its image is {describe_tensor(image)}; expected float32 of {channels}xHxW"
    if error := find_mask_error(sample.mask, target, image.shape[-2:]):
        return f"its mask {error}"
    return "" if has_finite_values(sample) else NOT_FINITE


def find_mask_error(mask: Any, target: Target, size: Iterable[int]) -> str:
    """Say in words what is wrong with a mask, or a map for regression, of some height and width; "" if nothing is."""
    has_planes, dtype = target.kind in ("multilabel", "regression"), torch.int64
    if target.kind == "regression":
        dtype = torch.float32
    shape = [*([len(target.names)] if has_planes else []), *size]
    if not isinstance(mask, torch.Tensor) or mask.dtype != dtype or list(mask.shape) != shape:
        expected = f"{str(dtype).removeprefix('torch.')} of {_format_shape(shape)}"
        return f"is {describe_tensor(mask)}; expected {expected}"
    if target.kind == "regression":
        return "has infinite values; expected numbers, or NaN for ignored pixels" if mask.isinf().any() else ""
    highest = 1 if target.kind == "multilabel" else len(target.names) - 1
    if mask.min() < IGNORE or mask.max() > highest:
        values = f"has values from {int(mask.min())} to {int(mask.max())}"
        return f"{values}; expected 0 to {highest}, or {IGNORE} for ignored pixels"
    return ""


def find_splits_error(data: Any) -> str:
    """Say in words what is wrong with what a data set's factory returned, apart from its samples; "" if nothing is."""
    if not isinstance(data, DatasetSplits):
        return f"returns {format_type(data)}; expected a unetkit.data.types.DatasetSplits"
    if data.target.kind == "regression":
        return "its target is of the kind regression, which outputs have; masks are binary, multiclass or multilabel"
    splits: Any = data.splits
    if not isinstance(splits, Mapping):
        return f"its splits are {format_type(splits)}; expected a mapping with at least train and val"
    if lacking := {"train", "val"} - {*data.splits}:
        has = f" (it has {', '.join(map(str, data.splits))})" if data.splits else ""
        return f"has no split {min(lacking)!r}; it needs at least train and val{has}"
    return next((f"split {name!r} is empty" for name, images in data.splits.items() if not len(images)), "")
