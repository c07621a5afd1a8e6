"""The batches of training. They depend on the seed, the epoch and the step only.

They do not depend on the network, on the number of workers, or on whether the run was resumed. Shapes: B batch,
C channels, L labels, H and W height and width.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from unetkit.data.rng import derive_seed, numpy_rng
from unetkit.data.types import Dataset, Sample
from unetkit.errors import PluginError, UnetkitError
from unetkit.train.config import TrainConfig
from unetkit.train.distributed import ProcessGroup
from unetkit.utils.formatting import format_bytes
from unetkit.utils.integers import ceil_div
from unetkit.utils.isolation import one_line
from unetkit.utils.processes import safe_path

#: A function from a sample, its weight map if the loss needs one, and a seed to both, augmented.
Augment = Callable[[Sample, Tensor | None, int], tuple[Sample, Tensor | None]]
#: A function from a sample to its border weights (H, W).
Weigh = Callable[[Sample], Tensor]
#: A function from a mask to the map on which an output beside the prediction is trained.
MapTarget = Callable[[Tensor], Tensor]
Key = tuple[int, int, int]


class Batch(NamedTuple):
    """The images and targets of one step.

    Attributes:
        names: the names of the B images.
        images: (B, C, H, W) float32, normalized to mean 0 and standard deviation 1.
        masks: (B, H, W) or (B, L, H, W) int64.
        weights: border weights (B, H, W) float32, or None.
        targets: for each named output beside the prediction, what it is trained on: (B, H, W) or (B, L, H, W) int64, or
            (B, K, H, W) float32.
    """

    names: list[str]
    images: Tensor
    masks: Tensor
    weights: Tensor | None
    targets: dict[str, Tensor]

    def to(self, device: torch.device, memory_format: torch.memory_format) -> Batch:
        """Move the batch to a device, with the images in a memory format."""
        images = self.images.to(device, non_blocking=True, memory_format=memory_format)
        weights = None if self.weights is None else self.weights.to(device, non_blocking=True)
        targets = {name: target.to(device, non_blocking=True) for name, target in self.targets.items()}
        return Batch(self.names, images, self.masks.to(device, non_blocking=True), weights, targets)


class TrainSample(NamedTuple):
    """An augmented sample with its border weights, and with the target of each named output beside the prediction."""

    sample: Sample
    weights: Tensor | None
    targets: dict[str, Tensor]


Item = TrainSample | UnetkitError


class AugmentedDataset(TorchDataset[Item]):
    """Training images by (epoch, repetition, index), each augmented from its own random stream.

    An error is returned, not raised: torch would put the traceback of a worker into its message.
    """

    def __init__(
        self,
        images: Dataset,
        augment: Augment,
        weigh: Weigh | None,
        normalise: Callable[[Tensor], Tensor],
        seed: int,
        targets: Mapping[str, MapTarget] | None = None,
    ) -> None:
        self.images, self.augment, self.weigh, self.normalise, self.seed = images, augment, weigh, normalise, seed
        self.targets = targets or {}

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: Key) -> Item:
        try:
            return self._load(*key)
        except UnetkitError as error:
            return error
        except Exception as error:  # of a data set that is a plugin's, or was given in Python
            return PluginError(f"training image {key[-1]} cannot be read: {one_line(error)}")

    def _load(self, epoch: int, turn: int, index: int) -> TrainSample:
        sample = self.images[index]
        weights = self.weigh(sample) if self.weigh else None
        sample, weights = self.augment(sample, weights, derive_seed(self.seed, "augment", epoch, turn, index))
        targets = {name: compute(sample.mask) for name, compute in self.targets.items()}
        return TrainSample(sample._replace(image=self.normalise(sample.image)), weights, targets)


def collate(items: list[Item]) -> Batch | UnetkitError:
    """Combine samples of one size into a batch; or return the first error."""
    loaded = []
    for item in items:
        if isinstance(item, UnetkitError):
            return item
        loaded.append(item)
    weights = [item.weights for item in loaded if item.weights is not None]
    return Batch(
        [item.sample.name for item in loaded],
        torch.stack([item.sample.image for item in loaded]),
        torch.stack([item.sample.mask for item in loaded]),
        torch.stack(weights) if weights else None,
        {name: torch.stack([item.targets[name] for item in loaded]) for name in loaded[0].targets},
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


#: Where processes share memory on Linux, and how many batches each worker has in it at most: two that wait for their
#: turn (torch's default), and one that is read.
_SHARED_MEMORY, _BATCHES_IN_FLIGHT = Path("/dev/shm"), 3  # noqa: S108  only its free space is asked for


class Loader:
    """The batches of an epoch, starting at any step, for one of several processes that share each step.

    An epoch is a pass over the training images unless the number of steps is given, which is then divided evenly over
    the epochs.
    """

    def __init__(self, data: AugmentedDataset, config: TrainConfig, group: ProcessGroup, *, workers: int) -> None:
        self.data, self.batch, self.workers = data, config.batch_size, workers
        self.rank, self.world_size, self.pin = group.rank, group.size, group.device.type == "cuda"
        self.epochs, self.pass_steps = config.epochs, len(self._pass(0))
        #: The number of steps of all epochs.
        self.total_steps = config.steps or config.epochs * self.pass_steps

    def first_step(self, epoch: int) -> int:
        """Return the number of the first step of an epoch, counted from 0 over all epochs."""
        return self.total_steps * epoch // self.epochs

    def limit_workers(self, batch_bytes: int) -> str:
        """Use no more workers than there is shared memory for what they hand over; say so in words, or return "".

        Args:
            batch_bytes: the size of a batch.
        """
        if not self.workers or not _SHARED_MEMORY.is_dir():
            return ""
        free, wanted = shutil.disk_usage(_SHARED_MEMORY).free, self.workers
        self.workers = min(wanted, int(free // (_BATCHES_IN_FLIGHT * batch_bytes * self.world_size)))
        if self.workers == wanted:
            return ""
        return (
            f"{self.workers} of {wanted} data loading processes, since only {format_bytes(free)} of shared memory are "
            f"free in {_SHARED_MEMORY}; a container gets more by its option --shm-size"
        )

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch, starting at step `start`.

        Raises:
            FileError: An image cannot be read.
            UnetkitError: A process that loads data was ended, as where there is too little memory.
        """
        mine = slice(self.rank * self.batch, (self.rank + 1) * self.batch)
        keys = [step[mine] for step in self._steps(self.first_step(epoch) + start, self.first_step(epoch + 1))]
        with warnings.catch_warnings():  # that there are more workers than cores is the user's choice
            warnings.filterwarnings("ignore", message="This DataLoader will create")
            loader = DataLoader(
                self.data, batch_sampler=keys, collate_fn=collate, num_workers=self.workers, pin_memory=self.pin
            )
        with safe_path():  # outside Linux, and from Python 3.14 on, its processes are new ones of Python
            batches = iter(loader)
        try:
            for batch in batches:
                if isinstance(batch, UnetkitError):
                    raise batch
                yield batch
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise UnetkitError(
                f"a data loading process was ended ({one_line(error)[:200]}), which happens where memory is short; "
                "continue with --resume, or start again with --workers 0"
            ) from error

    def _steps(self, start: int, end: int) -> list[list[Key]]:
        """Return the keys of the images of the steps from `start` to before `end`."""
        passes = range(start // self.pass_steps, ceil_div(end, self.pass_steps))
        steps = [step for number in passes for step in self._pass(number)]
        skipped = passes.start * self.pass_steps
        return steps[start - skipped : end - skipped]

    def _pass(self, number: int) -> list[list[Key]]:
        return epoch_batches(self.data.seed, number, len(self.data), self.batch * self.world_size)
