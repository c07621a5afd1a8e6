"""The data of the report about trained networks: differences, learning curves, effects, classes and images.

All are plain data for JSON, or for the tables of the page.
"""

from __future__ import annotations

import json
import math
from base64 import b64encode
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy
from numpy.typing import NDArray

from unetkit.bench.quality import RowQuality, RunQuality, image_iou, load_scores
from unetkit.bench.quality_effects import QualityEffect
from unetkit.bench.quality_statistics import class_iou, mean_interval
from unetkit.bench.results import BenchRow
from unetkit.bench.training import training_folder
from unetkit.errors import UnetkitError

#: Largest number of images that the page shows; they make up most of its size.
MAX_IMAGES = 8
#: Longest side of a shown image, in pixels; larger ones are scaled down.
_MAX_SIDE = 320
#: Largest number of points of a learning curve.
_MAX_POINTS = 60

RowNamer = Callable[[BenchRow], str]


def make_difference_data(quality: RunQuality, name_row: RowNamer) -> dict[str, list[dict[str, Any]]]:
    """Return an item for each row that is compared with the baseline, with a dot for each seed, by metric.

    Args:
        quality: the quality of a run.
        name_row: names a row.
    """
    return {
        metric.name: [
            _make_difference_item(quality, row, metric.name, name_row)
            for row in quality.run.rows
            if quality.of(row, metric.name).comparison is not None
        ]
        for metric in quality.metrics
    }


def _make_difference_item(quality: RunQuality, row: BenchRow, metric: str, name_row: RowNamer) -> dict[str, Any]:
    mine = quality.of(row, metric)
    found = mine.comparison
    if found is None:
        raise ValueError(f"{row.line} is not compared")
    baseline = next(one for one in quality.run.rows if one.id == quality.header.baseline_row)
    theirs = quality.of(baseline, metric).scores
    pairs = zip(mine.scores, theirs, strict=False)
    dots = [
        [_round(a - b), f"seed {quality.header.seed + index}: {a:.4f} against {b:.4f}"]
        for index, (a, b) in enumerate(pairs)
    ]
    verdict = str(found.verdict) if mine.has_verdict else ""
    interval = f"{found.difference:+.4f} ({found.low:+.4f} to {found.high:+.4f})"
    return {
        "name": name_row(row),
        "text": f"{interval} {verdict}".strip(),
        "verdict": verdict,
        "dots": dots,
        "ratio": found.difference,
        "low": _finite(found.low, found.difference),
        "high": _finite(found.high, found.difference),
    }


def _finite(number: float, otherwise: float) -> float:
    return number if math.isfinite(number) else otherwise


def _round(number: float) -> float:
    """Return a number with six significant digits, which is all that a chart shows."""
    return float(f"{number:.6g}")


def make_quality_effect_data(effects: Sequence[QualityEffect], name_row: RowNamer) -> dict[str, list[dict[str, Any]]]:
    """Return the items of the chart of effects on trained networks, by metric, with a dot for each pair of rows.

    Args:
        effects: effects on metrics of trained networks.
        name_row: names a row.
    """
    items: dict[str, list[dict[str, Any]]] = {}
    for one in effects:
        dots = [[_round(mean), f"{name_row(b)} against {name_row(a)}: {mean:+.4f}"] for a, b, mean in one.pairs]
        numbers = {"ratio": one.difference, "low": one.low, "high": one.high}
        text = f"{one.difference:+.4f} ({one.low:+.4f} to {one.high:+.4f})"
        name = f"{one.factor.replace('_', ' ')}: {one.a} → {one.b}"
        items.setdefault(one.metric, []).append({"name": name, "text": text, "verdict": "", "dots": dots, **numbers})
    return items


def make_curve_data(quality: RunQuality, name_row: RowNamer) -> list[dict[str, Any]]:
    """Return the learning curves of each row that has any: validation mIoU by epoch, one list for each seed.

    Args:
        quality: the quality of a run.
        name_row: names a row.
    """
    curves = []
    for row in quality.run.rows:
        seeds = {}
        for one in quality.run.trainings:
            if one.row_id == row.id and not one.error:
                seeds[str(one.seed)] = _read_curve(training_folder(quality.run.folder, row.id, one.seed) / "log.jsonl")
        known = {seed: curve for seed, curve in sorted(seeds.items(), key=lambda item: int(item[0])) if curve}
        if known:
            curves.append({"name": name_row(row), "seeds": known})
    return curves


def _read_curve(path: Path) -> list[list[float]]:
    """Return [epoch, mIoU] of at most 60 epochs of a training; none if its log cannot be read."""
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        points = [[line["epoch"], _round(line["miou"])] for line in lines if line["miou"] is not None]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    step = max(len(points) / _MAX_POINTS, 1)
    return [points[min(len(points) - 1, int((index + 1) * step) - 1)] for index in range(int(len(points) / step))]


def make_class_table(quality: RunQuality) -> list[tuple[BenchRow, list[float | None]]]:
    """Return for each row with scores the IoU of each class over all images, as means over the seeds.

    Args:
        quality: the quality of a run.
    """
    table = []
    for row in quality.run.rows:
        of_row = quality.of(row, quality.rules.metric)
        counts = [quality.load_counts(row.id, quality.header.seed + index) for index in range(len(of_row.scores))]
        sums = [one.sum(0) for one in counts if one is not None]
        if sums:
            stacked = numpy.stack(sums)
            rates = [class_iou(stacked, index) for index in range(len(quality.header.classes))]
            table.append((row, [_mean_or_none(rate) for rate in rates]))
    return table


def _mean_or_none(values: NDArray[Any]) -> float | None:
    known = values[~numpy.isnan(values)]
    return float(known.mean()) if len(known) else None


def mean_half_width(quality: RowQuality) -> float | None:
    """Return the half-width of the 95% interval of a row's mean over its seeds; None with fewer than two.

    Args:
        quality: the quality of a row.
    """
    if quality.mean is None or len(quality.scores) < 2:
        return None
    low, high = mean_interval(numpy.array(quality.scores))
    return (high - low) / 2


def make_image_data(quality: RunQuality, name_row: RowNamer) -> dict[str, Any] | None:
    """Return the images on which rows differ most, with their true masks and the predictions of all rows.

    Predictions are those of the first seed, which --keep-weights stores. The data are opened to read the images, which
    imports torch.

    Args:
        quality: the quality of a run.
        name_row: names a row.

    Returns:
        None if no predictions are stored, or if the images are not there any more.
    """
    folder, seed = quality.run.folder, quality.header.seed
    stored: dict[str, tuple[BenchRow, Path]] = {}
    for row in quality.run.rows:
        path = training_folder(folder, row.id, seed) / "predictions.npz"
        if path.exists() and load_scores(folder, row.id, seed) is not None:
            stored[row.id] = row, path
    if len(stored) < 2:
        return None
    means = {row_id: _image_scores(folder, row_id, seed) for row_id in stored}
    names = load_scores(folder, next(iter(stored)), seed)
    images = _open_images(quality)
    if images is None or names is None:
        return None
    spread = numpy.nanmax([*means.values()], axis=0) - numpy.nanmin([*means.values()], axis=0)
    chosen = numpy.argsort(-numpy.nan_to_num(spread))[:MAX_IMAGES].tolist()
    classes = len(quality.header.classes)
    shown = []
    for index in chosen:
        try:
            sample = images[index]
        except (UnetkitError, IndexError):
            return None
        if sample.name != str(names["names"][index]):
            return None  # the data have changed since
        predictions = {row_id: _load_array(path, str(index)) for row_id, (_, path) in stored.items()}
        if sample.mask.ndim != 2 or any(one is None for one in predictions.values()):
            return None
        shown.append(
            {
                "name": str(names["names"][index]),
                "image": _encode_image(_to_rgb(sample)),
                "truth": _encode_mask(sample.mask.numpy(), classes),
                "rows": {row_id: _encode_mask(mask, classes) for row_id, mask in predictions.items()},
                "scores": {row_id: _round(float(numpy.nan_to_num(means[row_id][index]))) for row_id in stored},
            }
        )
    colours = [
        [name, f"rgb({r} {g} {b})"] for name, (r, g, b) in zip(quality.header.classes, palette(classes), strict=True)
    ]
    return {
        "rows": [[row_id, name_row(row)] for row_id, (row, _) in stored.items()],
        "images": shown,
        "classes": colours,
    }


def _image_scores(folder: Path, row_id: str, seed: int) -> NDArray[Any]:
    """Return the mean IoU of each scored image of a training."""
    scores = load_scores(folder, row_id, seed)
    rates = image_iou(scores["confusion"]) if scores else numpy.empty((0, 1))
    known = ~numpy.isnan(rates)
    means: NDArray[Any] = numpy.where(known, rates, 0).sum(1) / numpy.maximum(known.sum(1), 1)
    return means


def _load_array(path: Path, name: str) -> NDArray[Any] | None:
    try:
        with numpy.load(path) as arrays:
            found: NDArray[Any] = arrays[name]
            return found
    except (OSError, ValueError, KeyError, EOFError):
        return None


def _open_images(quality: RunQuality) -> Any:
    """Return the scored images; None if the data cannot be opened any more."""
    from unetkit.plugins import default_parts
    from unetkit.train.config import TrainConfig
    from unetkit.train.runner import open_splits

    header = quality.header
    try:
        data = open_splits(TrainConfig(data=header.data, seed=header.seed, **header.settings), default_parts())
    except (UnetkitError, OSError):
        return None
    return data.splits.get(header.scored)


def _to_rgb(sample: Any) -> NDArray[numpy.uint8]:
    """Return an image (C, H, W) as (H, W, 3), stretched over its range if that is not 0 to 1."""
    pixels: NDArray[Any] = sample.image[: 3 if len(sample.image) >= 3 else 1].numpy()
    pixels = numpy.nan_to_num(numpy.moveaxis(numpy.broadcast_to(pixels, (3, *pixels.shape[1:])), 0, -1))
    low, high = float(pixels.min()), float(pixels.max())
    if low < 0 or high > 1 or high < 0.1:
        pixels = (pixels - low) / max(high - low, 1e-9)
    return (255 * pixels).astype(numpy.uint8)


def palette(classes: int) -> list[tuple[int, int, int]]:
    """Return a colour for each class, the first of which is dark, as a background is."""
    from colorsys import hsv_to_rgb

    golden = 0.618034
    colours = [hsv_to_rgb((index * golden) % 1, 0.55 + 0.35 * (index % 2), 0.95) for index in range(classes - 1)]
    return [(24, 24, 28), *((round(255 * r), round(255 * g), round(255 * b)) for r, g, b in colours)]


def _encode_image(pixels: NDArray[numpy.uint8]) -> str:
    from PIL import Image

    image = Image.fromarray(pixels)
    image.thumbnail((_MAX_SIDE, _MAX_SIDE))
    file = BytesIO()
    image.save(file, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{b64encode(file.getvalue()).decode()}"


def _encode_mask(mask: NDArray[Any] | None, classes: int) -> str:
    """Return a mask as a PNG with a palette; ignored pixels are white."""
    from PIL import Image

    if mask is None:
        return ""
    indices = numpy.where(mask < 0, 255, mask).astype(numpy.uint8)
    image = Image.fromarray(indices, "P")
    colours = palette(classes)[:255]
    flat = [value for colour in colours for value in colour]
    image.putpalette(flat + [255] * (768 - len(flat)))
    image.thumbnail((_MAX_SIDE, _MAX_SIDE), Image.Resampling.NEAREST)
    file = BytesIO()
    image.save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{b64encode(file.getvalue()).decode()}"
