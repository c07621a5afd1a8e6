"""The nested skip pathways of UNet++, as an encoder that contains another encoder."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

import unetkit
from unetkit.errors import BuildError, OptionError
from unetkit.options import format_value
from unetkit.protocols import Encoder
from unetkit.unet import Stage


class NestedEncoder(nn.Module):
    """Nodes of UNet++ between the maps of another encoder and the decoder (Zhou 2018).

    Node X(i,j) convolves all earlier nodes of its level and the node below, X(i,0), ..., X(i,j-1) and up(X(i+1,j-1)).
    X(i,0) is the map of the other encoder, and all nodes of a level have its number of channels. Of N + 1 levels, this
    encoder computes the nodes with i + j below N, and gives those of a level as one map; with `--fuse concat`, the
    stages of the decoder are the remaining nodes, X(i,N-i).

    Args:
        of: encoder that makes the first node of each level; with options in quotes, as in of="resnet34:levels=4".
        up: upsampler that brings the node below to the size of a level.
        block: convolution block of a node.
        pretrained: true loads pretrained weights of the inner encoder, a path loads a file of them; the same as
            `--pretrained`.
    """

    columns: Sequence[Sequence[Stage]]

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
        # columns[j][i] is node X(i,j+1).
        self.columns = nn.ModuleList(  # type: ignore[assignment]
            nn.ModuleList(
                _make_node(j, widths[i], widths[i + 1], scales[i], inner.strides[i], up, block)
                for i in range(levels - j)
            )
            for j in range(1, levels)
        )
        self.strides = tuple(inner.strides)
        self.channels = tuple(width * max(1, levels - i) for i, width in enumerate(widths))
        self.min_size = getattr(inner, "min_size", self.strides[-1])
        self.multiple = getattr(inner, "multiple", 1)
        self.size = getattr(inner, "size", None)
        self.pretrained_part = ".".join(filter(None, ("encoder", getattr(inner, "pretrained_part", ""))))
        self.weights_from = getattr(inner, "weights_from", "random")
        sources = getattr(inner, "source", None) or ("",) * len(widths)
        self.source = tuple(_describe_source(source, max(0, levels - 1 - i)) for i, source in enumerate(sources))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return a map (B, channels[i], h, w) for a level: its nodes, X(i,0) first."""
        levels = [[first] for first in self.encoder(x)]
        for j, column in enumerate(self.columns):
            for i, node in enumerate(column):
                earlier = torch.cat(levels[i], dim=1)
                levels[i].append(node(levels[i + 1][j], earlier))
        return [torch.cat(nodes, dim=1) for nodes in levels]


def _make_node(earlier: int, width: int, below: int, scale: float, stride: int, up: str, block: str) -> Stage:
    """Make a node: a stage of a decoder, whose skip is all earlier nodes of its level as one map.

    Args:
        earlier: number of earlier nodes of its level.
        width: channels of each of these, and of this node.
        below: channels of the node below.
        scale: scale between the level below and this level.
        stride: stride of this level.
        up: upsampler of the node below.
        block: block of this node.
    """
    upsampler: Any = unetkit.make_part("up", up, below, scale)
    align: Any = unetkit.make_part("align", "resize")
    fusion: Any = unetkit.make_part("fuse", "concat", upsampler.out_channels, earlier * width)
    made = unetkit.make_part("block", block, fusion.out_channels, width)
    if getattr(made, "valid", False):
        raise BuildError(
            f"block={block} makes the maps smaller, but a node must keep the size of its level; use padding=1"
        )
    return Stage(upsampler, align, fusion, made, scale=scale, stride=stride)


def _make_encoder(of: str, in_channels: int, pretrained: bool | str) -> nn.Module:
    spec = unetkit.PartSpec.parse(of)
    if "pretrained" in dict(spec.options):
        raise OptionError(f"of={of}: leave pretrained out, and give --pretrained instead")
    if pretrained:
        spec = spec.with_options({"pretrained": format_value(pretrained)})
    encoder = unetkit.make_part("encoder", spec, in_channels)
    if getattr(encoder, "valid", False):
        raise BuildError(
            f"of={of} makes its maps smaller by valid convolutions, which nodes cannot fuse; use padding=1"
        )
    return encoder


def _describe_source(source: str, nodes: int) -> str:
    """Describe where the map of a level comes from, for the trace."""
    return ", ".join([source] * bool(source) + [f"{nodes} nested node{'s' * (nodes > 1)}"] * bool(nodes))
