"""Pictures of a run: its curves, and what it predicts beside the truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from unetkit.atomic import written_whole
from unetkit.data.pictures import lettering, overlay, stretched
from unetkit.data.target import Target
from unetkit.train.validating import Shown

#: Height and width that an image of a contact sheet is brought to, and what is left between two.
_SIDE, _GAP = 224, 8
_HEAD = 20
#: Classes whose curves can still be told from one another.
_LABELLED = 8


def draw_curves(lines: list[dict[str, Any]], path: Path) -> None:
    """Loss and score of each epoch, as PNG.

    Args:
        lines: of the run's log.
        path: *.png
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    losses, scores = figure.subplots(1, 2)
    epochs = [line["epoch"] for line in lines]
    marker = "o" if len(epochs) < 30 else ""
    for name, label in (("loss", "training"), ("val_loss", "validation")):
        losses.plot(epochs, [_number(line[name]) for line in lines], marker=marker, markersize=3, label=label)
    losses.margins(y=0.08)
    losses.set(xlabel="epoch", title="loss")
    losses.set_ylim(bottom=0)
    scores.plot(epochs, [_number(line["miou"]) for line in lines], "k", marker=marker, markersize=3, label="mIoU")
    for name in lines[-1]["iou"] if len(lines[-1]["iou"]) <= _LABELLED else ():
        scores.plot(epochs, [_number(line["iou"][name]) for line in lines], linewidth=1, alpha=0.7, label=name)
    best = max(lines, key=lambda line: _number(line["miou"], -1.0))
    scores.axvline(best["epoch"], color="0.6", linewidth=1, linestyle=":")
    scores.set(xlabel="epoch", title=f"IoU on validation images, best mIoU {_number(best['miou']):.3f}", ylim=(0, 1))
    for axes in (losses, scores):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
        axes.xaxis.get_major_locator().set_params(integer=True)
    with written_whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def _number(value: float | None, else_: float = float("nan")) -> float:
    return else_ if value is None else value


def draw_samples(shown: list[Shown], target: Target, path: Path) -> None:
    """Images, their masks and what was predicted, side by side, as PNG; what no picture shows whole is scaled."""
    width, height = 3 * _SIDE + 4 * _GAP, _HEAD + len(shown) * (_SIDE + _GAP)
    sheet = Image.new("RGB", (width, height), "white")
    pen, font = ImageDraw.Draw(sheet), lettering(12)
    for column, title in enumerate(("image", "truth", "prediction")):
        pen.text((_GAP + column * (_SIDE + _GAP), 3), title, "black", font)
    for row, one in enumerate(shown):
        image = one.sample.image
        masks = one.sample.mask, one.predicted
        tiles = Image.fromarray(stretched(image)), *(overlay(image, mask, target) for mask in masks)
        for column, tile in enumerate(tiles):
            sheet.paste(_scaled(tile), (_GAP + column * (_SIDE + _GAP), _HEAD + row * (_SIDE + _GAP)))
    with written_whole(path) as temporary:
        sheet.save(temporary, "PNG")


def _scaled(tile: Image.Image) -> Image.Image:
    share = _SIDE / max(tile.size)
    how = Image.Resampling.NEAREST if share > 1 else Image.Resampling.BOX
    return tile.resize((max(round(tile.width * share), 1), max(round(tile.height * share), 1)), how)
