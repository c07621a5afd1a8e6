"""Capture a network as one program that takes images of any size: padding, resizing and activation are inside.

Shapes: B batch, C channels, K outputs, H and W height and width.
"""

from __future__ import annotations

import copy
import io
import logging
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from time import process_time
from typing import Any, Literal, cast

import torch
import torch.fx.experimental._config as symbolic_shapes_config
from torch import Tensor, nn

from unetkit.data.types import Activation
from unetkit.errors import ExportError, InputSizeError, UnetkitError
from unetkit.summary.forward_hooks import find_network, resolve_input_size
from unetkit.summary.trace import trace
from unetkit.tiling.layout import TileRequirements
from unetkit.tiling.requirements import find_tile_requirements, full_size
from unetkit.unet import UNet
from unetkit.utils.formatting import Size, format_size, format_type
from unetkit.utils.integers import round_up
from unetkit.utils.isolation import INTERRUPTS, ignore_breakpoints

OutputName = Literal["logits", "probabilities"]

#: The name of the input of every program.
INPUT = "image"
#: Symbolic sizes of some networks, such as those of shifted windows, take hours to derive.
_MOST_SECONDS = 120


class _Program(nn.Module):
    """A network in eval mode as a program: float32 images in, float32 logits or probabilities of full size out."""

    def __init__(self, model: nn.Module, activation: Activation, half: bool, has_fixed_size: bool = False) -> None:
        super().__init__()
        self.has_fixed_size = has_fixed_size
        self.model = model
        self.activation = activation
        self.half_precision = half

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K, H', W') of the size at which tiles are combined."""
        output = full_size(self.model, image.half() if self.half_precision else image).float()
        if self.activation == "sigmoid":
            return output.sigmoid()
        return output.softmax(1) if self.activation == "softmax" else output


@dataclass(frozen=True)
class CapturedNetwork:
    """A network as a program, with what a format needs to write it.

    Attributes:
        program: the program, with a dynamic batch and, unless the network takes one size only, dynamic sizes.
        reference: a module that computes the same in float32, for comparison.
        channels: the number of image channels.
        output: the name of the output.
        tiles: what the network requires of tiles.
        size: the height and width that the network is meant for.
        is_dynamic: whether height and width are dynamic.
        any_size: whether inputs of every size are accepted; otherwise those that `tiles` describes.
    """

    program: torch.export.ExportedProgram
    reference: nn.Module
    channels: int
    output: OutputName
    tiles: TileRequirements
    size: Size
    is_dynamic: bool
    any_size: bool

    @property
    def weight_bytes(self) -> int:
        """The size of all weights."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.program.state_dict.values())


@ignore_breakpoints()
def capture(
    model: nn.Module, *, activation: Activation = "identity", half: bool = False, size: Size | None = None
) -> CapturedNetwork:
    """Capture a network as a program.

    Args:
        model: a model that `unetkit.build` or `load` returned, on any device and in any mode, which is not changed.
        activation: what turns logits into probabilities within the program; "identity" for logits.
        half: whether weights and computation are float16. Images and outputs remain float32.
        size: the only height and width of images that the program takes; None for all that the network takes.

    Raises:
        ExportError: The network cannot be captured; the message names the module that fails.
        InputSizeError: The network does not accept the size, or accepts none.
    """
    if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
        raise ExportError("the model is on the meta device and has no weights; build it on the cpu or a gpu")
    network = find_network(model)
    tiles = find_tile_requirements(model)
    if size is not None:
        trace(model, size)  # raises if the network does not accept it
        if tiles.fixed not in (None, size):
            raise InputSizeError(f"--fixed-size {format_size(size)}: {tiles.explanation}; leave it out")
        why = f"it was exported for {format_size(size)}"
        tiles = replace(tiles, fixed=size, least=size, explanation=why)
    reference = _Program(_copy(model), activation, half=False).eval()
    captured = _Program(
        copy.deepcopy(reference.model).half() if half else reference.model, activation, half, tiles.fixed is not None
    ).eval()
    channels = int(network.resolved_plan.in_channels)
    is_dynamic = tiles.fixed is None
    auto: Any = torch.export.Dim.AUTO
    if tiles.fixed:
        example, shapes = tiles.fixed, {0: auto}
    else:
        # Far above the smallest size, and not square: no two sides of any map are equal or 1 by chance.
        example, shapes = _example_size(tiles), {0: auto, 2: auto, 3: auto}
    # Sizes stay free although the example's are known, so that a side of 1 in a deep map needs no other program.
    free_sizes: Any = cast(Any, symbolic_shapes_config).patch(backed_size_oblivious=True)
    with silence(), _name_failing_module(captured), torch.no_grad(), free_sizes, _simple_same_padding():
        program = torch.export.export(captured, (torch.zeros(2, channels, *example),), dynamic_shapes=(shapes,))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it names files of this machine
    return CapturedNetwork(
        program=program,
        reference=reference,
        channels=channels,
        output="logits" if activation == "identity" else "probabilities",
        tiles=tiles,
        size=tiles.fixed or resolve_input_size(network, None),
        is_dynamic=is_dynamic,
        any_size=is_dynamic and not network.valid,
    )


def _copy(model: nn.Module) -> nn.Module:
    """Return a copy on the CPU in float32 and in eval mode."""
    return copy.deepcopy(model).cpu().float().eval()


def _example_size(tiles: TileRequirements) -> Size:
    height, width = (
        round_up(max(least, 32), tiles.period) if least % tiles.period == 0 else least for least in tiles.least
    )
    return height + 2 * tiles.period, width + 3 * tiles.period


def same_padding(size: int, kernel: int, stride: int, dilation: int) -> int:
    """Return the pixels by which TensorFlow's "SAME" padding enlarges one side of an image.

    The result is that of `timm.layers.get_same_padding`. Where the kernel covers the stride, the formula has neither a
    maximum nor a ceiling, so that the sizes of maps remain simple expressions of a size that is left open.
    """
    reach = (kernel - 1) * dilation + 1
    if reach == 1:
        return 0
    padding = ((size + stride - 1) // stride - 1) * stride + reach - size
    return padding if reach >= stride else max(padding, 0)


@contextmanager
def _simple_same_padding() -> Iterator[None]:
    """Let timm's layers compute their "SAME" padding by `same_padding`: otherwise the sizes take hours to derive.

    The padding is the same, so it does not matter that other threads compute theirs by it meanwhile.
    """
    layers: Any = sys.modules.get("timm.layers.padding")
    if layers is None:  # no layer of timm's is in the network
        yield
        return
    before = layers.get_same_padding
    layers.get_same_padding = same_padding
    try:
        yield
    finally:
        layers.get_same_padding = before


@contextmanager
def silence() -> Iterator[None]:
    """Suppress warnings, log messages and prints of exporters, which concern neither the user nor the result."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


@contextmanager
def _name_failing_module(program: _Program) -> Iterator[None]:
    """Convert an exception to an ExportError that names the innermost module in which it was raised."""
    stack: list[str] = []
    handles = []
    start = process_time()

    def enter(name: str) -> None:
        stack.append(name)
        if process_time() - start > _MOST_SECONDS:
            raise TimeoutError(f"its sizes could not be left open within {_MOST_SECONDS} s of computation")

    for name, module in program.model.named_modules():
        handles.append(module.register_forward_pre_hook(lambda *_, name=name: enter(name)))
        handles.append(module.register_forward_hook(lambda *_: stack.__delitem__(-1)))
    try:
        yield
    except (*INTERRUPTS, UnetkitError):
        raise
    except Exception as error:
        where = describe_module(program.model, stack[-1] if stack else "")
        advice = "--fixed-size 256 exports for one size, or replace it"
        if _is_data_dependent(error):
            advice = "compute it by torch's operations, such as torch.where"
        elif program.has_fixed_size:
            advice = "replace it"
        raise ExportError(f"{where} cannot be exported: {_first_sentence(error)}; {advice}") from error
    finally:
        for handle in handles:
            handle.remove()


def describe_module(model: nn.Module, name: str) -> str:
    """Describe a module for a message: its path, its class, and the stride of its level in the decoder."""
    modules = dict(model.named_modules())
    if not name or name not in modules:
        return format_type(model)
    level = ""
    network = find_network(model)
    prefix = next(path for path, module in modules.items() if module is network)
    inside = name.removeprefix(f"{prefix}.") if prefix else name
    if isinstance(network, UNet) and (found := re.match(r"stages\.(\d+)(?:\.|$)", inside)):
        level = f" at stride {network.stages[int(found[1])].stride}"
    return f"{inside} ({type(modules[name]).__name__}){level}"


def _first_sentence(error: BaseException) -> str:
    if _is_data_dependent(error):
        return "what it computes depends on values of tensors in Python, such as by .item() or by `if`"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _is_data_dependent(error: BaseException) -> bool:
    return "data-dependent" in str(error) or "DataDependent" in type(error).__name__
