"""The border map of 2015: more weight for the background between cells, the nearer they lie to one another.

O. Ronneberger, P. Fischer, T. Brox, "U-Net: Convolutional Networks for Biomedical Image Segmentation", MICCAI 2015,
equation 2: w(x) = w_c(x) + w0 exp(-(d1(x) + d2(x))^2 / (2 sigma^2)), with d1 and d2 the distances to the nearest and
second nearest cell. Here is the second term; the loss adds w_c, the weights of the classes.

H and W height and width.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from math import inf, log, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from unetkit.data.types import Sample
from unetkit.errors import FileError, OptionError
from unetkit.utils.files import atomic_write

Ints = NDArray[np.int64]


def relabel(instances: NDArray[Any]) -> Ints:
    """The same objects (H, W), numbered from 1 without gaps; 0 stays the background."""
    _, numbers = np.unique(np.append(instances.ravel(), 0), return_inverse=True)
    return np.asarray(numbers[:-1].reshape(instances.shape), np.int64)


def connected_components(classes: NDArray[Any]) -> Ints:
    """The connected pieces of each class above 0 (H, W), numbered from 1.

    Pixels are connected by their sides, not their corners, so that a line of background, however thin, keeps two
    objects apart. Objects of two classes are two, though they touch.
    """
    found = np.zeros(classes.shape, np.int64)
    for index in np.unique(classes[classes > 0]):
        labels, _ = ndimage.label(classes == index)
        found += np.where(labels > 0, labels + found.max(), 0)
    return found


def instances_of(mask: Tensor) -> Tensor:
    """What stands for objects (H, W) where the data do not tell them apart: `pieces`. What is IGNORE is background.

    Raises:
        OptionError: the masks are multi-label, in which objects may lie over one another.
    """
    if mask.ndim == 3:
        raise OptionError("border weights need one class a pixel, and these masks are multi-label; take another loss")
    return torch.from_numpy(connected_components(mask.cpu().numpy()))


#: What a weight may differ by from the formula's, as a share of w0: lower ones are 0.
TOLERANCE = 1e-4


def border_weights(instances: Tensor, *, w0: float = 10, sigma: float = 5) -> Tensor:
    """The term w0 exp(-(d1 + d2)^2 / (2 sigma^2)) of each pixel of the background (H, W) float32.

    A distance is that to the nearest pixel of a cell, from centre to centre. Pixels of cells have 0: the paper means
    the term for the borders that separate them. All is 0 where there are fewer than two cells, and where the term
    would be below w0 * TOLERANCE.

    Args:
        instances: (H, W) of integers, 0 the background and each cell a number of its own.
        w0: the largest weight, which background without width would have.
        sigma: how fast it falls, in pixels.

    Raises:
        OptionError: w0 is below 0, or sigma not above it.
    """
    check_border(w0, sigma)
    owner = instances.cpu().numpy()
    first, second = _two_distances(owner, sigma * sqrt(-2 * log(TOLERANCE)))
    weights = w0 * np.exp(-((first + second) ** 2) / (2 * sigma**2))
    weights[(owner > 0) | (weights < w0 * TOLERANCE)] = 0
    return torch.from_numpy(weights.astype(np.float32))


def check_border(w0: float, sigma: float) -> None:
    """Raise OptionError where there can be no such map."""
    if not (0 <= w0 < inf and 0 < sigma < inf):
        raise OptionError(f"w0 must be 0 or more and sigma above 0; got {w0:g} and {sigma:g}")


def _two_distances(owner: NDArray[np.int64], reach: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Distances to the nearest and second nearest cell, infinite where they are beyond `reach`."""
    first, second = (np.full(owner.shape, np.inf, np.float32) for _ in range(2))
    numbers = relabel(owner)
    margin = int(reach) + 1
    for number, box in enumerate(ndimage.find_objects(numbers), 1):
        window = tuple(slice(max(0, side.start - margin), side.stop + margin) for side in box)
        far = ndimage.distance_transform_edt(numbers[window] != number).astype(np.float32)
        far[far > reach] = np.inf
        second[window] = np.minimum(second[window], np.maximum(first[window], far))
        first[window] = np.minimum(first[window], far)
    return first, second


class BorderMaps:
    """The border map of a sample, remembered: in memory, and in a folder where one is given.

    Processes that load data have a memory each; a folder they share. What is in it is for these w0 and sigma, and for
    instances as they were: where they change, the map is computed anew.
    """

    def __init__(self, w0: float = 10, sigma: float = 5, folder: Path | None = None, memory: int = 2**28) -> None:
        """Take what `border_weights` takes, a folder for .npy files, and how many bytes of memory to fill."""
        check_border(w0, sigma)
        self.w0, self.sigma, self.folder, self.memory = w0, sigma, folder, memory
        self.kept: OrderedDict[str, Tensor] = OrderedDict()
        self.bytes = 0

    def __call__(self, sample: Sample) -> Tensor:
        """The map (H, W) float32 of a sample as the data set gives it. It is shared: do not change it in place.

        Raises:
            OptionError: its masks are multi-label.
            FileError: the folder cannot be written to.
        """
        instances = instances_of(sample.mask) if sample.instances is None else sample.instances
        key = self._key(sample.name, instances)
        found = self.kept.pop(key, None)
        if found is None:
            found = self._made(key, instances)
            self.bytes += found.nbytes
        self.kept[key] = found
        while self.bytes > self.memory:
            self.bytes -= self.kept.popitem(last=False)[1].nbytes
        return found

    def _key(self, name: str, instances: Tensor) -> str:
        said = f"{name}\0{self.w0!r}\0{self.sigma!r}\0{tuple(instances.shape)}\0".encode()
        return hashlib.sha256(said + instances.cpu().long().numpy().tobytes()).hexdigest()[:32]

    def _made(self, key: str, instances: Tensor) -> Tensor:
        path = self.folder / f"{key}.npy" if self.folder else None
        if path and (there := _read(path, tuple(instances.shape))) is not None:
            return there
        made = border_weights(instances, w0=self.w0, sigma=self.sigma)
        if path:
            _write(path, made)
        return made


def _write(path: Path, made: Tensor) -> None:
    try:
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            np.save(file, made.numpy())
    except OSError as error:
        raise FileError(f"{path} cannot be written: {error.strerror or error}; make room") from error


def _read(path: Path, shape: tuple[int, ...]) -> Tensor | None:
    """A map from its file; None where there is none, or what is there is no such map."""
    try:
        with path.open("rb") as file:
            found = np.lib.format.read_array(file)
    except (OSError, ValueError):
        return None
    return torch.from_numpy(found) if found.shape == shape and found.dtype == np.float32 else None
