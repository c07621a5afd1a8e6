"""Comparison of a written file, run by its own engine, with the network that it was exported from.

Shapes: B batch, C channels, K outputs, H and W height and width.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from hashlib import sha256, shake_256
from typing import Any

import numpy as np
import torch
from torch import nn

from unetkit.errors import ExportError
from unetkit.exporter.capture import CapturedNetwork
from unetkit.utils.formatting import Size

#: A file, opened by its engine: images (B, C, H, W) to outputs (B, K, H', W'), float32.
Runner = Callable[[np.ndarray], np.ndarray]

#: The key of the stored check among the metadata, and the number of output values that it contains.
CHECK_KEY, _SAMPLES = "unetkit.check", 256


def make_test_images(batch: int, channels: int, size: Size) -> np.ndarray:
    """Make images (B, C, H, W) float32 of coarse squares and noise, which are the same everywhere and always.

    The values have a mean of about 0 and a standard deviation of about 1, as those of normalized images.
    """
    height, width = size
    coarse = _uniform("squares", (batch, channels, -(-height // 8), -(-width // 8)))
    squares = coarse.repeat(8, -2).repeat(8, -1)[..., :height, :width]
    return np.asarray(2 * squares + 2 * _uniform("noise", (batch, channels, height, width)), np.float32)


def _uniform(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return numbers from -0.5 to 0.5 that only a name and a shape determine; random generators differ by version."""
    count = int(np.prod(shape))
    numbers = np.frombuffer(shake_256(f"{name} {shape}".encode()).digest(2 * count), "<u2")
    return numbers.reshape(shape) / np.float32(65535) - np.float32(0.5)


@dataclass(frozen=True)
class Comparison:
    """The comparison of one batch.

    Attributes:
        what: which size this is, in words.
        shape: the shape of the images, (B, C, H, W).
        difference: the largest difference, as a fraction of the range of the network's outputs.
        changed: pixels per million for which another class or label is decided.
    """

    what: str
    shape: tuple[int, ...]
    difference: float
    changed: float


@dataclass(frozen=True)
class StoredCheck:
    """The part of the network's own outputs that a file stores, for comparison later and elsewhere.

    Attributes:
        shape: the shape of the test images.
        input_sha256: the digest of the test images.
        output_shape: the shape of the outputs.
        range: the range of the outputs, by which differences are divided.
        minimum, maximum, mean, std: statistics of the outputs.
        values: some of the outputs, at even distances.
        tolerance: the largest difference that the export allowed, as a fraction of the range.
    """

    shape: tuple[int, ...]
    input_sha256: str
    output_shape: tuple[int, ...]
    range: float
    minimum: float
    maximum: float
    mean: float
    std: float
    values: tuple[float, ...]
    tolerance: float

    def to_text(self) -> str:
        """Return it as text for the metadata of a file."""
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> StoredCheck:
        """Read it from the metadata of a file. Raises ValueError, TypeError or KeyError if it is damaged."""
        values = json.loads(text)
        values |= {name: tuple(values[name]) for name in ("shape", "output_shape", "values")}
        return cls(**values)


def check_shapes(captured: CapturedNetwork) -> list[tuple[str, int, Size]]:
    """Return the batches on which a file is checked: what each is, the number of images, and their size."""
    own = captured.size
    if not captured.is_dynamic:
        return [("its only size", 1, own), ("a batch of 2", 2, own)]
    least, period = captured.tiles.least, captured.tiles.period
    if captured.any_size:
        odd, smallest = ((own[0] * 3 // 4) | 1, (own[1] * 5 // 8) | 1), (1, 1)
    else:
        odd, smallest = (least[0] + period, least[1] + 2 * period), least
    named = [("its own size", 1, own), ("an odd size" if captured.any_size else "another size", 1, odd)]
    return [*named, ("the smallest size", 1, smallest), ("a batch of 2", 2, own)]


def compare_outputs(captured: CapturedNetwork, run: Runner) -> list[Comparison]:
    """Run a file on batches of several sizes, and compare with the network.

    Raises:
        ExportError: The file does not run on one of these, or returns another shape or NaN.
    """
    batches = []
    for what, batch, size in check_shapes(captured):
        images = make_test_images(batch, captured.channels, size)
        batches.append((what, images, run_reference(captured.reference, images), _run(run, images, what)))
    scale = _range_of([expected for _, _, expected, _ in batches])
    found = []
    for what, images, expected, output in batches:
        if output.shape != expected.shape:
            raise ExportError(f"the file returns {output.shape} for {images.shape}, and the network {expected.shape}")
        if not np.isfinite(output).all():
            raise ExportError(f"the file returns NaN or infinity for {what}, {images.shape}; numbers are too large")
        difference = float(np.abs(output - expected).max(initial=0)) / scale
        other = _decide(output, captured.output) != _decide(expected, captured.output)
        found.append(Comparison(what, images.shape, difference, float(other.any(1).mean()) * 1e6))
    return found


def run_reference(reference: nn.Module, images: np.ndarray) -> np.ndarray:
    """Compute the network's own outputs (B, K, H', W') of images (B, C, H, W)."""
    with torch.no_grad():
        output: np.ndarray = reference(torch.from_numpy(images)).numpy()
    return output


def _run(run: Runner, images: np.ndarray, what: str) -> np.ndarray:
    try:
        return np.asarray(run(images), np.float32)
    except Exception as error:  # of any engine
        text = " ".join(str(error).split())[:200]
        raise ExportError(f"the file does not run on {what}, {images.shape}: {text}") from error


def _decide(output: np.ndarray, kind: str) -> np.ndarray:
    """Return decisions (B, 1 or K, H, W): the highest class, or for a single output whether it is above its middle."""
    if output.shape[1] > 1:
        return np.asarray(output.argmax(1)[:, None])
    return np.asarray(output > (0 if kind == "logits" else 0.5))


def _range_of(outputs: list[np.ndarray]) -> float:
    lowest, highest = min(float(x.min()) for x in outputs), max(float(x.max()) for x in outputs)
    # A network that was just initialized may give one number everywhere.
    return highest - lowest or max(abs(highest), 1.0)


def make_stored_check(captured: CapturedNetwork, tolerance: float, run: Runner | None = None) -> StoredCheck:
    """Compute outputs of small test images, which a file stores: the network's own, or those of another runner."""
    least, period = captured.tiles.least, captured.tiles.period
    small = (least[0] + period, least[1] + 2 * period) if captured.is_dynamic else captured.size
    images = make_test_images(1, captured.channels, small)
    output = run_reference(captured.reference, images) if run is None else _run(run, images, "test images")
    return StoredCheck(
        shape=images.shape,
        input_sha256=sha256(images.tobytes()).hexdigest(),
        output_shape=output.shape,
        range=_range_of([output]),
        minimum=float(output.min()),
        maximum=float(output.max()),
        mean=float(output.mean(dtype=np.float64)),
        std=float(output.std(dtype=np.float64)),
        values=tuple(map(float, _samples(output))),
        tolerance=tolerance,
    )


def _samples(output: np.ndarray) -> np.ndarray:
    flat = output.ravel()
    return np.asarray(flat[np.linspace(0, flat.size - 1, min(_SAMPLES, flat.size)).astype(int)])


def compare_stored(stored: StoredCheck, run: Runner) -> tuple[float, str]:
    """Run a file on the test images of its stored check.

    Returns:
        The largest difference as a fraction of the range, and what is wrong, "" if nothing is.
    """
    batch, channels, height, width = stored.shape
    images = make_test_images(batch, channels, (height, width))
    if sha256(images.tobytes()).hexdigest() != stored.input_sha256:
        return np.inf, "its test images cannot be made again here; update unetkit"
    output = _run(run, images, "its test images")
    if output.shape != tuple(stored.output_shape):
        return np.inf, f"it returns {output.shape}, and the network returned {tuple(stored.output_shape)}"
    differences = np.abs(_samples(output) - np.asarray(stored.values, np.float32))
    statistics = [
        abs(found - expected)
        for found, expected in (
            (float(output.min()), stored.minimum),
            (float(output.max()), stored.maximum),
            (float(output.mean(dtype=np.float64)), stored.mean),
            (float(output.std(dtype=np.float64)), stored.std),
        )
    ]
    difference = float(max(*differences, *statistics)) / stored.range
    if not difference <= stored.tolerance:
        return difference, (
            f"its outputs differ by {difference:.1e} of their range from those when it was exported, "
            f"and at most {stored.tolerance:g} is allowed"
        )
    return difference, ""


def to_dict(found: Comparison) -> dict[str, Any]:
    """Return a comparison as JSON can hold it."""
    return asdict(found) | {"shape": list(found.shape)}
