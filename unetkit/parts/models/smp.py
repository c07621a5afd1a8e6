"""The architectures of segmentation-models-pytorch, as whole models."""

from __future__ import annotations

import warnings
from typing import Any, cast

import segmentation_models_pytorch as smp
import timm
import torch
from torch import nn

from unetkit.errors import BadOption, CannotBuild
from unetkit.meta import meta_copy
from unetkit.parts.encoders import smp_weights, timm_weights
from unetkit.parts.encoders.borne import bears, takes
from unetkit.parts.encoders.smp import NumbersOnCpu
from unetkit.parts.models.smp_names import class_name
from unetkit.plan import PartSpec, Size
from unetkit.values import guess, to_text


def smp_model(
    in_channels: int,
    classes: int,
    name: str,
    *,
    encoder: str = "timm/resnet34",
    pretrained: bool = False,
    img_size: tuple[int, int] | None = None,
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
        CannotBuild: smp refuses them; says with which words.
        BadOption: the encoder has an option that smp says as an option of the architecture.
    """
    spec = PartSpec.parse(encoder)
    source, _, bare = spec.name.partition("/")
    if source not in ("timm", "smp"):
        raise CannotBuild(f"smp/{name} takes encoders of timm and of smp only; {spec.name} is neither")
    if not isinstance(pretrained, bool):
        raise CannotBuild(f"--pretrained {pretrained}: smp/{name} takes no file, only the library's own weights")
    said = _said(spec, name, source)
    if img_size and _fixed_size(spec):
        said.setdefault("img_size", img_size)
    theirs, weights = (_of_timm if source == "timm" else _of_smp)(bare, pretrained)
    words = {"encoder_name": theirs, "encoder_weights": weights, "in_channels": in_channels, "classes": classes}
    model = _made(name, {**words, **options, **said})
    vars(model)["weights_from"] = f"{spec.name} of its library" if pretrained else "random"
    vars(model)["source"] = _sources(model.encoder)
    built_for = spec.with_options({"img_size": to_text(said["img_size"])}) if "img_size" in said else spec
    _declare_sizes(model, name, built_for, in_channels)
    return cast(nn.Module, model)


def _said(spec: PartSpec, name: str, source: str) -> dict[str, Any]:
    """The options of an encoder, which smp hands on to timm."""
    given = {key: guess(text) for key, text in spec.options}
    if "levels" in given:
        raise BadOption(
            f"how many maps of {spec.name} are used is said by --model smp/{name}:encoder_depth=...; leave levels out"
        )
    if source == "smp" and (ignored := given.keys() - {"output_stride"}):
        raise BadOption(f"smp would ignore {min(ignored)} of --encoder {spec}; leave it out")
    return given


def _of_timm(name: str, pretrained: bool) -> tuple[str, Any]:
    """What smp calls an encoder of timm's, and asks for its weights by."""
    loads = pretrained and torch.get_default_device().type != "meta"
    timm_weights.find(name, pretrained=pretrained, loads=loads)
    return f"tu-{name}", True if loads else None


def _of_smp(name: str, pretrained: bool) -> tuple[str, Any]:
    """The same of one of its own; a tag picks weights."""
    name, dot, tag = name.partition(".")
    found = smp_weights.find(name, tag if dot else None, pretrained)
    if found is None or torch.get_default_device().type == "meta":
        return name, None
    settings = smp.encoders.encoders[name]["pretrained_settings"]
    return name, next(key for key, at in settings.items() if (at["repo_id"], at["revision"]) == found.hub)


def _made(name: str, words: dict[str, Any]) -> Any:
    try:
        with warnings.catch_warnings(), NumbersOnCpu():
            warnings.simplefilter("ignore")  # of names that smp gave up and still has
            return getattr(smp, class_name(name))(**words)
    except Exception as error:  # whatever smp, timm or a hub's client raises
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise CannotBuild(
            f"smp/{name} cannot be built so ({why}); `unetkit list model smp/{name}` has its options"
        ) from error


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
    said = guess(dict(spec.options).get("img_size", "none"))
    height, width = said if isinstance(said, tuple) else config.input_size[-2:]
    return height, width


def _declare_sizes(model: Any, name: str, spec: PartSpec, in_channels: int) -> None:
    """Say what sizes it takes: `min_size` and `multiple`, or the one `size`."""
    stride = int(model.encoder.output_stride)
    if (size := _fixed_size(spec)) is not None:
        ghost = meta_copy(model).eval()
        if takes(ghost, in_channels, *size) and not takes(ghost, in_channels, size[0] + 2 * stride, size[1]):
            vars(model)["size"] = size
            return
    key = "smp", name, str(spec), stride
    vars(model)["min_size"], vars(model)["multiple"] = bears(key, model, in_channels, stride)
