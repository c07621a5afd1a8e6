"""The stages of a decoder as source text."""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from unetkit.ejection.code import Assign, Definition, Expression, Use
from unetkit.ejection.parts import PartWriter, interpolation, is_builtin
from unetkit.ejection.sizes import SizeFacts
from unetkit.parts.aligns import Crop, Pad, Resize
from unetkit.parts.upsamplers import TransposedUpsampler
from unetkit.unet import Stage

_CROP_CENTER = '''
def crop_center(x: Tensor, height: int, width: int) -> Tensor:
    """Crop a map around its center; an odd surplus is cut one more at the end."""
    top, left = (x.shape[-2] - height) // 2, (x.shape[-1] - width) // 2
    return x.narrow(-2, top, height).narrow(-1, left, width)
'''


class StageWriter:
    """Writes stages.

    Attributes:
        parts: writes the parts of a stage.
        facts: what is known of sizes.
        valid: whether convolutions are unpadded.
    """

    def __init__(self, parts: PartWriter, facts: SizeFacts, *, valid: bool) -> None:
        self.parts = parts
        self.facts = facts
        self.valid = valid

    def write(self, stage: Stage) -> Use:
        """Write a stage, and return the call that makes it."""
        up, fusion = _up(stage), cast(nn.Module | None, stage.fusion)
        (in_channels, *_) = self.parts.wiring(up)
        _, out_channels = self.parts.wiring(cast(nn.Module, stage.block))
        made_up = self.parts.upsampler(up, "in_channels", stage.scale)
        made_fusion: Expression | None = None
        made_align: Expression | None = None
        parameters = {"in_channels": "int", "out_channels": "int"}
        numbers = {"in_channels": in_channels, "out_channels": out_channels}
        up_text = _up_channels(up, in_channels)
        if fusion is None:
            doc = "Upsample the map from below, and convolve it."
            lines, joined, channels, candidates = self._lines_without_skip(stage), "x", _out(up), [up_text]
        else:
            doc = "Upsample the map from below, join it with the skip, and convolve both."
            parameters = {"in_channels": "int", "skip_channels": "int", "out_channels": "int"}
            numbers["skip_channels"] = self.parts.wiring(fusion)[1]
            lines, channels = self._lines_with_skip(stage), _out(fusion)
            made_fusion, joined, candidates = self.parts.fusion(fusion, up_text, "skip_channels")
            if not is_builtin(cast(nn.Module, stage.align)):
                made_align = self.parts.carry(cast(nn.Module, stage.align), ())
        text = next((one for one in candidates if _evaluate(one, numbers) == channels), "joined_channels")
        if text == "joined_channels":
            parameters[text], numbers[text] = "int", channels
        block = self.parts.block(cast(nn.Module, stage.block), text, "out_channels")
        members = {"up": made_up, "align": made_align, "fusion": made_fusion, "block": block}
        arguments = ["self", "x: Tensor"]
        arguments += ["size: Sequence[int]"] if fusion is None and self.takes_size(stage) else []
        arguments += ["skip: Tensor"] if fusion is not None else []
        definition = self.parts.file.define(
            Definition(
                "UpBlock" if fusion is not None else "UpBlockWithoutSkip",
                "nn.Module",
                (doc,),
                parameters,
                init=tuple(Assign(f"self.{name}", value) for name, value in members.items() if value is not None),
                methods=(
                    f"def forward({', '.join(arguments)}) -> Tensor:",
                    *(f"    {line}" for line in lines),
                    f"    return self.block({joined})",
                ),
            ),
            *_other_names(stage),
        )
        return self.parts.file.use(definition, **{name: str(numbers[name]) for name in parameters})

    def takes_size(self, stage: Stage) -> bool:
        """Return whether the forward of a stage without a skip takes the size of its level."""
        if stage.fusion is not None or self.valid:
            return False
        up = _up(stage)
        if interpolation(up, "") is not None:
            return not (self.facts.exact and _is_power_of_two(stage.scale))
        return not (self.facts.exact and is_builtin(up))

    def _lines_without_skip(self, stage: Stage) -> list[str]:
        """Return the lines that upsample a map without a skip."""
        if not self.takes_size(stage):
            return self._scale(stage)
        up = _up(stage)
        if text := interpolation(up, "size"):
            return [f"x = {text}"]
        if self.facts.exact:
            return ["x = self.up(x, size)"]
        return [
            "# Sizes were rounded up on the way down; what is too large now is cropped.",
            f"x = {'self.up(x)' if is_builtin(up) else 'self.up(x, size)'}[..., : size[0], : size[1]]",
        ]

    def _scale(self, stage: Stage) -> list[str]:
        """Return the lines that upsample a map to its size times the scale."""
        up, scale = _up(stage), stage.scale
        has_layers = interpolation(up, "") is None
        if has_layers and is_builtin(up):
            return ["x = self.up(x)"]
        if not has_layers and _is_power_of_two(scale):  # the factor is exact, so the same pixels are computed from it
            return [f"x = {interpolation(up, f'scale_factor={int(scale)}')}"]
        size = f"size = [{_scaled('side', stage)} for side in x.shape[-2:]]"
        return [size, "x = self.up(x, size)" if has_layers else f"x = {interpolation(up, 'size')}"]

    def _lines_with_skip(self, stage: Stage) -> list[str]:
        """Return the lines that upsample a map and bring it and the skip to one size."""
        align, up = cast(nn.Module, stage.align), _up(stage)
        text = interpolation(up, "skip.shape[-2:]")
        if type(align) is Resize:
            lines = (
                [f"x = {text}"] if text else ["x = self.up(x)" if is_builtin(up) else "x = self.up(x, skip.shape[-2:])"]
            )
            if text or self.facts.exact:
                return lines
            return [
                *lines,
                "if x.shape[-2:] != skip.shape[-2:]:  # as after an odd size",
                f'    x = F.interpolate(x, skip.shape[-2:], mode="{align.mode}")',
            ]
        if type(align) not in (Crop, Pad):
            scaled = f"({_scaled('x.shape[-2]', stage)}, {_scaled('x.shape[-1]', stage)})"
            target = [f"scaled = {scaled}", "size = self.align.target_size(scaled, skip.shape[-2:])"]
            made = interpolation(up, "size") or ("self.up(x)" if is_builtin(up) else "self.up(x, size)")
            return [*target, f"x = {made}", "x, skip = self.align(x, skip)"]
        lines = self._scale(stage)
        if self.facts.exact:
            return lines
        is_smaller = self.facts.floors and (text is not None or multiplies_exactly(up, stage.scale))
        return lines + (self._pad(is_smaller) if type(align) is Pad else self._crop(is_smaller))

    def _pad(self, is_smaller: bool) -> list[str]:
        top, left = ("rows // 2", "columns // 2") if is_smaller else ("int(rows / 2)", "int(columns / 2)")
        comment = [] if is_smaller else ["    # A negative number of rows or columns crops the map."]
        return [
            "if x.shape[-2:] != skip.shape[-2:]:",
            "    rows, columns = skip.shape[-2] - x.shape[-2], skip.shape[-1] - x.shape[-1]",
            f"    top, left = {top}, {left}",
            *comment,
            "    x = F.pad(x, [left, columns - left, top, rows - top])",
        ]

    def _crop(self, is_smaller: bool) -> list[str]:
        self.parts.file.carry("crop_center", _CROP_CENTER.strip().split("\n"))
        if is_smaller:
            return ["skip = crop_center(skip, x.shape[-2], x.shape[-1])"]
        return [
            "height = min(x.shape[-2], skip.shape[-2])",
            "width = min(x.shape[-1], skip.shape[-1])",
            "x, skip = crop_center(x, height, width), crop_center(skip, height, width)",
        ]


def multiplies_exactly(up: nn.Module, scale: float) -> bool:
    """Return whether the output of an upsampler with layers is exactly the scale times its input."""
    if not isinstance(up, TransposedUpsampler):
        return is_builtin(up)
    kernel, stride = up.kernel_size[0], up.stride[0]
    padding, output_padding = cast(int, up.padding[0]), up.output_padding[0]
    return stride == scale and kernel - stride - 2 * padding + output_padding == 0


def _up(stage: Stage) -> nn.Module:
    return cast(nn.Module, stage.up)


def _other_names(stage: Stage) -> list[str]:
    """Return names for a class of stages if another has the first one: after its upsampler, fusion and block."""
    parts = [stage.up, *([stage.fusion] if stage.fusion else []), stage.block]
    names = [type(part).__name__.removesuffix("Upsampler") for part in parts]
    end = "UpBlock" if stage.fusion else "UpBlockWithoutSkip"
    return ["".join(names[:count]) + end for count in range(1, len(names) + 1)]


def _out(part: Any) -> int:
    channels: int = part.out_channels
    return channels


def _is_power_of_two(scale: float) -> bool:
    return scale in (2, 4, 8, 16, 32, 64)


def _scaled(side: str, stage: Stage) -> str:
    """Return the text of a side times the scale, rounded half up."""
    if stage.scale == int(stage.scale):
        return f"{int(stage.scale)} * {side}"
    below = round(stage.stride * stage.scale)
    return f"(2 * {side} * {below} + {stage.stride}) // {2 * stage.stride}"


def _up_channels(up: nn.Module, in_channels: int) -> str:
    """Return the text of the channels that an upsampler gives; they are those of its input where it says no other."""
    halves = _out(up) == in_channels // 2 != in_channels
    return "in_channels // 2" if halves else "in_channels"


def _evaluate(text: str, names: dict[str, int]) -> Any:
    return eval(text, {"__builtins__": {"min": min}}, names)  # noqa: S307  text of this package
