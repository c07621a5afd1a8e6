"""The costs and gains of lower precision: mean IoU on validation images, the file's size, and the time of a pass.

Shapes: B batch, C channels, N images, L classes or labels, H and W height and width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from math import isnan
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from unetkit.data.rng import numpy_rng
from unetkit.data.types import Dataset
from unetkit.errors import UnetkitError
from unetkit.exporter.check import make_test_images
from unetkit.exporter.formats import ExportFormat
from unetkit.network import Network
from unetkit.predict.engines import Engine, missing_packages
from unetkit.predict.evaluate import open_evaluation, score_images, select_images
from unetkit.predict.model_info import ModelInfo
from unetkit.predict.onnx_engine import open_onnx
from unetkit.predict.openvino_engine import open_openvino
from unetkit.predict.torch_engine import TorchEngine
from unetkit.registry import Parts
from unetkit.train.checkpoint import TrainRun
from unetkit.train.metrics import Evaluation
from unetkit.utils.formatting import Size

#: The number of resampled sets of images.
_DRAWS = 2000
#: The fewest and the most rounds in which all engines take turns, and the seconds after which no round begins.
_LEAST_ROUNDS, _MOST_ROUNDS, _SECONDS = 7, 31, 20.0
#: A pass gains if the whole interval of the ratio of times is below this.
_GAIN = 0.95


@dataclass(frozen=True)
class Ratio:
    """The median of paired ratios of times, with its 95% interval over rounds."""

    ratio: float
    low: float
    high: float


@dataclass(frozen=True)
class EngineCost:
    """The costs and gains of lower precision in one engine.

    Attributes:
        engine: the name of the engine.
        miou: the mean IoU over all pixels of the validation images; None if it is unknown.
        difference: this mean IoU minus that in float32.
        interval: the 95% interval of the difference over images; None with fewer than two.
        to_float32: the time of a pass relative to the file in float32, in the same engine.
        to_torch: the time of a pass relative to the network in torch, in float32.
    """

    engine: str
    miou: float | None
    difference: float | None
    interval: tuple[float, float] | None
    to_float32: Ratio
    to_torch: Ratio


@dataclass(frozen=True)
class PrecisionCost:
    """The costs and gains of lower precision, beside the same network in float32.

    Attributes:
        bytes: the size of the file.
        float32_bytes: the size of the file in float32.
        images: the number of validation images; 0 if there are none to score.
        data: the name of the data set.
        miou: the mean IoU in float32, in the format's own engine; None if it is unknown.
        size: the height and width of the images of which a pass was timed.
        threads: the number of threads.
        rounds: the number of rounds of timing.
        engines: each engine, that of the format first.
        notes: what a user should know, a line each.
    """

    bytes: int
    float32_bytes: int
    images: int
    data: str
    miou: float | None
    size: Size
    threads: int
    rounds: int
    engines: tuple[EngineCost, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as JSON can hold them."""
        return asdict(self)

    @property
    def fastest(self) -> EngineCost:
        """The engine with the shortest time of a pass."""
        return min(self.engines, key=lambda one: one.to_torch.ratio)


class _FileEngine:
    """A file of a format that `unetkit predict` does not open, run as its format does."""

    def __init__(self, runner: Callable[[np.ndarray], np.ndarray], info: ModelInfo) -> None:
        self._runner, self._info = runner, info

    def __call__(self, tiles: np.ndarray, /) -> np.ndarray:
        return self._info.to_probabilities(np.asarray(self._runner(tiles), np.float32))

    def explain_if_too_large(self, size: Size) -> str:
        return ""


def open_engines(path: Path, name: str, writer: ExportFormat, info: ModelInfo) -> dict[str, Engine]:
    """Open a file by each engine that runs it, that of its format first, with as many threads as torch has."""
    threads, info = torch.get_num_threads(), replace(info, source=str(path))
    if writer.suffix == ".onnx":
        engines: dict[str, Engine] = {"onnxruntime": open_onnx(path, threads)[1]}
        if not missing_packages("openvino"):
            engines["openvino"] = open_openvino(path, info, threads)
        return engines
    if writer.suffix == ".xml":
        return {"openvino": open_openvino(path, info, threads)}
    return {name: _FileEngine(writer.open(path), info)}


def measure_cost(
    network: Network,
    info: ModelInfo,
    float32: dict[str, Engine],
    lower: dict[str, Engine],
    sizes: tuple[int, int],
    run: TrainRun | None,
    parts: Parts,
    size: Size,
    on_notice: Callable[[str], object],
) -> PrecisionCost:
    """Measure what lower precision costs and gains.

    Args:
        network: the network in float32.
        info: what prediction must know of it.
        float32: engines by name, of the file in float32.
        lower: the same engines of the file with lower precision.
        sizes: the bytes of the file with lower precision, and of the file in float32.
        run: the run of the network, whose validation images are scored; None to leave scores out.
        parts: the registered parts.
        size: the height and width of the images to time; that of a tile of the validation images where these are known.
        on_notice: called with each line that a user should see.
    """
    notes, scores, images = [], {}, 0
    before: Evaluation | None = None
    if run is not None:
        try:
            _, found = select_images(run, open_evaluation(run, None, parts), "val")
            images, size = len(found), _tile_size(info, found)
            on_notice(f"scoring {images} validation images in float32")
            before = _score(run, network, info, found, next(iter(float32.values())))
            for name, engine in lower.items():
                on_notice(f"scoring them in {name}")
                scores[name] = _score(run, network, info, found, engine)
        except UnetkitError as error:
            notes.append(f"its quality was not measured: {error}")
            before, scores, images = None, {}, 0
    on_notice(f"timing passes of {size[0]}x{size[1]}")
    times = _time_in_turns(
        {("torch", ""): TorchEngine(network, info)}
        | {(name, "float32"): float32[name] for name in lower}
        | {(name, "lower"): engine for name, engine in lower.items()},
        make_test_images(1, info.channels, size),
    )
    eager = times["torch", ""]
    costs = tuple(
        _describe_engine(name, before, scores.get(name), times[name, "float32"], times[name, "lower"], eager)
        for name in lower
    )
    fastest = min(costs, key=lambda one: one.to_torch.ratio)
    best = min((times[name, "float32"] for name in lower), key=lambda each: float(np.median(each / eager)))
    gained = _median_ratio(times[fastest.engine, "lower"], best)
    if gained.high >= _GAIN:
        notes.append(f"it gains no time here: {gained.ratio:.2f} of the time of the fastest engine in float32")
    miou = None if before is None else _defined(before.micro().miou)
    data = Path(run.config.data).name if run is not None and images else ""
    threads, rounds = torch.get_num_threads(), len(eager)
    return PrecisionCost(sizes[0], sizes[1], images, data, miou, size, threads, rounds, costs, tuple(notes))


def _tile_size(info: ModelInfo, images: Dataset) -> Size:
    """Return the size of the tiles of the first image."""
    height, width = images[0].image.shape[-2:]
    layout = info.tiles.layout((height, width))
    (top, bottom), (left, right) = layout.rows.input_range(0), layout.columns.input_range(0)
    return bottom - top, right - left


def _score(run: TrainRun, network: Network, info: ModelInfo, images: Dataset, engine: Engine) -> Evaluation:
    return score_images(run, network, images, engine=engine, tiles=info.tiles, outlines=False, separation=False)


def _time_in_turns(
    engines: dict[tuple[str, str], Engine], images: np.ndarray
) -> dict[tuple[str, str], NDArray[np.float64]]:
    """Time passes in rounds, in each of which every engine takes a turn, in random order; returns seconds."""
    for engine in engines.values():  # the first passes are slower than the others
        engine(images)
        engine(images)
    seconds: dict[tuple[str, str], list[float]] = {name: [] for name in engines}
    rng, names, begin = numpy_rng(0, "turns"), [*engines], perf_counter()
    for done in range(_MOST_ROUNDS):
        if done >= _LEAST_ROUNDS and perf_counter() - begin > _SECONDS:
            break
        for index in rng.permutation(len(names)):
            start = perf_counter()
            engines[names[index]](images)
            seconds[names[index]].append(perf_counter() - start)
    return {name: np.asarray(each) for name, each in seconds.items()}


def _median_ratio(times: NDArray[np.float64], others: NDArray[np.float64]) -> Ratio:
    """Return the median of the ratios of paired times, with the bootstrap interval over rounds."""
    ratios = times / others
    drawn = numpy_rng(0, "rounds").choice(ratios, (_DRAWS, len(ratios)))
    low, high = np.quantile(np.median(drawn, 1), (0.025, 0.975)).tolist()
    return Ratio(float(np.median(ratios)), low, high)


def _describe_engine(
    name: str,
    before: Evaluation | None,
    after: Evaluation | None,
    float32: NDArray[np.float64],
    lower: NDArray[np.float64],
    eager: NDArray[np.float64],
) -> EngineCost:
    miou = difference = interval = None
    if before is not None and after is not None:
        miou, base = _defined(after.micro().miou), _defined(before.micro().miou)
        if miou is not None and base is not None:
            difference, interval = miou - base, difference_interval(_matrices(before), _matrices(after))
    ratios = _median_ratio(lower, float32), _median_ratio(lower, eager)
    return EngineCost(name, miou, difference, interval, *ratios)


def _matrices(found: Evaluation) -> NDArray[np.float64]:
    return np.stack([image.matrix.numpy() for image in found.images]).astype(np.float64)


def _defined(value: float) -> float | None:
    return None if isnan(value) else value


def difference_interval(before: NDArray[np.float64], after: NDArray[np.float64]) -> tuple[float, float] | None:
    """Return the 95% bootstrap interval of a difference of mean IoU over images, which are resampled for both alike.

    Args:
        before, after: a confusion matrix for each image, (N, L, L), or for labels (N, L, 2, 2).

    Returns:
        The bounds of after - before; None with fewer than two images, or where mean IoU is undefined.
    """
    count = len(before)
    if count < 2:
        return None
    rng = numpy_rng(0, "images")
    differences = []
    for _ in range(_DRAWS):
        weights = rng.multinomial(count, np.full(count, 1 / count))
        old, new = (_mean_iou(np.tensordot(weights, matrices, 1)) for matrices in (before, after))
        if not isnan(new - old):
            differences.append(new - old)
    if not differences:
        return None
    low, high = np.quantile(differences, (0.025, 0.975)).tolist()
    return low, high


def _mean_iou(matrix: NDArray[np.float64]) -> float:
    """Compute mean IoU from the confusion matrix (L, L), or from those of labels (L, 2, 2), as `scores` does."""
    if matrix.ndim == 3:
        right, either = matrix[:, 1, 1], matrix[:, 1].sum(-1) + matrix[:, 0, 1]
    else:
        right = matrix.diagonal()
        either = matrix.sum(0) + matrix.sum(1) - right
    occurs = either > 0
    return float((right[occurs] / either[occurs]).mean()) if occurs.any() else float("nan")
