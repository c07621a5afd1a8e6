"""UNet++'s nested skip pathways, as an encoder around another."""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

import unetkit
from unetkit.errors import BuildError, OptionError
from unetkit.options import format_value
from unetkit.protocols import Align, Block, Encoder, Upsampler
from unetkit.utils.spatial import size_of


class Nested(nn.Module):
    """The nodes of UNet++ between another encoder's maps and the decoder (Zhou 2018).

    Node X(i,j) convolves all nodes before it on its level and the one below: X(i,0), ..., X(i,j-1), up(X(i+1,j-1)),
    where X(i,0) is the other encoder's map. It is as wide as that map. Of N + 1 levels, this has the nodes with i + j
    below N, and gives those of a level as one map; with `--fuse concat`, the decoder's stages are the rest, X(i,N-i).

    Args:
        of: the encoder that makes the first node of each level; with options in quotes, of="resnet34:levels=4".
        up: the upsampler that brings the node below to a level.
        block: the convolutions of a node.
        pretrained: the inner encoder's weights, or a file of them; `--pretrained` says the same.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        of: str = "plain",
        up: str = "transposed",
        block: str = "double",
        pretrained: bool | str = False,
    ) -> None:
        super().__init__()
        self.encoder = _make_encoder(of, in_channels, pretrained)
        inner = cast(Encoder, self.encoder)
        self.widths = widths = tuple(inner.channels)
        levels = len(widths) - 1
        scales = [below / stride for stride, below in pairwise(inner.strides)]
        #: columns[j][i] is node X(i,j+1).
        self.columns = nn.ModuleList(
            nn.ModuleList(Node(j, widths[i], widths[i + 1], scales[i], up, block) for i in range(levels - j))
            for j in range(1, levels)
        )
        self.strides = tuple(inner.strides)
        self.channels = tuple(width * max(1, levels - i) for i, width in enumerate(widths))
        self.min_size = getattr(inner, "min_size", self.strides[-1])
        self.multiple = getattr(inner, "multiple", 1)
        self.size = getattr(inner, "size", None)
        self.weights_from = getattr(inner, "weights_from", "random")
        sources = getattr(inner, "source", None) or ("",) * len(widths)
        self.source = tuple(_told(source, max(0, levels - 1 - i)) for i, source in enumerate(sources))

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, H, W) -> for each level its nodes side by side, X(i,0) first: (B, channels[i], h, w)."""
        levels = [[first] for first in self.encoder(x)]
        for j, column in enumerate(self.columns):
            for i, node in enumerate(cast(nn.ModuleList, column)):
                levels[i].append(node(levels[i], levels[i + 1][j]))
        return [torch.cat(nodes, dim=1) for nodes in levels]


class Node(nn.Module):
    """One node: what stands before it on its level and what comes up from below, convolved.

    Args:
        before: how many nodes stand before it.
        width: their channels, and its own.
        below: channels of the node below.
        scale: between the level below and its own.
        up, block: the parts that it is made of.
    """

    def __init__(self, before: int, width: int, below: int, scale: float, up: str, block: str) -> None:
        super().__init__()
        self.up = unetkit.make_part("up", up, below, scale)
        self.align = unetkit.make_part("align", "resize")
        joined = before * width + cast(Upsampler, self.up).out_channels
        self.block = unetkit.make_part("block", block, joined, width)
        if getattr(self.block, "valid", False):
            raise BuildError(f"block={block} shortens the maps, and a node is as large as its level; take padding=1")

    def forward(self, before: list[Tensor], below: Tensor) -> Tensor:
        """(B, width, H, W) each and (B, below, h, w) -> (B, width, H, W)."""
        skip = torch.cat(before, dim=1)
        up, align, block = cast(Upsampler, self.up), cast(Align, self.align), cast(Block, self.block)
        x, skip = align(up(below, size_of(skip)), skip)
        return block(torch.cat([skip, x], dim=1))


def _make_encoder(of: str, in_channels: int, pretrained: bool | str) -> nn.Module:
    spec = unetkit.PartSpec.parse(of)
    if "pretrained" in dict(spec.options):
        raise OptionError(f"of={of}: weights are said beside it, with --pretrained")
    if pretrained:
        spec = spec.with_options({"pretrained": format_value(pretrained)})
    encoder = unetkit.make_part("encoder", spec, in_channels)
    if getattr(encoder, "valid", False):
        raise BuildError(f"of={of} shortens its maps, and nodes join whole ones; take padding=1")
    return encoder


def _told(source: str, nodes: int) -> str:
    """Where a level's map comes from, for the trace."""
    return ", ".join([source] * bool(source) + [f"{nodes} nested node{'s' * (nodes > 1)}"] * bool(nodes))
