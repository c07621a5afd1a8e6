"""The recipes' networks once more in plain torch, as one would write them from the papers; nothing of unetkit here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Pair = Callable[[int, int], nn.Module]


def conv_relu_twice(i: int, o: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(i, o, 3), nn.ReLU(), nn.Conv2d(o, o, 3), nn.ReLU())


def conv_relu_bn_twice(i: int, o: int) -> nn.Module:
    first = nn.Conv2d(i, o, 3), nn.ReLU(), nn.BatchNorm2d(o)
    return nn.Sequential(*first, nn.Conv2d(o, o, 3), nn.ReLU(), nn.BatchNorm2d(o))


def conv_bn_relu_twice(i: int, o: int, bias: bool = True) -> nn.Module:
    first = nn.Conv2d(i, o, 3, padding=1, bias=bias), nn.BatchNorm2d(o), nn.ReLU()
    return nn.Sequential(*first, nn.Conv2d(o, o, 3, padding=1, bias=bias), nn.BatchNorm2d(o), nn.ReLU())


def without_bias(i: int, o: int) -> nn.Module:
    return conv_bn_relu_twice(i, o, bias=False)


def crop(skip: Tensor, x: Tensor) -> Tensor:
    top, left = (skip.shape[2] - x.shape[2]) // 2, (skip.shape[3] - x.shape[3]) // 2
    return skip[:, :, top : top + x.shape[2], left : left + x.shape[3]]


def pad(x: Tensor, skip: Tensor) -> Tensor:
    dy, dx = skip.shape[2] - x.shape[2], skip.shape[3] - x.shape[3]
    return F.pad(x, (dx // 2, dx - dx // 2, dy // 2, dy - dy // 2))


def bilinear(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)


class Decoder(nn.Module):
    """Upsampling layers and double convolutions, deep to shallow, in the order in which they are used."""

    def __init__(self, ups: list[nn.Module], convs: list[nn.Module]) -> None:
        super().__init__()
        self.steps = nn.ModuleList(nn.ModuleList(step) for step in zip(ups, convs, strict=True))

    def __iter__(self) -> Iterator[tuple[nn.Module, nn.Module]]:
        for step in self.steps:
            up, conv = step.children()
            yield up, conv


class Classic(nn.Module):
    """Four levels of double convolution, 2x2 max pool, transposed convolutions that halve, concat with the skip first.

    Skips are cropped to the map or, where `padded`, the map is padded to the skip.
    """

    def __init__(self, double: Pair, up: Pair, head: nn.Module, channels: int = 1, padded: bool = False) -> None:
        super().__init__()
        self.padded = padded
        self.down = nn.ModuleList(double(i, o) for i, o in pairwise((channels, 64, 128, 256, 512, 1024)))
        widths = 512, 256, 128, 64
        self.decoder = Decoder([up(2 * w, w) for w in widths], [double(2 * w, w) for w in widths])
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        maps = [self.down[0](x)]
        for level in self.down[1:]:
            maps.append(level(F.max_pool2d(maps[-1], 2)))
        x = maps.pop()
        for up, conv in self.decoder:
            x, skip = up(x), maps.pop()
            x = torch.cat([skip, pad(x, skip)] if self.padded else [crop(skip, x), x], dim=1)
            x = conv(x)
        out: Tensor = self.head(x)
        return out


def up2(i: int, o: int) -> nn.Module:
    return nn.ConvTranspose2d(i, o, 2, stride=2)


def up3(i: int, o: int) -> nn.Module:
    return nn.ConvTranspose2d(i, o, 3, stride=2, padding=1, output_padding=1)


def unet_2015() -> nn.Module:
    return Classic(conv_relu_twice, up2, nn.Conv2d(64, 2, 1))


def unet_same() -> nn.Module:
    return Classic(conv_bn_relu_twice, up2, nn.Conv2d(64, 2, 1), padded=True)


def unet_relu_bn() -> nn.Module:
    return Classic(conv_relu_bn_twice, up3, nn.Sequential(nn.Conv2d(64, 2, 1), nn.ReLU(), nn.BatchNorm2d(2)))


class UnetBilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList(conv_bn_relu_twice(i, o) for i, o in pairwise((3, 64, 128, 256, 512, 512)))
        joined = [(1024, 256), (512, 128), (256, 64), (128, 64)]
        self.up = nn.ModuleList(conv_bn_relu_twice(i, o) for i, o in joined)
        self.head = nn.Conv2d(64, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        maps = [self.down[0](x)]
        for level in self.down[1:]:
            maps.append(level(F.max_pool2d(maps[-1], 2)))
        x = maps.pop()
        for conv in self.up:
            x, skip = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True), maps.pop()
            x = conv(torch.cat([skip, pad(x, skip)], dim=1))
        out: Tensor = self.head(x)
        return out


class Vgg16Unet(nn.Module):
    """VGG-16's thirteen convolutions; transposed 2x2 upwards, the map resized (nearest) where a pool rounded down."""

    def __init__(self) -> None:
        super().__init__()
        layers, channels = [], 3
        for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
            group: list[nn.Module] = []
            for _ in range(count):
                group += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            layers.append(nn.Sequential(*group))
        self.down = nn.ModuleList(layers)
        ups: list[nn.Module] = [nn.ConvTranspose2d(c, c // 2, 2, stride=2) for c in (512, 512, 256, 128)]
        self.decoder = Decoder(ups, [without_bias(c // 2 + w, w) for c, w in pairwise((512, 512, 256, 128, 64))])
        self.head = nn.Conv2d(64, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        maps = [self.down[0](x)]
        for level in self.down[1:]:
            maps.append(level(F.max_pool2d(maps[-1], 2)))
        x = maps.pop()
        for up, conv in self.decoder:
            skip = maps.pop()
            x = conv(torch.cat([skip, F.interpolate(up(x), size=skip.shape[2:], mode="nearest")], dim=1))
        out: Tensor = self.head(x)
        return out


class Residual(nn.Module):
    """He 2015: two 3x3 convolutions or, where `wide`, 1x1, 3x3 and 1x1 with a quarter of the channels inside."""

    def __init__(self, i: int, o: int, stride: int, wide: bool) -> None:
        super().__init__()
        inside = o // 4
        kernels = [(i, inside, 1, 1), (inside, inside, 3, stride), (inside, o, 1, 1)]
        convs = kernels if wide else [(i, o, 3, stride), (o, o, 3, 1)]
        layers: list[nn.Module] = []
        for a, b, k, s in convs:
            layers += [nn.Conv2d(a, b, k, stride=s, padding=k // 2, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
        self.path = nn.Sequential(*layers[:-1])
        changes = stride != 1 or i != o
        shortcut = nn.Conv2d(i, o, 1, stride=stride, bias=False), nn.BatchNorm2d(o)
        self.shortcut = nn.Sequential(*shortcut) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.path(x) + self.shortcut(x))


class ResNet(nn.Module):
    """The five maps of a ResNet, at strides 2 to 32."""

    def __init__(self, counts: tuple[int, ...], widths: tuple[int, ...], wide: bool) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(64), nn.ReLU())
        self.layers, channels = nn.ModuleList(), 64
        for index, (count, width) in enumerate(zip(counts, widths, strict=True)):
            strides = [1 if index == 0 else 2] + [1] * (count - 1)
            inputs = [channels] + [width] * (count - 1)
            blocks = (Residual(i, width, stride, wide) for i, stride in zip(inputs, strides, strict=True))
            self.layers.append(nn.Sequential(*blocks))
            channels = width

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = [self.stem(x)]
        x = F.max_pool2d(maps[0], 3, stride=2, padding=1)
        for layer in self.layers:
            x = layer(x)
            maps.append(x)
        return maps


class Resnet34Unet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = ResNet((3, 4, 6, 3), (64, 128, 256, 512), wide=False)
        joined = [(512 + 256, 256), (256 + 128, 128), (128 + 64, 64), (64 + 64, 64)]
        self.convs = nn.ModuleList(without_bias(i, o) for i, o in joined)
        self.last = without_bias(64, 32)
        self.head = nn.Conv2d(32, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        maps = self.encoder(image)
        x = maps.pop()
        for conv in self.convs:
            skip = maps.pop()
            x = conv(torch.cat([skip, bilinear(x, skip)], dim=1))
        out: Tensor = self.head(self.last(bilinear(x, image)))
        return out


class Resnet101Unet(nn.Module):
    """Decodes to a quarter of the input; `add` projects the map where the skip has fewer channels."""

    def __init__(self, fuse: str) -> None:
        super().__init__()
        self.add = fuse == "add"
        self.encoder = ResNet((3, 4, 23, 3), (256, 512, 1024, 2048), wide=True)
        levels = [(2048, 1024, 512), (512, 512, 512), (512, 256, 256)]
        projections: list[nn.Module] = [
            nn.Conv2d(x, skip, 1) if self.add and x != skip else nn.Identity() for x, skip, _ in levels
        ]
        convs = [without_bias(skip if self.add else x + skip, width) for x, skip, width in levels]
        self.decoder = Decoder(projections, convs)
        self.head = nn.Conv2d(256, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        maps = self.encoder(image)
        x = maps.pop()
        for project, conv in self.decoder:
            skip = maps.pop()
            x = project(bilinear(x, skip))
            x = conv(x + skip if self.add else torch.cat([skip, x], dim=1))
        return bilinear(self.head(x), image)
