"""The scores of an evaluation as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unetkit.bench.listing import Cells, Listing
from unetkit.train.confusion import RATES, known, known_mean

if TYPE_CHECKING:
    from unetkit.train.confusion import Scores
    from unetkit.train.metrics import Evaluation, Seen

_HEADS = {"iou": "IoU", "dice": "Dice", "precision": "precision", "recall": "recall", "boundary": "boundary"}
#: More classes than these have no column each in the table of images.
_COLUMNS = 8


def format_scores(found: Evaluation, head: list[str], worst: int) -> Listing:
    """Each class with its scores, of all pixels and of images, and the worst of these."""
    micro, macro = found.micro(), found.macro()
    tables = [
        _classes(micro, "All pixels together (micro):", _shares(found)),
        _classes(macro, "Mean over the images in which a class occurs (macro):"),
    ]
    images = found.worst()[:worst]
    if images:
        more = f", the worst {len(images)} of {len(found.images)}" if len(images) < len(found.images) else ""
        tables.append(_images(images, f"IoU of each image{more}:"))
    return Listing(head, tables, _notes(found, micro))


def _classes(scores: Scores, title: str, shares: list[float] | None = None) -> Cells:
    rates = [rate for rate in RATES if getattr(scores, rate)]
    rows = [[name, *(_said(getattr(scores, rate)[at]) for rate in rates)] for at, name in enumerate(scores.names)]
    rows.append(["mean", *(_said(known_mean(getattr(scores, rate))) for rate in rates)])
    heads = ["class", *(_HEADS[rate] for rate in rates)]
    if shares:
        heads.append("of pixels")
        rows = [[*row, share] for row, share in zip(rows, [*(f"{share:.1%}" for share in shares), ""], strict=True)]
    return Cells(heads, rows, title)


def _images(images: list[Seen], title: str) -> Cells:
    names = images[0].classes if len(images[0].classes) <= _COLUMNS else ()
    rows = [[image.name, *map(_said, (image.scores.miou, *image.scores.iou[: len(names)]))] for image in images]
    return Cells(["image", "mean", *names], rows, title)


def _shares(found: Evaluation) -> list[float]:
    """Of the pixels that count, how many are of each class, or have each label."""
    matrix = found.matrix.double()
    counts = matrix[:, 1].sum(1) / matrix.sum((1, 2)).clamp_min(1) if matrix.ndim == 3 else matrix.sum(1) / matrix.sum()
    return counts.nan_to_num().tolist()


def _notes(found: Evaluation, micro: Scores) -> list[str]:
    notes = [f"accuracy {_said(micro.accuracy) or 'unknown, since no pixel counts'}"]
    if (touching := found.touching()) and touching[1]:
        notes.append(
            f"touching objects told apart: {touching[0]:,} of {touching[1]:,} ({touching[0] / touching[1]:.1%})"
        )
    away = "0.75% of the diagonal" if found.tolerance is None else f"{found.tolerance:g} px"
    return [*notes, f"boundary: F-score of outlines no farther apart than {away}"]


def _said(value: float) -> str:
    """Three digits; blank where there is nothing to count."""
    return "" if known(value) is None else f"{value:.3f}"
