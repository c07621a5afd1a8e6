"""The architectures of segmentation-models-pytorch (smp) as whole models, in place of a network of parts."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, cast

import segmentation_models_pytorch as smp
import timm
import torch
from torch import nn

from unetkit.errors import BuildError, OptionError, UnetkitError
from unetkit.options import guess_value
from unetkit.parts.encoders.input_sizes import accepts, enclosing_sizes, probe_sizes
from unetkit.parts.encoders.normalization import NormalizationStats, parse_normalization_stats
from unetkit.parts.encoders.timm_features import TimmSpec
from unetkit.parts.encoders.timm_options import check_timm_options
from unetkit.parts.encoders.timm_weights import check_timm_weights
from unetkit.plan import PartSpec
from unetkit.smp.catalog import smp_architecture_options as own_options
from unetkit.smp.catalog import smp_class_name
from unetkit.smp.encoders import LinspaceOnCpu, find_smp_weights
from unetkit.utils.formatting import Size
from unetkit.utils.integers import round_up
from unetkit.utils.lazy_init import defer_init
from unetkit.utils.modules import meta_copy

#: Multiples that are tried as input sides of timm models with a fixed size: the usual stride, and its windows.
_SIDE_MULTIPLES = (32, 64, 128, 224, 256)


def smp_model(
    in_channels: int,
    classes: int,
    name: str,
    *,
    encoder: str = "timm/resnet34",
    pretrained: bool = False,
    img_size: int | tuple[int, int] | None = None,
    **options: Any,
) -> nn.Module:
    """Architecture of segmentation-models-pytorch (smp), which gives logits of the input's size.

    Args:
        in_channels: channels of the input.
        classes: channels of the logits.
        name: name of the architecture in lower case.
        encoder: encoder of timm ("timm/resnet34", which smp calls tu-resnet34) or of smp ("smp/resnet34").
        pretrained: true loads the encoder's pretrained weights from its library; the same as `--pretrained`.
        img_size: input size to build the encoder for, if it takes only one size; the same as `--size`.
        options: further arguments of the architecture's constructor, by smp's names.

    Raises:
        BuildError: smp cannot build the architecture with this encoder and these options.
        OptionError: an option of the encoder does not exist, or must be given to the architecture instead.
    """
    spec = PartSpec.parse(encoder)
    size = (img_size, img_size) if isinstance(img_size, int) else img_size
    library, _, bare_name = spec.name.partition("/")
    if library not in ("timm", "smp"):
        raise BuildError(f"smp/{name} takes encoders of timm and of smp only; {spec.name} is neither")
    if not isinstance(pretrained, bool):
        raise BuildError(
            f"--pretrained {pretrained}: smp/{name} takes no weights file; give --pretrained without FILE for the "
            "library's own weights"
        )
    encoder_options = _read_encoder_options(spec, name, library, in_channels)
    resolve_encoder = _resolve_timm_encoder if library == "timm" else _resolve_smp_encoder
    smp_name, weights = resolve_encoder(bare_name, pretrained)
    arguments = {
        "encoder_name": smp_name,
        "in_channels": in_channels,
        "classes": classes,
        **options,
        **encoder_options,
    }
    fixed_size = _get_fixed_size(spec)
    if fixed_size is not None:
        requested_size = None if "img_size" in encoder_options else size
        arguments |= _choose_size_options(name, arguments, in_channels, fixed_size, requested_size)
    model = _create(name, {**arguments, "encoder_weights": weights})
    vars(model)["weights_from"] = f"{spec.name} of its library" if pretrained else "random"
    vars(model)["pretrained_part"] = "encoder"
    vars(model)["source"] = _describe_sources(model.encoder)
    vars(model)["statistics"] = partial(_read_normalization_stats, library, bare_name, pretrained)
    built_for = fixed_size if "img_size" in encoder_options else arguments.get("img_size", fixed_size)
    _declare_sizes(model, name, arguments, in_channels, built_for)
    return cast(nn.Module, model)


def _read_encoder_options(spec: PartSpec, name: str, library: str, in_channels: int) -> dict[str, Any]:
    """Return the options of an encoder, which smp passes on to timm, after checking them."""
    options = {key: guess_value(str(value)) for key, value in spec.options}
    if "levels" in options:
        raise OptionError(
            f"--encoder {spec}: the number of feature maps is set by --model smp/{name}:encoder_depth=...; "
            "leave levels out"
        )
    if "output_stride" in options and "encoder_output_stride" in {option.name for option in own_options(name)}:
        raise OptionError(
            f"--encoder {spec}: the output stride is set by --model smp/{name}:encoder_output_stride=...; "
            "leave output_stride out"
        )
    if library == "smp" and (ignored := options.keys() - {"output_stride"}):
        raise OptionError(f"--encoder {spec}: smp would ignore {min(ignored)}; leave it out")
    if library == "timm":
        timm_options = {key: value for key, value in options.items() if key not in ("output_stride", "img_size")}
        check_timm_options(TimmSpec(spec.name.partition("/")[2], in_channels), timm_options)
    return options


def _choose_size_options(
    name: str, arguments: dict[str, Any], in_channels: int, native_size: Size, img_size: Size | None
) -> dict[str, Any]:
    """Choose options with which a timm encoder takes many sizes, or else the requested size."""
    for options in ({"dynamic_img_size": True}, {}):
        with suppress(BuildError), torch.device("meta"), defer_init():
            meta_model = _create(name, {**arguments, **options, "encoder_weights": None}).eval()
            stride = int(meta_model.encoder.output_stride)
            far = round_up(2 * max(native_size) + 1, 2 * stride)
            if accepts(meta_model, in_channels, far, far) or img_size is None or img_size == native_size:
                return options
    for size in enclosing_sizes(img_size or native_size, (*_SIDE_MULTIPLES, max(native_size))):
        with suppress(BuildError), torch.device("meta"), defer_init():
            meta_model = _create(name, {**arguments, "img_size": size, "encoder_weights": None}).eval()
            if accepts(meta_model, in_channels, *size):
                return {"img_size": size}
    return {}


def _resolve_timm_encoder(name: str, pretrained: bool) -> tuple[str, Any]:
    """Return smp's name of a timm encoder and the value of smp's `encoder_weights`, after checking the weights."""
    loads = pretrained and torch.get_default_device().type != "meta"
    with _wrap_hub_errors(f"timm/{name}"):
        check_timm_weights(name, pretrained=pretrained, loads=loads)
    return f"tu-{name}", True if loads else None


def _resolve_smp_encoder(name: str, pretrained: bool) -> tuple[str, Any]:
    """Return the name of smp's own encoder and the value of smp's `encoder_weights`, downloading the weights."""
    name, dot, tag = name.partition(".")
    weights = find_smp_weights(name, tag if dot else None, pretrained)
    if weights is None or torch.get_default_device().type == "meta":
        return name, None
    with _wrap_hub_errors(f"smp/{name}"):
        weights.read()  # smp's own client would retry for half a minute
    settings = smp.encoders.encoders[name]["pretrained_settings"]
    return name, next(key for key, at in settings.items() if (at["repo_id"], at["revision"]) == weights.hub)


@contextmanager
def _wrap_hub_errors(encoder: str) -> Iterator[None]:
    """Raise what a hub's client raises as a BuildError of one line that says what to do."""
    try:
        yield
    except UnetkitError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        message = f"the pretrained weights of {encoder} cannot be loaded from its hub ({reason})"
        raise BuildError(f"{message}; leave --pretrained out for random weights") from error


def _read_normalization_stats(library: str, name: str, pretrained: bool) -> NormalizationStats | None:
    """Return mean and standard deviation for an encoder's pretrained weights, as `get_normalization_stats` does."""
    if library == "timm":
        config = timm.get_pretrained_cfg(name) if pretrained else None
        return None if config is None else parse_normalization_stats(config.to_dict())
    name, dot, tag = name.partition(".")
    weights = find_smp_weights(name, tag if dot else None, pretrained)
    return weights.statistics() if weights else None


def _create(name: str, arguments: dict[str, Any]) -> Any:
    try:
        with warnings.catch_warnings(), LinspaceOnCpu():
            warnings.simplefilter("ignore")  # smp warns of deprecated names, which it still accepts
            return getattr(smp, smp_class_name(name))(**arguments)
    except Exception as error:  # smp, timm or a hub's client may raise anything
        reason = " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
        encoder = arguments["encoder_name"].replace("tu-", "timm/")
        message = f"smp/{name} cannot be built with encoder {encoder} and its options ({reason})"
        raise BuildError(f"{message}; `unetkit list model smp/{name}` lists its options") from error


def _describe_sources(encoder: Any) -> tuple[str, ...]:
    """Say for each feature map of an encoder which module makes it; the input itself is left out."""
    if info := getattr(getattr(encoder, "model", None), "feature_info", None):
        indices = getattr(encoder, "_output_indices", None)  # a complete timm model, as in DPT, lists all maps
        maps = [info[index] for index in indices] if indices else info.get_dicts()
        return tuple(f"timm {each['module']}, reduction {each['reduction']}" for each in maps)
    reductions = [2**index for index, channels in enumerate(encoder.out_channels) if index and channels]
    return tuple(f"smp's own, reduction {reduction}" for reduction in reductions)


def _get_fixed_size(spec: PartSpec) -> Size | None:
    """Return the size that a timm encoder is built for, if timm says that it takes only one."""
    library, _, bare_name = spec.name.partition("/")
    config = timm.get_pretrained_cfg(bare_name) if library == "timm" else None
    if config is None or not config.fixed_input_size:
        return None
    img_size = guess_value(str(dict(spec.options).get("img_size", "none")))
    if isinstance(img_size, int):
        img_size = img_size, img_size
    height, width = img_size or config.input_size[-2:]
    return height, width


def _declare_sizes(model: Any, name: str, arguments: dict[str, Any], in_channels: int, fixed_size: Size | None) -> None:
    """Set the sizes that a model takes as its attributes: `min_size` and `multiple`, or its only `size`."""
    stride = int(model.encoder.output_stride)
    if fixed_size is not None and "dynamic_img_size" not in arguments:
        meta_model = meta_copy(model).eval()
        taller = fixed_size[0] + 2 * stride, fixed_size[1]
        if accepts(meta_model, in_channels, *fixed_size) and not accepts(meta_model, in_channels, *taller):
            vars(model)["size"] = fixed_size
            return
    key = "smp", name, str(sorted(arguments.items())), stride
    vars(model)["min_size"], vars(model)["multiple"] = probe_sizes(key, model, in_channels, stride)
