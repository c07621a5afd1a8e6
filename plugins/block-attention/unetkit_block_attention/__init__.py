"""Squeeze and excitation (Roy 2018) and CBAM (Woo 2018) as blocks for unetkit.

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
    parts.blocks.add("scse", "unetkit_block_attention.scse:SCSE")
    parts.blocks.add("cbam", "unetkit_block_attention.cbam:CBAM")
