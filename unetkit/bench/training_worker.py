"""The functions that the processes of a benchmark's trainings run: open the data, or train and score one network."""

from __future__ import annotations

import json
import math
import pickle
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any

import numpy
import torch

from unetkit.bench.devices import Slot
from unetkit.bench.metrics import describe_failure, to_number
from unetkit.bench.quality_metrics import ScoredRun
from unetkit.bench.training import DataRequest, TrainingTask, digest_of_header, train_settings
from unetkit.bench.worker import prepare_process
from unetkit.data.folder import split_again
from unetkit.data.splits import SplitConfig
from unetkit.data.statistics import ValueRange, measure_statistics
from unetkit.data.types import DatasetSplits
from unetkit.errors import UnetkitError
from unetkit.plugins import load_manager
from unetkit.predict.evaluate import score_images
from unetkit.registry import BUILTIN, Parts
from unetkit.resolve import resolve
from unetkit.train.checkpoint import BENCH_RESULT, BEST, HEADER, LAST, LOG, STATE, TrainRun, read_run, read_state
from unetkit.train.config import TrainConfig
from unetkit.train.image_check import ImageCheck
from unetkit.train.metrics import Evaluation
from unetkit.train.runner import create_run_parts, default_crop, fit_plan, list_fingerprints, open_splits, resume, run
from unetkit.train.trainer import STOPPED
from unetkit.utils.files import atomic_write
from unetkit.utils.processes import Emit
from unetkit.utils.system import peak_private_memory

#: Files of a training's folder beside those of `unetkit train`: the counts of each scored image, the predicted masks,
#: and what the training emitted, which is written last.
SCORES, PREDICTIONS, RESULT = "scores.npz", "predictions.npz", BENCH_RESULT
#: Files that a finished training leaves.
_KEPT = (HEADER, LOG, SCORES, PREDICTIONS, RESULT)
WEIGHTS = (BEST, LAST)


#: What `unetkit train` advises, and what to do in a benchmark instead.
_ADVICE = {
    "continue with --resume, or start again with --workers 0": "run the same command with --retry-failed --workers 0",
    "and use --resume": "and run the same command with --retry-failed",
    "give a lower --batch-size or --crop, and another --out": "give a lower --batch-size or --crop",
}


def open_training_data(request: DataRequest, slot: None, emit: Emit) -> None:
    """Open the data of a benchmark, check every row against them, and emit what the runner has to know.

    Args:
        request: the data and the rows.
        slot: not used.
        emit: called with "channels", "classes", "outputs", "scored", "is_split", "images", "fingerprints", "crop",
            "notes", ("refused", id of a row) for each row that does not fit, and ("opened", seed) for each seed.
    """
    parts = load_manager(request.plugins).parts
    config = TrainConfig(data=request.data, seed=request.seeds[0], **request.settings)
    data = open_splits(config, parts)
    scored = "test" if "test" in data.splits else "val"
    emit(
        {
            "channels": data.channels,
            "classes": data.target.names,
            "outputs": data.target.outputs,
            "scored": scored,
            "is_split": data.is_split,
            "images": {name: len(images) for name, images in data.splits.items()},
            "fingerprints": list_fingerprints(data),
            "crop": default_crop(data),
            "notes": data.notes,
        }
    )
    for case in request.cases:
        try:
            plan = resolve(fit_plan(case.plan, data), parts)
            wanted = replace(config, **train_settings(case))
            create_run_parts(wanted, plan, data, ValueRange((0.0,) * data.channels, (1.0,) * data.channels), parts)
        except UnetkitError as error:
            emit({("refused", case.id): str(error)})
    if request.checks_images:
        check = ImageCheck(data.splits)
        check.run()  # once, and not in each training
        check.raise_error()
    for seed in request.seeds:
        if opened := _pickle_split(data, seed, config):
            emit({("opened", seed): opened})
        if data.is_split or config.split_seed is not None:
            break


def _pickle_split(data: DatasetSplits, seed: int, config: TrainConfig) -> bytes | None:
    """Return the data with the split of a seed, and their statistics, as other processes read them.

    Returns:
        None if each process has to open them itself.
    """
    rules = SplitConfig(seed if config.split_seed is None else config.split_seed, config.val_fraction, config.group_by)
    if not data.is_split and seed != config.seed:
        again = split_again(data, rules)
        if again is data:
            return None
        data = again
    try:
        return pickle.dumps((data, measure_statistics(data.splits["train"])))
    except Exception:  # what a plugin's data set contains may be unfit for another process in any way
        return None


def train_row(task: TrainingTask, slot: Slot, emit: Emit) -> None:
    """Train and score one network, or continue if that was begun, and emit its scores.

    Args:
        task: the training.
        slot: device and cores to use.
        emit: called with "values" (scores by metric), "best_epoch", "device", and "files" (contents by name) if the
            folder of the training does not exist on this machine.
    """
    prepare_process(slot, task.seed)
    torch.backends.cudnn.benchmark = False  # as in `unetkit train`: images that are scored have sizes of their own
    emit({"device": str(slot)})
    folder = Path(task.folder)
    if digest_of_header(folder.parent.parent.parent) == task.token:
        emit(_train_in(folder, task, slot))
        return
    with tempfile.TemporaryDirectory(prefix="unetkit-") as temporary:  # on a machine that does not share the folder
        local = Path(temporary, "training")
        result = _train_in(local, replace(task, borders=str(Path(temporary, "borders"))), slot)
        emit(
            {
                **result,
                "files": {path.name: path.read_bytes() for path in local.iterdir() if path.is_file()},
            }
        )


def _peak_memory(slot: Slot) -> int:
    """Return the peak memory of this process, or of its tensors on a GPU, in bytes; 0 if it is unknown."""
    if slot.device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    return peak_private_memory() or 0


def _train_in(folder: Path, task: TrainingTask, slot: Slot) -> dict[str, Any]:
    """Train in a folder, write its scores, and remove what only an unfinished training needs."""
    start = monotonic()
    key = folder / "key"
    if folder.exists() and (not key.exists() or key.read_text(encoding="utf-8") != task.key):
        shutil.rmtree(folder)  # a training of another version of a plugin, or of an earlier benchmark
    if task.rescores:
        (folder / RESULT).unlink(missing_ok=True)
    if (folder / RESULT).exists():
        finished: dict[str, Any] = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        return finished
    folder.mkdir(parents=True, exist_ok=True)
    key.write_text(task.key, encoding="utf-8")
    parts = load_manager(task.plugins).parts
    opened = pickle.loads(task.opened) if task.opened else (None, None)  # noqa: S301  the runner's own process wrote it
    data: DatasetSplits | None = opened[0]
    try:
        trained = _train(folder, task, slot, opened, parts)
    except UnetkitError as error:
        (folder / STOPPED).unlink(missing_ok=True)
        message = str(error)
        for of_train, of_bench in _ADVICE.items():
            message = message.replace(of_train, of_bench)
        raise UnetkitError(message) from error
    data = data or open_splits(trained.config, parts)
    result = _score(trained, data, task, slot, parts)
    result |= {"seconds": round(monotonic() - start, 2), "memory": _peak_memory(slot)}
    with atomic_write(folder / RESULT) as temporary:
        temporary.write_text(json.dumps(result), encoding="utf-8")
    for path in folder.iterdir():
        if path.is_file() and path.name not in (*_KEPT, *WEIGHTS, key.name):
            path.unlink()
    return result


def _train(folder: Path, task: TrainingTask, slot: Slot, opened: tuple[Any, Any], parts: Parts) -> TrainRun:
    data, statistics = opened
    shared: dict[str, Any] = {"parts": parts, "borders": task.borders, "check_images": False}
    if _can_resume(folder):
        return resume(folder, data=data, device=slot.device, **shared)
    for path in folder.iterdir():
        if path.is_file() and path.name != "key":
            path.unlink()
    plan = replace(task.plan, seed=task.seed)
    settings: dict[str, Any] = {
        **task.settings,
        "device": slot.device,
        "data": data or task.data,
        "statistics": statistics,
    }
    return run(plan, folder, plugins=task.plugins, **shared, **settings)


def _can_resume(folder: Path) -> bool:
    """Return whether a folder contains an unfinished training whose files can be read."""
    try:
        read_run(folder)
        if (folder / STATE).exists():
            read_state(folder / STATE)
            return True
        return not (folder / BEST).exists()
    except UnetkitError:
        return False


def _score(trained: TrainRun, data: DatasetSplits, task: TrainingTask, slot: Slot, parts: Parts) -> dict[str, Any]:
    """Score the test images with the weights of the best epoch, or the validation images with those of the last."""
    has_test = "test" in data.splits
    log = [json.loads(line) for line in (trained.folder / LOG).read_text(encoding="utf-8").splitlines()]
    best = max((line["epoch"] for line in log if line["best"]), default=len(log))
    epoch = best if has_test else len(log)
    network = trained.network(slot.device, parts, "best" if has_test else "last")
    names = {name.partition(":")[0] for name in task.metrics}
    wanted = {metric.name: metric for metric in parts.metrics if metric.name in names}
    by_plugin = any(metric.owner != BUILTIN for metric in wanted.values())
    masks: list[Any] = []
    evaluation = score_images(
        trained,
        network,
        data.splits["test" if has_test else "val"],
        outlines=by_plugin or "boundary-f" in task.metrics,
        separation=by_plugin or "separated-instances" in task.metrics,
        on_mask=masks.append if task.saves_predictions else None,
    )
    _write_scores(trained.folder / SCORES, evaluation)
    if task.saves_predictions:
        _write_arrays(trained.folder / PREDICTIONS, {f"{index}": mask for index, mask in enumerate(masks)})
    loss = log[epoch - 1]["val_loss"]
    scored = ScoredRun(trained, network, evaluation, math.nan if loss is None else loss)
    functions: dict[str, Callable[..., Any]] = {metric.name: metric.load() for metric in wanted.values()}
    values: dict[str, float] = {}
    failures: dict[str, str] = {}
    for full_name in task.metrics:
        name, colon, class_name = full_name.partition(":")
        try:
            number = to_number(functions[name](scored, class_name) if colon else functions[name](scored))
            if math.isfinite(number):
                values[full_name] = number
            else:
                failures[full_name] = f"the score is {number}"
        except Exception as error:  # the metric of a plugin may raise anything
            failures[full_name] = describe_failure(wanted[name], error)
    return {"values": values, "failures": failures, "epoch": epoch}


def _write_scores(path: Path, evaluation: Evaluation) -> None:
    images = evaluation.images
    arrays = {
        "names": numpy.array([image.name for image in images]),
        "confusion": torch.stack([image.matrix for image in images]).numpy(),
    }
    if images[0].outlines is not None:
        arrays["outlines"] = torch.stack([image.outlines for image in images if image.outlines is not None]).numpy()
    _write_arrays(path, arrays)


def _write_arrays(path: Path, arrays: dict[str, Any]) -> None:
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        numpy.savez_compressed(file, **arrays)
