"""Every timm model that gives feature maps at two or more strides, as an encoder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import timm
import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError
from torch import Tensor, nn

from unetkit.errors import CannotBuild, UnetkitError

_WATCHING = Lock()


class TimmEncoder(nn.Module):
    """A timm model's feature maps; channels and strides are those that the model reports.

    Where several maps have one stride (dilation in place of stride makes such), the deepest of them is given.

    Args:
        levels: how many of its maps to use, counted from the shallowest; none means all.
        output_stride: dilates the last stages so that no map is coarser than this, where the model can.
        pretrained: timm's weights for it, or the path of a file in timm's format; `--pretrained` says the same. On
            the meta device, which holds no weights, they are named but neither downloaded nor read.
    """

    def __init__(
        self,
        in_channels: int,
        name: str,
        *,
        levels: int | None = None,
        output_stride: Literal[8, 16, 32] = 32,
        pretrained: bool | str = False,
    ) -> None:
        super().__init__()
        self.model = _create(name, in_channels, output_stride, pretrained)
        self.weights = _describe(self.model, pretrained)
        info = self.model.feature_info
        strides, channels = list(info.reduction()), list(info.channels())
        deepest = [i for i, s in enumerate(strides) if i + 1 == len(strides) or strides[i + 1] > s]
        if len(deepest) < 2:
            raise CannotBuild(
                f"timm/{name} gives maps at one stride only ({', '.join(map(str, strides))}), and a U needs two; "
                "take an encoder with a pyramid (`unetkit list encoders 'resnet*'`)"
            )
        if levels is not None and not 2 <= levels <= len(deepest):
            raise CannotBuild(f"timm/{name} gives {len(deepest)} maps; levels={levels} must be from 2 to that")
        self.take = deepest[:levels]
        self.strides = tuple(strides[i] for i in self.take)
        self.channels = tuple(channels[i] for i in self.take)
        self.source = tuple(f"timm {info.module_name()[i]}" for i in self.take)
        self.channels_last = str(getattr(self.model, "output_fmt", "NCHW")).endswith("NHWC")

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, H, W) -> maps of (B, channels[i], H / strides[i], W / strides[i]), rounded as the model does."""
        maps = self.model(x)
        return [maps[i].permute(0, 3, 1, 2) if self.channels_last else maps[i] for i in self.take]


def _create(name: str, in_channels: int, output_stride: int, weights: bool | str) -> Any:
    options: dict[str, Any] = {} if output_stride == 32 else {"output_stride": output_stride}
    if isinstance(weights, str):
        if not Path(weights).is_file():
            raise CannotBuild(f"there is no weights file {weights}; --pretrained takes a file in timm's format")
        options["pretrained_cfg_overlay"] = {"file": weights}
    loads = bool(weights) and torch.get_default_device().type != "meta"
    try:
        _find(name, weights is True, loads)
        with _watched() as loadings:
            model = timm.create_model(name, features_only=True, in_chans=in_channels, pretrained=loads, **options)
        _refuse_foreign(name, model, loadings)
    except Exception as error:  # whatever timm, its hub client or a file's reader raises
        raise CannotBuild(_reason(name, error, weights, output_stride)) from error
    return model


def _find(name: str, pretrained: bool, loads: bool) -> None:
    """Refuse a tag that timm does not know, weights that it does not have, and a hub that is not there."""
    architecture, _, tag = name.partition(".")
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise CannotBuild(f"timm has no weights tagged {tag!r} for {architecture}; it has {', '.join(tags) or 'none'}")
    if not pretrained:
        return
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise CannotBuild(f"timm has no weights for {name}")
    if loads and config.hf_hub_id:
        _reach(config.hf_hub_id, config.hf_hub_filename)


def _reach(hub_id: str, file: str | None) -> None:
    """Ask once for weights that are not in the hub's cache; timm's own loading would ask for most of a minute."""
    repo, _, revision = hub_id.partition("@")
    files = [file] if file else ["model.safetensors", "pytorch_model.bin"]
    if any(isinstance(try_to_load_from_cache(repo, file, revision=revision or None), str) for file in files):
        return
    with suppress(HfHubHTTPError):  # an answer, if not the wanted one: timm knows more places to look
        get_hf_file_metadata(hf_hub_url(repo, files[0], revision=revision or None))


@contextmanager
def _watched() -> Iterator[list[tuple[nn.Module, Any]]]:
    """Every load_state_dict within, as the module and its missing and unexpected keys, which timm only logs."""
    original, seen = nn.Module.load_state_dict, []

    def load(self: nn.Module, *args: Any, **options: Any) -> Any:
        seen.append((self, original(self, *args, **options)))
        return seen[-1][1]

    with _WATCHING:
        nn.Module.load_state_dict = load  # type: ignore[method-assign]
        try:
            yield seen
        finally:
            nn.Module.load_state_dict = original  # type: ignore[method-assign]


def _refuse_foreign(name: str, model: nn.Module, loadings: list[tuple[nn.Module, Any]]) -> None:
    """Refuse weights of another network. A classifier's, which the encoder has not, may be missing or superfluous."""
    kept = {id(tensor) for tensor in chain(model.parameters(), model.buffers())}
    for module, keys in loadings:
        tensors = dict(chain(module.named_parameters(), module.named_buffers()))
        if missing := [key for key in keys.missing_keys if id(tensors.get(key)) in kept]:
            raise CannotBuild(f"they lack {len(missing)} of {name}'s tensors, such as {missing[0]}")
        if keys.unexpected_keys:
            with torch.device("meta"):
                whole = timm.create_model(name).state_dict()
            if foreign := [key for key in keys.unexpected_keys if key not in whole]:
                raise CannotBuild(f"they have {len(foreign)} tensors that {name} has not, such as {foreign[0]}")


def _reason(name: str, error: Exception, weights: bool | str, output_stride: int) -> str:
    text = " ".join(str(error).split())[:300]
    why = text if isinstance(error, UnetkitError) else f"{type(error).__name__}: {text}".rstrip(": ")
    if weights:
        where = f"read from {weights}" if isinstance(weights, str) else "had from timm's hub"
        return (
            f"the pretrained weights of timm/{name} cannot be {where} ({why}); give a file in timm's format with "
            "`--pretrained FILE`, or leave --pretrained out for random weights"
        )
    if isinstance(error, UnetkitError):
        return text
    if output_stride != 32:
        return f"timm/{name} does not take output_stride={output_stride} ({why}); leave it out, or take a ResNet"
    return f"timm/{name} gives no feature maps ({why})"


def _describe(model: Any, weights: bool | str) -> str:
    if not weights:
        return "random"
    config = model.pretrained_cfg
    return str(weights) if isinstance(weights, str) else f"timm {config['architecture']}.{config.get('tag', '')}"
