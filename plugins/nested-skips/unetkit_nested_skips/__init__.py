"""Nested skips (UNet++, Zhou 2018) as an encoder for unetkit.

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
    parts.encoders.add("nested", "unetkit_nested_skips.encoder:NestedEncoder")
    parts.recipes.add("unet-plus-plus", "unetkit_nested_skips.recipes:unet_plus_plus")
