"""Attention gates (Oktay 2018) as a fusion for unetkit.

Importing this package does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from unetkit import hookimpl

if TYPE_CHECKING:
    from unetkit import Parts


@hookimpl
def unetkit_register(parts: Parts) -> None:
    """Register the parts by "module:attr", which is imported on first use."""
    parts.fusions.add("attention-gate", "unetkit_attention_gate.gate:AttentionGate")
