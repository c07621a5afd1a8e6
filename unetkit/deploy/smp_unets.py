"""What a U-Net of segmentation_models_pytorch (smp) says of itself, in our words."""

from __future__ import annotations

import warnings
from typing import Any

import segmentation_models_pytorch as smp
import torch
from segmentation_models_pytorch.encoders import TimmUniversalEncoder
from torch import Tensor, nn

from unetkit.errors import CannotBuild
from unetkit.parts.encoders.smp import NumbersOnCpu
from unetkit.parts.encoders.timm_names import timm_model_names as timm_names
from unetkit.plan import PartSpec, Plan

#: Encoders of smp's that timm has with the same layers and maps: how their names begin here and there.
_TWINS = {
    "resnet": "resnet",
    "resnext": "resnext",
    "se_resne": "legacy_seresne",
    "senet": "legacy_senet",
    "mobileone": "mobileone",
}
_NORMS: dict[str, list[Any]] = {
    "batch": [True, "batchnorm", {"type": "batchnorm"}],
    "instance": [{"type": "instancenorm", "affine": True}],
    "none": [False, "identity", {"type": "identity"}],
}
_UPS = ("nearest", "bilinear")
#: smp's own arguments; it hands all others to the encoder.
_WORDS = {
    "encoder_name",
    "encoder_depth",
    "encoder_weights",
    "decoder_use_norm",
    "decoder_use_batchnorm",
    "decoder_channels",
    "decoder_attention_type",
    "decoder_interpolation",
    "in_channels",
    "classes",
    "activation",
    "aux_params",
    "output_stride",
}


def lost(model: Any) -> list[str]:
    """What of a U-Net cannot be carried over, in smp's words."""
    said, depth = model.config, model.config["encoder_depth"]
    stride = said.get("output_stride", 32)
    facts = {
        "the centre block of a vgg encoder": not isinstance(model.decoder.center, nn.Identity),
        "an encoder's map of the input's size that is not joined": getattr(model.encoder, "_is_vgg_style", False),
        f"decoder_attention_type={said['decoder_attention_type']}": said["decoder_attention_type"] is not None,
        f"decoder_use_norm={_norm(said)}": not any(_norm(said) in known for known in _NORMS.values()),
        f"decoder_interpolation={said['decoder_interpolation']}": said["decoder_interpolation"] not in _UPS,
        f"output_stride={stride}, which gives it several maps of one stride": stride < 2**depth,
        f"activation={said['activation'] or 'a callable'}": not _plain_head(model),
        "aux_params, the classification head": model.classification_head is not None,
    }
    return [what for what, is_so in facts.items() if is_so]


def _norm(said: dict[str, Any]) -> Any:
    old = said.get("decoder_use_batchnorm")
    return said["decoder_use_norm"] if old is None else old


def _plain_head(model: Any) -> bool:
    return isinstance(model.segmentation_head[2].activation, nn.Identity)


def changed(model: Any) -> list[str]:
    """The parts of a U-Net whose layers are not those that its arguments make."""
    with warnings.catch_warnings(), torch.device("meta"), NumbersOnCpu():
        warnings.simplefilter("ignore")  # of names that smp gave up and still has
        fresh: Any = smp.Unet(**(model.config | {"encoder_weights": None}))
    pairs = {
        "encoder": (model.encoder, fresh.encoder),
        "decoder": (model.decoder, fresh.decoder),
        "segmentation_head": tuple([*head][:2] for head in (model.segmentation_head, fresh.segmentation_head)),
    }
    return [name for name, (here, there) in pairs.items() if str(here) != str(there)]


def plans(model: Any) -> list[Plan]:
    """The lines that may say it, the best first: timm's encoder where there is one, then smp's own."""
    said = model.config
    norm = next(ours for ours, theirs in _NORMS.items() if _norm(said) in theirs)
    words = {
        "up": said["decoder_interpolation"],
        "block": "double" if norm == "batch" else f"double:norm={norm}",
        "head": "conv:kernel=3",
        "widths": tuple(said["decoder_channels"]),
        "in_channels": said["in_channels"],
        "classes": said["classes"],
    }
    return [Plan.of(encoder=encoder, **words) for encoder in _encoders(model)]


def _encoders(model: Any) -> list[PartSpec]:
    said, encoder = model.config, model.encoder
    maps = sum(1 for channels in encoder.out_channels[1:] if channels)
    levels = {} if said["encoder_depth"] == 5 else {"levels": maps}
    options = {key: value for key, value in said.items() if key not in _WORDS and value is not None}
    if isinstance(encoder, TimmUniversalEncoder):
        return [PartSpec.of(f"timm/{encoder.name}", options | levels)]
    if options:
        raise CannotBuild(f"smp's own encoders take no {min(options)}; build the smp model without")
    name = said["encoder_name"]
    twins = [there + name.removeprefix(here) for here, there in _TWINS.items() if name.startswith(here)]
    return [PartSpec.of(full, levels) for full in [*(f"timm/{t}" for t in twins if t in timm_names()), f"smp/{name}"]]


def counterparts(theirs: Any, ours: Any) -> dict[str, str]:
    """Each tensor of ours, and the one of theirs that is in its place. Raises CannotBuild for another encoder."""
    there = theirs.state_dict()
    paths = {
        f"stages.{i}.block.{j}.{layer}": f"decoder.blocks.{i}.conv{j + 1}.{k}"
        for i in range(len(ours.stages))
        for j in range(2)
        for k, layer in enumerate(("conv", "norm"))
    }
    paths["head.conv"] = "segmentation_head.0"
    leaves = [name.rpartition(".") for name in there]
    decoder = {f"{a}.{leaf}": f"{b}.{leaf}" for a, b in paths.items() for path, _, leaf in leaves if path == b}
    return decoder | _of_encoders(theirs.encoder.state_dict(), ours.encoder.state_dict())


def _of_encoders(theirs: dict[str, Tensor], ours: dict[str, Tensor]) -> dict[str, str]:
    """By name where all of ours are there, else in order, for twins that differ in names only."""
    named = {f"model.{name.removeprefix('model.')}": name for name in theirs}
    if not ours.keys() <= named.keys():
        if [tensor.shape for tensor in ours.values()] != [tensor.shape for tensor in theirs.values()]:
            raise CannotBuild("its encoder has other tensors than ours of that name")
        named = dict(zip(ours, theirs, strict=True))
    return {f"encoder.{name}": f"encoder.{named[name]}" for name in ours}


def tensors_for(ours: Any, theirs: Any, names: dict[str, str]) -> dict[str, Tensor]:
    """Copies of their tensors by our names; theirs joins the map before the skip, ours the skip before the map."""
    state = theirs.state_dict()
    tensors = {name: state[there].clone() for name, there in names.items()}
    for index, stage in enumerate(ours.stages):
        first = f"stages.{index}.block.0.conv.weight"
        of_map, of_skip = tensors[first].tensor_split([stage.up.out_channels], dim=1)
        tensors[first] = torch.cat([of_skip, of_map], dim=1)
    return tensors
