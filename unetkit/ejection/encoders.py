"""Encoders as source text."""

from __future__ import annotations

from typing import Any, cast

from timm.layers import Format
from torch import nn

from unetkit.ejection.code import Assign, Call, Definition, Expression, quote
from unetkit.ejection.parts import PartWriter
from unetkit.parts.encoders.plain import PlainEncoder
from unetkit.parts.encoders.timm import TimmEncoder


def write_encoder(parts: PartWriter, encoder: nn.Module, in_channels: int) -> Expression:
    """Write an encoder, and return the call that makes it."""
    if type(encoder) is PlainEncoder:
        return parts.plain_encoder(encoder)
    if type(encoder) is TimmEncoder:
        return _write_timm(parts, encoder)
    if type(encoder).__module__ == "unetkit.smp.encoders":
        from unetkit.ejection.smp_encoder import write_smp_encoder  # it imports smp, which takes half a second

        return write_smp_encoder(parts, cast(Any, encoder))
    return parts.carry(encoder, (str(in_channels),))


def _write_timm(parts: PartWriter, encoder: TimmEncoder) -> Expression:
    options = {
        "features_only": True,
        "in_chans": encoder.spec.in_channels,
        **encoder.spec.arguments(encoder.timm_options),
    }
    keywords = tuple((name, quote(value)) for name, value in options.items())
    init = [Assign("self.model", Call("timm.create_model", (("", quote(encoder.spec.name)), *keywords)))]
    maps, layout = encoder.maps, getattr(encoder.model, "output_fmt", Format.NCHW)
    if layout == Format.NLC:
        init.append(Assign("self.model.output_fmt", "timm.layers.Format.NLC"))
    lines = []
    count = len(encoder.model.feature_info.out_indices)
    selected = [f"maps[{index}]" for index in maps.selected]
    if encoder.pyramid is not None:
        init.append(Assign("self.pyramid", parts.feature_pyramid(encoder.pyramid)))
        lines += [f"    {'features' if layout == Format.NLC else 'x'} = self.model(x)[{maps.selected[0]}]"]
        if layout == Format.NLC:
            stride = maps.strides[0]
            lines += [
                f"    height, width = x.shape[-2] // {stride}, x.shape[-1] // {stride}",
                "    x = features.transpose(1, 2).unflatten(2, (height, width))",
            ]
        elif layout == Format.NHWC:
            lines.append("    x = x.permute(0, 3, 1, 2)")
        lines.append("    return self.pyramid(x)")
    elif layout == Format.NHWC:
        source = "self.model(x)" if maps.selected == tuple(range(count)) else f"[{', '.join(selected)}]"
        if source != "self.model(x)":
            lines.append("    maps = self.model(x)")
        lines.append(f"    return [y.permute(0, 3, 1, 2) for y in {source}]  # from (B, H, W, C)")
    elif maps.selected == tuple(range(count)):
        lines.append("    return self.model(x)")
    else:
        lines += ["    maps = self.model(x)", f"    return [{', '.join(selected)}]"]
    doc = [f"The feature maps of timm's {encoder.spec.name}, shallow to deep."]
    if encoder.pyramid is not None:
        doc = [f"Maps made from the last map of timm's {encoder.spec.name}, shallow to deep."]
    definition = Definition(
        "Encoder",
        "nn.Module",
        tuple(doc),
        init=tuple(init),
        methods=("def forward(self, x: Tensor) -> list[Tensor]:", *lines),
    )
    return parts.file.use(parts.file.define(definition))
