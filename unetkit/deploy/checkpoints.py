"""A checkpoint folder of segmentation-models-pytorch, as the line that builds its model and its tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from unetkit.errors import BadFile
from unetkit.parts.encoders.smp_names import smp_encoder_names
from unetkit.parts.models.smp_names import smp_architecture_names, smp_architecture_options
from unetkit.plan import PartSpec, Plan

CONFIG, WEIGHTS = "config.json", "model.safetensors"
#: What a checkpoint may say that a network of logits has not, unless it is one of these.
_UNSAID = {"activation": (None, "identity"), "aux_params": (None,)}
#: What smp 0.6 calls encoders that it had under the name before.
_RENAMED = ("timm-regnet", "timm-res2", "timm-resnest", "timm-mobilenetv3", "timm-gernet")


def is_folder(path: Path) -> bool:
    """Whether a path is a folder; false where it cannot be looked at, as reading it will say."""
    try:
        return path.is_dir()
    except OSError:
        return False


def read_folder(folder: Path) -> tuple[Plan, dict[str, Tensor]]:
    """The plan and the tensors of what `save_pretrained` wrote; nothing is unpickled or downloaded.

    Raises:
        BadFile: it is no such folder, or its model has what no plan can say.
    """
    config = _config(folder)
    try:
        tensors = safetensors.torch.load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise BadFile(f"{folder / WEIGHTS} cannot be read ({' '.join(str(error).split())[:200]})") from error
    return _plan(folder, config), {f"model.{name}": tensor for name, tensor in tensors.items()}


def _config(folder: Path) -> dict[str, Any]:
    absent = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
    if absent:
        what = f"is a folder without {' and '.join(absent)}"
        raise BadFile(f"{folder} {what}; give a file that unetkit.save wrote, or a folder of smp's save_pretrained")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadFile(f"{folder / CONFIG} cannot be read ({error})") from error
    if not isinstance(config, dict) or str(config.get("_model_class")).lower() not in smp_architecture_names():
        raise BadFile(f"{folder / CONFIG} names no architecture of smp; take the folder of smp's save_pretrained")
    return config


def _plan(folder: Path, config: dict[str, Any]) -> Plan:
    architecture = config["_model_class"].lower()
    known = {option.name for option in smp_architecture_options(architecture)}
    words = {word: config.get(word) for word in ("in_channels", "classes")}
    rest = {key: value for key, value in config.items() if key[0] != "_" and key not in words}
    for name, without in _UNSAID.items():
        if rest.pop(name, None) not in without:
            has = f"its model has {name}={config[name]}, and a network of ours gives logits alone"
            raise BadFile(f"{folder}: {has}; open it with smp, take that off, and give it to unetkit.from_smp")
    encoder, _ = str(rest.pop("encoder_name", "resnet34")), rest.pop("encoder_weights", None)
    if (old := rest.pop("decoder_use_batchnorm", None)) is not None:  # until smp 0.4
        rest["decoder_use_norm"] = old
    said = {key: value for key, value in rest.items() if value is not None}
    if unsayable := [key for key, value in said.items() if isinstance(value, dict)]:
        raise BadFile(f"{folder}: no line can say its {unsayable[0]}={said[unsayable[0]]}; open it with smp itself")
    return Plan.of(
        model=PartSpec.of(f"smp/{architecture}", {key: value for key, value in said.items() if key in known}),
        encoder=PartSpec.of(_ours(encoder), {key: value for key, value in said.items() if key not in known}),
        **words,
    )


def _ours(encoder: str) -> str:
    """What we call an encoder of smp's."""
    if encoder.startswith(_RENAMED):
        encoder = encoder.replace("timm-", "tu-tf_" if "mobilenetv3" in encoder else "tu-")
    if encoder.startswith("tu-"):
        return f"timm/{encoder.removeprefix('tu-')}"
    return f"smp/{encoder}" if encoder in smp_encoder_names() else encoder
