"""The U-Net as source text: its constructor, and its forward pass with the padding that its encoder needs."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from unetkit.ejection.code import Assign, Definition, Expression, Items, call, docstring, quote
from unetkit.ejection.parts import PartWriter, interpolation, is_builtin
from unetkit.ejection.sizes import SizeFacts
from unetkit.ejection.stages import StageWriter, multiplies_exactly
from unetkit.errors import BuildError
from unetkit.network import prediction_name
from unetkit.parts.aligns import Pad, Resize
from unetkit.summary.report import Trace
from unetkit.unet import Stage, UNet
from unetkit.utils.meta_shapes import MetaShapes
from unetkit.utils.spatial import size_of


class UNetWriter:
    """Writes the class of a U-Net.

    Attributes:
        parts: writes its parts.
        stages: writes its stages.
        network: the network.
        trace: its trace, for the shapes in comments.
        facts: what is known of sizes.
    """

    def __init__(self, parts: PartWriter, stages: StageWriter, network: UNet, trace: Trace, facts: SizeFacts) -> None:
        self.parts = parts
        self.stages = stages
        self.network = network
        self.trace = trace
        self.facts = facts

    @property
    def is_padded(self) -> bool:
        """Tell whether inputs of some sizes are padded."""
        return not self.network.valid and (self.network.multiple > 1 or self.network.size is not None)

    def write(self, encoder: Expression, *, auxiliary: bool = False) -> Expression:
        """Add the class to the file, and return the call that makes it.

        Args:
            encoder: makes the encoder.
            auxiliary: whether to add the methods for heads on the maps of earlier stages.
        """
        network = self.network
        stages = tuple(self.stages.write(cast(Stage, stage)) for stage in network.stages)
        comments = tuple(self._comment(index) for index in range(len(stages)))
        init = [
            Assign("self.encoder", encoder),
            Assign("self.stages", call("nn.ModuleList", Items(stages, comments))),
            Assign("self.head", self.parts.head(network.head)),
        ]
        if network.logits is not None and network.has_learned_logits:
            logits = self.parts.upsampler(
                network.logits, str(network.resolved_plan.classes), network.resolved_plan.decode_to or 1
            )
            init.append(Assign("self.logits", cast(Expression, logits)))
        methods = self._forward_auxiliary() if auxiliary else self._forward()
        count = f"{len(stages)} stages" if len(stages) > 1 else "one stage"
        doc = (f"An encoder, a decoder of {count}, and a head.", "", *self._table())
        definition = self.parts.file.define(
            Definition("UNet", "nn.Module", doc, init=tuple(init), methods=tuple(methods))
        )
        return self.parts.file.use(definition)

    def _comment(self, index: int) -> str:
        row = next(row for row in reversed(self.trace.rows) if row.level == f"stages.{index}")
        return f"stages.{index}: {row.channels} x {row.height} x {row.width}"

    def _table(self) -> list[str]:
        """Return the levels and their shapes, as the trace shows them."""
        rows = {row.level: row for row in self.trace.rows if row.level not in ("output", "other")}
        first = self.trace.rows[0]
        level_width = max(map(len, rows))
        channels_width = max(len(str(row.channels)) for row in rows.values())
        return [
            f"Shapes for images of {first.height}x{first.width} pixels (channels x height x width):",
            "",
            *(
                f"    {level:{level_width}}  {row.channels:>{channels_width}} x {row.height} x {row.width}"
                for level, row in rows.items()
            ),
        ]

    def _forward(self) -> list[str]:
        """Return the lines of `forward`."""
        if self.network.outputs:
            return self._forward_outputs()
        *before, result = self._finish("x")
        body = [*self._prepare(), "maps = self.encoder(x)", *self._steps("x"), *before, f"return {result}"]
        return ["def forward(self, x: Tensor) -> Tensor:", *_indent(self._doc()), *_indent(body)]

    def _forward_outputs(self) -> list[str]:
        """Return the lines of `forward` for a head that returns a dict of outputs."""
        names = self._read_output_names()
        first = quote(prediction_name(dict.fromkeys(names)))
        lines = ["outputs = self.head(x)"]
        *before, result = self._finish("x")
        if before:  # each output is treated as the prediction is
            lines.append("for name, logits in outputs.items():")
            lines += [f"    {line}" for line in before[1:]]
            lines.append(f"    outputs[name] = {result}")
        body = [*self._prepare(), "maps = self.encoder(x)", *self._steps("x"), *lines]
        return [
            "def forward(self, x: Tensor) -> Tensor | dict[str, Tensor]:",
            *_indent(self._doc("Return logits {}, in training mode all outputs by name,")),
            *_indent(body),
            f"    return outputs if self.training else outputs[{first}]",
        ]

    def _read_output_names(self) -> list[str]:
        """Return the names of the head's outputs, the prediction first.

        Raises:
            BuildError: They have several sizes, or each would be resized in another way.
        """
        network = self.network
        x = torch.empty(1, self.parts.wiring(network.head)[0], 32, 32, device="meta")
        with torch.no_grad(), torch.device("meta"), MetaShapes():
            outputs = network.head(x)
        resized = len(self._resize("x")) > 1
        plain = network.logits is None or interpolation(network.logits, "") == 'F.interpolate(x, , mode="bilinear")'
        is_simple = len({size_of(one) for one in outputs.values()}) == 1 and (not resized or plain)
        if not is_simple or any(line.startswith("if") for line in self._resize("x")):
            raise BuildError(
                f"--head {network.resolved_plan.head} cannot be written as source, because its outputs need to be "
                "resized each in its own way; use --logits bilinear, --align resize and outputs of one size"
            )
        return list(outputs)

    def _forward_auxiliary(self) -> list[str]:
        """Return the lines of `forward` and of the two methods that a model with auxiliary heads calls."""
        *before, result = self._finish("decoded[-1]")
        steps = ["decoded = [maps[-1]]", *(f"decoded.append({step})" for step in self._calls("decoded[-1]"))]
        body = [*self._prepare(), "maps = self.encoder(x)", *steps, *before, f"return {result}, decoded[1:]"]
        resized, crop = "logits.shape[-2:]", ""
        if self.is_padded:
            resized = "decoded[-1].shape[-2:]" if self.network.logits is None else "size"
            crop = "[..., : logits.shape[-2], : logits.shape[-1]]"
        return [
            "def forward(self, x: Tensor) -> Tensor:",
            *_indent(self._doc()),
            "    logits, _ = self.forward_features(x)",
            "    return logits",
            "",
            "def forward_features(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:",
            '    """Return the logits, and the map of each stage, deep to shallow."""',
            *_indent(body),
            "",
            "def forward_auxiliary(self, x: Tensor, heads: nn.ModuleList) -> tuple[Tensor, ...]:",
            '    """Return the logits, and those of heads on earlier stages, shallow to deep."""',
            *([f"    size = {self._padded_size()}"] if resized == "size" else []),
            "    logits, decoded = self.forward_features(x)",
            "    outputs = [logits]",
            "    for head, features in zip(heads, decoded[-2::-1], strict=False):",
            f'        y = F.interpolate(head(features), {resized}, mode="bilinear")',
            f"        outputs.append(y{crop})",
            "    return tuple(outputs)",
        ]

    def _padded_size(self) -> str:
        network = self.network
        if network.size:
            return f"({network.size[0]}, {network.size[1]})"
        rounded = f"-(-side // {network.multiple}) * {network.multiple}"
        if network.min_size > network.multiple:
            rounded = f"max({network.min_size}, {rounded})"
        return f"[{rounded} for side in x.shape[-2:]]"

    def _steps(self, name: str) -> list[str]:
        return [f"{name} = {step}" for step in self._calls(name)]

    def _calls(self, name: str) -> list[str]:
        """Return the calls of the stages; `name` is the text of the map from below."""
        network, calls = self.network, []
        for index, stage in enumerate(network.stages):
            skip = network.skips[index]
            below = "maps[-1]" if index == 0 and name == "x" else name
            others = f", maps[{skip}]" if skip is not None else ""
            if self.stages.takes_size(cast(Stage, stage)):
                others = f", {self._level_size(cast(Stage, stage).stride)}"
            calls.append(f"self.stages[{index}]({below}{others})")
        return calls

    def _level_size(self, stride: int) -> str:
        return "size" if stride == 1 else f"[-(-side // {stride}) for side in size]"

    def _doc(self, start: str = "Return logits {}") -> list[str]:
        network, plan = self.network, self.network.resolved_plan
        takes, output = "", f"(B, {plan.classes}, H, W)"
        if network.valid:
            output = f"(B, {plan.classes}, H', W')"
        elif network.output_stride > 1:
            output = f"(B, {plan.classes}, H / {network.output_stride}, W / {network.output_stride})"
        if network.size and not network.valid:
            takes = f" of at most {network.size[0]}x{network.size[1]}"
        elif network.min_size > 1 and not self.is_padded:
            takes = f" of at least {network.min_size}x{network.min_size}"
        return docstring((f"{start.format(output)} for images (B, {plan.in_channels}, H, W){takes}.",), 80)

    def _prepare(self) -> list[str]:
        """Return the lines that check and pad the input."""
        network = self.network
        lines: list[str] = []
        if self.is_padded:
            lines.append("height, width = x.shape[-2:]")
        if network.size:
            rows, columns = network.size
            refused, takes = f"height > {rows} or width > {columns}", f"at most {rows}x{columns}"
            if network.valid:
                lines.append("height, width = x.shape[-2:]")
                refused, takes = f"height != {rows} or width != {columns}", f"{rows}x{columns}"
            lines += [f"if {refused}:", f'    raise ValueError(f"images are {takes}, not {{height}}x{{width}}")']
            if not network.valid:
                lines.append("# Zeros fill the bottom and the right of smaller images.")
                lines.append(f"x = F.pad(x, [0, {columns} - width, 0, {rows} - height])")
        elif network.multiple > 1 and network.valid:
            lines += [
                f"if x.shape[-2] % {network.multiple} or x.shape[-1] % {network.multiple}:",
                f'    raise ValueError("height and width must be multiples of {network.multiple}")',
            ]
        elif self.is_padded:
            lines += self._pad()
        elif network.min_size > 1 and not network.valid:
            lines += [
                f"if min(x.shape[-2:]) < {network.min_size}:",
                f'    raise ValueError("height and width must be at least {network.min_size}")',
            ]
        later = [*self._calls("x"), *self._finish("x")]
        if any("size" in line.replace(".size", "") for line in later):
            lines.append("size = x.shape[-2:]")
        return lines

    def _pad(self) -> list[str]:
        multiple, least = self.network.multiple, self.network.min_size
        comment = f"# The encoder takes multiples of {multiple}: zeros fill the bottom and the right."
        if least <= multiple:
            return [comment, f"x = F.pad(x, [0, -width % {multiple}, 0, -height % {multiple}])"]
        return [
            comment,
            f"rows = max({least}, -(-height // {multiple}) * {multiple})",
            f"columns = max({least}, -(-width // {multiple}) * {multiple})",
            "x = F.pad(x, [0, columns - width, 0, rows - height])",
        ]

    def _finish(self, name: str) -> list[str]:
        """Return the lines from the last map, called `name`, to the logits; the last one is what they are."""
        network = self.network
        stride = network.output_stride
        crop = ""
        if self.is_padded:
            crop = "[..., :height, :width]"
            if stride > 1:
                crop = f"[..., : -(-height // {stride}), : -(-width // {stride})]"
        *lines, result = self._resize(f"self.head({name})")
        if not crop:
            return [*lines, result]
        return [*lines, *([f"logits = {result}"] if result != "logits" else []), f"logits{crop}"]

    def _resize(self, logits: str) -> list[str]:
        """Return the lines that bring the logits to the size of the padded image; the last one is what they are."""
        network = self.network
        if network.logits is None:
            return [logits]
        last = cast(Stage, network.stages[-1])
        if network.has_learned_logits:
            applied = f"self.logits({logits})" if is_builtin(network.logits) else f"self.logits({logits}, size)"
            if self.facts.exact and multiplies_exactly(network.logits, last.stride):
                return [applied]
            return [
                f"logits = {applied}[..., : size[0], : size[1]]",
                "if logits.shape[-2:] != size:",
                '    logits = F.interpolate(logits, size, mode="bilinear")',
                "logits",
            ]
        if last.stride > 1 or network.valid:
            return [f"logits = {logits}", str(interpolation(network.logits, "size", "logits"))]
        if self._has_full_size():
            return [logits]
        return [
            f"logits = {logits}",
            "if logits.shape[-2:] != size:",
            f"    logits = {interpolation(network.logits, 'size', 'logits')}",
            "logits",
        ]

    def _has_full_size(self) -> bool:
        """Return whether the last stage, at stride 1, always has the size of the padded input."""
        if self.facts.exact:
            return True
        stages = [cast(Stage, stage) for stage in self.network.stages]
        with_skip = [stage for stage in stages if stage.align is not None]
        fits = not with_skip or type(with_skip[-1].align) in (Resize, Pad)
        return self.facts.rounds_up and fits and all(map(self._fills_level, stages[len(with_skip) :]))

    def _fills_level(self, stage: Stage) -> bool:
        """Return whether a stage without a skip gives at least the size of its level if the one below has its own."""
        up = cast(nn.Module, stage.up)
        return interpolation(up, "") is not None or multiplies_exactly(up, stage.scale)


def _indent(lines: list[str]) -> list[str]:
    return [f"    {line}" if line else "" for line in lines]
