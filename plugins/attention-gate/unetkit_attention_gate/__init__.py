"""Attention gates (Oktay 2018) as a fusion for unetkit. Importing this imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unetkit import hookimpl

if TYPE_CHECKING:
    from unetkit import Parts


@hookimpl
def unetkit_register(parts: Parts) -> None:
    """Register by "module:attr", which is imported on first use."""
    parts.fusions.add("attention-gate", "unetkit_attention_gate.gate:AttentionGate")
