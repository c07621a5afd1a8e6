"""Losses, augmentations, optimizers, datasets, metrics and formats that each break one promise of their kind."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor

from tests.testing.wrong_parts import wrong
from unetkit.data.augment import SampleTensors
from unetkit.data.synthetic_cells import cells
from unetkit.data.targets import Boundary, Distance
from unetkit.data.types import DatasetSplits, Sample
from unetkit.exporter.formats import TorchProgram
from unetkit.train.losses import MSE, Dice
from unetkit.train.optim import OptimizerConfig, sgd

#: Names of right ones, by kind.
RIGHT_NAMES = {
    "dataset": "cells:count=2,val=1,test=1,size=16",
    "loss": "dice",
    "target": "boundary",
    "augmentation": "light",
    "optimizer": "sgd:nesterov=true",
    "metric": "parameters",
    "format": "torch",
}

# Losses


@wrong("loss", "loss values", r"returns \(\); expected a value for each of 3 images, \(B,\)$")
class OneNumber(Dice):
    """One number for the batch."""

    def __call__(self, logits: Tensor, masks: Tensor, borders: Tensor | None) -> Tensor:
        return super().__call__(logits, masks, borders).mean()


@wrong("loss", "loss values", r"the value of an image depends on the other images of the batch")
class BatchMean(Dice):
    """The mean of the batch, for each image."""

    def __call__(self, logits: Tensor, masks: Tensor, borders: Tensor | None) -> Tensor:
        values = super().__call__(logits, masks, borders)
        return values.mean().expand(len(values))


@wrong("loss", "loss values", r"pixels where the mask is -1 change the value; leave them out$")
class WithIgnored(Dice):
    """Ignored pixels count."""

    def __call__(self, logits: Tensor, masks: Tensor, borders: Tensor | None) -> Tensor:
        valid = (masks != -1).flatten(1).any(1)
        return valid * (super().__call__(logits, masks, borders) + logits.square().mean((1, 2, 3)))


@wrong("loss", "loss values", r"the value is 1 where all pixels are ignored, not 0$")
class NeverZero(Dice):
    """One too many."""

    def __call__(self, logits: Tensor, masks: Tensor, borders: Tensor | None) -> Tensor:
        return super().__call__(logits, masks, borders) + 1


@wrong("loss", "loss values", r"it must be lower for a right one$")
class Negative(Dice):
    """Dice the wrong way round."""

    def __call__(self, logits: Tensor, masks: Tensor, borders: Tensor | None) -> Tensor:
        return -super().__call__(logits, masks, borders)


@wrong("loss", "loss values", r"the value has no gradient; compute it from the logits with torch$")
class Detached(Dice):
    """Detached from the logits."""

    def __call__(self, logits: Tensor, masks: Tensor, borders: Tensor | None) -> Tensor:
        return super().__call__(logits.detach(), masks, borders)


@wrong("loss", "loss values", r"fails with ZeroDivisionError: division by zero$")
class Fails(Dice):
    """Fails."""

    def __call__(self, logits: Tensor, masks: Tensor, borders: Tensor | None) -> Tensor:
        raise ZeroDivisionError("division by zero")


# Augmentations


class Step:
    """A right step, which changes nothing."""

    def __call__(self, pixels: SampleTensors, draw: Generator) -> Any:
        return pixels


@wrong("augmentation", "transform", r"it moves the image's pixels, but not the mask's; move both alike$")
class FlipsImage(Step):
    """Flips the image."""

    def __call__(self, pixels: SampleTensors, draw: Generator) -> Any:
        return pixels._replace(image=pixels.image.flip(-1))


@wrong("augmentation", "transform", r"it changes the mask, but not the image; change both alike$")
class FlipsMask(Step):
    """Flips the mask."""

    def __call__(self, pixels: SampleTensors, draw: Generator) -> Any:
        return pixels._replace(mask=pixels.mask.flip(-1))


@wrong("augmentation", "transform", r"two calls with equal generators differ; draw every random number from the gener")
class OwnRandom(Step):
    """Draws from torch's own generator."""

    def __call__(self, pixels: SampleTensors, draw: Generator) -> Any:
        return pixels._replace(image=pixels.image + torch.rand(()))


@wrong("augmentation", "transform", r"it changes its input in place; return new tensors$")
class InPlace(Step):
    """Adds in place."""

    def __call__(self, pixels: SampleTensors, draw: Generator) -> Any:
        pixels.image.add_(0.1)
        return pixels


@wrong("augmentation", "transform", r"the mask has new values, such as \d; interpolate masks with the nearest pixel$")
class NewClasses(Step):
    """Gives a mask new classes."""

    def __call__(self, pixels: SampleTensors, draw: Generator) -> Any:
        return pixels._replace(image=pixels.image * 0.9, mask=pixels.mask + 1)


@wrong("augmentation", "transform", r"the mask is float32 of 37x41; expected int64 of 37x41, of any H and W$")
class FloatMask(Step):
    """A mask of floats."""

    def __call__(self, pixels: SampleTensors, draw: Generator) -> Any:
        return pixels._replace(mask=pixels.mask.float())


@wrong("augmentation", "transform", r"the image has values that are not finite$")
class Root(Step):
    """The root of all values, some of which are below 0."""

    def __call__(self, pixels: SampleTensors, draw: Generator) -> Any:
        return pixels._replace(image=pixels.image**0.5)


@wrong("augmentation", "transform", r"returns a Tensor; expected SampleTensors\(image, mask, weight\)$")
class OnlyImage(Step):
    """The image alone."""

    def __call__(self, pixels: SampleTensors, draw: Generator) -> Any:
        return pixels.image


# Optimizers


@wrong("optimizer", "steps", r"^returns a partial; expected a unetkit\.train\.optim\.OptimizerConfig$")
def no_config() -> Any:
    """An optimizer of torch."""
    return partial(torch.optim.SGD, lr=1)


class Still(torch.optim.SGD):
    """Changes nothing."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        pass


@wrong("optimizer", "steps", r" has a gradient, but does not change in a step$")
def still() -> OptimizerConfig:
    """Steps that change nothing."""
    return replace(sgd(), create=Still)


@wrong("optimizer", "steps", r"^the optimizer does not hold every parameter once; pass it the groups that it is given$")
def half() -> OptimizerConfig:
    """The last groups are missing."""
    return replace(sgd(), create=lambda groups: torch.optim.SGD(groups[:2]))


class Forgets(torch.optim.SGD):
    """Counts its steps in an attribute, which its state does not have."""

    steps = 0

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.steps += 1
        for group in self.param_groups:
            group["lr"] *= self.steps
        super().step()


@wrong("optimizer", "steps", r"^a step after loading the state_dict differs from the step without interruption; keep")
def forgets() -> OptimizerConfig:
    """An optimizer whose state is incomplete."""
    return replace(sgd(), create=Forgets)


# Datasets


class Changing:
    """A split whose images are replaced by a function."""

    def __init__(self, images: Any, change: Any) -> None:
        self.images, self.change = images, change

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        return self.change(self.images[index])


def changed(change: Any) -> DatasetSplits:
    data = cells(count=2, val=1, test=1, size=16)
    return replace(data, splits={name: Changing(images, change) for name, images in data.splits.items()})


def _new_noise(sample: Sample) -> Sample:
    return sample._replace(image=sample.image + random.random())


def _same_name(sample: Sample) -> Sample:
    return sample._replace(name="image")


def _bytes(sample: Sample) -> Sample:
    return sample._replace(image=(255 * sample.image).byte())


def _high(sample: Sample) -> Sample:
    return sample._replace(mask=sample.mask + 7)


def _pair(sample: Sample) -> Any:
    return sample.image, sample.mask


@wrong("dataset", "samples", r"it differs at the second access; a sample must be the same each time$")
def noisy() -> DatasetSplits:
    """New noise at each access."""
    return changed(_new_noise)


@wrong("dataset", "samples", r"its name image is also that of image \d of train$")
def nameless() -> DatasetSplits:
    """One name for all images."""
    return changed(_same_name)


@wrong("dataset", "samples", r"its image is uint8 of 1x16x16; expected float32 of 1xHxW$")
def of_bytes() -> DatasetSplits:
    """Images of bytes."""
    return changed(_bytes)


@wrong("dataset", "samples", r"its mask has values from 7 to \d; expected 0 to 1, or -1 for ignored pixels$")
def high() -> DatasetSplits:
    """Classes that do not exist."""
    return changed(_high)


@wrong("dataset", "samples", r"is a tuple; expected a unetkit\.data\.types\.Sample$")
def pairs() -> DatasetSplits:
    """Pairs of image and mask."""
    return changed(_pair)


@wrong("dataset", "samples", r"^pickling train fails with ")
def of_lambdas() -> DatasetSplits:
    """Splits that cannot be sent to workers."""
    return changed(lambda sample: sample)


@wrong("dataset", "samples", r"^has no split 'val'; it needs at least train and val")
def only_train() -> DatasetSplits:
    """No split for validation."""
    data = cells(count=2, val=1, test=1, size=16)
    return replace(data, splits={"train": data.splits["train"]})


# Metrics


@wrong("metric", "measurement", r"^it returns a list; expected a number \(or a callable, with timed=True\)$")
def listed(bench_model: Any) -> Any:
    """A list."""
    return [1]


@wrong("metric", "measurement", r"^it fails with ZeroDivisionError: division by zero$")
def divides(bench_model: Any) -> Any:
    """Fails."""
    return 1 / 0


@wrong("metric", "measurement", r"^it changes torch's number of threads for the whole process; leave these settings")
def settles(bench_model: Any) -> Any:
    """Changes the number of threads."""
    torch.set_num_threads(torch.get_num_threads() + 1)
    return 1


# Targets of outputs


@wrong(
    "target", "maps", r"^for binary masks: must declare maps, a unetkit\.data\.types\.Target that says what its maps"
)
class Undeclared(Boundary):
    """Does not say what its maps mean."""

    def __init__(self, masks: Any) -> None:
        super().__init__(masks)
        del self.maps


@wrong("target", "maps", r"a mask of 6x7 gives a map that is int64 of 1x6x7; expected int64 of 6x7$")
class OnePlaneMore(Boundary):
    """A plane for binary masks."""

    def __call__(self, mask: Tensor) -> Tensor:
        return super().__call__(mask)[None]


@wrong("target", "maps", r"a mask of 6x7 has pixels that are ignored \(-1\), which its map does not ignore \(NaN\)$")
class NothingIgnored(Distance):
    """Numbers for ignored pixels."""

    def __call__(self, mask: Tensor) -> Tensor:
        return super().__call__(mask).nan_to_num()


@wrong("target", "maps", r"a mask of 6x7 is changed in place; return a new tensor$")
class ChangesMask(Boundary):
    """Changes the mask that it is given."""

    def __call__(self, mask: Tensor) -> Tensor:
        return mask.copy_(super().__call__(mask))


@wrong("target", "maps", r"a mask of 6x7 gives different maps in two calls; compute a map from the mask alone$")
class Jitters(Distance):
    """Noise at each call."""

    def __call__(self, mask: Tensor) -> Tensor:
        return super().__call__(mask) + torch.rand(())


@wrong("target", "maps", r"a mask of 1x1 gives a map in which all pixels are ignored, so that nothing is learned$")
class NothingLeft(Boundary):
    """Ignores masks of one class."""

    def __call__(self, mask: Tensor) -> Tensor:
        return super().__call__(mask).where(mask != mask.flatten()[0], -1)


@wrong("target", "maps", r"a mask of 6x7 fails with ZeroDivisionError: division by zero$")
class Divides(Boundary):
    """Fails."""

    def __call__(self, mask: Tensor) -> Tensor:
        raise ZeroDivisionError("division by zero")


@wrong("target", "maps", r"^for binary masks: pickling fails with ")
class Unpicklable(Boundary):
    """Keeps a lambda, which no process that loads data could receive."""

    def __init__(self, masks: Any) -> None:
        super().__init__(masks)
        self.keep = lambda mask: mask


@wrong("loss", "loss values", r"pixels where the mask is nan change the value; leave them out$")
class NotNan(MSE):
    """Takes pixels without a number for 0."""

    def __call__(self, logits: Tensor, masks: Tensor, borders: Tensor | None) -> Tensor:
        some = ~masks.isnan().flatten(1).all(1)
        return some * (logits - masks.nan_to_num()).square().mean((1, 2, 3))


# Export formats


@wrong("format", "files", r"^declares suffix='pt2'; expected the ending of its files in lower case, as ")
class Undotted(TorchProgram):
    """An ending without a dot."""

    suffix = "pt2"


@wrong("format", "files", r"^write leaves model\.pt2, model\.txt; expected model\.pt2, the path that it is given")
class Litters(TorchProgram):
    """A file that it does not declare."""

    def write(self, captured: Any, path: Any, metadata: Any) -> None:
        super().write(captured, path, metadata)
        path.with_suffix(".txt").write_text("")


@wrong("format", "files", r"^a file returns outputs that differ by .* of their range for images \(1, 1, 16, 16\)$")
class Inaccurate(TorchProgram):
    """Outputs that are not the network's."""

    def open(self, path: Any) -> Any:
        run = super().open(path)
        return lambda images: run(1.1 * images)


@wrong("format", "files", r"^a file, opened and run, fails with IndexError: ")
class OneImage(TorchProgram):
    """Runs on single images only."""

    def open(self, path: Any) -> Any:
        run = super().open(path)
        return lambda images: run(images[:1]) if len(images) == 1 else run(images[[5]])


@wrong("format", "files", r"^read_metadata does not return unetkit\.plan as it was written$")
class ForgetsMetadata(TorchProgram):
    """No metadata."""

    def read_metadata(self, path: Any) -> dict[str, str]:
        return {}
