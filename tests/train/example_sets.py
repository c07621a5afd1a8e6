"""Small data sets that tests train on."""

from __future__ import annotations

import torch

from unetkit.data.rng import numpy_rng
from unetkit.data.types import DatasetSplits, Sample, Target


class Squares:
    """Bright squares on a dark ground with a little noise: (1, size, size), a mask of 0 and 1."""

    def __init__(self, split: str, count: int, size: int = 32, target: Target | None = None) -> None:
        self.split, self.count, self.size = split, count, size
        self.target = target or Target("binary", ("background", "square"))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.count:
            raise IndexError(index)
        draw = numpy_rng(0, "squares", self.split, index)
        image = torch.from_numpy(draw.normal(0.2, 0.05, (1, self.size, self.size))).float()
        mask = torch.zeros(self.size, self.size, dtype=torch.long)
        top, left = draw.integers(2, self.size // 2, 2).tolist()
        image[:, top : top + 10, left : left + 10] += 0.5
        mask[top : top + 10, left : left + 10] = 1
        if self.target.kind == "multilabel":
            mask = torch.stack([mask, 1 - mask])
        return Sample(f"{self.split}-{index}", image, mask)


def squares(count: int = 12, size: int = 32, target: Target | None = None) -> DatasetSplits:
    """Return a set of them."""
    train, val = Squares("train", count, size, target), Squares("val", 3, size, target)
    return DatasetSplits("squares", train.target, 1, {"train": train, "val": val}, "hflip")
