"""Modules of plugins as source text: carried over as they are, or rebuilt around the parts that they contain."""

from __future__ import annotations

import ast
import inspect
import textwrap
from typing import Any

from torch import nn

from unetkit.ejection.carry import Carrier
from unetkit.ejection.code import Assign, Call, Definition, Expression, Items, call, quote
from unetkit.ejection.encoders import write_encoder
from unetkit.ejection.layers import is_torch
from unetkit.ejection.parts import PartWriter
from unetkit.ejection.sizes import SizeFacts
from unetkit.ejection.stages import StageWriter
from unetkit.ejection.unet import UNetWriter
from unetkit.errors import BuildError
from unetkit.summary.report import Trace
from unetkit.unet import Stage, UNet
from unetkit.utils.formatting import format_type


class ModelWriter:
    """Writes a whole model: a U-Net, or a module of a plugin around it.

    Attributes:
        parts: writes the parts.
        carrier: carries source over.
        network: the U-Net.
        trace: its trace.
        facts: what is known of sizes.
    """

    def __init__(self, parts: PartWriter, carrier: Carrier, network: UNet, trace: Trace, facts: SizeFacts) -> None:
        self.parts = parts
        self.parts.carry = self.carry
        self.carrier = carrier
        self.network = network
        self.trace = trace
        self.stages = StageWriter(parts, facts, valid=network.valid)
        self.unet = UNetWriter(parts, self.stages, network, trace, facts)
        self._uses_auxiliary = False

    def write(self, model: nn.Module) -> Expression:
        """Write a model, and return the call that makes it."""
        if model is self.network:
            encoder = write_encoder(self.parts, self.network.encoder, self.network.resolved_plan.in_channels)
            return self.unet.write(encoder, auxiliary=self._uses_auxiliary)
        return self._rebuild(model, f"the {type(model).__name__} that a plugin wraps around the network")

    def carry(self, part: nn.Module, wiring: tuple[Expression, ...]) -> Expression:
        """Write a part of a plugin: by its own source, or around the parts that it contains.

        Raises:
            BuildError: Its source uses more than torch and its own package.
        """
        made = self.parts.made[id(part)]
        kind = type(part)
        what = f"the {made.word} {kind.__name__}" + (f" of plugin {made.owner}" if made.owner else "")
        try:
            name = self.carrier.add_class(kind, what)
        except BuildError:
            if not any(id(child) in self.parts.made for child in part.modules() if child is not part):
                raise
            return self._rebuild(part, what)
        return Call(name, (*(("", value) for value in wiring), *_changed_options(kind, made.options)))

    def _rebuild(self, module: nn.Module, what: str) -> Expression:
        """Write a module whose constructor needs unetkit: its children as they are, and the source of its forward."""
        kind = type(module)
        names = _find_methods(kind)
        lines = self.carrier.add_methods(kind, names, what)
        self._uses_auxiliary = self._uses_auxiliary or "forward_auxiliary" in "\n".join(lines)
        attributes = {name for method in names for name in _read_attributes(kind, method)} - {*names, "training"}
        init: list[Assign] = []
        for name, child in module.named_children():
            init.append(Assign(f"self.{name}", self._child(child, what)))
        for name in sorted(attributes - dict(module.named_children()).keys()):
            value = getattr(module, name, module)
            if not isinstance(value, bool | int | float | str | tuple | None):
                raise BuildError(f"{what} cannot be written as source: its forward uses {name}, {format_type(value)}")
            init.append(Assign(f"self.{name}", quote(value)))
        if any(True for _ in module.parameters(recurse=False)) or any(True for _ in module.buffers(recurse=False)):
            raise BuildError(f"{what} cannot be written as source: it has tensors of its own beside those of its parts")
        doc = inspect.cleandoc(kind.__doc__ or "").split("\n\n")[0].split("\n")
        definition = Definition(kind.__name__, "nn.Module", (" ".join(doc),), init=tuple(init), methods=tuple(lines))
        return self.parts.file.use(self.parts.file.define(definition))

    def _child(self, child: nn.Module, what: str) -> Expression:
        if child is self.network:
            return self.write(child)
        if isinstance(child, Stage):
            return self.stages.write(child)
        if isinstance(child, nn.ModuleList):
            return call("nn.ModuleList", Items(tuple(self._child(one, what) for one in child)))
        if type(child) is nn.Sequential:
            return call("nn.Sequential", *(self._child(one, what) for one in child))
        made = self.parts.made.get(id(child))
        if made is None and is_torch(child) and not any(True for _ in child.children()):
            return self.parts.layer(child)
        if made is not None and made.word == "encoder":
            return write_encoder(self.parts, child, made.wiring[0])
        if made is not None and made.word == "block":
            return self.parts.block(child, *map(str, made.wiring))
        if made is not None and made.word == "head":
            return self.parts.head(child)
        contained = format_type(child) + (f" as its {made.word}" if made else "")
        raise BuildError(f"{what} cannot be written as source, because it contains {contained}")


def _changed_options(kind: type, options: dict[str, Any]) -> list[tuple[str, Expression]]:
    """Return the options that are not the defaults of a part."""
    known = inspect.signature(kind).parameters
    return [
        (name, quote(value)) for name, value in options.items() if name not in known or known[name].default != value
    ]


def _find_methods(kind: type) -> list[str]:
    """Return the names of `forward` and of the methods that it calls, in order."""
    found = ["forward"]
    for name in found:
        for used in _read_attributes(kind, name):
            owner = next((one for one in kind.__mro__ if inspect.isfunction(vars(one).get(used))), nn.Module)
            if used not in found and not owner.__module__.startswith("torch."):
                found.append(used)
    return found


def _read_attributes(kind: type, method: str) -> list[str]:
    """Return the attributes of `self` that a method uses, in order."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(getattr(kind, method))))
    found = (
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
    )
    return list(dict.fromkeys(found))
