"""Who is asked: a name of timm's made into a network by unetkit, or by smp as it is.

Nothing here is imported before it is called: the process that leads a sweep needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Subject:
    """A library that makes segmentation networks of timm's names.

    Attributes:
        build: (name, device) -> the network with random weights.
        maps: network -> strides and channels of its encoder's maps, shallow to deep.
        distributions: whose versions decide what it does.
        modules: what a child imports to ask it.
    """

    build: Callable[[str, str], Any]
    maps: Callable[[Any], tuple[list[int], list[int]]]
    distributions: tuple[str, ...]
    modules: tuple[str, ...]


def _unetkit(name: str, device: str) -> Any:
    from unetkit.builder import build
    from unetkit.plugins import load_parts

    return build(name, parts=load_parts(isolated=True), device=device)


def _smp(name: str, device: str) -> Any:
    import segmentation_models_pytorch as smp
    import torch

    with torch.device(device):
        return smp.Unet(f"tu-{name}", encoder_weights=None)


def _our_maps(model: Any) -> tuple[list[int], list[int]]:
    return [*model.strides], [*model.channels]


def _smp_maps(model: Any) -> tuple[list[int], list[int]]:
    info = model.encoder.model.feature_info
    return [*info.reduction()], [*info.channels()]


#: unetkit's own code stands under its version and its digest; smp is asked on the same names of the same timm.
SUBJECTS = {
    "unetkit": Subject(_unetkit, _our_maps, ("unetkit", "timm", "torch"), ("unetkit.builder",)),
    "smp": Subject(_smp, _smp_maps, ("segmentation-models-pytorch", "timm", "torch"), ("segmentation_models_pytorch",)),
}
