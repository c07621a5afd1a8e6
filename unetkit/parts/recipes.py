"""Recipes, the named U-Nets: each is a function that returns a Plan. Importing this module does not import torch."""

from __future__ import annotations

from unetkit.plan import Plan

#: The fields that all variants of the U-Net of 2015 share.
_CLASSIC = {
    "up": "transposed",
    "fuse": "concat",
    "decode_to": 1,
    "in_channels": 1,
    "classes": 2,
}


def unet_2015() -> Plan:
    """Original U-Net: valid convolutions, no norms, cropped skips, 572x572 in, 388x388 out (Ronneberger 2015).

    "U-Net: Convolutional Networks for Biomedical Image Segmentation", MICCAI 2015.
    """
    return Plan.of(
        encoder="plain:norm=none,padding=0",
        block="double:norm=none,padding=0",
        align="crop",
        head="conv",
        size=572,
        **_CLASSIC,
    )


def unet_same() -> Plan:
    """Original architecture with padded conv-BN-ReLU units, so that the output has the size of the input."""
    return Plan.of(encoder="plain:bias=true", block="double:bias=true", align="pad", head="conv", **_CLASSIC)


def unet_bilinear() -> Plan:
    """Common PyTorch variant: bilinear upsampling (align_corners=true) padded to the skip, widths 64 to 512."""
    return Plan.of(
        encoder="plain:widths=[64,128,256,512,512],bias=true",
        up="bilinear:align_corners=true",
        fuse="concat",
        align="pad",
        block="double:bias=true",
        head="conv",
        widths=(256, 128, 64, 64),
        decode_to=1,
        in_channels=3,
        classes=2,
    )


def unet_relu_bn() -> Plan:
    """Valid convolutions with the norm after the ReLU, 3x3 transposed convolutions, a head of conv, ReLU and BN."""
    return Plan.of(
        encoder="plain:order=conv-act-norm,padding=0",
        block="double:order=conv-act-norm,padding=0",
        align="crop",
        head="conv-act-norm",
        size=572,
        **{**_CLASSIC, "up": "transposed:kernel=3"},
    )


def vgg16_unet() -> Plan:
    """VGG-16 encoder: the five feature maps before its pools, at strides 1 to 16 (Simonyan 2014)."""
    return Plan.of(encoder="timm/vgg16:levels=5", up="transposed", fuse="concat", align="resize", decode_to=1)


def resnet34_unet() -> Plan:
    """ResNet-34 encoder, with feature maps at strides 2 to 32 (He 2015)."""
    return Plan.of(encoder="timm/resnet34", up="bilinear", fuse="concat", align="resize", decode_to=1)


def resnet101_unet() -> Plan:
    """ResNet-101 encoder, decoded to a quarter of the input size; suited to comparing fusions."""
    return Plan.of(encoder="timm/resnet101", up="bilinear", fuse="add", align="resize", decode_to=4)
