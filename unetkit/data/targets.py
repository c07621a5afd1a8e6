"""Targets: what outputs beside the prediction are trained on, each a function of the mask of a training image.

A target is created with the meaning of the masks, declares the meaning of its maps in `maps`, and computes a map from
a mask that was augmented and cropped. Shapes: L labels, C numbers of a pixel, H and W height and width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from unetkit.data.border_weights import connected_components
from unetkit.data.types import IGNORE, Target
from unetkit.errors import OptionError

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


class Boundary:
    """Pixels near a boundary of classes, as a mask of 0 and 1 (Chen 2016, DCAN).

    Two touching objects of one class have no boundary between them, since a mask does not tell them apart. Multi-label
    masks have a map for each label.

    Args:
        width: how far a pixel may be from one of another class, in pixels along rows and columns.
    """

    def __init__(self, masks: Target, *, width: int = 1) -> None:
        if width < 1:
            raise OptionError(f"width={width} must be at least 1")
        self.width = width
        is_multilabel = masks.kind == "multilabel"
        self.maps = Target("multilabel", masks.names) if is_multilabel else Target("binary", ("inside", "boundary"))

    def __call__(self, mask: Tensor) -> Tensor:
        """(H, W) or (L, H, W) int64 -> as many maps of 0, 1 and IGNORE, int64."""
        planes = mask.reshape(-1, *mask.shape[-2:])
        known = planes != IGNORE
        high = self._largest_nearby(planes.float().masked_fill(~known, -torch.inf))
        low = -self._largest_nearby((-planes.float()).masked_fill(~known, -torch.inf))
        return torch.where(known, (high > low).long(), IGNORE).reshape(mask.shape)

    def _largest_nearby(self, planes: Tensor) -> Tensor:
        return F.max_pool2d(planes, 2 * self.width + 1, stride=1, padding=self.width)


class _ObjectNumbers:
    """The base class of targets with a number for each pixel; multi-label masks have one for each label."""

    name = ""

    def __init__(self, masks: Target) -> None:
        self.maps = Target("regression", masks.names if masks.kind == "multilabel" else (self.name,))

    def _map_planes(self, mask: Tensor, compute: Callable[[Ints], Floats]) -> Tensor:
        """Compute the numbers of each plane of a mask: (H, W) or (L, H, W) int64 -> (C, H, W), NaN where ignored."""
        planes = mask.reshape(-1, *mask.shape[-2:])
        found = torch.stack([torch.from_numpy(compute(plane.numpy())) for plane in planes])
        return found.masked_fill(planes == IGNORE, torch.nan)


class Distance(_ObjectNumbers):
    """Distance of a pixel to the edge of its object, as a share of the largest in it (Naylor 2019, Scherr 2020).

    It is 0 outside of objects, which are the connected components of each class but the background.
    """

    name = "distance"

    def __call__(self, mask: Tensor) -> Tensor:
        """(H, W) or (L, H, W) int64 -> (C, H, W) float32 from 0 to 1, NaN where ignored."""
        return self._map_planes(mask, _distances)


class Center(_ObjectNumbers):
    """Heat map with a Gaussian around the center of mass of each object (Cheng 2020, Panoptic-DeepLab).

    Objects are the connected components of each class but the background. Where several Gaussians overlap, the largest
    value counts.

    Args:
        sigma: standard deviation of the Gaussian in pixels.
    """

    name = "center"

    def __init__(self, masks: Target, *, sigma: float = 8.0) -> None:
        super().__init__(masks)
        if not 0 < sigma < float("inf"):
            raise OptionError(f"sigma={sigma:g} must be above 0")
        self.sigma = sigma

    def __call__(self, mask: Tensor) -> Tensor:
        """(H, W) or (L, H, W) int64 -> (C, H, W) float32 from 0 to 1, NaN where ignored."""
        return self._map_planes(mask, self._heat)

    def _heat(self, plane: Ints) -> Floats:
        objects = connected_components(plane)
        is_elsewhere = np.ones(plane.shape, bool)
        for center in ndimage.center_of_mass(objects > 0, objects, range(1, objects.max() + 1)):
            row, column = map(round, center)
            is_elsewhere[row, column] = False
        if is_elsewhere.all():
            return np.zeros(plane.shape, np.float32)
        squares = _distance_transform(is_elsewhere) ** 2
        return np.exp(-squares / (2 * self.sigma**2)).astype(np.float32)


def _distances(plane: Ints) -> Floats:
    """Compute the distance of each pixel of an object to its edge, divided by the largest in the object."""
    objects, found = connected_components(plane), np.zeros(plane.shape)
    for index in np.unique(plane[plane > 0]):
        # What an ignored pixel is, is unknown, so that it is no edge.
        inside = (plane == index) | (plane == IGNORE)
        distance = np.ones(plane.shape) if inside.all() else _distance_transform(inside)
        found = np.where(plane == index, distance, found)
    largest = np.asarray(ndimage.maximum(found, objects, np.arange(objects.max() + 1)))
    return np.asarray(found / np.where(largest > 0, largest, 1)[objects], np.float32)


def _distance_transform(inside: NDArray[Any]) -> NDArray[np.float64]:
    return np.asarray(ndimage.distance_transform_edt(inside), np.float64)
