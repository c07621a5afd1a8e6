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
from unetkit.parts.encoders.borne import bears, takes
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
    theirs, of_encoder = _encoder(spec, name, options)
    if img_size and _fixed_size(spec):
        of_encoder.setdefault("img_size", img_size)
    if not isinstance(pretrained, bool):
        raise CannotBuild(f"--pretrained {pretrained}: smp/{name} takes no file, only the library's own weights")
    loads = pretrained and torch.get_default_device().type != "meta"
    weights = ("imagenet" if spec.name.startswith("smp/") else True) if loads else None
    make = getattr(smp, class_name(name))
    words = {"encoder_name": theirs, "in_channels": in_channels, "classes": classes, "encoder_weights": weights}
    model = _made(f"smp/{name}", lambda: make(**words, **options, **of_encoder))
    vars(model)["weights_from"] = f"{spec.name} of its library" if pretrained else "random"
    vars(model)["source"] = _sources(model.encoder)
    built_for = spec.with_options({"img_size": to_text(of_encoder["img_size"])}) if "img_size" in of_encoder else spec
    _declare_sizes(model, name, built_for, in_channels)
    return cast(nn.Module, model)


def _encoder(spec: PartSpec, name: str, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """What smp calls an encoder, and its options."""
    source, _, bare = spec.name.partition("/")
    if source not in ("timm", "smp"):
        raise CannotBuild(f"smp/{name} takes encoders of timm and of smp only; {spec.name} is neither")
    given = {key: guess(text) for key, text in spec.options}
    if "levels" in given:
        raise BadOption(f"--encoder {spec}: beside smp/{name} say levels as --model smp/{name}:encoder_depth=...")
    if source == "smp" and given.keys() - {"output_stride"}:
        raise BadOption(f"--encoder {spec}: smp would ignore {min(given.keys() - {'output_stride'})}; leave it out")
    return (f"tu-{bare}" if source == "timm" else bare), given


def _sources(encoder: Any) -> tuple[str, ...]:
    """Where each of its maps comes from, the input itself left out."""
    if info := getattr(getattr(encoder, "model", None), "feature_info", None):
        if not callable(getattr(info, "module_name", None)):  # a whole timm model keeps a plain list
            return ()
        return tuple(f"timm {m}, reduction {r}" for m, r in zip(info.module_name(), info.reduction(), strict=True))
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


def _made(what: str, make: Any) -> Any:
    """What smp makes; on the CPU, and its values then left out, where it looks at values on meta."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that smp gave up and still has
        try:
            return make()
        except Exception as error:
            why: Exception = error
        if torch.get_default_device().type == "meta":
            try:
                with torch.device("cpu"):
                    return make().to("meta")
            except Exception as error:
                why = error
    text = " ".join(str(why).split())[:300]
    raise CannotBuild(f"{what} cannot be built so ({type(why).__name__}: {text})") from why


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
