"""Statistics of the values of training images, by which they are normalized and augmented.

Shapes: C channels, N values.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from unetkit.data.types import Dataset, check_values
from unetkit.utils.integers import ceil_div

#: The number of images that are read for the statistics, and the number of values of each that percentiles are of.
_MAX_IMAGES, _MAX_VALUES = 200, 20_000
#: The percentiles that are the ends of the range, as in nnU-Net (Isensee 2021).
_ENDS = 0.5, 99.5


class ValueRange(NamedTuple):
    """The range of each channel, from the 0.5th to the 99.5th percentile."""

    low: tuple[float, ...]
    high: tuple[float, ...]


class ImageStatistics(NamedTuple):
    """Statistics of each channel of a data set's images; a constant channel has a standard deviation of 1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    range: ValueRange


def measure_statistics(images: Dataset) -> ImageStatistics:
    """Measure each channel over up to 200 evenly spaced images. Pixels without data (NaN) do not count.

    NumPy computes the statistics, so that they do not depend on the number of threads.

    Raises:
        FileError: An image cannot be read.
    """
    moments, some, ends = [], [], []
    for index in range(0, len(images), ceil_div(len(images), _MAX_IMAGES)):
        values = check_values(images[index]).image.flatten(1).numpy()
        values = values[:, np.isfinite(values).all(0)].astype(np.float64)
        if not values.size:
            continue
        moments.append(np.stack([values.sum(1), np.square(values).sum(1), np.full(len(values), values.shape[1])]))
        some.append(values[:, :: ceil_div(values.shape[1], _MAX_VALUES)])
        ends.append(np.stack([values.min(1), values.max(1)]))
    if not moments:
        channels = len(images[0].image)
        return ImageStatistics((0.0,) * channels, (1.0,) * channels, ValueRange((0.0,) * channels, (1.0,) * channels))
    total, squares, number = np.sum(moments, 0)
    mean = total / number
    std = np.sqrt(np.maximum(squares / number - np.square(mean), 0))
    # A constant channel is only centred.
    std = np.where(std > 1e-7 * np.abs(mean), std, 1.0)
    low, high = np.percentile(np.concatenate(some, 1), _ENDS, axis=1)
    # Where nearly all values are equal, such as the black around a few stars, the others are the range.
    lowest, highest = np.min(ends, 0)[0], np.max(ends, 0)[1]
    low, high = np.where(high > low, low, lowest), np.where(high > low, high, highest)
    # A constant channel varies as much as the one that varies most.
    widest = float((high - low).max()) or 1.0
    high = np.where(high > low, high, low + widest)
    return ImageStatistics(_floats(mean), _floats(std), ValueRange(_floats(low), _floats(high)))


class FarValue(NamedTuple):
    """A number that may mean that there are no data: the lowest or highest of an image, apart from all others.

    Attributes:
        value: the number as it is stored.
        low, high: the 0.5th and the 99.5th percentile of the other numbers.
        certain: whether no measurement can be meant.
    """

    value: float
    low: float
    high: float
    certain: bool

    def describe(self) -> str:
        """Say in words what was found and what to do."""
        advice = f"if it means that there are no data, give --nodata {self.value:g}"
        return f"{self.value:g}, but otherwise numbers from {self.low:g} to {self.high:g}; {advice}"


#: The least share of an image's pixels that have such a number, and the least number of others.
_LEAST_SHARE, _LEAST_OTHERS = 1e-3, 8


def find_far_value(values: np.ndarray) -> FarValue | None:
    """Find a number in an image as it is stored, (H, W) or (H, W, C), that may mean that there are no data.

    It is the lowest or highest number of many pixels, beyond a gap: one of ten times the range of all other numbers (a
    tenth of that for a negative number), or one at the end of an integer type, where a quarter is enough.
    """
    if values.dtype.kind == "b" or not values.size:
        return None
    ends = (np.iinfo(values.dtype).min, np.iinfo(values.dtype).max) if values.dtype.kind in "iu" else ()
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values.ravel()
    for value, is_lowest in ((finite.min(), True), (finite.max(), False)) if finite.size else ():
        same = finite == value
        if same.mean() < _LEAST_SHARE:
            continue
        others = finite[~same][:: ceil_div(int((~same).sum()), 1_000_000) or 1].astype(np.float64)
        if len(np.unique(others)) < _LEAST_OTHERS:
            continue
        low, high = np.percentile(others, _ENDS)
        gap = (low - float(value) if is_lowest else float(value) - high) / max(high - low, np.finfo(float).tiny)
        certain = gap > (1 if is_lowest and value < 0 else 10)
        if certain or (value in ends and gap > 0.25):
            return FarValue(float(value), float(low), float(high), certain)
    return None


def _floats(values: np.ndarray) -> tuple[float, ...]:
    return tuple(map(float, values))
