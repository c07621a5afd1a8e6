"""CARAFE (Wang 2019) and DySample (Liu 2023) as upsamplers for unetkit.

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
    parts.upsamplers.add("carafe", "unetkit_content_upsampling.carafe:CARAFE")
    parts.upsamplers.add("dysample", "unetkit_content_upsampling.dysample:DySample")
