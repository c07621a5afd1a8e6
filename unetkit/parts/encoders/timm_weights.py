"""Pretrained weights of timm's encoders: found before they are asked for, and refused where they are another's."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from threading import Lock, get_ident
from typing import Any

import timm
import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError
from torch import nn

from unetkit.errors import BuildError

_WATCHING = Lock()


def find_timm_weights(name: str, *, pretrained: bool, loads: bool) -> None:
    """Refuse a tag that timm does not know, weights that it does not have, and a hub that is not there."""
    architecture, _, tag = name.partition(".")
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise BuildError(f"timm has no weights tagged {tag!r} for {architecture}; it has {', '.join(tags) or 'none'}")
    if not pretrained:
        return
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise BuildError(f"timm has no weights for {name}")
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
def capture_load(loads: bool) -> Iterator[list[tuple[nn.Module, Any]]]:
    """This thread's load_state_dicts within: the module, and its missing and unexpected keys, which timm only logs."""
    seen: list[tuple[nn.Module, Any]] = []
    if not loads:
        yield seen
        return
    original = nn.Module.load_state_dict
    log = logging.getLogger("timm.models._builder")
    mine = get_ident()

    def load(self: nn.Module, *args: Any, **options: Any) -> Any:
        keys = original(self, *args, **options)
        if get_ident() == mine:
            seen.append((self, keys))
        return keys

    with _WATCHING:
        nn.Module.load_state_dict = load  # type: ignore[method-assign]
        log.addFilter(_silent)
        try:
            yield seen
        finally:
            nn.Module.load_state_dict = original  # type: ignore[method-assign]
            log.removeFilter(_silent)


def _silent(_: logging.LogRecord) -> bool:
    return False  # every key by its name, on stderr, also where all is well


def check_keys(name: str, model: nn.Module, loadings: list[tuple[nn.Module, Any]]) -> None:
    """Refuse weights of another network. A classifier's, which the encoder has not, may be missing or superfluous."""
    kept = {id(tensor) for tensor in chain(model.parameters(), model.buffers())}
    for module, keys in loadings:
        tensors = dict(chain(module.named_parameters(), module.named_buffers()))
        if missing := [key for key in keys.missing_keys if id(tensors.get(key)) in kept]:
            raise BuildError(f"they lack {len(missing)} of {name}'s tensors, such as {missing[0]}")
        if keys.unexpected_keys:
            with torch.device("meta"):
                whole = timm.create_model(name).state_dict()
            if foreign := [key for key in keys.unexpected_keys if key not in whole]:
                raise BuildError(f"they have {len(foreign)} tensors that {name} has not, such as {foreign[0]}")
