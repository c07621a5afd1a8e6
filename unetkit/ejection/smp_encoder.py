"""Encoders of segmentation-models-pytorch as source text."""

from __future__ import annotations

from unetkit.ejection.code import Assign, Call, Definition, Expression, call, quote
from unetkit.ejection.parts import PartWriter
from unetkit.smp.encoders import SmpEncoder


def write_smp_encoder(parts: PartWriter, encoder: SmpEncoder) -> Expression:
    """Write an encoder of smp, and return the call that makes it."""
    name = str(encoder.arguments["name"])
    keywords = [(key, quote(value)) for key, value in encoder.arguments.items() if key != "name"]
    if encoder.arguments["output_stride"] == 32:
        keywords = [one for one in keywords if one[0] != "output_stride"]
    made = Call("get_encoder", (("", quote(name)), *keywords, ("weights", "None")))
    init = [Assign("self.model", made)]
    init += [Assign("", call("self.model.set_submodule", quote(path), "nn.Identity()")) for path in encoder.unused]
    count = encoder.indices[-1] + 1
    lines = ["    maps = self.model(x)"]
    if encoder.indices == [*range(encoder.indices[0], count)]:
        lines.append(f"    return maps[{encoder.indices[0]}:{count}]")
    else:
        lines.append(f"    return [{', '.join(f'maps[{index}]' for index in encoder.indices)}]")
    doc = [f"The feature maps of the {name} of segmentation-models-pytorch, shallow to deep."]
    if encoder.unused:
        doc += ["", "What no map needs is taken out of the encoder."]
    definition = Definition(
        "Encoder",
        "nn.Module",
        tuple(doc),
        init=tuple(init),
        methods=("def forward(self, x: Tensor) -> list[Tensor]:", *lines),
    )
    return parts.file.use(parts.file.define(definition))
