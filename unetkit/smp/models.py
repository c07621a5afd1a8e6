"""The architectures of segmentation-models-pytorch, as whole models."""

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
from unetkit.parts.encoders.input_sizes import accepts, enclosing_sizes, probe_sizes, round_up
from unetkit.parts.encoders.normalization import Statistics, of_config
from unetkit.parts.encoders.timm_features import TimmSpec
from unetkit.parts.encoders.timm_options import check_timm_options
from unetkit.parts.encoders.timm_weights import find_timm_weights
from unetkit.plan import PartSpec
from unetkit.smp.catalog import smp_architecture_options as own_options
from unetkit.smp.catalog import smp_class_name
from unetkit.smp.encoders import NumbersOnCpu, find_smp_weights
from unetkit.utils.formatting import Size
from unetkit.utils.modules import meta_copy

#: What sides of timm's models of one size are multiples of: the usual stride, and windows there.
_STEPS = (32, 64, 128, 224, 256)


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
    """An architecture of segmentation-models-pytorch, which gives logits of the input's size.

    Args:
        in_channels: of the input.
        classes: channels of the output.
        name: of the architecture, in lower case.
        encoder: one of timm's ("timm/resnet34", what smp calls tu-resnet34) or one of smp's own ("smp/resnet34").
        pretrained: the library's weights for the encoder; `--pretrained` says the same.
        img_size: what an encoder of one size is built for; `--size` says the same.
        options: of the architecture's constructor, as smp calls them.

    Raises:
        BuildError: smp refuses them; says with which words.
        OptionError: the encoder has an option that smp says as an option of the architecture.
    """
    spec = PartSpec.parse(encoder)
    size = (img_size, img_size) if isinstance(img_size, int) else img_size
    source, _, bare = spec.name.partition("/")
    if source not in ("timm", "smp"):
        raise BuildError(f"smp/{name} takes encoders of timm and of smp only; {spec.name} is neither")
    if not isinstance(pretrained, bool):
        raise BuildError(f"--pretrained {pretrained}: smp/{name} takes no file, only the library's own weights")
    said = _said(spec, name, source, in_channels)
    theirs, weights = (_of_timm if source == "timm" else _of_smp)(bare, pretrained)
    words = {"encoder_name": theirs, "in_channels": in_channels, "classes": classes, **options, **said}
    fixed = _fixed_size(spec)
    if fixed is not None:
        words |= _for_size(name, words, in_channels, fixed, None if "img_size" in said else size)
    model = _made(name, {**words, "encoder_weights": weights})
    vars(model)["weights_from"] = f"{spec.name} of its library" if pretrained else "random"
    vars(model)["source"] = _sources(model.encoder)
    vars(model)["statistics"] = partial(_statistics, source, bare, pretrained)
    built_for = fixed if "img_size" in said else words.get("img_size", fixed)
    _declare_sizes(model, name, words, in_channels, built_for)
    return cast(nn.Module, model)


def _said(spec: PartSpec, name: str, source: str, in_channels: int) -> dict[str, Any]:
    """The options of an encoder, which smp hands on to timm."""
    given = {key: guess_value(text) for key, text in spec.options}
    if "levels" in given:
        told = f"how many maps of {spec.name} are used is said by --model smp/{name}:encoder_depth=..."
        raise OptionError(f"{told}; leave levels out")
    if "output_stride" in given and "encoder_output_stride" in {option.name for option in own_options(name)}:
        raise OptionError(f"output_stride is said by --model smp/{name}:encoder_output_stride=...; leave it out there")
    if source == "smp" and (ignored := given.keys() - {"output_stride"}):
        raise OptionError(f"smp would ignore {min(ignored)} of --encoder {spec}; leave it out")
    if source == "timm":
        rest = {key: value for key, value in given.items() if key not in ("output_stride", "img_size")}
        check_timm_options(TimmSpec(spec.name.partition("/")[2], in_channels), rest)
    return given


def _for_size(name: str, words: dict[str, Any], in_channels: int, own: Size, img_size: Size | None) -> dict[str, Any]:
    """What a timm model is asked for beside that, so that it takes many sizes, or else the one that is said."""
    for extra in ({"dynamic_img_size": True}, {}):
        with suppress(BuildError), torch.device("meta"):
            ghost = _made(name, {**words, **extra, "encoder_weights": None}).eval()
            stride = int(ghost.encoder.output_stride)
            far = round_up(2 * max(own) + 1, 2 * stride)
            if accepts(ghost, in_channels, far, far) or img_size is None or img_size == own:
                return extra
    for size in enclosing_sizes(img_size or own, (*_STEPS, max(own))):
        with suppress(BuildError), torch.device("meta"):
            ghost = _made(name, {**words, "img_size": size, "encoder_weights": None}).eval()
            if accepts(ghost, in_channels, *size):
                return {"img_size": size}
    return {}


def _of_timm(name: str, pretrained: bool) -> tuple[str, Any]:
    """What smp calls an encoder of timm's, and asks for its weights by."""
    loads = pretrained and torch.get_default_device().type != "meta"
    with _hub(f"timm/{name}"):
        find_timm_weights(name, pretrained=pretrained, loads=loads)
    return f"tu-{name}", True if loads else None


@contextmanager
def _hub(encoder: str) -> Iterator[None]:
    """What a hub's client raises, in one line that says what to do."""
    try:
        yield
    except UnetkitError:
        raise
    except Exception as error:
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        told = f"the pretrained weights of {encoder} cannot be had from its hub ({why})"
        raise BuildError(f"{told}; leave --pretrained out for random weights") from error


def _of_smp(name: str, pretrained: bool) -> tuple[str, Any]:
    """The same of one of its own; a tag picks weights."""
    name, dot, tag = name.partition(".")
    found = find_smp_weights(name, tag if dot else None, pretrained)
    if found is None or torch.get_default_device().type == "meta":
        return name, None
    with _hub(f"smp/{name}"):
        found.read()  # smp's own client would ask for half a minute
    settings = smp.encoders.encoders[name]["pretrained_settings"]
    return name, next(key for key, at in settings.items() if (at["repo_id"], at["revision"]) == found.hub)


def _statistics(source: str, name: str, pretrained: bool) -> Statistics | None:
    """What `unetkit.parts.encoders.normalization` asks for."""
    if source == "timm":
        config = timm.get_pretrained_cfg(name) if pretrained else None
        return None if config is None else of_config(config.to_dict())
    name, dot, tag = name.partition(".")
    weights = find_smp_weights(name, tag if dot else None, pretrained)
    return weights.statistics() if weights else None


def _made(name: str, words: dict[str, Any]) -> Any:
    try:
        with warnings.catch_warnings(), NumbersOnCpu():
            warnings.simplefilter("ignore")  # of names that smp gave up and still has
            return getattr(smp, smp_class_name(name))(**words)
    except Exception as error:  # whatever smp, timm or a hub's client raises
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        told = f"smp/{name} cannot be built with encoder {words['encoder_name']} and its options ({why})"
        raise BuildError(f"{told}; `unetkit list model smp/{name}` describes them") from error


def _sources(encoder: Any) -> tuple[str, ...]:
    """Where each of its maps comes from, the input itself left out."""
    if info := getattr(getattr(encoder, "model", None), "feature_info", None):
        taken = getattr(encoder, "_output_indices", None)  # a whole timm model, as DPT has, keeps all in a list
        maps = [info[index] for index in taken] if taken else info.get_dicts()
        return tuple(f"timm {each['module']}, reduction {each['reduction']}" for each in maps)
    reductions = [2**index for index, channels in enumerate(encoder.out_channels) if index and channels]
    return tuple(f"smp's own, reduction {reduction}" for reduction in reductions)


def _fixed_size(spec: PartSpec) -> Size | None:
    """The size that a timm model is built for, where timm says that it takes one only."""
    source, _, bare = spec.name.partition("/")
    config = timm.get_pretrained_cfg(bare) if source == "timm" else None
    if config is None or not config.fixed_input_size:
        return None
    said = guess_value(dict(spec.options).get("img_size", "none"))
    if isinstance(said, int):
        said = said, said
    height, width = said or config.input_size[-2:]
    return height, width


def _declare_sizes(model: Any, name: str, words: dict[str, Any], in_channels: int, fixed: Size | None) -> None:
    """Say what sizes it takes: `min_size` and `multiple`, or the one `size`."""
    stride = int(model.encoder.output_stride)
    if fixed is not None and "dynamic_img_size" not in words:
        ghost = meta_copy(model).eval()
        if accepts(ghost, in_channels, *fixed) and not accepts(ghost, in_channels, fixed[0] + 2 * stride, fixed[1]):
            vars(model)["size"] = fixed
            return
    key = "smp", name, str(sorted(words.items())), stride
    vars(model)["min_size"], vars(model)["multiple"] = probe_sizes(key, model, in_channels, stride)
