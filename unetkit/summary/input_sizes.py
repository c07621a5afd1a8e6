"""Checks of a network on meta tensors: whether its parts keep their contracts, and which input sizes it takes."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from unetkit.errors import BuildError, InputSizeError, UnetkitError
from unetkit.network import Network
from unetkit.plan import part_at_level
from unetkit.summary.forward_hooks import (
    ForwardRecord,
    ModuleCall,
    find_network,
    make_meta_input,
    record_forward,
    resolve_input_size,
)
from unetkit.summary.outputs import find_names_error
from unetkit.unet import Stage, UNet
from unetkit.utils.formatting import Size, format_size
from unetkit.utils.integers import round_up
from unetkit.utils.modules import preserve_mode, to_meta
from unetkit.utils.spatial import looks_like_nhwc, size_of


def verify(model: nn.Module, *, any_size: bool) -> None:
    """Check that a network takes the input size that it is meant for, and that its parts return what they declare.

    Args:
        model: the model as it was built.
        any_size: whether it is enough that the network takes some size.

    Raises:
        InputSizeError: the network does not take the size; says which module failed and with which shapes.
        BuildError: a part violates its contract, or fails for a reason other than the size.
    """
    meta_model = to_meta(model)
    with preserve_mode(meta_model):
        _verify(meta_model.eval(), any_size=any_size)


def _verify(meta_model: nn.Module, *, any_size: bool) -> None:
    network = find_network(meta_model)
    size = resolve_input_size(network, None)
    with torch.no_grad():
        record = record_forward(meta_model, make_meta_input(network, size))
    if record.reads_values():
        return  # such a part cannot be checked on meta
    if violation := contract_violation(network, record):
        raise BuildError(violation) from record.error
    if record.error is not None:
        search = SizeSearch(meta_model)
        if any_size and not is_mistake(record.error) and search.is_hopeful(max(size)):
            return
        raise size_error(search, size, record) from record.error
    if record.error is None and not isinstance(record.output, Tensor):
        return  # a plugin's wrapper may return several outputs
    classes = network.resolved_plan.classes
    if record.output is not None and record.output.shape[1] != classes:
        raise BuildError(f"the logits have {record.output.shape[1]} channels for {classes} classes")


# Contracts of parts


@dataclass(frozen=True)
class _Contract:
    """The output that a part must give, if it is to give one tensor.

    Attributes:
        flag: the option of the command line that chose the part, with its value.
        channels: the channels of its output; None if it does not declare them.
        reason: why it must have these channels, in words.
        kind: what to call the part if it must keep height and width; "" if it may change them.
        has_names: whether the part may give several tensors by name, of which the first is checked.
    """

    flag: str
    channels: int | None
    reason: str
    kind: str = ""
    has_names: bool = False


def contract_violation(network: Network, record: ForwardRecord) -> str:
    """Say in words which part violated its contract in a recorded pass; "" where none did."""
    if not isinstance(network, UNet):
        return _find_names_violation(network, record) or _find_size_violation(network, record)
    contracts = _read_contracts(network)
    for call in record.calls:
        if call.end < 0:
            continue
        if call.module is network.encoder and (violation := _find_encoder_violation(network, call)):
            return f"the encoder (--encoder {network.resolved_plan.encoder}) {violation}"
        contract = contracts.get(call.module)
        if contract and (violation := _find_violation(contract, call)):
            return f"{call.name} ({contract.flag}) {violation}"
    return _find_names_violation(network, record)


def _find_names_violation(network: Network, record: ForwardRecord) -> str:
    """Say in words how the named outputs of a head or a whole model contradict what it declares."""
    call = next((call for call in record.calls if call.module is network.output_part and call.end >= 0), None)
    error = call and call.names and find_names_error(call.names, network.outputs)
    return f"{network.output_source} {error}" if error else ""


def failing_part(network: Network, record: ForwardRecord) -> str:
    """Return the option that chose the part in which a pass failed, as in "--fuse gate: "; "" where none did."""
    if not isinstance(network, UNet):
        return f"--model {network.resolved_plan.model}: "
    flags = {module: contract.flag for module, contract in _read_contracts(network).items()}
    flags[network.encoder] = f"--encoder {network.resolved_plan.encoder}"
    unfinished = [flags[call.module] for call in record.calls if call.end < 0 and call.module in flags]
    return f"{unfinished[-1]}: " if unfinished else ""


def _find_size_violation(network: Network, record: ForwardRecord) -> str:
    """Say in words what is wrong with the size of the logits of a whole model."""
    call = next((call for call in record.calls if call.module is network.encoder and call.end >= 0), None)
    if call is None or not call.outputs or call.outputs[0].ndim != 4:
        return ""
    input_size, output_size = size_of(call.inputs[0]), size_of(call.outputs[0])
    if input_size == output_size:
        return ""
    sizes = f"{format_size(output_size)} for an input of {format_size(input_size)}"
    return f"--model {network.resolved_plan.model} gives logits of {sizes}; they must have the size of the input"


def _read_contracts(network: UNet) -> dict[Any, _Contract]:
    plan = network.resolved_plan
    contracts: dict[Any, _Contract] = {}
    for index, stage in enumerate(network.stages):
        if not isinstance(stage, Stage):  # a user has replaced it
            continue
        width = (plan.widths or ())[min(index, len(plan.widths or ()) - 1)]
        contracts[stage.up] = _declared_contract("up", part_at_level(plan.up, index), stage.up)
        if stage.fusion is not None:
            contracts[stage.fusion] = _declared_contract(
                "fuse", part_at_level(plan.fuse, index), stage.fusion, "fusion"
            )
        flag, kind = f"--block {part_at_level(plan.block, index)}", "" if network.valid else "block"
        contracts[stage.block] = _Contract(flag, width, f"must give {width} channels", kind)
    head = f"must give {plan.classes} channels, one per class"
    contracts[network.head] = _Contract(f"--head {plan.head}", plan.classes, head, has_names=True)
    return contracts


def _declared_contract(word: str, spec: str, part: Any, kind: str = "") -> _Contract:
    channels = getattr(part, "out_channels", None)  # a user may have replaced the part by a layer without it
    return _Contract(f"--{word} {spec}", channels, f"declares out_channels={channels}", kind)


def _find_violation(contract: _Contract, call: ModuleCall) -> str:
    if call.names and contract.has_names:
        if len(call.outputs) != len(call.names) or any(tensor.ndim != 4 for tensor in call.outputs):
            return f"gives a dict of {', '.join(call.names)}, not all of which are tensors of shape (B, C, H, W)"
    elif call.names or len(call.outputs) != 1 or call.outputs[0].ndim != 4:
        result = (
            "a tensor of shape " + "x".join(map(str, call.outputs[0].shape))
            if len(call.outputs) == 1 and not call.names
            else f"{len(call.outputs)} tensors"
        )
        return f"gives {result if call.outputs else 'no tensor'} instead of one of shape (B, C, H, W)"
    output = call.outputs[0]
    if contract.channels is not None and output.shape[1] != contract.channels:
        return f"{contract.reason}, but gives {output.shape[1]}{_nhwc_hint(call, (contract.channels,))}"
    if contract.kind and call.inputs and size_of(output) != size_of(call.inputs[0]):
        sizes = f"{format_size(size_of(output))} for an input of {format_size(size_of(call.inputs[0]))}"
        return f"gives {sizes}; a {contract.kind} must keep height and width"
    return ""


def _nhwc_hint(call: ModuleCall, channels: tuple[int, ...]) -> str:
    is_nhwc = bool(call.inputs) and looks_like_nhwc(call.outputs[: len(channels)], channels, size_of(call.inputs[0]))
    return "; its maps look NHWC: permute them to NCHW" if is_nhwc else ""


def _find_encoder_violation(network: UNet, call: ModuleCall) -> str:
    if call.names or not call.outputs or any(tensor.ndim != 4 for tensor in call.outputs):
        return "does not give a list of maps of shape (B, C, H, W)"
    channels = tuple(tensor.shape[1] for tensor in call.outputs)
    if channels != network.channels:
        return f"declares channels {network.channels}, but gives {channels}{_nhwc_hint(call, network.channels)}"
    input_size = size_of(call.inputs[0])
    for stride, tensor in zip(network.strides, call.outputs, strict=True):
        # Models round up or down, and stems without padding lose some pixels, so sizes need to fit only roughly.
        pairs = zip(input_size, size_of(tensor), strict=True)
        fits = all(abs(n / stride - side) <= max(1, n / stride / 4) for n, side in pairs)
        if not fits and not network.valid:
            sizes = f"{format_size(size_of(tensor))} from an input of {format_size(input_size)}"
            return f"declares stride {stride} for a map of {sizes}"
    return ""


# Input sizes

#: Errors that may depend on the size of the input.
_SIZE_ERRORS = (ArithmeticError, AssertionError, IndexError, RuntimeError, UnetkitError, ValueError)


def is_mistake(error: Exception | None) -> bool:
    """Return whether an error of a pass is a mistake in the code of a part, which no size of the input mends."""
    return isinstance(error, NotImplementedError) or not isinstance(error, _SIZE_ERRORS)


#: The largest side that is tried: no known network refuses a side of this length for being too small.
_MAX_SIDE = 2048

#: How many periods from a size the nearest ones are looked for.
_REACH = 8


class SizeSearch:
    """A search for input sizes that a model on meta takes: each size that it returns has passed.

    Sides that differ by the network's period give maps that differ by whole pixels, so of these a side above one that
    passes is expected to pass, too. Of other sides nothing is expected: an encoder may take multiples only, and what an
    align, a fusion or a valid convolution takes depends on how each stride rounds the side.
    """

    def __init__(self, meta_model: nn.Module) -> None:
        self.meta_model = meta_model
        self.network = find_network(meta_model)
        self.period = self.network.period
        #: Sides are tried in steps: a network with valid convolutions, which pads nothing, takes multiples only.
        self.step = self.network.multiple if self.network.valid else 1
        self._records: dict[Size, tuple[bool, bool]] = {}

    def accepts(self, size: Size, *, lossless: bool = False) -> bool:
        """Return whether the model takes an input size.

        Args:
            size: height and width.
            lossless: whether no pool may drop a row or column either.
        """
        passed = self.network.padded_size(size) if self.network.size is None else size
        if passed not in self._records:
            with torch.no_grad():
                record = record_forward(self.meta_model, make_meta_input(self.network, passed))
            self._records[passed] = record.error is None, not record.list_lossy_pools()
        is_accepted, is_lossless = self._records[passed]
        return is_accepted and (is_lossless or not lossless)

    def accepts_side(self, side: int, *, lossless: bool = False) -> bool:
        """Return whether the model takes a square input, as `accepts` does."""
        return self.accepts((side, side), lossless=lossless)

    @cached_property
    def smallest(self) -> int | None:
        """The smallest side of a square input that the model takes; None where none was found up to 2048."""
        if not self.network.valid and (self._is_builtin() or self.accepts_side(1)):
            return 1
        if self.network.size is not None:
            height, width = self.network.size
            return height if height == width and self.accepts((height, width)) else None
        return smallest_side(self.accepts_side, self.period, self.step) if self.is_hopeful(_MAX_SIDE // 2) else None

    def _is_builtin(self) -> bool:
        """Return whether every part is unetkit's own; these take every padded size, which the tests prove."""
        specs = self.network.resolved_plan.specs()
        return not self.network.plugins and all(link.factory is None for _, spec in specs for link in spec.links)

    def smallest_like(self, side: int) -> int:
        """Return the smallest accepted side that differs by whole periods from a side that is accepted."""
        return _descend(self.accepts_side, side, self.period)

    def is_hopeful(self, side: int) -> bool:
        """Return whether the model takes any of a few sizes that differ in all that sizes can differ in.

        If it takes none, what fails is most likely a mistake in a part, which no size mends.

        Args:
            side: a side in pixels near which to try.
        """
        return any(map(self.accepts_side, self._samples(side)))

    def _samples(self, side: int) -> list[int]:
        below = max(side // self.period, 1) * self.period
        # Attention in windows needs maps that its windows divide: 60 is a multiple of 1 to 6, and 56 of 7 and 8.
        many = [times * self.period for times in (60, 56) if times * self.period <= 2 * _MAX_SIDE]
        # Valid convolutions take any remainder; padding takes them all, so that two speak for the others.
        remainders = range(self.step, self.period, self.step) if self.network.valid else (1, self.period // 2)
        large = max(below, many[0] if many and self.network.valid else below)
        return [below, below + self.period, *many, *(large + each for each in remainders)]

    def nearest_sizes(self, size: Size) -> tuple[Size, ...]:
        """Find the two sizes nearest to a size that the model takes and at which no pool drops a row or column.

        Returns:
            The smaller size, then the larger; the two that follow where no smaller one is taken; () where none was
            found.
        """
        if self.network.size is not None:
            return (self.network.size,) if self.accepts(self.network.size) else ()
        if not self.is_hopeful(max(size)) or self.smallest is None:
            return ()
        for lossless in (True, False):
            heights, widths = (self._nearest_sides(side, lossless=lossless) for side in size)
            found = dict.fromkeys(zip(heights, widths, strict=False))
            if sizes := tuple(each for each in found if self.accepts(each, lossless=lossless)):
                return sizes
        return ()

    def _nearest_sides(self, side: int, *, lossless: bool) -> list[int]:
        smallest = (self.smallest or 1) if self.network.valid else 1
        if side >= smallest and side % self.step == 0 and self.accepts_side(side, lossless=lossless):
            return [side, side]

        def first(*ranges: range) -> list[int]:
            return next(([each] for each in chain(*ranges) if self.accepts_side(each, lossless=lossless)), [])

        # Every remainder is within a period; windows may need more, but then multiples of the period.
        reach, far = self.period + self.step, _REACH * self.period

        def above(least: int) -> list[int]:
            start = round_up(max(least, smallest), self.step)
            grid = round_up(start + reach, self.period)
            return first(range(start, start + reach, self.step), range(grid, start + far, self.period))

        top = (side - 1) // self.step * self.step
        grid = (top - reach) // self.period * self.period
        steps = range(top, max(smallest, top - reach) - 1, -self.step)
        below = first(steps, range(grid, max(smallest, top - far) - 1, -self.period))
        larger = above(side + 1)
        return below + larger if below or not larger else larger + above(larger[0] + 1)


def smallest_side(accepts: Callable[[int], bool], period: int, step: int = 1) -> int | None:
    """Find the smallest accepted side up to 2048 among the multiples of a step; None where there is none.

    Args:
        accepts: says whether a side in pixels is accepted. It is expected to accept a side above an accepted one if
            they differ by the period, and only then.
        period: a multiple of the step.
        step: every side that is tried is a multiple of it.
    """
    best: int | None = None
    for remainder in range(0, period, step):
        below = _MAX_SIDE + 1 if best is None else best
        top = (below - 1 - remainder) // period * period + remainder  # the largest of its kind below the best so far
        if best is None and not remainder:
            # Most networks take multiples of the period, and few are needed: from below there are fewer passes.
            best = next((side for side in range(period, top + 1, period) if accepts(side)), None)
        elif top > 0 and accepts(top):
            best = _descend(accepts, top, period)
    return best


def _descend(accepts: Callable[[int], bool], side: int, period: int) -> int:
    """Return the smallest accepted side below an accepted one, in steps of the period."""
    below = range(side % period or period, side, period)
    return below[at] if (at := bisect_left(below, x=True, key=accepts)) < len(below) else side


def size_error(search: SizeSearch, size: Size, record: ForwardRecord) -> UnetkitError:
    """Make the error for a pass that failed: which module failed, with which shapes, and which sizes work.

    Args:
        search: a search for sizes that the model takes.
        size: the size of the input.
        record: the failed pass.

    Returns:
        An InputSizeError; a BuildError if no size mends the failure.
    """
    network = search.network
    if isinstance(record.error, InputSizeError) and network.size:
        return record.error  # its message names the layer that is too large for the encoder
    failure = record.describe_failure()
    if is_mistake(record.error):
        return BuildError(f"{failing_part(network, record)}{failure}{record.describe_location()}")
    if sizes := search.nearest_sizes(size):
        nearest = " and ".join(map(format_size, sizes))
        return InputSizeError(
            f"input size {format_size(size)} does not work: {failure}; the nearest sizes that work are {nearest}"
        )
    mistake = record.describe_channel_mistake()
    mistake = mistake or f"no input size that was tried works: at {format_size(size)}, {failure}"
    return BuildError(f"{failing_part(network, record)}{mistake}{record.describe_location()}")
