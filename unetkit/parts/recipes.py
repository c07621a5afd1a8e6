"""Named U-Nets: each a function that returns a plan. Nothing here imports torch."""

from __future__ import annotations

from unetkit.plan import Plan

#: What the variants of 2015 have in common.
_CLASSIC = {
    "up": "transposed",
    "fuse": "concat",
    "decode_to": 1,
    "in_channels": 1,
    "classes": 2,
}


def unet_2015() -> Plan:
    """The original: valid convolutions without norm, cropped skips, 572 in and 388 out (Ronneberger 2015).

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
    """The original's shape with padded conv-BN-ReLU, so that the output is as large as the input."""
    return Plan.of(encoder="plain:bias=true", block="double:bias=true", align="pad", head="conv", **_CLASSIC)


def unet_bilinear() -> Plan:
    """Bilinear upsampling (align_corners) padded to the skip, widths 64 to 512, the common PyTorch variant."""
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
    """Valid convolutions with the norm after the ReLU, transposed 3x3 upsampling, a head of conv, ReLU and BN."""
    return Plan.of(
        encoder="plain:order=conv-act-norm,padding=0",
        block="double:order=conv-act-norm,padding=0",
        align="crop",
        head="conv-act-norm",
        size=572,
        **{**_CLASSIC, "up": "transposed:kernel=3"},
    )


def vgg16_unet() -> Plan:
    """VGG-16 as the contracting path: its five maps before the pools, at strides 1 to 16 (Simonyan 2014)."""
    return Plan.of(encoder="timm/vgg16:levels=5", up="transposed", fuse="concat", align="resize", decode_to=1)


def resnet34_unet() -> Plan:
    """ResNet-34's maps at strides 2 to 32 as the contracting path (He 2015)."""
    return Plan.of(encoder="timm/resnet34", up="bilinear", fuse="concat", align="resize", decode_to=1)


def resnet101_unet() -> Plan:
    """ResNet-101 decoded to a quarter of the input, its logits resized from there; the place to compare fusions."""
    return Plan.of(encoder="timm/resnet101", up="bilinear", fuse="add", align="resize", decode_to=4)
