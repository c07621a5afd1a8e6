"""Moving over: a trained U-Net of segmentation_models_pytorch (smp) becomes one of ours, proved equal in eval mode."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import segmentation_models_pytorch as smp
import torch
from safetensors import SafetensorError
from segmentation_models_pytorch.encoders import TimmUniversalEncoder
from torch import Tensor, nn

from unetkit.builder import build_plan, current_parts
from unetkit.errors import BuildError, FileError, UnetkitError
from unetkit.network import WholeModel
from unetkit.parts.encoders.timm_catalog import timm_model_names as timm_names
from unetkit.plan import PartSpec, Plan
from unetkit.smp.catalog import smp_architecture_names, smp_architecture_options, smp_encoder_names
from unetkit.smp.encoders import LinspaceOnCpu
from unetkit.unet import UNet
from unetkit.utils.isolation import one_line
from unetkit.utils.lazy_init import preserve_rng
from unetkit.utils.modules import preserve_mode
from unetkit.utils.rounding import computes_in, difference_beyond_rounding

#: Encoders of smp's that timm has with the same layers and maps: how their names begin here and there.
_TIMM_PREFIXES = {
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
_INTERPOLATIONS = ("nearest", "bilinear")
#: smp's own arguments; it hands all others to the encoder.
_SMP_ARGUMENTS = {
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


def list_unsupported(model: Any) -> list[str]:
    """What of a U-Net cannot be carried over, in smp's words."""
    said, depth = model.config, model.config["encoder_depth"]
    stride = said.get("output_stride", 32)
    facts = {
        "the centre block of a vgg encoder": not isinstance(model.decoder.center, nn.Identity),
        "an encoder's map of the input's size that is not joined": getattr(model.encoder, "_is_vgg_style", False),
        f"decoder_attention_type={said['decoder_attention_type']}": said["decoder_attention_type"] is not None,
        f"decoder_use_norm={_get_norm(said)}": not any(_get_norm(said) in known for known in _NORMS.values()),
        f"decoder_interpolation={said['decoder_interpolation']}": said["decoder_interpolation"] not in _INTERPOLATIONS,
        f"output_stride={stride}, which gives it several maps of one stride": stride < 2**depth,
        f"activation={said['activation'] or 'a callable'}": not _has_plain_head(model),
        "aux_params, the classification head": model.classification_head is not None,
    }
    return [what for what, is_so in facts.items() if is_so]


def _get_norm(said: dict[str, Any]) -> Any:
    old = said.get("decoder_use_batchnorm")
    return said["decoder_use_norm"] if old is None else old


def _has_plain_head(model: Any) -> bool:
    return isinstance(model.segmentation_head[2].activation, nn.Identity)


def list_modified_parts(model: Any) -> list[str]:
    """The parts of a U-Net whose layers are not those that its arguments make."""
    with warnings.catch_warnings(), torch.device("meta"), LinspaceOnCpu():
        warnings.simplefilter("ignore")  # of names that smp gave up and still has
        fresh: Any = smp.Unet(**(model.config | {"encoder_weights": None}))
    pairs = {
        "encoder": (model.encoder, fresh.encoder),
        "decoder": (model.decoder, fresh.decoder),
        "segmentation_head": tuple([*head][:2] for head in (model.segmentation_head, fresh.segmentation_head)),
    }
    return [name for name, (here, there) in pairs.items() if str(here) != str(there)]


def candidate_plans(model: Any) -> list[Plan]:
    """The lines that may say it, the best first: timm's encoder where there is one, then smp's own."""
    said = model.config
    norm = next(ours for ours, theirs in _NORMS.items() if _get_norm(said) in theirs)
    words = {
        "up": said["decoder_interpolation"],
        "block": "double" if norm == "batch" else f"double:norm={norm}",
        "head": "conv:kernel=3",
        "widths": tuple(said["decoder_channels"]),
        "in_channels": said["in_channels"],
        "classes": said["classes"],
    }
    return [Plan.of(encoder=encoder, **words) for encoder in _candidate_encoders(model)]


def _candidate_encoders(model: Any) -> list[PartSpec]:
    said, encoder = model.config, model.encoder
    maps = sum(1 for channels in encoder.out_channels[1:] if channels)
    levels = {} if said["encoder_depth"] == 5 else {"levels": maps}
    options = {key: value for key, value in said.items() if key not in _SMP_ARGUMENTS and value is not None}
    if isinstance(encoder, TimmUniversalEncoder):
        return [PartSpec.of(f"timm/{encoder.name}", options | levels)]
    if options:
        raise BuildError(f"smp's own encoders take no {min(options)}; build the smp model without")
    name = said["encoder_name"]
    twins = [there + name.removeprefix(here) for here, there in _TIMM_PREFIXES.items() if name.startswith(here)]
    return [PartSpec.of(full, levels) for full in [*(f"timm/{t}" for t in twins if t in timm_names()), f"smp/{name}"]]


def match_tensors(theirs: Any, ours: Any) -> dict[str, str]:
    """Each tensor of ours, and the one of theirs that is in its place. Raises BuildError for another encoder."""
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
    return decoder | _match_encoder_tensors(theirs.encoder.state_dict(), ours.encoder.state_dict())


def _match_encoder_tensors(theirs: dict[str, Tensor], ours: dict[str, Tensor]) -> dict[str, str]:
    """By name where all of ours are there, else in order, for twins that differ in names only."""
    named = {f"model.{name.removeprefix('model.')}": name for name in theirs}
    if not ours.keys() <= named.keys():
        if [tensor.shape for tensor in ours.values()] != [tensor.shape for tensor in theirs.values()]:
            raise BuildError("its encoder has other tensors than ours of that name")
        named = dict(zip(ours, theirs, strict=True))
    return {f"encoder.{name}": f"encoder.{named[name]}" for name in ours}


def convert_tensors(ours: Any, theirs: Any, names: dict[str, str]) -> dict[str, Tensor]:
    """Copies of their tensors by our names; theirs joins the map before the skip, ours the skip before the map."""
    state = theirs.state_dict()
    tensors = {name: state[there].clone() for name, there in names.items()}
    for index, stage in enumerate(ours.stages):
        first = f"stages.{index}.block.0.conv.weight"
        of_map, of_skip = tensors[first].tensor_split([stage.up.out_channels], dim=1)
        tensors[first] = torch.cat([of_skip, of_map], dim=1)
    return tensors


def from_smp(model: nn.Module) -> UNet:
    """The U-Net of ours that gives what a `smp.Unet` gives in eval mode, with copies of its weights.

    Before it is returned, both are run in eval mode on one small input. Their outputs differ by at most one
    rounding error of float32 for each layer, or else those of copies in float64 by at most 1e-10 of the largest output,
    so that the proof does not depend on the processor. (A layer that computes in float32 whatever it is given is judged
    in float32, by 8 rounding errors for each layer.) The encoder is timm's where smp took it from
    there (`tu-`) or has the same (ResNets, ResNeXts, SE-nets, MobileOne), else smp's own. Dtypes, device, training or
    eval mode, and what is frozen are kept.

    Args:
        model: on any device; it is left as it was. Also what `unetkit.build(model="smp/unet")` gives.

    Returns:
        The network; `str(network.plan)` is the line that rebuilds it.

    Raises:
        BuildError: it is no `smp.Unet`, was changed after it was built, or has what we cannot say, all of which is
            named; or it gives the same at every pixel, by which nothing is proved.
    """
    theirs = _unwrap_smp_unet(model)
    why: UnetkitError | None = None
    for plan in candidate_plans(theirs):
        try:
            return _convert(theirs, plan)
        except UnetkitError as error:
            why = error
    raise BuildError(f"this smp.Unet cannot be carried over: {why}") from why


def _unwrap_smp_unet(model: nn.Module) -> Any:
    """The U-Net of smp in what was given, if all of it can be carried."""
    model = getattr(model, "_orig_mod", model)  # as torch.compile wraps it
    model = model.model if isinstance(model, WholeModel) else model
    if type(model) is not smp.Unet:
        raise BuildError(f"a {type(model).__name__} is no smp.Unet; unetkit.from_smp takes what smp.Unet(...) gives")
    if any(tensor.is_meta for tensor in model.state_dict().values()):
        raise BuildError("this smp.Unet is on the meta device and has no weights; build it on the cpu or a gpu")
    names = list_unsupported(model) or [f"{name}, which was changed after it was built" for name in list_modified_parts(model)]
    if names:
        raise BuildError(f"this smp.Unet cannot be carried over; we have no word for {'; '.join(names)}")
    return model


def _convert(theirs: Any, plan: Plan) -> UNet:
    """The network of a plan with their weights, proved."""
    first = next(theirs.parameters())
    # Random weights that nobody sees should not change what is drawn next.
    with preserve_rng(*[first.device] if first.is_cuda else []):
        ours = cast(UNet, build_plan(plan, current_parts(), first.device))
    names = match_tensors(theirs, ours)
    try:
        ours.to(first.dtype).load_state_dict(convert_tensors(ours, theirs, names), assign=True)
    except RuntimeError as error:
        raise BuildError(f"{plan} has other tensors: {' '.join(str(error).split())[:300]}") from error
    _prove(theirs, ours, plan)
    _copy_training_state(theirs, ours, names)
    vars(ours.encoder)["weights_from"] = "an smp.Unet"
    return ours


def _prove(theirs: Any, ours: UNet, plan: Plan) -> None:
    """Raise BuildError where the two do not compute the same in eval mode."""
    difference = difference_beyond_rounding(ours, lambda dtype: _difference(theirs, ours, plan, dtype))
    if difference:
        raise BuildError(
            f"{plan} gives outputs that differ from those of the smp.Unet by {difference:.3g} of the largest"
        )


def _difference(theirs: Any, ours: UNet, plan: Plan, dtype: torch.dtype) -> float:
    """Run both on one input of a dtype, and return the difference of their outputs as a share of the largest."""
    one, other = _runnable(theirs, dtype), _runnable(ours, dtype)
    why = ""
    for size in _sizes(theirs, ours):
        x = torch.rand(1, theirs.config["in_channels"], *size, generator=torch.Generator().manual_seed(0)).to(dtype)
        try:
            expected = _run(one, x)
        except MemoryError:
            raise
        except Exception as error:  # whatever a model says to a size that it does not take
            why = one_line(error)
            continue
        if torch.equal(expected.amin((2, 3)), expected.amax((2, 3))):
            why = "its output is the same at every pixel; train it first"
            continue
        return float((_run(other, x) - expected).abs().max() / expected.abs().max())
    raise BuildError(f"{plan} cannot be compared: {why[:300]}")


def _sizes(theirs: Any, ours: UNet) -> Iterator[tuple[int, int]]:
    """A small size, and the one that the encoder is made for."""
    yield ours.padded_size((64, 64))
    config = getattr(getattr(theirs.encoder, "model", None), "pretrained_cfg", {})
    size = theirs.config.get("img_size") or config.get("input_size", (64,))[-1]
    yield (size, size) if isinstance(size, int) else tuple(size)


def _runnable(model: Any, dtype: torch.dtype) -> Any:
    """Return the model if it has a dtype and is on the CPU, where sums are exact to that dtype; else such a copy."""
    is_plain = all(t.device.type == "cpu" and t.dtype == dtype for t in model.parameters())
    return model if is_plain else copy.deepcopy(model).to("cpu", dtype)


def _run(model: Any, x: Tensor) -> Tensor:
    with preserve_mode(model), torch.no_grad(), computes_in(x.dtype):
        for module in model.modules():  # smp's eval() passes over a frozen encoder
            module.training = False
        out: Tensor = model(x)
        return out


def _copy_training_state(theirs: Any, ours: UNet, names: dict[str, str]) -> None:
    """Train what theirs trains: mode and frozen parameters, also of single layers."""
    ours.train(theirs.training)
    ours.encoder.train(theirs.encoder.training)
    parameters = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        parameter.requires_grad_(parameters[names[name]].requires_grad)
    for name, there in names.items():
        ours.get_submodule(name.rpartition(".")[0]).training = theirs.get_submodule(there.rpartition(".")[0]).training


CONFIG, WEIGHTS = "config.json", "model.safetensors"
#: What a checkpoint may say that a network of logits has not, unless it is one of these.
_WITHOUT_EFFECT = {"activation": (None, "identity"), "aux_params": (None,)}
#: What smp 0.6 calls encoders that it had under the name before.
_RENAMED_PREFIXES = ("timm-regnet", "timm-res2", "timm-resnest", "timm-mobilenetv3", "timm-gernet")


def is_folder(path: Path) -> bool:
    """Whether a path is a folder; false where it cannot be looked at, as reading it will say."""
    try:
        return path.is_dir()
    except OSError:
        return False


def read_pretrained_folder(folder: Path) -> tuple[Plan, dict[str, Tensor]]:
    """The plan and the tensors of what `save_pretrained` wrote; nothing is unpickled or downloaded.

    Raises:
        FileError: it is no such folder, or its model has what no plan can say.
    """
    config = _read_config(folder)
    try:
        tensors = safetensors.torch.load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise FileError(f"{folder / WEIGHTS} cannot be read ({' '.join(str(error).split())[:200]})") from error
    return _plan_from_config(folder, config), {f"model.{name}": tensor for name, tensor in tensors.items()}


def _read_config(folder: Path) -> dict[str, Any]:
    absent = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
    if absent:
        what = f"is a folder without {' and '.join(absent)}"
        raise FileError(f"{folder} {what}; give a file that unetkit.save wrote, or a folder of smp's save_pretrained")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FileError(f"{folder / CONFIG} cannot be read ({error})") from error
    if not isinstance(config, dict) or str(config.get("_model_class")).lower() not in smp_architecture_names():
        raise FileError(f"{folder / CONFIG} names no architecture of smp; take the folder of smp's save_pretrained")
    return config


def _plan_from_config(folder: Path, config: dict[str, Any]) -> Plan:
    architecture = config["_model_class"].lower()
    known = {option.name for option in smp_architecture_options(architecture)}
    words = {word: config.get(word) for word in ("in_channels", "classes")}
    rest = {key: value for key, value in config.items() if key[0] != "_" and key not in words}
    for name, without in _WITHOUT_EFFECT.items():
        if rest.pop(name, None) not in without:
            has = f"its model has {name}={config[name]}, and a network of ours gives logits alone"
            raise FileError(f"{folder}: {has}; open it with smp, take that off, and give it to unetkit.from_smp")
    encoder, _ = str(rest.pop("encoder_name", "resnet34")), rest.pop("encoder_weights", None)
    if (old := rest.pop("decoder_use_batchnorm", None)) is not None:  # until smp 0.4
        rest["decoder_use_norm"] = old
    said = {key: value for key, value in rest.items() if value is not None}
    if unsayable := [key for key, value in said.items() if isinstance(value, dict)]:
        raise FileError(f"{folder}: no line can say its {unsayable[0]}={said[unsayable[0]]}; open it with smp itself")
    return Plan.of(
        model=PartSpec.of(f"smp/{architecture}", {key: value for key, value in said.items() if key in known}),
        encoder=PartSpec.of(_translate_encoder_name(encoder), {key: value for key, value in said.items() if key not in known}),
        **words,
    )


def _translate_encoder_name(encoder: str) -> str:
    """What we call an encoder of smp's."""
    if encoder.startswith(_RENAMED_PREFIXES):
        encoder = encoder.replace("timm-", "tu-tf_" if "mobilenetv3" in encoder else "tu-")
    if encoder.startswith("tu-"):
        return f"timm/{encoder.removeprefix('tu-')}"
    return f"smp/{encoder}" if encoder in smp_encoder_names() else encoder
