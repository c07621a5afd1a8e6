"""The batches of training. They depend on the seed, the epoch and the step only.

They do not depend on the network, on the number of workers, or on whether the run was resumed. Shapes: B batch,
C channels, L labels, H and W height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from unetkit.data.rng import derive_seed, numpy_rng
from unetkit.data.types import Dataset, Sample, check_values
from unetkit.utils.integers import ceil_div

#: A function from a sample, its weight map if the loss needs one, and a seed to both, augmented.
Augment = Callable[[Sample, Tensor | None, int], tuple[Sample, Tensor | None]]
#: A function from a sample to its border weights (H, W).
Weigh = Callable[[Sample], Tensor]
Key = tuple[int, int, int]


class Batch(NamedTuple):
    """The images and targets of one step.

    Attributes:
        names: the names of the B images.
        images: (B, C, H, W) float32, normalized to mean 0 and standard deviation 1.
        masks: (B, H, W) or (B, L, H, W) int64.
        weights: border weights (B, H, W) float32, or None.
    """

    names: list[str]
    images: Tensor
    masks: Tensor
    weights: Tensor | None

    def to(self, device: torch.device, memory_format: torch.memory_format) -> Batch:
        """Move the batch to a device, with the images in a memory format."""
        images = self.images.to(device, non_blocking=True, memory_format=memory_format)
        weights = None if self.weights is None else self.weights.to(device, non_blocking=True)
        return Batch(self.names, images, self.masks.to(device, non_blocking=True), weights)


class AugmentedDataset(TorchDataset[tuple[Sample, Tensor | None]]):
    """Training images by (epoch, repetition, index), each augmented from its own random stream."""

    def __init__(
        self,
        images: Dataset,
        augment: Augment,
        weigh: Weigh | None,
        normalise: Callable[[Tensor], Tensor],
        seed: int,
    ) -> None:
        self.images, self.augment, self.weigh, self.normalise, self.seed = images, augment, weigh, normalise, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: Key) -> tuple[Sample, Tensor | None]:
        epoch, turn, index = key
        sample = check_values(self.images[index])
        weights = self.weigh(sample) if self.weigh else None
        sample, weights = self.augment(sample, weights, derive_seed(self.seed, "augment", epoch, turn, index))
        return sample._replace(image=self.normalise(sample.image)), weights


def collate(items: list[tuple[Sample, Tensor | None]]) -> Batch:
    """Combine samples of one size into a batch."""
    weights = [weight for _, weight in items if weight is not None]
    return Batch(
        [sample.name for sample, _ in items],
        torch.stack([sample.image for sample, _ in items]),
        torch.stack([sample.mask for sample, _ in items]),
        torch.stack(weights) if weights else None,
    )


def epoch_batches(seed: int, epoch: int, count: int, batch: int) -> list[list[Key]]:
    """Return the image indices of each step of an epoch, as full batches.

    Images that are left over come first in the next epoch. If there are fewer images than a batch holds, images are
    repeated in the only step, each repetition with its own augmentation.
    """
    order: list[Key] = []
    for turn in range(ceil_div(batch, count)):
        drawn = numpy_rng(seed, "order", epoch, turn).permutation(count).tolist()
        order += [(epoch, turn, index) for index in drawn]
    return [order[start : start + batch] for start in range(0, max(len(order) - batch, 0) + 1, batch)]


class Loader:
    """The batches of an epoch, starting at any step, for one of several processes that share each step."""

    def __init__(
        self, data: AugmentedDataset, batch: int, workers: int, rank: int, world_size: int, *, pin: bool = False
    ) -> None:
        self.data, self.batch, self.workers, self.rank, self.world_size = data, batch, workers, rank, world_size
        self.pin = pin

    @property
    def steps(self) -> int:
        """The number of steps of an epoch."""
        return len(self._steps(0))

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch, starting at step `start`."""
        mine = slice(self.rank * self.batch, (self.rank + 1) * self.batch)
        keys = [step[mine] for step in self._steps(epoch)[start:]]
        return iter(
            DataLoader(
                self.data,
                batch_sampler=keys,
                collate_fn=collate,
                num_workers=self.workers,
                pin_memory=self.pin,
            )
        )

    def _steps(self, epoch: int) -> list[list[Key]]:
        return epoch_batches(self.data.seed, epoch, len(self.data), self.batch * self.world_size)
