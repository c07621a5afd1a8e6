"""The libraries that a sweep can check: unetkit and smp, each building a network with an encoder of timm.

They are imported only when a network is built, since the main process of a sweep needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Library:
    """A library that builds segmentation networks with encoders of timm.

    Attributes:
        build: builds a network with random weights from the name of a timm model and a device.
        describe_encoder: returns the strides and the channels of the encoder's feature maps, from shallow to deep.
        distributions: Python distributions whose versions determine the results.
        modules: modules that a child process imports to build a network.
    """

    build: Callable[[str, str], Any]
    describe_encoder: Callable[[Any], tuple[list[int], list[int]]]
    distributions: tuple[str, ...]
    modules: tuple[str, ...]


def _build_unetkit(name: str, device: str) -> Any:
    from unetkit.builder import build
    from unetkit.plugins import load_parts

    return build(name, parts=load_parts(isolated=True), device=device)


def _build_smp(name: str, device: str) -> Any:
    import segmentation_models_pytorch as smp
    import torch

    with torch.device(device):
        return smp.Unet(f"tu-{name}", encoder_weights=None)


def _describe_unetkit_encoder(model: Any) -> tuple[list[int], list[int]]:
    return [*model.strides], [*model.channels]


def _describe_smp_encoder(model: Any) -> tuple[list[int], list[int]]:
    info = model.encoder.model.feature_info
    return [*info.reduction()], [*info.channels()]


#: The libraries by name. The code of unetkit is identified by its version and its digest; smp is checked with the same
#: names of the same version of timm.
LIBRARIES = {
    "unetkit": Library(_build_unetkit, _describe_unetkit_encoder, ("unetkit", "timm", "torch"), ("unetkit.builder",)),
    "smp": Library(
        _build_smp,
        _describe_smp_encoder,
        ("segmentation-models-pytorch", "timm", "torch"),
        ("segmentation_models_pytorch",),
    ),
}
