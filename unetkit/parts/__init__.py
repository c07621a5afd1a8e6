"""Built-in parts of a network, registered through the same hook as a plugin's parts.

Importing this package does not import torch: a part is registered as "module:attr" and imported on first use.
"""

from __future__ import annotations

from unetkit.hookspecs import hookimpl
from unetkit.registry import Parts

_HERE = "unetkit.parts"


@hookimpl
def unetkit_register(parts: Parts) -> None:
    """Register every built-in part, and all that runs are made of, by "module:attr"."""
    parts.encoders.add("plain", f"{_HERE}.encoders.plain:PlainEncoder")
    parts.encoders.add_library(
        "timm", f"{_HERE}.encoders.timm_catalog:timm_model_names", f"{_HERE}.encoders.timm:TimmEncoder"
    )
    parts.encoders.add_library("smp", "unetkit.smp.catalog:smp_encoder_names", "unetkit.smp.encoders:SmpEncoder")
    for name, attr in {
        "bilinear": "BilinearUpsampler",
        "nearest": "NearestUpsampler",
        "transposed": "TransposedUpsampler",
        "pixelshuffle": "PixelShuffleUpsampler",
    }.items():
        parts.upsamplers.add(name, f"{_HERE}.upsamplers:{attr}")
    for name, attr in {"concat": "Concat", "add": "Add", "mean": "Mean", "max": "Max"}.items():
        parts.fusions.add(name, f"{_HERE}.fusions:{attr}")
    for name, attr in {"crop": "Crop", "pad": "Pad", "resize": "Resize"}.items():
        parts.aligns.add(name, f"{_HERE}.aligns:{attr}")
    for name, attr in {
        "double": "DoubleConv",
        "basic": "BasicBlock",
        "bottleneck": "Bottleneck",
        "preact": "PreActBlock",
    }.items():
        parts.blocks.add(name, f"{_HERE}.blocks:{attr}")
    for name, attr in {"conv": "ConvHead", "conv-act-norm": "ConvActNormHead"}.items():
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
    catalog = "unetkit.smp.catalog"
    parts.models.add_library(
        "smp",
        f"{catalog}:smp_architecture_names",
        "unetkit.smp.models:smp_model",
        options=f"{catalog}:smp_architecture_options",
    )
    _register_run_parts(parts)


def _register_run_parts(parts: Parts) -> None:
    """Register what training runs and benchmarks are made of."""
    parts.datasets.add("cells", "unetkit.data.synthetic_cells:cells")
    for name in ("voc", "pet", "cityscapes"):
        parts.datasets.add(name, f"unetkit.data.torchvision_datasets:{name}")
    for name, attr in {
        "ce": "CE",
        "bce": "BCE",
        "dice": "Dice",
        "focal": "Focal",
        "border": "Border",
        "mse": "MSE",
        "l1": "L1",
    }.items():
        parts.losses.add(name, f"unetkit.train.losses:{attr}")
    for name, attr in {"boundary": "Boundary", "distance": "Distance", "center": "Center"}.items():
        parts.targets.add(name, f"unetkit.data.targets:{attr}")
    for name, attr in {
        "hflip": "HFlip",
        "vflip": "VFlip",
        "rotate90": "Rotate90",
        "rotate": "Rotate",
        "scale": "Scale",
        "elastic": "Elastic",
        "light": "Light",
        "noise": "Noise",
        "blur": "Blur",
    }.items():
        parts.augmentations.add(name, f"unetkit.data.augment:{attr}")
    for name in ("adamw", "sgd"):
        parts.optimizers.add(name, f"unetkit.train.optim:{name}")
    for name, attr in {"onnx": "Onnx", "torch": "TorchProgram", "openvino": "OpenVino"}.items():
        parts.formats.add(name, f"unetkit.exporter.formats:{attr}")
    # In the order of measurement: cheap metrics first, and metrics that need a fresh process before those that load
    # more into it.
    for name, unit, is_timed in (
        ("parameters", "", False),
        ("macs", "", False),
        ("activations", "B", False),
        ("build", "s", False),
        ("disk", "B", False),
        ("memory", "B", False),
        ("training-memory", "B", False),
        ("latency", "s", True),
        ("training", "s", True),
    ):
        target = f"unetkit.bench.builtin_metrics:{name.replace('-', '_')}"
        parts.metrics.add(name, target, unit=unit, timed=is_timed)
    for name in ("miou", "dice", "boundary-f", "separated-instances"):
        parts.metrics.add(name, f"{_QUALITY_METRICS}:{name.replace('-', '_')}", better="more", trained=True)
    parts.metrics.add("iou", f"{_QUALITY_METRICS}:iou", better="more", trained=True, per_class=True)
    parts.metrics.add("val-loss", f"{_QUALITY_METRICS}:val_loss", better="less", trained=True)


_QUALITY_METRICS = "unetkit.bench.quality_metrics"
