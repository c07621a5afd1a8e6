"""Made-up benchmark runs with trainings, whose true scores are known, for tests of what reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from unetkit.bench.quality_metrics import miou
from unetkit.bench.quality_statistics import QualityRules, mean_iou
from unetkit.bench.results import (
    BenchRow,
    BenchRun,
    Header,
    ResultsWriter,
    TrainingHeader,
    TrainingRecord,
    read_results,
)
from unetkit.bench.training import training_folder
from unetkit.registry import MetricInfo

#: Share of wrong pixels of each row, by its factors; the first row is the baseline.
ERRORS = {
    ("resnet18", "concat"): 0.20,
    ("resnet18", "add"): 0.12,
    ("resnet34", "concat"): 0.2005,
    ("resnet34", "add"): 0.30,
}
CLASSES = ("road", "car")
METRICS = (
    MetricInfo("parameters", "", False, "Number of parameters."),
    MetricInfo("miou", "", False, miou.__doc__ or "", better="more", trained=True),
    MetricInfo("val-loss", "", False, "Loss over the validation images.", better="less", trained=True),
)


def write_trained_run(
    folder: Path,
    *,
    seeds: int = 6,
    images: int = 20,
    failed: Mapping[tuple[str, str], int] | None = None,
    looks: tuple[int, ...] | None = None,
    shift: float = 0.0,
) -> BenchRun:
    """Write the folder of a run with four rows, and read it.

    Args:
        folder: the folder.
        seeds: number of trainings of each row.
        images: number of scored images.
        failed: a seed of a row, by its factors, whose training failed.
        looks: looks of the rules; a single one after all seeds if None.
        shift: is added to the share of wrong pixels of all rows.
    """
    ids = {factors: "-".join(factors) for factors in ERRORS}
    training = TrainingHeader(
        data="cells",
        settings={"split_seed": None},
        seed=0,
        rules=QualityRules("miou", "more", 0.005, looks or (seeds,)).to_dict(),
        baseline_row=ids["resnet18", "concat"],
        scored="test",
        is_split=True,
        classes=CLASSES,
        channels=1,
        outputs=1,
        crop=(64, 64),
        images={"train": 40, "val": 10, "test": images},
        fingerprints={"test": f"{images} abc"},
    )
    header = Header("--encoder resnet18", "eager", METRICS, {"seed": 0}, {"cpu": "x"}, {"torch": "2"}, training)
    writer = ResultsWriter(folder)
    writer.start(header, "unetkit bench ...", [*ids.values()])
    for (encoder, fuse), row_id in ids.items():
        condition = {"size": "own", "batch_size": "8", "mode": "eager"}
        row = BenchRow(
            row_id,
            "key",
            {"encoder": encoder, "fuse": fuse, **condition},
            f"--encoder {encoder} --fuse {fuse}",
            (64, 64),
            8,
            "eager",
            values={"parameters": 1e6 if encoder == "resnet18" else 2e6},
        )
        writer.append(row)
        for seed in range(seeds):
            is_failed = (failed or {}).get((encoder, fuse)) == seed
            writer.append_training(_train(folder, row_id, (encoder, fuse), seed, images, shift, is_failed=is_failed))
    writer.close()
    return read_results(folder)


def _train(
    folder: Path, row_id: str, factors: tuple[str, str], seed: int, images: int, shift: float, *, is_failed: bool
) -> TrainingRecord:
    if is_failed:
        return TrainingRecord(row_id, "key", seed, "the loss is nan at step 3 of epoch 1", seconds=10.0)
    shared, own = np.random.default_rng(seed), np.random.default_rng([seed, *map(ord, row_id)])
    of_images = np.random.default_rng(99).normal(0, 0.02, images)
    noise = shared.normal(0, 0.01) + own.normal(0, 0.001) + of_images + own.normal(0, 0.003, images)
    wrong = np.round(1000 * np.clip(ERRORS[factors] + shift + noise, 0, 1)).astype(int)
    counts = np.stack([np.array([[1000 - n, n], [n, 1000 - n]]) for n in wrong])
    place = training_folder(folder, row_id, seed)
    place.mkdir(parents=True)
    names = np.array([f"image{index}" for index in range(images)])
    np.savez_compressed(place / "scores.npz", names=names, confusion=counts)
    log = [{"epoch": epoch, "miou": 0.5 + 0.01 * epoch, "val_loss": 1 / epoch} for epoch in (1, 2, 3)]
    (place / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    score = float(mean_iou(counts.sum(0).astype(float)))
    values = {"miou": score, "val-loss": 1 - score}
    return TrainingRecord(row_id, "key", seed, values=values, epoch=3, memory=10**9, device="cpu", seconds=60.0)
