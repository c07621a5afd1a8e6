"""The built-in metrics of trained networks, and the ScoredRun that they and the metrics of plugins measure.

The first sentence of a metric's docstring is its description in tables, reports and the documentation.
"""

from __future__ import annotations

from dataclasses import dataclass

from unetkit.network import Network
from unetkit.train.checkpoint import TrainRun
from unetkit.train.metrics import Evaluation, mean_of_defined


@dataclass
class ScoredRun:
    """A finished training with the scores of its network, as metrics of trained networks get it.

    Attributes:
        run: the training run.
        network: its network on the device of the training, in eval mode.
        evaluation: the counts of each scored image, from which scores follow.
        val_loss: the loss over the validation images, with the weights that are scored; NaN if it was not finite.
    """

    run: TrainRun
    network: Network
    evaluation: Evaluation
    val_loss: float


def miou(scored: ScoredRun) -> float:
    """Mean over the classes of the IoU over all pixels of the scored images."""
    return scored.evaluation.micro().miou


def dice(scored: ScoredRun) -> float:
    """Mean over the classes of the Dice coefficient over all pixels of the scored images."""
    return scored.evaluation.micro().mdice


def iou(scored: ScoredRun, class_name: str) -> float:
    """IoU of one class over all pixels of the scored images."""
    scores = scored.evaluation.micro()
    return scores.iou[scores.names.index(class_name)]


def boundary_f(scored: ScoredRun) -> float:
    """Mean over the classes of the F-score of the outlines, with a tolerance of 0.75% of the image's diagonal."""
    return mean_of_defined(scored.evaluation.micro().boundary)


def separated_instances(scored: ScoredRun) -> float:
    """Share of the touching objects that the prediction separates, of data that have instances."""
    found = scored.evaluation.count_separated()
    return found[0] / found[1] if found and found[1] else float("nan")


def val_loss(scored: ScoredRun) -> float:
    """Loss over the validation images, with the weights that are scored; comparable only between rows of one loss."""
    return scored.val_loss
