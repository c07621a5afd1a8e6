"""The recipe of UNet++ as published. Importing this module does not import torch."""

from __future__ import annotations

from unetkit import Plan


def unet_plus_plus() -> Plan:
    """UNet++ as published, without norms and without deep supervision; 9,041,601 parameters (Zhou 2018).

    "UNet++: A Nested U-Net Architecture for Medical Image Segmentation", DLMIA 2018, arXiv 1807.10165.
    """
    return Plan.of(
        encoder='nested:of="plain:widths=[32,64,128,256,512],norm=none",block="double:norm=none"',
        up="transposed",
        fuse="concat",
        align="resize",
        block="double:norm=none",
        head="conv",
        decode_to=1,
        in_channels=1,
        classes=1,
    )
