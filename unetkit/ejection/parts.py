"""The built-in blocks, heads, upsamplers, fusions and encoders as source text.

Everything is read from the modules that run, not from the options that made them: what an option decided is a constant
in the text, or is not there at all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, cast

from torch import nn

from unetkit.builder import MadePart
from unetkit.ejection.code import Assign, Call, Definition, Expression, Items, SourceFile, call, quote
from unetkit.ejection.layers import describe_layer, is_torch, ordered, timm_activation, torch_layer
from unetkit.errors import BuildError
from unetkit.parts.blocks import BasicBlock, Bottleneck, DoubleConv
from unetkit.parts.conv_unit import ReflectConv2d
from unetkit.parts.encoders.feature_pyramid import SimpleFeaturePyramid
from unetkit.parts.encoders.plain import PlainEncoder
from unetkit.parts.fusions import Add, Concat, Max, Mean
from unetkit.parts.heads import ConvActNormHead, ConvHead
from unetkit.parts.upsamplers import PixelShuffleUpsampler, TransposedUpsampler
from unetkit.plugin_files import package_of
from unetkit.unet import BlockSequence
from unetkit.utils.formatting import format_type

#: Writes a part of a plugin, given the part and its positional arguments as text.
Carry = Callable[[nn.Module, tuple[Expression, ...]], Expression]

_CHANNELS = {"in_channels": "int", "out_channels": "int"}
_REFLECT_CONV = '''
class ReflectConv2d(nn.Conv2d):
    """A convolution that mirrors the map at its border.

    torch cannot mirror a map of one row or column; its border repeats the pixel.
    """

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = self.padding
        mode = "reflect" if x.shape[-1] > columns else "replicate"
        x = F.pad(x, (columns, columns, 0, 0), mode=mode)
        mode = "reflect" if x.shape[-2] > rows else "replicate"
        x = F.pad(x, (0, 0, rows, rows), mode=mode)
        return F.conv2d(x, self.weight, self.bias)
'''
_LAYER_NORM = '''
class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of a map (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
'''
_BILINEAR_TRANSPOSED = '''
class BilinearConvTranspose2d(nn.ConvTranspose2d):
    """A transposed convolution that starts as bilinear interpolation (Long 2015)."""

    def reset_parameters(self) -> None:
        """Share the input channels among the output channels, each with the kernel of bilinear interpolation."""
        kernel = self.kernel_size[0]
        factor = (kernel + 1) // 2
        center = factor - 1 if kernel % 2 else factor - 0.5
        profile = 1 - (torch.arange(kernel) - center).abs() / factor
        inputs = self.in_channels // self.groups
        outputs = self.out_channels // self.groups
        shares = torch.zeros(inputs, outputs)
        for i in range(inputs):
            shares[i, i * outputs // inputs] = 1
        shares = (shares / shares.sum(dim=0)).repeat(self.groups, 1)
        with torch.no_grad():
            self.weight.copy_(shares[:, :, None, None] * torch.outer(profile, profile))
            if self.bias is not None:
                self.bias.zero_()
'''


class PartWriter:
    """Writes parts as expressions, and adds the classes that these need to the file.

    Attributes:
        file: the file.
        modules: every module of the network, since a class is written for all modules that it stands for.
        made: how each part was made, by its id.
        carry: writes a part that is not built in.
    """

    carry: Carry

    def __init__(self, file: SourceFile, modules: Iterable[nn.Module], made: dict[int, MadePart]) -> None:
        self.file = file
        self.modules = list(modules)
        self.made = made

    def wiring(self, part: nn.Module) -> tuple[Any, ...]:
        """Return the positional arguments that a part was made with."""
        if id(part) not in self.made:
            raise BuildError(f"{format_type(part)} that unetkit.make_part did not make cannot be written as source")
        return self.made[id(part)].wiring

    def layer(self, module: nn.Module, **symbols: Expression) -> Expression:
        """Write a layer of torch, an activation of timm, or one of the layers that unetkit has beside torch's."""
        if isinstance(module, ReflectConv2d):
            self.file.carry("ReflectConv2d", _REFLECT_CONV.strip().split("\n"))
            made = torch_layer(module, **symbols)
            return Call("ReflectConv2d", tuple(one for one in made.arguments if one[0] != "padding_mode"))
        if type(module).__name__ == "LayerNorm2d" and type(module).__module__.startswith("timm."):
            self.file.carry("LayerNorm2d", _LAYER_NORM.strip().split("\n"))
            normalized = cast(nn.LayerNorm, module).normalized_shape
            return call("LayerNorm2d", symbols.get("channels", str(normalized[0])))
        if is_torch(module):
            if isinstance(module, nn.BatchNorm2d) and "channels" in symbols:
                return torch_layer(module, num_features=symbols["channels"])
            if isinstance(module, nn.GroupNorm) and "channels" in symbols:
                groups = symbols["channels"] if module.num_groups == module.num_channels else "$groups"
                return torch_layer(module, num_groups=groups, num_channels=symbols["channels"])
            return torch_layer(module, **{name: text for name, text in symbols.items() if name != "channels"})
        if made_by_torch := timm_activation(module):
            return made_by_torch
        if type(module).__module__.startswith("timm.layers.activations"):
            return call(f"{type(module).__module__}.{type(module).__name__}")
        raise BuildError(f"{format_type(module)} cannot be written as source")

    def unit(self, unit: nn.Module, in_channels: str, out_channels: str, groups: str = "") -> Expression:
        """Write a convolution unit: a class such as ConvNormAct, named after its layers.

        Args:
            unit: the unit.
            in_channels: text for the channels of its input.
            out_channels: text for those of its output.
            groups: text for the groups of its norm, if that is not their number.
        """
        layers = dict(unit.named_children())
        conv = cast(nn.Conv2d, layers["conv"])
        names = [*layers]
        norm_channels = (
            "out_channels" if "norm" in names and names.index("norm") > names.index("conv") else "in_channels"
        )
        written: dict[str, Expression] = {}
        for name, layer in layers.items():
            if name == "conv":
                padding = {"padding": "$padding"} if conv.padding[0] or self._has_padded_units() else {}
                symbols = {"in_channels": "in_channels", "out_channels": "out_channels", "kernel_size": "$kernel_size"}
                written[name] = self.layer(layer, **symbols, **padding)
            else:
                written[name] = self.layer(layer, **({"channels": norm_channels} if name == "norm" else {}))
        has_groups = _groups_of(unit) is not None
        words = [describe_layer(layer) for layer in layers.values()]
        class_name = "".join(name.capitalize() for name in names)
        numbers = {"kernel_size": "int", "padding": "int", **({"groups": "int"} if has_groups else {})}
        definition = self.file.define(
            Definition(
                class_name,
                "nn.Sequential",
                (_join(words, capital=True) + ".",),
                {**_CHANNELS, **numbers},
                frozenset(numbers),
                {"padding": "kernel_size // 2"},
                base_arguments=(ordered(written),),
            ),
            f"{class_name}{conv.kernel_size[0]}x{conv.kernel_size[0]}",
        )
        values = {"in_channels": in_channels, "out_channels": out_channels}
        values |= {"kernel_size": str(conv.kernel_size[0]), "padding": str(conv.padding[0])}
        if has_groups:
            values["groups"] = groups or str(_groups_of(unit))
        return self.file.use(definition, **values)

    def _has_padded_units(self) -> bool:
        """Return whether a 1x1 convolution, which has no padding, may share its class with padded ones."""
        return any(isinstance(one, nn.Conv2d) and one.padding not in ((0, 0), 0) for one in self.modules)

    def block(self, block: nn.Module, in_channels: str, out_channels: str) -> Expression:
        """Write a block or a chain of blocks."""
        if isinstance(block, BlockSequence):
            first, *rest = block
            links = [self.block(first, in_channels, out_channels)]
            links += [self.block(link, out_channels, out_channels) for link in rest]
            return call("nn.Sequential", *links)
        if type(block) is DoubleConv:
            return self.double_conv(block, in_channels, out_channels)
        if isinstance(block, BasicBlock) and type(block).__module__ == BasicBlock.__module__:
            return self.residual_block(block, in_channels, out_channels)
        return self.carry(block, (in_channels, out_channels))

    def double_conv(self, block: nn.Module, in_channels: str, out_channels: str) -> Expression:
        """Write the block of two convolution units."""
        first, second = block.children()
        shared = _shared_groups([first, second])
        units = (
            self.unit(first, "in_channels", "out_channels", shared and "$groups"),
            self.unit(second, "out_channels", "out_channels", shared and "$groups"),
        )
        has_norm = "norm" in dict(first.named_children())
        definition = self.file.define(
            Definition(
                "DoubleConv",
                "nn.Sequential",
                (f"Two {_count_kernel(first)} convolutions, each with {'norm and ' * has_norm}activation.",),
                {**_CHANNELS, **({"groups": "int"} if shared else {})},
                frozenset({"groups"}),
                base_arguments=units,
            )
        )
        values = {"in_channels": in_channels, "out_channels": out_channels, **({"groups": shared} if shared else {})}
        return self.file.use(definition, **values)

    def residual_block(self, block: BasicBlock, in_channels: str, out_channels: str) -> Expression:
        """Write a residual block."""
        is_bottleneck = isinstance(block, Bottleneck)
        units = [*block.units]
        inner = "out_channels"
        if is_bottleneck:
            out = _conv(units[-1]).out_channels
            inner = "out_channels // 4" if out >= 4 else "1"
        shared = _shared_groups(units)
        ends = [("in_channels", inner), *[(inner, inner)] * (len(units) - 2), (inner, "out_channels")]
        written = [self.unit(unit, *channels, shared and "$groups") for unit, channels in zip(units, ends, strict=True)]
        init = [Assign("self.units", call("nn.Sequential", *written))]
        alike = [one for one in self.modules if type(one) is type(block) and _structure(one) == _structure(block)]
        projected = [one for one in alike if not isinstance(one.get_submodule("shortcut"), nn.Identity)]
        shortcut = "x"
        if projected:
            example = (block if block in projected else projected[0]).get_submodule("shortcut")
            if isinstance(example, nn.Sequential):  # its norm has the channels of the last unit's
                groups = "$groups" if shared else str(_groups_of(units[-1]) or "")
                made = self.unit(example, "in_channels", "out_channels", groups)
            else:
                made = self.layer(example, in_channels="in_channels", out_channels="out_channels")
            shortcut = "self.shortcut(x)"
            if len(projected) < len(alike):
                init.append(Assign("self.shortcut: nn.Module", "nn.Identity()"))
                init.append(Assign("self.shortcut", made, condition="in_channels != out_channels"))
            else:
                init.append(Assign("self.shortcut", made))
        margin = sum(_conv(unit).kernel_size[0] // 2 for unit in units) if block.valid else 0
        crop = f"[..., {margin}:-{margin}, {margin}:-{margin}]" if margin else ""
        total = f"self.units(x) + {shortcut}{crop}"
        if not isinstance(block.act, nn.Identity):
            init.append(Assign("self.act", self.layer(block.act)))
            total = f"self.act({total})"
        kernels = ", ".join(_count_kernel(unit) for unit in units)
        definition = self.file.define(
            Definition(
                type(block).__name__,
                "nn.Module",
                (f"Convolutions of {kernels} with a residual shortcut (He 2015).",),
                {**_CHANNELS, **({"groups": "int"} if shared else {})},
                frozenset({"groups"}),
                init=tuple(init),
                methods=("def forward(self, x: Tensor) -> Tensor:", f"    return {total}"),
            )
        )
        values = {"in_channels": in_channels, "out_channels": out_channels, **({"groups": shared} if shared else {})}
        return self.file.use(definition, **values)

    def head(self, head: nn.Module) -> Expression:
        """Write the head."""
        if isinstance(head, ConvHead | ConvActNormHead):
            layers = dict(head.named_children())
            return call("nn.Sequential", ordered({name: self.layer(layer) for name, layer in layers.items()}))
        return self.carry(head, tuple(map(str, self.wiring(head))))

    def upsampler(self, up: nn.Module, in_channels: str, scale: float) -> Expression | None:
        """Write an upsampler that has layers; None for one that interpolates."""
        if isinstance(up, TransposedUpsampler):
            out_channels = _channels_after(up.out_channels, up.in_channels, in_channels)
            made = torch_layer(up, in_channels=in_channels, out_channels=out_channels)
            if up.init == "bilinear":
                self.file.carry("BilinearConvTranspose2d", _BILINEAR_TRANSPOSED.strip().split("\n"))
                return Call("BilinearConvTranspose2d", made.arguments)
            return Call("nn.ConvTranspose2d", made.arguments)
        if isinstance(up, PixelShuffleUpsampler):
            return self._pixel_shuffle(up, in_channels)
        if not is_interpolation(up):
            return self.carry(up, (in_channels, quote(int(scale) if scale == int(scale) else scale)))
        return None

    def _pixel_shuffle(self, up: PixelShuffleUpsampler, in_channels: str) -> Expression:
        conv, factor = up.conv, up.shuffle.upscale_factor
        out = _channels_after(up.out_channels, conv.in_channels, "in_channels")
        widened = f"{factor**2} * in_channels"
        if up.out_channels != conv.in_channels:
            widened = f"{factor**2} * ({out})"
        if factor**2 % 2 == 0 and up.out_channels * 2 == conv.in_channels:
            widened = f"{factor**2 // 2} * in_channels"
        layers = {
            "conv": self.layer(conv, in_channels="in_channels", out_channels=widened),
            "shuffle": self.layer(up.shuffle),
        }
        definition = self.file.define(
            Definition(
                "PixelShuffleUpsampler",
                "nn.Sequential",
                ("Convolution to more channels, which are rearranged into pixels (Shi 2016).",),
                {"in_channels": "int"},
                base_arguments=(ordered(layers),),
            )
        )
        return self.file.use(definition, in_channels=in_channels)

    def fusion(
        self, fusion: nn.Module, x_channels: str, skip_channels: str
    ) -> tuple[Expression | None, str, list[str]]:
        """Write a fusion.

        Returns:
            The module, None if it has no weights; what joins `x` and `skip`; and the candidates for the text of its
            output channels.
        """
        both = x_channels if x_channels == skip_channels else f"{x_channels} + {skip_channels}"
        if type(fusion) is Concat:
            return None, "torch.cat([skip, x], dim=1)", [both]
        if type(fusion) not in _ELEMENTWISE:
            made = self.carry(fusion, (x_channels, skip_channels))
            return made, "self.fusion(x, skip)", [both, x_channels, skip_channels]
        return self._elementwise(fusion, x_channels, skip_channels)

    def _elementwise(
        self, fusion: nn.Module, x_channels: str, skip_channels: str
    ) -> tuple[Expression | None, str, list[str]]:
        alike = [one for one in self.modules if type(one) is type(fusion)]
        init: list[Assign] = []
        operands = {"x": "x", "skip": "skip"}
        sides = {
            side: [not isinstance(one.get_submodule(f"project_{side}"), nn.Identity) for one in alike]
            for side in operands
        }
        smaller = {"x": "x_channels", "skip": "skip_channels"}
        out = "skip_channels" if not any(sides["skip"]) else "x_channels" if not any(sides["x"]) else "out_channels"
        for side, is_projected in sides.items():
            if not any(is_projected):
                continue
            operands[side] = f"self.project_{side}({side})"
            made = call("nn.Conv2d", smaller[side], out, "1")
            if all(is_projected):
                init.append(Assign(f"self.project_{side}", made))
            else:
                init.append(Assign(f"self.project_{side}: nn.Module", "nn.Identity()"))
                init.append(Assign(f"self.project_{side}", made, condition=f"{smaller[side]} > {out}"))
        joined = _ELEMENTWISE[type(fusion)].format(**operands)
        final = {"skip_channels": skip_channels, "x_channels": x_channels}.get(
            out, f"min({x_channels}, {skip_channels})"
        )
        if not init:
            return None, joined, [final]
        if out == "out_channels":
            init.insert(0, Assign("out_channels", "min(x_channels, skip_channels)"))
        definition = self.file.define(
            Definition(
                type(fusion).__name__,
                "nn.Module",
                (f"{_WORDS[type(fusion)]} of map and skip; a 1x1 convolution first projects the wider of them.",),
                {"x_channels": "int", "skip_channels": "int"},
                init=tuple(init),
                methods=("def forward(self, x: Tensor, skip: Tensor) -> Tensor:", f"    return {joined}"),
            )
        )
        use = self.file.use(definition, x_channels=x_channels, skip_channels=skip_channels)
        return use, "self.fusion(x, skip)", [final]

    def plain_encoder(self, encoder: PlainEncoder) -> Expression:
        """Write the contracting path of the U-Net."""
        channels = (_conv(encoder.levels[0][0]).in_channels, *encoder.channels)  # type: ignore[index]
        levels = tuple(
            self.double_conv(level, str(i), str(o))
            for level, i, o in zip(encoder.levels, channels, encoder.channels, strict=False)
        )
        definition = Definition(
            "Encoder",
            "nn.Module",
            (
                "Double convolutions with a max pool between them (Ronneberger 2015).",
                "",
                "It returns a map for each level, shallow to deep, taken before its pool.",
            ),
            init=(Assign("self.levels", call("nn.ModuleList", Items(levels))),),
            methods=(
                "def forward(self, x: Tensor) -> list[Tensor]:",
                "    maps = [self.levels[0](x)]",
                "    for level in self.levels[1:]:",
                "        maps.append(level(F.max_pool2d(maps[-1], 2)))",
                "    return maps",
            ),
        )
        return self.file.use(self.file.define(definition))

    def feature_pyramid(self, pyramid: SimpleFeaturePyramid) -> Expression:
        """Write the feature pyramid of a plain vision transformer."""
        sequences = []
        for level in pyramid.levels:
            layers = [*cast(nn.Sequential, level)]
            conv = cast(nn.Conv2d, layers[-4])
            start = [self.layer(layer) for layer in layers[:-4]]
            projection = f"*project({conv.in_channels}, {conv.out_channels})"
            sequences.append(call("nn.Sequential", *start, projection))
        self.file.carry("LayerNorm2d", _LAYER_NORM.strip().split("\n"))
        self.file.carry("project", _PROJECT.strip().split("\n"))
        definition = Definition(
            "FeaturePyramid",
            "nn.Module",
            ("Maps of several strides from one map, shallow to deep (ViTDet, Li 2022).",),
            init=(Assign("self.levels", call("nn.ModuleList", Items(tuple(sequences)))),),
            methods=(
                "def forward(self, x: Tensor) -> list[Tensor]:",
                "    return [level(x) for level in self.levels]",
            ),
        )
        return self.file.use(self.file.define(definition))


_PROJECT = '''
def project(in_channels: int, out_channels: int) -> list[nn.Module]:
    """Return the layers that bring a map to the channels of the pyramid."""
    return [
        nn.Conv2d(in_channels, out_channels, 1, bias=False),
        LayerNorm2d(out_channels),
        nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
        LayerNorm2d(out_channels),
    ]
'''
_ELEMENTWISE: dict[type, str] = {Add: "{x} + {skip}", Mean: "({x} + {skip}) / 2", Max: "torch.maximum({x}, {skip})"}
_WORDS: dict[type, str] = {Add: "Sum", Mean: "Mean", Max: "Maximum"}


def is_builtin(part: nn.Module) -> bool:
    """Return whether a part is one of unetkit's own."""
    return package_of(type(part).__module__) == "unetkit"


def is_interpolation(up: nn.Module) -> bool:
    """Return whether an upsampler interpolates straight to the size that it is given."""
    return interpolation(up, "size") is not None


def interpolation(up: nn.Module, size: str, name: str = "x") -> str | None:
    """Return the call that interpolates a map as an upsampler does; None for one with layers."""
    kind = f"{type(up).__module__}.{type(up).__name__}"
    if kind == "unetkit.parts.upsamplers.NearestUpsampler":
        return f'F.interpolate({name}, {size}, mode="nearest")'
    if kind != "unetkit.parts.upsamplers.BilinearUpsampler":
        return None
    corners = ", align_corners=True" if cast(Any, up).align_corners else ""
    return f'F.interpolate({name}, {size}, mode="bilinear"{corners})'


def _channels_after(out_channels: int, in_channels: int, text: str) -> str:
    if out_channels == in_channels:
        return text
    return str(int(text) // 2) if text.isdigit() else f"{text} // 2"


def _conv(unit: nn.Module) -> nn.Conv2d:
    return cast(nn.Conv2d, unit.get_submodule("conv"))


def _count_kernel(unit: nn.Module) -> str:
    height, width = _conv(unit).kernel_size
    return f"{height}x{width}"


def _join(words: list[str], *, capital: bool = False) -> str:
    text = ", ".join(words[:-1]) + (" and " if len(words) > 1 else "") + words[-1]
    return text[0].upper() + text[1:] if capital else text


def _structure(block: nn.Module) -> str:
    """Return what two blocks have in common that differ in numbers of channels alone."""
    return re.sub(r"\d+", "", f"{block.get_submodule('units')} {block.get_submodule('act')}")


def _groups_of(unit: nn.Module) -> int | None:
    """Return the groups of a unit's norm; None where it has no groups, or as many as channels."""
    norm = dict(unit.named_children()).get("norm")
    if isinstance(norm, nn.GroupNorm) and norm.num_groups != norm.num_channels:
        return norm.num_groups
    return None


def _shared_groups(units: list[nn.Module]) -> str:
    """Return the groups that the norms of all units have; "" where they differ, or where there are none."""
    groups = {_groups_of(unit) for unit in units}
    return str(groups.pop() or "") if len(groups) == 1 else ""
