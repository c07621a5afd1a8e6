"""Pictures of a run as PNG: its curves, its predictions next to the true masks, and the confusion matrix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageDraw
from torch import Tensor

from unetkit.data.contact_sheet import load_font
from unetkit.data.types import Target
from unetkit.data.visualize import overlay, to_rgb
from unetkit.train.trainer import Preview
from unetkit.utils.files import atomic_write, write_requested_file
from unetkit.utils.integers import ceil_div

#: The height and width of an image in a contact sheet, and the gap between two images, in pixels.
_SIDE, _GAP = 224, 8
_HEAD = 20
#: The largest number of classes whose curves can be distinguished.
_LABELLED = 8


def draw_curves(lines: list[dict[str, Any]], path: Path) -> None:
    """Draw the losses and scores of each epoch as PNG.

    Args:
        lines: the entries of the run's log.
        path: the file to write, *.png.
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    losses, scores = figure.subplots(1, 2)
    epochs = [line["epoch"] for line in lines]
    marker = "o" if len(epochs) < 30 else ""
    outputs = [*lines[-1].get("output_losses", ())]
    labels = ("training, weighted sum", f"validation, {outputs[0]}") if outputs else ("training", "validation")
    for name, label in zip(("loss", "val_loss"), labels, strict=True):
        losses.plot(epochs, [_number(line[name]) for line in lines], marker=marker, markersize=3, label=label)
    for name in outputs:
        values = [_number(line["output_losses"][name]) for line in lines]
        losses.plot(epochs, values, linewidth=1, alpha=0.7, label=f"training, {name}")
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
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def _number(value: float | None, else_: float = float("nan")) -> float:
    return else_ if value is None else value


def draw_samples(shown: list[Preview], target: Target, path: Path) -> None:
    """Draw images, their true masks and the predicted ones side by side as PNG; large images are scaled down."""
    width, height = 3 * _SIDE + 4 * _GAP, _HEAD + len(shown) * (_SIDE + _GAP)
    sheet = Image.new("RGB", (width, height), "white")
    pen, font = ImageDraw.Draw(sheet), load_font(12)
    for column, title in enumerate(("image", "truth", "prediction")):
        pen.text((_GAP + column * (_SIDE + _GAP), 3), title, "black", font)
    for row, one in enumerate(shown):
        image = one.sample.image
        masks = one.sample.mask, one.predicted
        tiles = Image.fromarray(to_rgb(image)), *(overlay(image, mask, target) for mask in masks)
        for column, tile in enumerate(tiles):
            sheet.paste(_scaled(tile), (_GAP + column * (_SIDE + _GAP), _HEAD + row * (_SIDE + _GAP)))
    with atomic_write(path) as temporary:
        sheet.save(temporary, "PNG")


def _scaled(tile: Image.Image) -> Image.Image:
    share = _SIDE / max(tile.size)
    how = Image.Resampling.NEAREST if share > 1 else Image.Resampling.BOX
    return tile.resize((max(round(tile.width * share), 1), max(round(tile.height * share), 1)), how)


#: Above this number of classes, cells have no text.
_WRITTEN = 30
#: Names with more letters are rotated.
_SLANTED = 6
#: In inches: the side of a cell with text, of one without, the smallest side of a table, and the space around it.
_CELL, _BARE, _LEAST, _AROUND = 0.62, 0.25, 1.7, 1.9
#: The number of label tables in a row.
_ACROSS = 4


def draw_confusion(matrix: Tensor, names: tuple[str, ...], path: Path) -> None:
    """Draw a confusion matrix as PNG, with true classes as rows, predicted classes as columns, and shares as shades.

    Args:
        matrix: (K, K), or (L, 2, 2) for labels, which have a table each.
        names: the names of the classes or labels.
        path: the file to write.

    Raises:
        FileError: The file cannot be written.
    """
    figure = _of_labels(matrix, names) if matrix.ndim == 3 else _of_classes(matrix, names)
    with write_requested_file(path, "--picture") as temporary:
        figure.savefig(temporary, format="png", dpi=120, bbox_inches="tight")


def _of_classes(matrix: Tensor, names: tuple[str, ...]) -> Figure:
    side = max(_LEAST, (_CELL if len(names) <= _WRITTEN else _BARE) * len(names))
    figure = Figure(figsize=(side + _AROUND, side + _AROUND), layout="constrained")
    axes = figure.add_subplot()
    _table(axes, matrix.numpy(), names)
    bar = figure.colorbar(axes.images[0], ax=axes, shrink=0.6)
    bar.set_label("share of the true class")
    return figure


def _of_labels(matrix: Tensor, names: tuple[str, ...]) -> Figure:
    across = min(_ACROSS, len(names))
    down = ceil_div(len(names), across)
    figure = Figure(figsize=(across * (_LEAST + 0.9), down * (_LEAST + 1)), layout="constrained")
    for at, name in enumerate(names):
        axes = figure.add_subplot(down, across, at + 1)
        _table(axes, matrix[at].numpy(), ("no", "yes"))
        axes.set_title(name)
    return figure


def _table(axes: Axes, counts: np.ndarray, names: tuple[str, ...]) -> None:
    shares = counts / counts.sum(1, keepdims=True).clip(1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks(range(len(names)), names)
    if max(map(len, names)) > _SLANTED:
        for label in axes.get_xticklabels():
            label.set(rotation=45, ha="right", rotation_mode="anchor")
    axes.set_xlabel("prediction")
    axes.set_ylabel("truth")
    if len(names) <= _WRITTEN:
        for row, column in np.argwhere(counts):
            text = f"{shares[row, column]:.1%}\n{format_short(int(counts[row, column]))}"
            colour = "white" if shares[row, column] > 0.6 else "black"
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)


def format_short(count: int) -> str:
    """Format a count with about three digits: 999, 12.3k, 4.56M."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= 0.9995 * size:
            return f"{count / size:.3g}{unit}"
    return str(count)
