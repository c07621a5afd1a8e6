"""Objects in a mask: connected pieces, and numbers without gaps.

H and W height and width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from unetkit.errors import BadOption

Ints = NDArray[np.int64]


def numbered(instances: NDArray[Any]) -> Ints:
    """The same objects (H, W), numbered from 1 without gaps; 0 stays the background."""
    _, numbers = np.unique(np.append(instances.ravel(), 0), return_inverse=True)
    return np.asarray(numbers[:-1].reshape(instances.shape), np.int64)


def pieces(classes: NDArray[Any]) -> Ints:
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
        BadOption: the masks are multi-label, in which objects may lie over one another.
    """
    if mask.ndim == 3:
        raise BadOption("border weights need one class a pixel, and these masks are multi-label; take another loss")
    return torch.from_numpy(pieces(mask.cpu().numpy()))
