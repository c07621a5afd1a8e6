"""Copies of models on the meta device, module modes, memory formats, threads and devices."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from unetkit.errors import OptionError
from unetkit.utils.lazy_init import preserve_rng

M = TypeVar("M", bound=nn.Module)


def meta_copy(model: M) -> M:
    """Return a deep copy on the meta device; no weight is copied, and the model is unchanged."""
    memo: dict[int, Any] = {}
    for tensor in chain(model.parameters(), model.buffers()):
        memo[id(tensor)] = _empty_on_meta(tensor)
    return copy.deepcopy(model, memo)


def to_meta(model: M) -> M:
    """Return the model itself if it is on the meta device, and otherwise a copy that is."""
    return model if next(model.parameters()).device.type == "meta" else meta_copy(model)


def move_to_meta(module: nn.Module) -> None:
    """Replace parameters and buffers by ones on the meta device; those that are shared remain shared."""
    moved: dict[int, tuple[Tensor, Tensor]] = {}
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and not tensor.is_meta:
                    _, twin = moved.setdefault(id(tensor), (tensor, _empty_on_meta(tensor)))
                    tensors[name] = twin  # type: ignore[assignment]


def _empty_on_meta(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def materialized_copy(model: M) -> M:
    """Return a deep copy that has values; for a model on the meta device these are random weights on the CPU."""
    copied = copy.deepcopy(model)
    if not any(tensor.is_meta for tensor in chain(model.parameters(), model.buffers())):
        return copied
    copied.to_empty(device="cpu")
    with torch.no_grad(), preserve_rng():
        for parameter in copied.parameters():
            parameter.normal_(std=0.02)
        for buffer in copied.buffers():
            buffer.zero_()
        for module in copied.modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
    return copied


@contextmanager
def preserve_mode(model: nn.Module) -> Iterator[None]:
    """Restore training or eval mode of each module at the end of the context."""
    was = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in was:
            module.training = mode


def explain_norm_error(error: BaseException) -> str:
    """Say in plain words that a batch norm got a single value for each channel in training; "" for other errors."""
    if "more than 1 value per channel" not in str(error):
        return ""
    return "in training, a batch norm gets one value for each channel, which has no variance"


@contextmanager
def set_threads(count: int | None) -> Iterator[None]:
    """Use this number of torch's threads within the context; None leaves it as it is."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(count or before)
        yield
    finally:
        torch.set_num_threads(before)


def to_channels_last(model: M) -> M:
    """Store every tensor of a model that has four dimensions in NHWC memory, and return the model.

    `Module.to(memory_format=torch.channels_last)` fails on a tensor of five, such as the weight of a 3-D convolution.
    """
    for tensor in chain(model.parameters(), model.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
    return model


def default_device(device: str | None) -> str:
    """Return the given device, or a GPU if there is one."""
    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def numbered_device(device: Any) -> torch.device:
    """Return a device; a GPU without a number becomes the current one, since `torch.cuda.set_device` needs a number."""
    found = torch.device(device)
    return torch.device("cuda", torch.cuda.current_device()) if str(found) == "cuda" else found


def check_device(device: Any, *, meta: bool = True) -> None:
    """Raise OptionError for a device that torch does not know or that this machine does not have.

    Args:
        device: a device, or its name; None for torch's default.
        meta: whether the meta device, which computes nothing, is accepted.
    """
    try:
        if torch.empty(0, device=device).is_meta and not meta:
            raise OptionError(f"--device {device}: computes nothing; give another one, such as cpu")
    except (RuntimeError, AssertionError) as error:
        first = str(error).strip().split("\n")[0][:200]
        why = "torch knows no such device" if first.startswith("Expected one of") else first
        raise OptionError(f"--device {device}: is not available ({why}); give another one, such as cpu") from error
