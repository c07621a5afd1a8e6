"""The set `cells`: synthetic microscopy, made on the fly from a seed.

Cells of varied shape lie in clusters, pressed together; in the mask a line of background, 1 or 2 pixels wide, keeps
those that touch apart, as in the sets that U-Net was made for. See docs/cells.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from unetkit.data.cell_looks import looks
from unetkit.data.cell_places import KINDS, placed
from unetkit.data.cell_shapes import apart, regions
from unetkit.data.sample import Data, Sample
from unetkit.data.streams import numbers
from unetkit.data.target import Target
from unetkit.errors import BadOption


@dataclass(frozen=True)
class Cells:
    """A split of it: each sample depends on what stands here and on its index alone. See `cells`."""

    split: str
    count: int
    size: int
    classes: int
    seed: int
    radius: float
    crowding: float
    noise: float

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int, /) -> Sample:
        if not 0 <= index < self.count:
            raise IndexError(f"{self.split} has samples 0 to {self.count - 1}; got {index}")
        rng = numbers(self.seed, "cells", self.split, index)
        kinds = self.classes - 1 if self.classes > 2 else len(KINDS)
        lying = placed(rng, self.size, self.radius, self.crowding, kinds)
        maps = regions(lying, self.size)
        owner = apart(maps.owner, least=round(0.5 * self.radius**2))
        image = torch.from_numpy(looks(rng, lying, maps, owner, self.radius, self.noise))[None]
        kind = lying.kind + 1 if self.classes > 2 else np.ones_like(lying.kind)
        mask = torch.from_numpy(np.concatenate([[0], kind])[owner])
        return Sample(f"{self.split}-{index:05d}", image, mask, torch.from_numpy(owner))


def cells(
    *,
    count: int = 200,
    val: int = 40,
    test: int = 40,
    size: int = 128,
    classes: int = 2,
    seed: int = 0,
    radius: float = 10,
    crowding: float = 0.6,
    noise: float = 1,
) -> Data:
    """Synthetic microscopy with touching cells, made on the fly.

    Args:
        count: training images.
        val: images to choose the best weights by.
        test: images to judge them by at the end.
        size: height and width of an image, in pixels.
        classes: 2 for background and cell; 3 to 6 for as many kinds of cell less one, which differ in shape, size
            and texture.
        seed: of all that is random.
        radius: of an ordinary cell, in pixels.
        crowding: the share of the image that cells would cover, did none overlap.
        noise: how much of it, 1 being usual.

    Raises:
        BadOption: a number out of its range.
    """
    least: dict[str, float] = {"count": 1, "val": 1, "test": 0, "size": 16, "seed": 0, "radius": 4, "noise": 0}
    given = locals()
    for name, value in least.items():
        if not given[name] >= value:
            raise BadOption(f"cells: {name} must be at least {value:g}; got {given[name]:g}")
    if not 2 <= classes <= len(KINDS) + 1:
        raise BadOption(f"cells: classes takes 2 to {len(KINDS) + 1}; got {classes}")
    if not 0 < crowding <= 1.5:
        raise BadOption(f"cells: crowding takes a share above 0, to 1.5; got {crowding:g}")
    options = (size, classes, seed, radius, crowding, noise)
    counts = {"train": count, "val": val, **({"test": test} if test else {})}
    splits = {name: Cells(name, number, *options) for name, number in counts.items()}
    names = ("background", "cell") if classes == 2 else ("background", *(kind.name for kind in KINDS[: classes - 1]))
    target = Target("binary" if classes == 2 else "multiclass", names)
    return Data("cells", target, 1, splits, augment="hflip,turn,elastic:std=5,light")
