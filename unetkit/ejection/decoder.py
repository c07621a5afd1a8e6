"""The stages of the decoder and the U-Net itself as source text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from unetkit.ejection.code import Assign, Definition, Expression, Items, Use, call
from unetkit.ejection.parts import PartWriter, interpolation
from unetkit.errors import BuildError
from unetkit.parts.aligns import Crop, Pad, Resize
from unetkit.parts.encoders.plain import PlainEncoder
from unetkit.parts.upsamplers import TransposedUpsampler
from unetkit.summary.report import Trace
from unetkit.unet import Stage, UNet
from unetkit.utils.formatting import Size
from unetkit.utils.integers import round_up
from unetkit.utils.meta_shapes import MetaShapes


@dataclass(frozen=True)
class SizeFacts:
    """What the sizes of maps are known to be for every input.

    Attributes:
        exact: whether every upsampled map has the size of its skip, or of its level, without an align or a crop.
        full_first_map: whether the encoder's first map has the size of the input.
        floors: whether a map is never smaller than what is upsampled to it.
    """

    exact: bool
    full_first_map: bool
    floors: bool


def find_size_facts(network: UNet) -> SizeFacts:
    """Find the facts by passes of meta tensors. The network is on the meta device, in eval mode."""
    floors = isinstance(network.encoder, PlainEncoder)
    if network.valid:
        return SizeFacts(exact=False, full_first_map=False, floors=floors)
    deepest = max(network.strides)
    if network.size:
        sizes, is_fitted = [network.size], True
    else:
        multiple, is_fitted = network.multiple, network.multiple % deepest == 0
        base = round_up(network.min_size, multiple)
        steps = ((1, 3), (2, 5)) if is_fitted else ((1, 3), (16, 31), (30, 9))
        sizes = [(base + multiple * rows, base + multiple * columns) for rows, columns in steps]
    agree, full = [], []
    for size in sizes:
        seen = _observe(network, size)
        if seen is None:
            return SizeFacts(exact=False, full_first_map=False, floors=floors)
        agree.append(seen[0])
        full.append(seen[1])
    return SizeFacts(exact=is_fitted and all(agree), full_first_map=all(full), floors=floors)


def _observe(network: UNet, size: Size) -> tuple[bool, bool] | None:
    """Return whether all sizes agree, and whether the first map has the size of the input; None if a pass fails."""
    seen: dict[str, Any] = {"sizes": []}

    def note_up(stage: Stage) -> Callable[..., None]:
        return lambda module, args, output: seen["sizes"].append((stage, tuple(output.shape[-2:])))

    def note_maps(module: nn.Module, args: Any, output: Any) -> None:
        seen["maps"] = [tuple(one.shape[-2:]) for one in output]

    hooks = [stage.up.register_forward_hook(note_up(stage)) for stage in network.stages]  # type: ignore[union-attr,arg-type]
    hooks.append(network.encoder.register_forward_hook(note_maps))
    x = torch.empty(1, network.resolved_plan.in_channels, *size, device="meta")
    try:
        with torch.no_grad(), torch.device("meta"), MetaShapes():
            network(x)
    except Exception:  # a part that reads values of tensors may raise anything for a meta tensor
        return None
    finally:
        for hook in hooks:
            hook.remove()
    wanted = [
        seen["maps"][skip] if skip is not None else tuple(-(-side // stage.stride) for side in size)
        for (stage, _), skip in zip(seen["sizes"], network.skips, strict=True)
    ]
    agrees = all(found == expected for (_, found), expected in zip(seen["sizes"], wanted, strict=True))
    return agrees, seen["maps"][0] == size


class DecoderWriter:
    """Writes the stages.

    Attributes:
        parts: writes the parts of a stage.
        facts: what is known of sizes.
        valid: whether convolutions are unpadded.
    """

    def __init__(self, parts: PartWriter, facts: SizeFacts, *, valid: bool) -> None:
        self.parts = parts
        self.facts = facts
        self.valid = valid

    def stage(self, stage: Stage, channels: tuple[int, int | None, int]) -> tuple[Use, bool]:
        """Write a stage.

        Args:
            stage: the stage.
            channels: those of the map from below, of the skip if there is one, and of the output.

        Returns:
            The call that makes it, and whether its forward takes the size of the level.
        """
        in_channels, skip_channels, out_channels = channels
        up = self.parts.upsampler(_up(stage), "in_channels", stage.scale)
        joined: Expression | None = None
        if skip_channels is None:
            doc = "Upsample the map from below, and convolve it."
            lines, takes_size = self._plain_lines(stage, up)
            candidates, total = [_up_channels(stage.up, in_channels)], stage.up.out_channels
            result = "x"
        else:
            doc = "Upsample the map from below, join it with the skip, and convolve both."
            lines, takes_size = self._skip_lines(stage, up), False
            up_text = _up_channels(stage.up, in_channels)
            joined, result, candidates = self.parts.fusion(cast(nn.Module, stage.fusion), up_text, "skip_channels")
            total = cast(Any, stage.fusion).out_channels
        names = {"in_channels": in_channels, "skip_channels": skip_channels}
        joint = next((text for text in candidates if _evaluate(text, names) == total), None)
        parameters = {"in_channels": "int", "skip_channels": "int", "out_channels": "int"}
        values = {
            "in_channels": str(in_channels),
            "skip_channels": str(skip_channels),
            "out_channels": str(out_channels),
        }
        if skip_channels is None:
            del parameters["skip_channels"], values["skip_channels"]
        if joint is None:
            joint = "joined_channels"
            parameters["joined_channels"], values["joined_channels"] = "int", str(total)
        block = self.parts.block(cast(nn.Module, stage.block), joint, "out_channels")
        members = {"up": up, "fusion": joined, "block": block}
        arguments = ["self", "x: Tensor"]
        arguments += ["skip: Tensor"] if skip_channels is not None else ["size: Sequence[int]"] if takes_size else []
        if result != "x":
            lines.append(f"x = {result}")
        definition = self.parts.file.define(
            Definition(
                "UpBlock" if skip_channels is not None else "UpBlockWithoutSkip",
                "nn.Module",
                (doc,),
                parameters,
                init=tuple(Assign(f"self.{name}", value) for name, value in members.items() if value is not None),
                methods=(
                    f"def forward({', '.join(arguments)}) -> Tensor:",
                    *(f"    {line}" for line in lines),
                    "    return self.block(x)",
                ),
            )
        )
        return self.parts.file.use(definition, **values), takes_size

    def _plain_lines(self, stage: Stage, up: Expression | None) -> tuple[list[str], bool]:
        """Return the lines that upsample a map without a skip, and whether they take the size of the level."""
        if up is None and not self.valid and not self._is_double(stage):
            return [f"x = {interpolation(_up(stage), 'size')}"], True
        if up is None:
            return self._scaled(stage), False
        if self.valid or self.facts.exact:
            return [f"x = {self._apply(_up(stage))}"], False
        crop = "# The encoder rounded sizes up; what is too large is cropped."
        return [crop, f"x = {self._apply(_up(stage))}[..., : size[0], : size[1]]"], True

    def _is_double(self, stage: Stage) -> bool:
        return self.facts.exact and stage.scale in (2, 4, 8, 16, 32)

    def _apply(self, up: nn.Module) -> str:
        return "self.up(x)" if is_builtin(up) else "self.up(x, x.shape[-2:])"

    def _scaled(self, stage: Stage) -> list[str]:
        """Return the lines that interpolate a map to its size times the scale."""
        scale = stage.scale
        if scale in (2, 4, 8, 16, 32):  # by a power of two, the same pixels are computed from the factor
            text = cast(str, interpolation(_up(stage), "scale_factor=SCALE"))
            return [f"x = {text.replace('SCALE', str(int(scale)))}"]
        if scale == int(scale):
            size = f"[{int(scale)} * side for side in x.shape[-2:]]"
        else:
            below = round(stage.stride * scale)
            size = f"[(2 * side * {below} + {stage.stride}) // {2 * stage.stride} for side in x.shape[-2:]]"
        return [f"size = {size}", f"x = {interpolation(_up(stage), 'size')}"]

    def _skip_lines(self, stage: Stage, up: Expression | None) -> list[str]:
        """Return the lines that upsample a map and bring it and the skip to one size."""
        align = stage.align
        if up is None and type(align) is Resize:
            return [f"x = {interpolation(_up(stage), 'skip.shape[-2:]')}"]
        lines = self._scaled(stage) if up is None else [f"x = {self._apply(_up(stage))}"]
        if self.facts.exact and type(align) in (Resize, Pad, Crop):
            return lines
        if type(align) is Resize:
            resized = f'F.interpolate(x, skip.shape[-2:], mode="{align.mode}")'
            return [*lines, "if x.shape[-2:] != skip.shape[-2:]:", f"    x = {resized}"]
        never_larger = self.facts.floors and (up is None or _multiplies_exactly(_up(stage), stage.scale))
        if type(align) is Pad:
            half = "{0} // 2" if never_larger else "int({0} / 2)"
            top, left = half.format("rows"), half.format("columns")
            return [
                *lines,
                "rows, columns = skip.shape[-2] - x.shape[-2], skip.shape[-1] - x.shape[-1]",
                f"top, left = {top}, {left}",
                "x = F.pad(x, [left, columns - left, top, rows - top])",
            ]
        if type(align) is Crop:
            self.parts.file.carry("crop_center", _CROP_CENTER.strip().split("\n"))
            if never_larger:
                return [*lines, "skip = crop_center(skip, x.shape[-2], x.shape[-1])"]
            return [
                *lines,
                "height = min(x.shape[-2], skip.shape[-2])",
                "width = min(x.shape[-1], skip.shape[-1])",
                "x, skip = crop_center(x, height, width), crop_center(skip, height, width)",
            ]
        raise BuildError(f"--align {type(align).__name__}: only the built-in aligns can be written as source")


_CROP_CENTER = '''
def crop_center(x: Tensor, height: int, width: int) -> Tensor:
    """Crop a map around its center; an odd surplus is cut one more at the end."""
    top, left = (x.shape[-2] - height) // 2, (x.shape[-1] - width) // 2
    return x[..., top : top + height, left : left + width]
'''


def _up(stage: Stage) -> nn.Module:
    return cast(nn.Module, stage.up)


def is_builtin(part: nn.Module) -> bool:
    """Return whether a part is one of unetkit's own."""
    return type(part).__module__.startswith("unetkit.")


def _multiplies_exactly(up: nn.Module, scale: float) -> bool:
    """Return whether the output of an upsampler with layers is exactly the scale times its input."""
    if not isinstance(up, TransposedUpsampler):
        return is_builtin(up)
    kernel, stride = up.kernel_size[0], up.stride[0]
    padding, output_padding = cast(int, up.padding[0]), up.output_padding[0]
    return stride == scale and kernel - stride - 2 * padding + output_padding == 0


def _up_channels(up: Any, in_channels: int) -> str:
    for text in ("in_channels", "in_channels // 2"):
        if _evaluate(text, {"in_channels": in_channels}) == up.out_channels:
            return text
    raise BuildError(f"a {type(up).__name__} makes {up.out_channels} channels of {in_channels}")


def _evaluate(text: str, names: dict[str, Any]) -> Any:
    return eval(text, {"__builtins__": {"min": min}}, names)  # noqa: S307  text of this package


class UNetWriter:
    """Writes the class of the U-Net."""

    def __init__(self, parts: PartWriter, network: UNet, trace: Trace, facts: SizeFacts) -> None:
        self.parts = parts
        self.network = network
        self.trace = trace
        self.facts = facts

    def write(self, encoder: Expression) -> Definition:
        """Add the class to the file."""
        network, plan = self.network, self.network.resolved_plan
        writer = DecoderWriter(self.parts, self.facts, valid=network.valid)
        widths = cast(tuple[int, ...], plan.widths)
        shapes = self._shapes()
        stages: list[Expression] = []
        comments: list[str] = []
        steps: list[str] = []
        below, sized = network.channels[-1], False
        last = len(network.channels) - 1
        for index, stage in enumerate(network.stages):
            skip = network.skips[index]
            skip_channels = None if skip is None else network.channels[skip]
            use, takes_size = writer.stage(cast(Stage, stage), (below, skip_channels, widths[index]))
            stages.append(use)
            comments.append(f"stages.{index}: {shapes[f'stages.{index}']}")
            source = f"maps[{last}]" if index == 0 else "x"
            second = f", maps[{skip}]" if skip is not None else f", {self._level_size(stage)}" if takes_size else ""
            steps.append(f"x = self.stages[{index}]({source}{second})")
            sized = sized or (takes_size and skip is None)
            below = widths[index]
        head = self.parts.head(network.head, below, plan.classes)
        init = [Assign("self.encoder", encoder)]
        init.append(Assign("self.stages", call("nn.ModuleList", Items(tuple(stages), tuple(comments)))))
        init.append(Assign("self.head", head))
        before, resize, after = self._sizes(init, sized)
        body = [*before, "maps = self.encoder(x)", *steps, *([] if stages else ["x = maps[-1]"])]
        result = "self.head(x)"
        if resize or after:
            body += [f"x = {result}", *resize]
            result = f"x{after}"
        takes = self._describe_input()
        methods = (
            "def forward(self, x: Tensor) -> Tensor:",
            *(f"    {line}" for line in self._forward_doc(takes)),
            *(f"    {line}" for line in body),
            f"    return {result}",
        )
        doc = (f"An encoder, {len(stages)} levels of a decoder, and a head.", "", *self._table())
        return self.parts.file.define(Definition("UNet", "nn.Module", doc, init=tuple(init), methods=methods))

    def _forward_doc(self, takes: str) -> list[str]:
        from unetkit.ejection.code import docstring

        plan = self.network.resolved_plan
        output = f"(B, {plan.classes}, H, W)"
        if self.network.valid:
            output = f"(B, {plan.classes}, H', W'), smaller than the images"
        elif self.network.output_stride > 1:
            output = f"(B, {plan.classes}, H / {self.network.output_stride}, W / {self.network.output_stride})"
        return docstring((f"Return logits {output} for images (B, {plan.in_channels}, H, W){takes}.",), 80)

    def _describe_input(self) -> str:
        network = self.network
        if network.valid:
            return ""
        if network.size:
            return f" of at most {network.size[0]}x{network.size[1]}"
        if network.multiple > 1 or network.min_size <= 1:
            return ""
        return f" of at least {network.min_size}x{network.min_size}"

    def _level_size(self, stage: Any) -> str:
        if stage.stride == 1:
            return "size"
        return f"[-(-side // {stage.stride}) for side in size]"

    def _sizes(self, init: list[Assign], sized: bool) -> tuple[list[str], list[str], str]:
        """Return the lines before the encoder, the lines that resize the logits, and the crop of the result."""
        network = self.network
        before: list[str] = []
        padding = not network.valid and (network.multiple > 1 or network.size is not None)
        resize = self._resize(init)
        if padding:
            before.append("height, width = x.shape[-2:]")
            if network.size:
                rows, columns = network.size
                before += [
                    f"if height > {rows} or width > {columns}:",
                    f'    raise ValueError(f"an image of {{height}}x{{width}} is above {rows}x{columns}")',
                    "# Smaller images are padded with zeros at the bottom and the right.",
                    f"x = F.pad(x, [0, {columns} - width, 0, {rows} - height])",
                ]
            else:
                before.append(
                    f"# The encoder takes multiples of {network.multiple}: zeros fill the bottom and the right."
                )
                if network.min_size > network.multiple:
                    m, least = network.multiple, network.min_size
                    before += [
                        f"rows = max({least}, -(-height // {m}) * {m})",
                        f"columns = max({least}, -(-width // {m}) * {m})",
                        "x = F.pad(x, [0, columns - width, 0, rows - height])",
                    ]
                else:
                    before.append(f"x = F.pad(x, [0, -width % {network.multiple}, 0, -height % {network.multiple}])")
        elif not network.valid and network.min_size > 1:
            least = network.min_size
            before += [
                f"if min(x.shape[-2:]) < {least}:",
                f'    raise ValueError(f"the sides of {{tuple(x.shape)}} must be at least {least}")',
            ]
        if sized or any("size" in line for line in resize):
            before.append("size = x.shape[-2:]")
        stride = network.output_stride
        after = ""
        if padding:
            after = (
                "[..., :height, :width]" if stride == 1 else f"[..., : -(-height // {stride}), : -(-width // {stride})]"
            )
        return before, resize, after

    def _resize(self, init: list[Assign]) -> list[str]:
        """Return the lines that bring the logits to the size of the padded image."""
        network, logits = self.network, self.network.logits
        if logits is None:
            return []
        last = cast(Stage, network.stages[-1])
        classes = network.resolved_plan.classes
        if network.has_learned_logits:
            made = self.parts.upsampler(logits, str(classes), network.resolved_plan.decode_to)  # type: ignore[arg-type]
            init.append(Assign("self.logits", cast(Expression, made)))
            apply = "self.logits(x)" if is_builtin(logits) else "self.logits(x, size)"
            if self.facts.exact and self._logits_are_exact(logits, last):
                return [f"x = {apply}"]
            return [
                f"x = {apply}[..., : size[0], : size[1]]",
                "if x.shape[-2:] != size:",
                '    x = F.interpolate(x, size, mode="bilinear")',
            ]
        if last.stride > 1 or network.valid:
            return [f"x = {interpolation(logits, 'size')}"]
        aligned = last.align is None or type(last.align) in (Resize, Pad)
        is_full = self.facts.exact or last.align is None or self.facts.full_first_map
        fills = (
            last.align is not None
            or interpolation(_up(last), "") is not None
            or _multiplies_exactly(_up(last), last.scale)
        )
        if aligned and is_full and fills:
            return []
        return ["if x.shape[-2:] != size:", f"    x = {interpolation(logits, 'size')}"]

    def _logits_are_exact(self, logits: nn.Module, last: Stage) -> bool:
        return _multiplies_exactly(logits, last.stride)

    def _shapes(self) -> dict[str, str]:
        return {row.level: f"{row.channels} x {row.height} x {row.width}" for row in self.trace.rows}

    def _table(self) -> list[str]:
        """Return the levels and their shapes, as the trace shows them."""
        rows = {row.level: row for row in self.trace.rows if row.level not in ("output", "other")}
        first = self.trace.rows[0]
        numbers = [(str(row.channels), f"{row.height} x {row.width}") for row in rows.values()]
        widths = [max(len(number[i]) for number in numbers) for i in range(2)]
        left = max(map(len, rows))
        lines = []
        for level, (channels, size) in zip(rows, numbers, strict=True):
            lines.append(f"    {level:{left}}  {channels:>{widths[0]}} x {size}")
        return [
            f"The shapes for an image of {first.height}x{first.width} pixels (channels x height x width):",
            "",
            *lines,
        ]
