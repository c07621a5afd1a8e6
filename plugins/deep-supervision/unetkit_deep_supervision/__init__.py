"""Deep supervision (Lee 2015) for unetkit, as a head and a wrapper of the model.

Importing this package does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from unetkit import hookimpl

if TYPE_CHECKING:
    from torch.nn import Module

    from unetkit import Parts, Plan


@hookimpl
def unetkit_register(parts: Parts) -> None:
    """Register the parts by "module:attr", which is imported on first use."""
    parts.heads.add("deep-supervision", "unetkit_deep_supervision.head:DeepSupervision")


@hookimpl
def unetkit_wrap_model(plan: Plan) -> Callable[[Module], Module] | None:
    """Wrap only the models whose plan has this plugin's head: a plan describes a model completely."""
    return _wrap if plan.head is not None and plan.head.name == "deep-supervision" else None


def _wrap(model: Module) -> Module:
    from unetkit_deep_supervision.model import DeepSupervisionModel  # imports torch

    return DeepSupervisionModel(model)
