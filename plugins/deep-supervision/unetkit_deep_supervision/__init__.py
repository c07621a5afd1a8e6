"""Deep supervision (Lee 2015) as a head and a model wrap for unetkit. Importing this imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from unetkit import hookimpl

if TYPE_CHECKING:
    from torch.nn import Module

    from unetkit import Parts, Plan


@hookimpl
def unetkit_register(parts: Parts) -> None:
    """Register by "module:attr", which is imported on first use."""
    parts.heads.add("deep-supervision", "unetkit_deep_supervision.head:DeepSupervision")


@hookimpl
def unetkit_wrap_model(plan: Plan) -> Callable[[Module], Module] | None:
    """Wrap the models whose line has our head, and no other: a line says all that a model is."""
    return _wrap if plan.head is not None and plan.head.name == "deep-supervision" else None


def _wrap(model: Module) -> Module:
    from unetkit_deep_supervision.model import DeeplySupervised  # imports torch

    return DeeplySupervised(model)
