"""Border weights of the U-Net paper: more weight for background between cells, the closer these are to each other.

O. Ronneberger, P. Fischer, T. Brox, "U-Net: Convolutional Networks for Biomedical Image Segmentation", MICCAI 2015,
equation 2: w(x) = w_c(x) + w0 exp(-(d1(x) + d2(x))^2 / (2 sigma^2)), where d1 and d2 are the distances to the nearest
and the second nearest cell. This module computes the second term; the loss adds w_c, the weights of the classes.
Shapes: H and W height and width.
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
    """Number the objects (H, W) from 1 without gaps; 0 remains the background."""
    _, numbers = np.unique(np.append(instances.ravel(), 0), return_inverse=True)
    return np.asarray(numbers[:-1].reshape(instances.shape), np.int64)


def connected_components(classes: NDArray[Any]) -> Ints:
    """Number the connected components of each class above 0 (H, W) from 1.

    Pixels are connected by their sides, not by their corners, so that even a thin line of background separates two
    objects. Touching objects of different classes are different components.
    """
    found = np.zeros(classes.shape, np.int64)
    for index in np.unique(classes[classes > 0]):
        labels, _ = ndimage.label(classes == index)
        found += np.where(labels > 0, labels + found.max(), 0)
    return found


def instances_from_mask(mask: Tensor) -> Tensor:
    """Return the connected components of a mask as instances (H, W), for data without instances; IGNORE is background.

    Raises:
        OptionError: The masks are multi-label, so objects may overlap.
    """
    if mask.ndim == 3:
        raise OptionError(
            "border weights need one class for each pixel, but these masks are multi-label; use another loss"
        )
    return torch.from_numpy(connected_components(mask.cpu().numpy()))


#: Weights below this fraction of w0 are set to 0.
TOLERANCE = 1e-4


def border_weights(instances: Tensor, *, w0: float = 10, sigma: float = 5) -> Tensor:
    """Compute w0 exp(-(d1 + d2)^2 / (2 sigma^2)) for each background pixel (H, W) float32.

    Distances are measured between pixel centers, to the nearest pixel of a cell. The weight is 0 in cells, since the
    paper describes it for the borders between them. It is also 0 if there are fewer than two cells, and where it would
    be below w0 * TOLERANCE.

    Args:
        instances: (H, W) integers, with 0 for the background and a number for each cell.
        w0: the largest weight, at a distance of 0.
        sigma: the distance in pixels at which the weight decreases.

    Raises:
        OptionError: w0 is negative, or sigma is not positive.
    """
    check_border(w0, sigma)
    owner = instances.cpu().numpy()
    first, second = _two_distances(owner, sigma * sqrt(-2 * log(TOLERANCE)))
    weights = w0 * np.exp(-((first + second) ** 2) / (2 * sigma**2))
    weights[(owner > 0) | (weights < w0 * TOLERANCE)] = 0
    return torch.from_numpy(weights.astype(np.float32))


def check_border(w0: float, sigma: float) -> None:
    """Raise OptionError if no border weights can be computed with these values."""
    if not (0 <= w0 < inf and 0 < sigma < inf):
        raise OptionError(f"w0 must be 0 or more and sigma above 0; got {w0:g} and {sigma:g}")


def _two_distances(owner: NDArray[np.int64], reach: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Compute the distances to the nearest and the second nearest cell; they are infinite beyond `reach`."""
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
    """A cache of border weights by sample, in memory and, if a folder is given, on disk.

    Each data loading process has its own memory cache; they share the folder. A stored map is valid for its w0, sigma
    and instances; if these change, the map is computed again.
    """

    def __init__(self, w0: float = 10, sigma: float = 5, folder: Path | None = None, memory: int = 2**28) -> None:
        """Set the parameters of `border_weights`, a folder for .npy files, and the memory cache's size in bytes."""
        check_border(w0, sigma)
        self.w0, self.sigma, self.folder, self.memory = w0, sigma, folder, memory
        self.kept: OrderedDict[str, Tensor] = OrderedDict()
        self.bytes = 0

    def __call__(self, sample: Sample) -> Tensor:
        """Return the map (H, W) float32 of a sample of the data set. It is shared, so do not change it in place.

        Raises:
            OptionError: The masks are multi-label.
            FileError: The folder cannot be written to.
        """
        instances = instances_from_mask(sample.mask) if sample.instances is None else sample.instances
        key = self._key(sample.name, instances)
        found = self.kept.pop(key, None)
        if found is None:
            found = self._compute(key, instances)
            self.bytes += found.nbytes
        self.kept[key] = found
        while self.bytes > self.memory:
            self.bytes -= self.kept.popitem(last=False)[1].nbytes
        return found

    def _key(self, name: str, instances: Tensor) -> str:
        key = f"{name}\0{self.w0!r}\0{self.sigma!r}\0{tuple(instances.shape)}\0".encode()
        return hashlib.sha256(key + instances.cpu().long().numpy().tobytes()).hexdigest()[:32]

    def _compute(self, key: str, instances: Tensor) -> Tensor:
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
        raise FileError(f"{path} cannot be written: {error.strerror or error}; free some space") from error


def _read(path: Path, shape: tuple[int, ...]) -> Tensor | None:
    """Read a map from a file; None if the file does not exist or does not contain such a map."""
    try:
        with path.open("rb") as file:
            found = np.lib.format.read_array(file)
    except (OSError, ValueError):
        return None
    return torch.from_numpy(found) if found.shape == shape and found.dtype == np.float32 else None
