"""A network's scores on whole images, shared among the processes that train it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from unetkit.data.sample import Images, Sample
from unetkit.deploy.passing import tiled
from unetkit.train.batches import Weigh
from unetkit.train.losses import Loss
from unetkit.train.metrics import Evaluation
from unetkit.train.record import Run
from unetkit.train.world import World

#: Images whose predictions are drawn.
SHOWN = 4


class Shown(NamedTuple):
    """What is drawn of an image: it, its mask, and what was predicted."""

    sample: Sample
    predicted: Tensor


class Validated(NamedTuple):
    """What came of it: means over images, and the predictions of the first."""

    loss: float
    summary: dict[str, Any]
    shown: list[Shown]


class Validation:
    """The validation images and how they are looked at."""

    def __init__(self, images: Images, run: Run, loss: Loss, weigh: Weigh | None, world: World) -> None:
        self.images, self.run, self.loss, self.weigh, self.world = images, run, loss, weigh, world

    def __call__(self, network: nn.Module, precision: Callable[[], Any], tell: Callable[[int, int], None]) -> Validated:
        """Pass every image; all processes must come here.

        Args:
            network: is put into eval mode.
            precision: gives autocast's context, or one that does nothing.
            tell: how many images are done, of how many.
        """
        network.eval()
        score, losses, shown = Evaluation(self.run.target), [], []
        mine = range(self.world.rank, len(self.images), self.world.size)
        for done, index in enumerate(mine):
            tell(done, len(mine))
            sample = self.images[index]
            logits, chances = self._passed(network, sample, precision)
            losses.append(float(self._loss(logits, sample)))
            score.add(sample.name, chances, sample)
            if index < SHOWN:
                shown.append(Shown(sample, self.run.target.decided(chances[None])[0]))
        return self._together(score, losses, shown)

    def _together(self, score: Evaluation, losses: list[float], shown: list[Shown]) -> Validated:
        parts = self.world.gathered((score.as_dict(), losses, shown))
        together = Evaluation(self.run.target)
        for said, _, _ in parts:
            together.merge(said)
        every = [loss for _, found, _ in parts for loss in found]
        return Validated(sum(every) / len(every), together.summary(), [one for _, _, found in parts for one in found])

    def _passed(self, network: nn.Module, sample: Sample, precision: Callable[[], Any]) -> tuple[Tensor, Tensor]:
        """Logits (K, H, W) and probabilities (L, H, W), both as `unetkit eval` puts them together."""

        def both(logits: Tensor) -> Tensor:
            logits = logits.float()
            return torch.cat([logits, self.run.target.probabilities(logits)], 1)

        with precision():
            found = tiled(network, self.run.normalised(sample.image), then=both)
        labels = len(self.run.target.names)
        return found[:-labels], found[-labels:]

    def _loss(self, logits: Tensor, sample: Sample) -> Tensor:
        there = self.world.device
        weights = self.weigh(sample)[None].to(there) if self.weigh else None
        return self.loss(logits[None].to(there), sample.mask[None].to(there), weights)[0]
