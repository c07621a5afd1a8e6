"""Made-up benchmark runs, whose true costs are known, for tests of what reads them."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import replace
from hashlib import sha256
from itertools import product
from pathlib import Path

from unetkit.bench.results import BenchCommand, BenchRow, BenchRun, Header, Timing
from unetkit.registry import MetricInfo

#: What a part multiplies the baseline's time by.
TRUE = {
    "encoder=resnet18": 1.0,
    "encoder=resnet34": 1.45,
    "up=bilinear": 1.0,
    "up=nearest": 0.995,
    "up=transposed": 1.12,
    "fuse=concat": 1.0,
    "fuse=add": 0.9,
    "batch_size=1": 1.0,
    "batch_size=8": 7.0,
    "model=unet": 1.0,
    "model=smp/unet": 1.02,
    "model=smp/fpn": 0.7,
}
METRICS = (
    MetricInfo("parameters", "", False, "numbers that training changes, counted"),
    MetricInfo("macs", "", False, "multiply-accumulates of one image's pass, counted on meta tensors"),
    MetricInfo("activations", "B", False, "bytes of every operation's output in a pass, counted on meta tensors"),
    MetricInfo("latency", "s", True, "one pass in eval mode without gradients, timed in rounds with the baseline"),
    MetricInfo("training", "s", True, "one step of SGD on random targets, timed in rounds with the baseline"),
    MetricInfo("memory", "B", False, "the most memory that a pass takes beyond what the weights and the process take"),
    MetricInfo("training-memory", "B", False, "the same of a training step"),
    MetricInfo("disk", "B", False, "bytes of the weights as safetensors"),
    MetricInfo("build", "s", False, "seconds to build it with its weights, once"),
    MetricInfo("energy", "J", False, "joules of one pass, by the meter in the rack", "unetkit-energy", ""),
)
BASELINE = "--encoder resnet18"
_PARAMETERS = {"resnet18": 14.3e6, "resnet34": 24.4e6}
_MACS = {"resnet18": 5.4e9, "resnet34": 7.9e9}


def made_run(
    folder: Path, *, seed: int = 0, rounds: int = 24, change: Mapping[str, float] | None = None, noise: float = 0.02
) -> BenchRun:
    """28 rows: 26 measured, one of them without `training-memory` and one with warnings; one that ran out of memory;
    one that cannot be built.

    Args:
        folder: the run's; nothing is written there.
        seed: of the samples alone.
        rounds: samples of each timing.
        change: takes the place of entries of TRUE, as {"fuse=add": 1.2}; more may be named, as {"up=nearest": 2.0}.
        noise: standard deviation of each sample's logarithm; the machine's drift, alike for both of a round, is more.
    """
    true = {**TRUE, **(change or {})}
    rows = tuple(_row(factors, true, random.Random(f"{seed} {factors}"), rounds, noise) for factors in _grid())
    header = Header(
        baseline=BASELINE,
        baseline_mode="eager",
        metrics=METRICS,
        settings={"budget": 20.0, "target_ci": 0.02, "seed": 0, "threads": 2},
        machine={"cpu": "Example CPU 2.0 GHz", "cores": 8, "memory": 16 * 2**30, "gpus": [], "system": "Linux 6.1"},
        versions={"unetkit": "0.1.0", "torch": "2.9.0", "timm": "1.0.22", "python": "3.11.9"},
    )
    command = (
        "unetkit bench --encoder resnet18,resnet34 --up bilinear,nearest,transposed --fuse concat,add "
        f"--model smp/unet,smp/fpn --size 256 --batch-size 1,8 --out {folder}"
    )
    commands = (BenchCommand(command, tuple(row.id for row in rows), "2026-11-22T08:00:00Z"),)
    return BenchRun(folder, header, rows, len(rows), 0, command, commands[0].started_at, commands=commands)


def _grid() -> Iterator[dict[str, str]]:
    condition = {"size": "256", "mode": "eager"}
    for encoder, up, fuse, batch in product(
        ("resnet18", "resnet34"), ("bilinear", "nearest", "transposed"), ("concat", "add"), ("1", "8")
    ):
        yield {"model": "unet", "encoder": encoder, "up": up, "fuse": fuse, "batch_size": batch, **condition}
    for model, batch in product(("smp/unet", "smp/fpn"), ("1", "8")):
        yield {"model": model, "encoder": "resnet18", "batch_size": batch, **condition}


def _row(
    factors: dict[str, str], true: Mapping[str, float], draw: random.Random, rounds: int, noise: float
) -> BenchRow:
    batch, encoder = int(factors["batch_size"]), factors["encoder"]
    line = _line(factors)
    ours = math.prod(true.get(f"{axis}={value}", 1.0) for axis, value in factors.items() if axis != "batch_size")
    base = 0.04 * true[f"batch_size={batch}"]
    row = BenchRow(
        id=sha256(str(factors).encode()).hexdigest()[:16],
        cache_key=sha256(f"{factors} 2.9.0".encode()).hexdigest()[:16],
        factors=factors,
        line=line,
        size=(256, 256),
        batch_size=batch,
        mode="eager",
        error=_CAUSES.get((line, batch), ""),
        command=f"unetkit bench {line} --size 256 --batch-size {batch} --baseline '{BASELINE}'",
        device="cpu 0-1, 2 threads",
        seconds=41.0,
        measured_at="2026-11-22T08:12:00Z",
    )
    if row.error:
        return row
    fluctuating = (line, batch) == ("--encoder resnet34 --fuse add", 1)
    timings = {
        "latency": _timing(draw, base, ours, rounds, noise * (12 if fluctuating else 1)),
        "training": _timing(draw, base * 3.1, ours, max(rounds // 2, 8), noise),
    }
    weights = _PARAMETERS[encoder] * (1.1 if factors.get("up") == "transposed" else 1.0)
    wide = 0.8 if factors.get("fuse") == "add" else 1.0
    figures = {
        "parameters": float(round(weights * (0.96 + 0.04 * wide))),
        "macs": float(round(_MACS[encoder] * wide)),
        "activations": 60e6 * ours * batch,
        "memory": 48e6 * wide * batch,
        "training-memory": 210e6 * wide * batch,
        "disk": weights * 4 + 30e3,
        "build": 0.31,
        "energy": 1.7 * ours * batch,
    }
    failures: dict[str, str] = {}
    if (line, batch) == ("--encoder resnet34 --up nearest", 8):
        del figures["training-memory"]
        failures = {"training-memory": "the child was killed at 12 GiB; give --batch-size 4"}
    warnings = ("latency: the rounds fluctuate by 34% (IQR/median): unreliable",) if fluctuating else ()
    return replace(row, values=figures, timings=timings, failures=failures, warnings=warnings)


_CAUSES = {
    (
        "--encoder resnet34 --up transposed",
        8,
    ): "out of memory: 14.2 GiB asked, 12 GiB free; give a smaller --batch-size",
    ("--model smp/fpn --encoder resnet18", 8): "cannot be built: smp/fpn refused 256x256 <made up for the tests>",
}


def _line(factors: dict[str, str]) -> str:
    usual = {"model": "unet", "up": "bilinear", "fuse": "concat"}
    words = [axis for axis in ("model", "encoder", "up", "fuse") if axis in factors]
    return " ".join(f"--{axis} {factors[axis]}" for axis in words if factors[axis] != usual.get(axis))


def _timing(draw: random.Random, base: float, ours: float, rounds: int, noise: float) -> Timing:
    """Samples on a machine that drifts by tenths, alike for the two of a round."""
    drift, candidate, baseline = 0.0, [], []
    for _ in range(rounds):
        drift = 0.8 * drift + draw.gauss(0, 0.05)
        both = base * math.exp(drift) * (1.5 if draw.random() < 0.05 else 1.0)
        candidate.append(both * ours * math.exp(draw.gauss(0, noise)))
        baseline.append(both * math.exp(draw.gauss(0, noise)))
    return Timing(tuple(candidate), tuple(baseline), 1, 5, "precise")
