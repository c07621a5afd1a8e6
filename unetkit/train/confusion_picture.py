"""The confusion of classes as a picture: of each true class, what it was taken for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from unetkit.atomic import written_whole
from unetkit.errors import BadFile

#: Classes above which cells hold no text.
_WRITTEN = 30
#: Letters of a name above which it is written at a slant.
_SLANTED = 6
#: Inches: of a cell with text, of one without, of a table at least, and of what stands around it.
_CELL, _BARE, _LEAST, _AROUND = 0.62, 0.25, 1.7, 1.9
#: Tables of labels side by side.
_ACROSS = 4


def draw_confusion(matrix: Tensor, names: tuple[str, ...], path: Path) -> None:
    """Write a table of `confusion` as PNG: rows truth, columns prediction, shades shares of the row, counts in cells.

    Args:
        matrix: (K, K), or of labels (L, 2, 2), each of which has a table of its own.
        names: of the classes or labels.
        path: of the picture.

    Raises:
        BadFile: it cannot be written.
    """
    figure = _of_labels(matrix, names) if matrix.ndim == 3 else _of_classes(matrix, names)
    try:
        with written_whole(path) as temporary:
            figure.savefig(temporary, format="png", dpi=120, bbox_inches="tight")
    except OSError as error:
        raise BadFile(f"{path} cannot be written: {error.strerror or error}") from error


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
    down = -(-len(names) // across)
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
            text = f"{shares[row, column]:.1%}\n{short(int(counts[row, column]))}"
            colour = "white" if shares[row, column] > 0.6 else "black"
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)


def short(count: int) -> str:
    """A count in three digits or so: 999, 12.3k, 4.56M."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= 0.9995 * size:
            return f"{count / size:.3g}{unit}"
    return str(count)
