"""The built-in parts, registered through the same hook as a plugin's. Importing this imports no torch."""

from __future__ import annotations

from unetkit.hookspecs import hookimpl
from unetkit.registry import Parts

_HERE = "unetkit.parts"


@hookimpl
def unetkit_register(parts: Parts) -> None:
    """Register every built-in part by "module:attr"."""
    parts.encoders.add("plain", f"{_HERE}.encoders.plain:Plain")
    parts.encoders.add_library(
        "timm", f"{_HERE}.encoders.timm_catalog:timm_model_names", f"{_HERE}.encoders.timm:TimmEncoder"
    )
    parts.encoders.add_library("smp", "unetkit.smp.catalog:smp_encoder_names", "unetkit.smp.encoders:SmpEncoder")
    for name, attr in {
        "bilinear": "Bilinear",
        "nearest": "Nearest",
        "transposed": "Transposed",
        "pixelshuffle": "PixelShuffle",
    }.items():
        parts.upsamplers.add(name, f"{_HERE}.upsamplers:{attr}")
    for name, attr in {"concat": "Concat", "add": "Add", "mean": "Mean", "max": "Max"}.items():
        parts.fusions.add(name, f"{_HERE}.fusions:{attr}")
    for name, attr in {"crop": "Crop", "pad": "Pad", "resize": "Resize"}.items():
        parts.aligns.add(name, f"{_HERE}.aligns:{attr}")
    for name, attr in {
        "double": "Double",
        "basic": "Basic",
        "bottleneck": "Bottleneck",
        "preact": "PreActivation",
    }.items():
        parts.blocks.add(name, f"{_HERE}.blocks:{attr}")
    for name, attr in {"conv": "Conv", "conv-act-norm": "ConvActNorm"}.items():
        parts.heads.add(name, f"{_HERE}.heads:{attr}")
    for name in (
        "unet-2015",
        "unet-same",
        "unet-bilinear",
        "unet-relu-bn",
        "vgg16-unet",
        "resnet34-unet",
        "resnet101-unet",
    ):
        parts.recipes.add(name, f"{_HERE}.recipes:{name.replace('-', '_')}")
    smp = "unetkit.smp.catalog"
    parts.models.add_library(
        "smp",
        f"{smp}:smp_architecture_names",
        "unetkit.smp.models:smp_model",
        options=f"{smp}:smp_architecture_options",
    )
