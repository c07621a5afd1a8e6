"""Checks of the pretrained weights of timm's encoders, before they are loaded and afterwards."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache
from itertools import chain
from typing import Any

import timm
import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.utils.hooks import RemovableHandle

from unetkit.errors import BuildError


def check_timm_weights(name: str, *, pretrained: bool, loads: bool) -> None:
    """Check that timm has the pretrained weights of a model.

    Args:
        name: the model's name in timm, with or without the tag of its weights.
        pretrained: whether timm's own weights are used.
        loads: whether they are loaded too, for which the hub must be reachable unless they are in its cache.

    Raises:
        BuildError: timm does not know the tag, or has no weights for the model.
    """
    architecture, _, tag = name.partition(".")
    if tag:
        tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
        if tag not in tags:
            has = ", ".join(tags) or "none, so leave the tag out"
            raise BuildError(f"timm has no weights tagged {tag!r} for {architecture}; it has {has}")
    if not pretrained:
        return
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise BuildError(f"timm has no weights for {name}")
    if loads and config.hf_hub_id:
        _check_hub(config.hf_hub_id, config.hf_hub_filename)


def _check_hub(hub_id: str, file: str | None) -> None:
    """Ask the hub once for weights that are not in its cache; timm's own loading would retry for most of a minute."""
    repo, _, revision = hub_id.partition("@")
    files = [file] if file else ["model.safetensors", "pytorch_model.bin"]
    if any(isinstance(try_to_load_from_cache(repo, file, revision=revision or None), str) for file in files):
        return
    with suppress(HfHubHTTPError):  # the hub answered; timm knows more places to look
        get_hf_file_metadata(hf_hub_url(repo, files[0], revision=revision or None))


class _Capture:
    """The loads of weights in one thread, found by hooks of torch on every module that is in no other module."""

    def __init__(self) -> None:
        self.loads: list[tuple[nn.Module, Any]] = []
        self._hooks: dict[nn.Module, RemovableHandle] = {}

    def add_module(self, parent: nn.Module, child: nn.Module | None) -> None:
        if parent not in self._hooks:
            handle = parent.register_load_state_dict_post_hook(self._add_load)  # type: ignore[no-untyped-call]
            self._hooks[parent] = handle
        if child is not None and child in self._hooks:
            self._hooks.pop(child).remove()

    def _add_load(self, module: nn.Module, keys: Any) -> None:
        self.loads.append((module, keys))

    def remove_hooks(self) -> None:
        for handle in self._hooks.values():
            handle.remove()


#: The capture in progress in this thread.
_CAPTURE: ContextVar[_Capture | None] = ContextVar("_CAPTURE", default=None)


@contextmanager
def capture_load(enabled: bool) -> Iterator[list[tuple[nn.Module, Any]]]:
    """Capture this thread's loads of state dicts, whose missing and unexpected keys timm only logs.

    timm loads within the call that creates the model, so the model gets its hook while it is being built.

    Args:
        enabled: False captures nothing.

    Yields:
        A list that gets the module and the keys of each load.
    """
    if not enabled:
        yield []
        return
    _install_hooks()
    capture = _Capture()
    token = _CAPTURE.set(capture)
    try:
        yield capture.loads
    finally:
        _CAPTURE.reset(token)
        capture.remove_hooks()


@cache
def _install_hooks() -> None:
    # Once and for good: removing a hook while another thread builds a module would end that thread's loop over them.
    register_module_module_registration_hook(_note_module)
    logging.getLogger("timm.models._builder").addFilter(_is_kept)


def _note_module(parent: nn.Module, _: str, child: nn.Module | None) -> None:
    if capture := _CAPTURE.get():
        capture.add_module(parent, child)


def _is_kept(_: logging.LogRecord) -> bool:
    return _CAPTURE.get() is None  # timm logs every key by name, also where nothing is wrong


def check_keys(name: str, model: nn.Module, captured: list[tuple[nn.Module, Any]]) -> None:
    """Check that loaded weights are those of this network.

    The tensors of a classifier, which an encoder does not have, may be missing or left over.

    Args:
        name: the model's name in timm.
        model: the feature network.
        captured: what `capture_load` captured.

    Raises:
        BuildError: the weights lack tensors of the network, or have tensors that the whole model does not have.
    """
    if not captured:
        return
    used = {id(tensor) for tensor in chain(model.parameters(), model.buffers())}
    for module, keys in captured:
        tensors = dict(chain(module.named_parameters(), module.named_buffers()))
        if missing := [key for key in keys.missing_keys if id(tensors.get(key)) in used]:
            raise BuildError(f"they lack {len(missing)} of {name}'s tensors, such as {missing[0]}")
        if keys.unexpected_keys:
            with torch.device("meta"):
                known = timm.create_model(name).state_dict()
            if foreign := [key for key in keys.unexpected_keys if key not in known]:
                raise BuildError(f"they have {len(foreign)} tensors that {name} does not have, such as {foreign[0]}")
