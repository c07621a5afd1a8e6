"""`unetkit.eject`: write a network as one file of plain PyTorch, and check that it computes the same."""

from __future__ import annotations

import copy
import re
import types
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from unetkit.builder import MadePart, build_plan, current_parts, record_parts
from unetkit.ejection.carry import Carrier
from unetkit.ejection.code import SourceFile, Use, docstring, quote
from unetkit.ejection.modules import ModelWriter
from unetkit.ejection.parts import PartWriter
from unetkit.ejection.sizes import find_size_facts
from unetkit.errors import BuildError, FileError, OptionError
from unetkit.network import Network, WholeModel, state_shapes
from unetkit.plan import Plan
from unetkit.registry import Parts
from unetkit.summary.forward_hooks import find_network
from unetkit.summary.trace import trace
from unetkit.unet import UNet
from unetkit.utils.files import write_requested_file
from unetkit.utils.formatting import Size, format_type
from unetkit.utils.integers import round_up
from unetkit.utils.lazy_init import preserve_rng
from unetkit.utils.module_settings import describe_modules, find_difference


def eject(model: Any, path: str | Path, *, parts: Parts | None = None) -> None:
    """Write a network as one Python file that imports torch, and timm where the encoder is timm's, but not unetkit.

    The file has the classes of the network, a function `build()` that returns it with random weights, and a function
    `load(path)` that returns it with the weights of a file that `unetkit.save` wrote. Before the file is written, the
    network that it builds is compared with the model: the names and shapes of all weights, and the output to the bit.

    Args:
        model: a model that `unetkit.build` or `unetkit.load` returned, a Plan, or a line such as "--encoder resnet34".
        path: usually *.py; an existing file is replaced.
        parts: the registered parts; None for all that are installed.

    Raises:
        BuildError: The network has a part that cannot be written as source, or is a whole model of another library.
        FileError: The model was changed after it was built, or the file cannot be written.
    """
    write_file(model, Path(path), parts or current_parts(), Usage())


@dataclass(frozen=True)
class Usage:
    """Hints that the text gives for the use of the network.

    Attributes:
        weights: a file of its weights.
        normalization: mean and standard deviation of each channel by which images were normalized in training.
    """

    weights: str = "best.safetensors"
    normalization: tuple[Sequence[float], Sequence[float]] | None = None


def write_file(model: Any, path: Path, parts: Parts, usage: Usage) -> None:
    """Write a network to a file as `eject` does, with a text on its use."""
    model = getattr(model, "_orig_mod", model)
    if not isinstance(model, nn.Module):
        model = _build(model, parts)
    text = _write_source(model, parts, path, usage)
    with write_requested_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _build(plan: Any, parts: Parts) -> Network:
    plan = Plan.parse(plan) if isinstance(plan, str) else plan
    if not isinstance(plan, Plan):
        raise OptionError(f"{plan!r:.80} is not a model, a Plan or a line; give what unetkit.build returned")
    if plan.pretrained:
        raise OptionError(
            "--pretrained: a Python file has no weights; leave it out, or save them by `unetkit build --save FILE` "
            "and give FILE"
        )
    return build_plan(plan, parts)


def _write_source(model: nn.Module, parts: Parts, path: Path, usage: Usage) -> str:
    """Return the source of a model, which is compared with the model first."""
    plan = getattr(model, "plan", None)
    if not isinstance(plan, Plan):
        raise FileError(f"{format_type(model)} has no plan; give what unetkit.build or unetkit.load returned")
    network = find_network(model)
    if isinstance(network, WholeModel):
        raise BuildError(_explain_whole(network))
    built = cast(Network, model)
    difference = find_difference(built.built_modules, describe_modules(model))
    if difference or state_shapes(model) != built.built_shapes:
        what = difference or "its weights have other shapes than those of its plan"
        raise FileError(f"{what}, so the network is not the one of its plan; eject it as it was built")
    with record_parts() as made:
        parts = parts.prefer(plugin.name for plugin in network.plugins)
        twin = build_plan(plan, parts, "meta", pretrained=False, check=False)
    writer = _FileWriter(twin.eval(), made, path, usage)
    text = writer.write()
    _check(text, model, writer.traced.minimum)
    return text


def _explain_whole(network: Network) -> str:
    """Say why a whole model is not written, and how it is built without unetkit."""
    plan, kind = network.resolved_plan, type(network.encoder)
    library = kind.__module__.partition(".")[0]
    made = f"{library}.{kind.__name__}"
    if library == "segmentation_models_pytorch":
        source, _, name = str(plan.encoder or "timm/resnet34").partition(":")[0].rpartition("/")
        encoder = name if source == "smp" else f"tu-{name}"
        made += f'("{encoder}", encoder_weights=None, in_channels={plan.in_channels}, classes={plan.classes})'
    return (
        f"--model {plan.model} is plain PyTorch already, so there is nothing to write: {made} builds it, and a file of "
        "unetkit.save has its weights, with `model.` before each name"
    )


class _FileWriter:
    """Writes the file of a model that is on the meta device, in eval mode."""

    def __init__(self, model: nn.Module, made: dict[int, MadePart], path: Path, usage: Usage) -> None:
        self.model = model
        self.network = cast(UNet, find_network(model))
        self.made = made
        self.path = path
        self.usage = usage
        self.file = SourceFile()
        self.carrier = Carrier(self.file)
        self.traced = trace(model)

    def write(self) -> str:
        """Return the text of the file."""
        parts = PartWriter(self.file, self.network.modules(), self.made)
        facts = find_size_facts(self.network)
        made = ModelWriter(parts, self.carrier, self.network, self.traced, facts).write(self.model)
        name = cast(Use, made).definition.name
        body = "\n".join([*self.file.render(), *_functions(name)])
        return "\n".join([*docstring(self._header(), 88), "", *self._imports(body)]) + "\n" + body + "\n"

    def _header(self) -> list[str]:
        """Return the lines of the docstring of the file."""
        versions = f"unetkit {version('unetkit')} with torch {torch.__version__.partition('+')[0]}"
        if _uses_timm(self.network):
            versions += f" and timm {version('timm')}"
        channels = self.network.resolved_plan.in_channels
        lines = [
            "A U-Net in plain PyTorch.",
            "",
            f"Written by {versions}, from the network",
            "",
            f"    {self.network.plan}",
            "",
            "It does not need unetkit:",
            "",
            f"    from {self.path.stem} import load",
            "",
            f"    network = load({quote(self.usage.weights)}).eval()",
            f"    logits = network(images)  # float32, (B, {channels}, H, W)",
            "",
            "The weights are a file of `unetkit.save`; the modules have the names that it uses.",
        ]
        if self.usage.normalization:
            mean, std = (", ".join(f"{value:.6g}" for value in values) for values in self.usage.normalization)
            lines += [
                f"Images are normalized as in training: (values from 0 to 1 - mean) / std, with mean {mean} and "
                f"std {std}."
            ]
        licences = [f"Contains source of {licence}." for licence in self.carrier.licences.values()]
        return [*lines, "", "SPDX-License-Identifier: Apache-2.0", *licences]

    def _imports(self, body: str) -> list[str]:
        standard, others = set(), {"from torch import Tensor, nn"}
        if re.search(r"\bOrderedDict\(", body):
            standard.add("from collections import OrderedDict")
        if re.search(r"\bSequence\[", body):
            standard.add("from collections.abc import Sequence")
        for line in self.carrier.imports:
            others.add(line) if re.match(r"(from|import) torch\b", line) else standard.add(line)
        if re.search(r"\btimm\.", body):
            others.add("import timm")
        if re.search(r"\btorch\.", body):
            others.add("import torch")
        if re.search(r"\bget_encoder\(", body):
            others.add("from segmentation_models_pytorch.encoders import get_encoder")
        if re.search(r"\bF\.", body):
            others.add("import torch.nn.functional as F")

        def order(line: str) -> tuple[bool, str]:
            return line.startswith("from"), line.split()[1].lower()

        lines = ["from __future__ import annotations", ""] if self.carrier.licences else []
        if standard:
            lines += [*sorted(standard, key=order), ""]
        return lines + sorted(others, key=order)


def _uses_timm(network: Network) -> bool:
    return any(type(module).__module__.startswith("timm.") for module in network.modules())


def _functions(name: str) -> list[str]:
    return f'''

def build() -> {name}:
    """Return the network with random weights, in training mode."""
    return {name}()


def load(path: str) -> {name}:
    """Return the network with the weights of a .safetensors file, in training mode."""
    from safetensors.torch import load_file

    network = build()
    # Copies: processors may round differently at the addresses of the file's tensors.
    weights = {{name: tensor.clone() for name, tensor in load_file(path).items()}}
    network.load_state_dict(weights, assign=True)
    return network'''.split("\n")


def _check(text: str, model: nn.Module, minimum: int | None) -> None:
    """Raise BuildError if the network of a source text is not the same as a model."""
    is_meta = any(tensor.is_meta for tensor in model.state_dict().values())
    module = types.ModuleType("unetkit_ejected")
    try:
        exec(compile(text, "<ejected>", "exec"), vars(module))  # noqa: S102  our own text
        with preserve_rng(), torch.device("meta" if is_meta else "cpu"):
            network: nn.Module = module.build()
    except Exception as error:
        raise BuildError(
            f"the source that was written does not run ({type(error).__name__}: {error}); please report it"
        ) from error
    if state_shapes(network) != state_shapes(model):
        names = {name for name, _ in state_shapes(network).items() ^ state_shapes(model).items()}
        raise BuildError(f"the source that was written has other weights, such as {min(names)}; please report it")
    if is_meta:
        return
    if any(tensor.device.type != "cpu" for tensor in model.state_dict().values()):
        model = copy.deepcopy(model).cpu()  # kernels of a GPU may not compute the same twice
    inner = find_network(model)
    network.load_state_dict(model.state_dict(), assign=True)
    was = {name: one.training for name, one in model.named_modules()}
    try:
        for size in _list_test_sizes(inner, minimum):
            x = torch.rand(1, inner.resolved_plan.in_channels, *size, generator=torch.Generator().manual_seed(0))
            x = x.to(next(model.parameters()))
            with torch.no_grad():
                if not torch.equal(model.eval()(x), network.eval()(x)):
                    raise BuildError("the source that was written computes something else; please report it")
    finally:
        for name, one in model.named_modules():
            one.training = was[name]


def _list_test_sizes(network: Network, minimum: int | None) -> list[Size]:
    """Return sizes to compare outputs at: a small one, and one that is padded, rounded or cropped somewhere."""
    if network.size:
        return [network.size] if network.valid else [network.size, (network.size[0] - 1, network.size[1] - 3)]
    multiple = network.multiple
    if network.valid:
        least = round_up(minimum or min(network.resolved_plan.size or (572, 572)), multiple)
        return [(least, least), (least + multiple, least + 6 * multiple)]
    least = round_up(max(network.min_size, 32), multiple)
    return [(least, least), (least + 5, least + multiple + 2)]
