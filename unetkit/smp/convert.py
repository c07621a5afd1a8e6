"""Conversion of models of segmentation_models_pytorch (smp).

`from_smp` turns a trained `smp.Unet` into a U-Net made of parts and verifies that both compute the same in eval mode.
`read_pretrained_folder` reads a folder that smp's `save_pretrained` wrote, as plan and tensors of a whole model.
"""

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
from unetkit.utils.formatting import format_type
from unetkit.utils.isolation import one_line
from unetkit.utils.lazy_init import defer_init, preserve_rng
from unetkit.utils.modules import preserve_mode
from unetkit.utils.rounding import computes_in, difference_beyond_rounding

#: Prefixes of the names of encoders that smp and timm build with the same layers: in smp, and in timm.
_TIMM_PREFIXES = {
    "resnet": "resnet",
    "resnext": "resnext",
    "se_resne": "legacy_seresne",
    "senet": "legacy_senet",
    "mobileone": "mobileone",
}
#: Values of decoder_use_norm by the name of unetkit's norm.
_NORMS: dict[str, list[Any]] = {
    "batch": [True, "batchnorm", {"type": "batchnorm"}],
    "instance": [{"type": "instancenorm", "affine": True}],
    "none": [False, "identity", {"type": "identity"}],
}
_INTERPOLATIONS = ("nearest", "bilinear")
#: The arguments of `smp.Unet` itself; it passes all others to the encoder.
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
    """List what a U-Net of smp has and a network of unetkit cannot have, by the names of smp's arguments."""
    config, depth = model.config, model.config["encoder_depth"]
    stride = config.get("output_stride", 32)
    attention, norm = config["decoder_attention_type"], _get_norm(config)
    interpolation = config["decoder_interpolation"]
    unsupported = {
        "the center block of a vgg encoder": not isinstance(model.decoder.center, nn.Identity),
        "an encoder's full-resolution map that is not a skip": getattr(model.encoder, "_is_vgg_style", False),
        f"decoder_attention_type={attention}": attention is not None,
        f"decoder_use_norm={norm}": not any(norm in known for known in _NORMS.values()),
        f"decoder_interpolation={interpolation}": interpolation not in _INTERPOLATIONS,
        f"output_stride={stride}, which gives several feature maps of one stride": stride < 2**depth,
        f"activation={config['activation'] or 'a callable'}": not _has_plain_head(model),
        "aux_params (a classification head)": model.classification_head is not None,
    }
    return [name for name, is_present in unsupported.items() if is_present]


def _get_norm(config: dict[str, Any]) -> Any:
    old = config.get("decoder_use_batchnorm")
    return config["decoder_use_norm"] if old is None else old


def _has_plain_head(model: Any) -> bool:
    return isinstance(model.segmentation_head[2].activation, nn.Identity)


def list_modified_parts(model: Any) -> list[str]:
    """List the parts of a U-Net of smp whose layers are not those that its arguments make."""
    with warnings.catch_warnings(), torch.device("meta"), LinspaceOnCpu(), defer_init():
        warnings.simplefilter("ignore")  # smp warns of deprecated names, which it still accepts
        fresh: Any = smp.Unet(**(model.config | {"encoder_weights": None}))
    pairs = {
        "encoder": (model.encoder, fresh.encoder),
        "decoder": (model.decoder, fresh.decoder),
        "segmentation_head": tuple([*head][:2] for head in (model.segmentation_head, fresh.segmentation_head)),
    }
    return [name for name, (part, expected) in pairs.items() if str(part) != str(expected)]


def candidate_plans(model: Any) -> list[Plan]:
    """Return plans that may build an equal U-Net, best first: with timm's encoder if there is one, then with smp's."""
    config = model.config
    norm = next(name for name, values in _NORMS.items() if _get_norm(config) in values)
    words = {
        "up": config["decoder_interpolation"],
        "block": "double" if norm == "batch" else f"double:norm={norm}",
        "head": "conv:kernel=3",
        "widths": tuple(config["decoder_channels"]),
        "in_channels": config["in_channels"],
        "classes": config["classes"],
    }
    return [Plan.of(encoder=encoder, **words) for encoder in _candidate_encoders(model)]


def _candidate_encoders(model: Any) -> list[PartSpec]:
    config, encoder = model.config, model.encoder
    maps = sum(1 for channels in encoder.out_channels[1:] if channels)
    levels = {} if config["encoder_depth"] == 5 else {"levels": maps}
    options = {key: value for key, value in config.items() if key not in _SMP_ARGUMENTS and value is not None}
    if isinstance(encoder, TimmUniversalEncoder):
        return [PartSpec.of(f"timm/{encoder.name}", options | levels)]
    if options:
        raise BuildError(f"smp's own encoders ignore {min(options)}; build the smp.Unet without it")
    name = config["encoder_name"]
    in_timm = [timm + name.removeprefix(start) for start, timm in _TIMM_PREFIXES.items() if name.startswith(start)]
    names = [*(f"timm/{timm}" for timm in in_timm if timm in timm_names()), f"smp/{name}"]
    return [PartSpec.of(full_name, levels) for full_name in names]


def match_tensors(theirs: Any, ours: Any) -> dict[str, str]:
    """Map the name of each tensor of unetkit's U-Net to the name of its counterpart in smp's.

    Raises:
        BuildError: the encoders have different tensors.
    """
    state = theirs.state_dict()
    paths = {
        f"stages.{i}.block.{j}.{layer}": f"decoder.blocks.{i}.conv{j + 1}.{k}"
        for i in range(len(ours.stages))
        for j in range(2)
        for k, layer in enumerate(("conv", "norm"))
    }
    paths["head.conv"] = "segmentation_head.0"
    leaves = [name.rpartition(".") for name in state]
    decoder = {f"{a}.{leaf}": f"{b}.{leaf}" for a, b in paths.items() for path, _, leaf in leaves if path == b}
    return decoder | _match_encoder_tensors(theirs.encoder.state_dict(), ours.encoder.state_dict())


def _match_encoder_tensors(theirs: dict[str, Tensor], ours: dict[str, Tensor]) -> dict[str, str]:
    """Match tensors by name if smp's encoder has all names, else by order, for encoders that differ only in names."""
    names = {f"model.{name.removeprefix('model.')}": name for name in theirs}
    if not ours.keys() <= names.keys():
        if [tensor.shape for tensor in ours.values()] != [tensor.shape for tensor in theirs.values()]:
            raise BuildError("its encoder has other tensors than unetkit's encoder of that name")
        names = dict(zip(ours, theirs, strict=True))
    return {f"encoder.{name}": f"encoder.{names[name]}" for name in ours}


def convert_tensors(ours: Any, theirs: Any, names: dict[str, str]) -> dict[str, Tensor]:
    """Copy smp's tensors under unetkit's names.

    smp concatenates the map before the skip and unetkit the skip before the map, so the input channels of each first
    convolution are swapped.

    Args:
        ours: unetkit's U-Net.
        theirs: smp's U-Net.
        names: what `match_tensors` returned for both.
    """
    state = theirs.state_dict()
    tensors = {name: state[smp_name].clone() for name, smp_name in names.items()}
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
    failure: UnetkitError | None = None
    for plan in candidate_plans(theirs):
        try:
            return _convert(theirs, plan)
        except UnetkitError as error:
            failure = error
    raise BuildError(f"this smp.Unet cannot be converted: {failure}") from failure


def _unwrap_smp_unet(model: nn.Module) -> Any:
    """Return the `smp.Unet` in a model. Raise BuildError where there is none, or where it cannot be converted."""
    model = getattr(model, "_orig_mod", model)  # torch.compile wraps it so
    model = model.model if isinstance(model, WholeModel) else model
    if type(model) is not smp.Unet:
        raise BuildError(f"{format_type(model)} is not an smp.Unet; unetkit.from_smp takes what smp.Unet(...) returns")
    if any(tensor.is_meta for tensor in model.state_dict().values()):
        raise BuildError("this smp.Unet is on the meta device and has no weights; build it on the CPU or a GPU")
    if unsupported := list_unsupported(model):
        raise BuildError(f"this smp.Unet cannot be converted: unetkit does not support {'; '.join(unsupported)}")
    if modified := list_modified_parts(model):
        parts = f"{' and '.join(modified)} {'were' if len(modified) > 1 else 'was'}"
        raise BuildError(f"this smp.Unet cannot be converted: its {parts} changed after the model was built")
    return model


def _convert(theirs: Any, plan: Plan) -> UNet:
    """Build the network of a plan with smp's weights, and verify that both compute the same."""
    first = next(theirs.parameters())
    # The random weights are replaced, so building must not change what is drawn next.
    with preserve_rng(*[first.device] if first.is_cuda else []), defer_init(discard=True):
        ours = cast(UNet, build_plan(plan, current_parts(), first.device))
    names = match_tensors(theirs, ours)
    try:
        ours.to(first.dtype).load_state_dict(convert_tensors(ours, theirs, names), assign=True)
    except RuntimeError as error:
        raise BuildError(f"{plan} has different tensors: {' '.join(str(error).split())[:300]}") from error
    _prove(theirs, ours, plan)
    _copy_training_state(theirs, ours, names)
    vars(ours.encoder)["weights_from"], ours.loaded = "an smp.Unet", ("",)
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
        except Exception as error:  # a model may raise anything for a size that it does not take
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
        for module in model.modules():  # smp's eval() skips a frozen encoder
            module.training = False
        out: Tensor = model(x)
        return out


def _copy_training_state(theirs: Any, ours: UNet, names: dict[str, str]) -> None:
    """Copy training mode and frozen parameters, layer by layer."""
    ours.train(theirs.training)
    ours.encoder.train(theirs.encoder.training)
    parameters = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        parameter.requires_grad_(parameters[names[name]].requires_grad)
    for name, there in names.items():
        ours.get_submodule(name.rpartition(".")[0]).training = theirs.get_submodule(there.rpartition(".")[0]).training


#: The files of a folder that `save_pretrained` writes.
CONFIG, WEIGHTS = "config.json", "model.safetensors"
#: Arguments without a counterpart in unetkit, with the values that have no effect.
_WITHOUT_EFFECT = {"activation": (None, "identity"), "aux_params": (None,)}
#: Prefixes of the names of encoders that smp 0.6 renamed and still accepts.
_RENAMED_PREFIXES = ("timm-regnet", "timm-res2", "timm-resnest", "timm-mobilenetv3", "timm-gernet")


def read_pretrained_folder(folder: Path) -> tuple[Plan, dict[str, Tensor]]:
    """Read a folder that smp's `save_pretrained` wrote, without unpickling or downloading anything.

    Returns:
        The plan of the whole model, and its tensors by their names in the network.

    Raises:
        FileError: the folder was not written by `save_pretrained`, or no plan can describe its model.
    """
    config = _read_config(folder)
    try:
        tensors = safetensors.torch.load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise FileError(f"{folder / WEIGHTS} cannot be read ({' '.join(str(error).split())[:200]})") from error
    return _plan_from_config(folder, config), {f"model.{name}": tensor for name, tensor in tensors.items()}


def _read_config(folder: Path) -> dict[str, Any]:
    missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        problem = f"is a folder without {' and '.join(missing)}"
        raise FileError(
            f"{folder} {problem}; give a file that unetkit.save wrote, or a folder of smp's save_pretrained"
        )
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FileError(f"{folder / CONFIG} cannot be read ({error})") from error
    if not isinstance(config, dict) or str(config.get("_model_class")).lower() not in smp_architecture_names():
        raise FileError(f"{folder / CONFIG} names no architecture of smp; give a folder of smp's save_pretrained")
    return config


def _plan_from_config(folder: Path, config: dict[str, Any]) -> Plan:
    architecture = config["_model_class"].lower()
    known = {option.name for option in smp_architecture_options(architecture)}
    words = {word: config.get(word) for word in ("in_channels", "classes")}
    rest = {key: value for key, value in config.items() if key[0] != "_" and key not in words}
    for name, values in _WITHOUT_EFFECT.items():
        if rest.pop(name, None) not in values:
            problem = f"its model has {name}={config[name]}, but a network of unetkit gives logits alone"
            raise FileError(f"{folder}: {problem}; open it with smp, remove {name}, and give it to unetkit.from_smp")
    encoder, _ = str(rest.pop("encoder_name", "resnet34")), rest.pop("encoder_weights", None)
    if (old := rest.pop("decoder_use_batchnorm", None)) is not None:  # until smp 0.4
        rest["decoder_use_norm"] = old
    options = {key: value for key, value in rest.items() if value is not None}
    if dicts := [key for key, value in options.items() if isinstance(value, dict)]:
        raise FileError(f"{folder}: no plan can have {dicts[0]}={options[dicts[0]]}; open it with smp itself")
    model_options = {key: value for key, value in options.items() if key in known}
    encoder_options = {key: value for key, value in options.items() if key not in known}
    return Plan.of(
        model=PartSpec.of(f"smp/{architecture}", model_options),
        encoder=PartSpec.of(_translate_encoder_name(encoder), encoder_options),
        **words,
    )


def _translate_encoder_name(encoder: str) -> str:
    """Return unetkit's name of an encoder of smp."""
    if encoder.startswith(_RENAMED_PREFIXES):
        encoder = encoder.replace("timm-", "tu-tf_" if "mobilenetv3" in encoder else "tu-")
    if encoder.startswith("tu-"):
        return f"timm/{encoder.removeprefix('tu-')}"
    return f"smp/{encoder}" if encoder in smp_encoder_names() else encoder
