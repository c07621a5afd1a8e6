"""The metadata of an exported file: all that is needed to use it without unetkit, and what it was made of."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torch import nn

from unetkit.data.types import IGNORE, Target
from unetkit.exporter.capture import CapturedNetwork
from unetkit.network import Network
from unetkit.parts.encoders.normalization import get_normalization_stats
from unetkit.predict.model_info import PREFIX, ModelInfo
from unetkit.summary.forward_hooks import find_network
from unetkit.tiling.layout import TILE
from unetkit.tiling.requirements import find_tile_requirements
from unetkit.train.checkpoint import LOG, TrainRun
from unetkit.utils.json_lines import read_json_lines

_VERSIONS = ("unetkit", "torch", "timm", "onnx", "onnxscript", "openvino")


def describe_network(model: nn.Module, source: str) -> ModelInfo:
    """Return what prediction must know of a network that belongs to no training run.

    Its classes have no names, and images are normalized as its pretrained weights expect it, or not at all.
    """
    network = find_network(model)
    channels, outputs = int(network.resolved_plan.in_channels), int(network.resolved_plan.classes)
    known = get_normalization_stats(network.encoder)
    mean, std = known if known and len(known[0]) == channels else ((0.0,) * channels, (1.0,) * channels)
    names = ("background", "foreground") if outputs == 1 else tuple(f"class {index}" for index in range(outputs))
    target = Target("binary" if outputs <= 2 else "multiclass", names)
    return ModelInfo(source, str(network.plan), target, channels, mean, std, find_tile_requirements(model))


def make_metadata(
    info: ModelInfo, captured: CapturedNetwork, network: Network, run: TrainRun | None, weights: str, precision: str
) -> dict[str, str]:
    """Return the metadata as texts by key: those of `ModelInfo`, facts for people, and those that QGIS Deepness reads.

    Args:
        info: what prediction must know.
        captured: the program.
        network: the network.
        run: the training run, if the network is from one.
        weights: which of its weights these are.
        precision: "float32", "float16" or "int8".
    """
    facts: dict[str, Any] = {
        "values": "8-bit images / 255, 16-bit images / 65535, others unchanged; then (value - mean) / std",
        "smallest": captured.tiles.least,
        "multiple": 1 if captured.any_size else captured.tiles.period,
        "dynamic_sizes": captured.is_dynamic,
        "precision": precision,
        "decision": _describe_decision(info, captured),
        "versions": _find_versions(),
        "plugins": [{"name": plugin.name, "version": plugin.version} for plugin in network.plugins],
    }
    if run is not None:
        facts |= {
            "ignore_index": run.config.ignore_index,
            "ignored_in_masks": IGNORE,
            "value_range": {"low": run.value_range.low, "high": run.value_range.high},
            "training": _read_scores(run, weights),
        }
    named = {f"{PREFIX}{key}": value if isinstance(value, str) else json.dumps(value) for key, value in facts.items()}
    return info.to_metadata() | named | _deepness(info, captured)


def _describe_decision(info: ModelInfo, captured: CapturedNetwork) -> str:
    outputs = len(info.target.names) if info.target.kind != "binary" else None
    if info.target.kind == "multilabel":
        return f"a label applies where its {'probability is above 0.5' if is_chance(captured) else 'logit is above 0'}"
    if outputs is None:
        single = "above 0.5" if is_chance(captured) else "above 0"
        return f"class 1 where a single output is {single}; of two outputs, the higher one"
    return "the class of the highest output"


def is_chance(captured: CapturedNetwork) -> bool:
    """Return whether the outputs are probabilities."""
    return captured.output == "probabilities"


def _find_versions() -> dict[str, str]:
    found = {}
    for name in _VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _read_scores(run: TrainRun, weights: str) -> dict[str, Any]:
    """Return which epoch the weights are of, and its scores on the validation images."""
    epochs: list[dict[str, Any]] = []
    read_json_lines(run.folder / LOG, epochs.append, "training run")
    chosen = [epoch for epoch in epochs if epoch.get("best")] if weights == "best" else epochs
    names = ("epoch", "loss", "val_loss", "miou", "mdice", "iou")
    scores = {name: chosen[-1][name] for name in names if name in chosen[-1]} if chosen else {}
    return {"data": Path(run.config.data).name, "weights": weights, "versions": run.versions} | scores


def _deepness(info: ModelInfo, captured: CapturedNetwork) -> dict[str, str]:
    """Return the keys that the QGIS plugin Deepness reads, each as JSON.

    Tiles overlap by a percentage there, and the threshold is one of probabilities.
    """
    layout = info.tiles.layout((16 * TILE, 16 * TILE)).rows
    tile = layout.tile + sum(layout.margin)
    step = min((after - before for before, after in zip(layout.starts, layout.starts[1:], strict=False)), default=tile)
    overlap = max(0, -(-100 * (tile - step) // tile))
    values: dict[str, Any] = {
        "model_type": "Segmentor",
        "class_names": dict(enumerate(info.target.names)),
        "standardization_mean": info.mean,
        "standardization_std": info.std,
        "tiles_size": tile,
        "tiles_overlap": overlap,
    }
    if is_chance(captured):
        values["seg_thresh"] = 0.5
    return {key: json.dumps(value) for key, value in values.items()}
