"""All that is asked of one name, in a process of its own."""

from __future__ import annotations

import gc
import warnings
from itertools import chain
from time import perf_counter
from typing import Any

import timm
import torch
from torch import nn

from tests.sweep.peak import Peak
from tests.sweep.questions import Sizes
from tests.sweep.settings import QUESTIONS, Settings
from tests.sweep.subjects import SUBJECTS, Subject
from unetkit.utils.formatting import format_bytes, format_count
from unetkit.utils.isolation import one_line
from unetkit.utils.processes import Emit
from unetkit.utils.system import is_oom, limit_memory

#: What a run takes beside what Peak sees: copies that kernels make in their own layout, and what the heap wastes.
_KERNELS, _MARGIN = 128 << 20, 1.25
_LONGEST = 240


def measure(name: str, settings: Settings, say: Emit) -> None:
    """Ask everything of a name. Every fact is said as soon as it is known, so that none is lost with the process."""
    torch.set_num_threads(1)
    torch.manual_seed(settings.seed)
    warnings.simplefilter("ignore")
    limit_memory(settings.share)
    subject, sizes = SUBJECTS[settings.of], Sizes.of(name)
    say({"family": timm.model_entrypoint(name).__module__.rsplit(".", 1)[-1], "size": sizes.own})
    ghost = _ghost(name, subject, say)
    if ghost is None:
        return
    needs, answers = _needs(ghost, sizes)
    parameters = sum(p.numel() for p in ghost.parameters())
    say({"parameters": parameters, "needs": needs})
    why = _too_large(needs, parameters, settings)
    if not why and not _really(name, subject, sizes, say):
        gc.collect()
        say({"needs": max(needs, settings.share + 1)})
        why = f"ran out of {format_bytes(settings.share)}"
    if why:
        rest = {question: _answer(question, ghost, sizes, "meta") for question in QUESTIONS if question not in answers}
        say({"real": False, "why": why, **answers, **rest})


def cause(error: BaseException) -> str:
    """An error in one short line."""
    text = one_line(error)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 4]} ..."


def _ghost(name: str, subject: Subject, say: Emit) -> Any:
    """The network on meta, built against the clock; None where it cannot be built."""
    start = perf_counter()
    try:
        ghost = subject.build(name, "meta")
    except Exception as error:  # whatever a library raises is its answer
        say({"built": cause(error), "real": False, **dict.fromkeys(QUESTIONS, "not built")})
        return None
    strides, channels = subject.maps(ghost)
    say({"built": "ok", "seconds": round(perf_counter() - start, 3), "strides": strides, "channels": channels})
    return ghost


def _needs(ghost: nn.Module, sizes: Sizes) -> tuple[int, dict[str, str]]:
    """Bytes that the questions take at most, and the answers to two of them on meta, by which that was found."""
    tensors = [*chain(ghost.parameters(), ghost.buffers())]
    with Peak(tensors) as peak:
        answers = {question: _answer(question, ghost, sizes, "meta") for question in ("own", "backward")}
    weights = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return _KERNELS + int(_MARGIN * (weights + peak.bytes)), answers


def _too_large(needs: int, parameters: int, settings: Settings) -> str:
    if parameters > settings.real_up_to:
        return f"{format_count(parameters)} parameters, more than {format_count(settings.real_up_to)}"
    return f"needs {format_bytes(needs)} of {format_bytes(settings.share)}" if needs > settings.share else ""


def _really(name: str, subject: Subject, sizes: Sizes, say: Emit) -> bool:
    """Ask a network of real weights; whether its share of memory was enough."""
    say({"real": True})
    try:
        model = subject.build(name, "cpu")
        for question in QUESTIONS:
            say({question: _answer(question, model, sizes, "cpu")})
    except Exception as error:  # whatever a library raises as it builds
        if is_oom(error):
            return False
        say({"built": f"on real tensors: {cause(error)}", **dict.fromkeys(QUESTIONS, "not built")})
    return True


def _answer(question: str, model: nn.Module, sizes: Sizes, device: str) -> str:
    try:
        with torch.device(device):  # for tensors that a model makes as it runs
            sizes.ask(question, model)
    except Exception as error:  # as above
        if is_oom(error):
            raise
        return cause(error)
    return "ok"
