"""The contracts of the kinds of parts: positional arguments, inputs, and the expected outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from unetkit.errors import BuildError
from unetkit.network import declared_outputs, prediction_of
from unetkit.summary.forward_hooks import collect_tensors
from unetkit.summary.outputs import find_output_error
from unetkit.testing.catalog import Nonconformity, SkipCheck
from unetkit.utils.formatting import Size, format_type
from unetkit.utils.integers import ceil_div, round_up
from unetkit.utils.spatial import looks_like_nhwc, size_of

#: The batch size, height and width of an input.
Shape = tuple[int, int, int]

#: The inputs of parts that keep the size. Most checks use the first.
SHAPES: tuple[Shape, ...] = ((3, 5, 7), (1, 8, 8), (2, 1, 1), (1, 1, 1))
#: The inputs of parts with valid convolutions, which crop the map.
VALID_SHAPES: tuple[Shape, ...] = ((3, 13, 15), (1, 16, 16))


@dataclass(frozen=True)
class PartInput:
    """The inputs of one forward pass of a part.

    Attributes:
        tensors: the input tensors, each of shape (B, C, H, W).
        target_size: the (height, width) that an upsampler is called with; None for other kinds.
    """

    tensors: tuple[Tensor, ...]
    target_size: Size | None = None

    def map(self, change: Callable[[Tensor], Any]) -> PartInput:
        """Apply a function to each tensor."""
        return PartInput(tuple(change(tensor) for tensor in self.tensors), self.target_size)

    def clone(self) -> PartInput:
        """Return a copy that a part may change in place."""
        return self.map(torch.clone)

    @property
    def size(self) -> Size:
        """The height and width of the first tensor."""
        return size_of(self.tensors[0])

    @property
    def batch(self) -> int:
        """The number of samples."""
        return len(self.tensors[0])

    def __str__(self) -> str:
        sizes = dict.fromkeys(format_shape(size_of(tensor)) for tensor in self.tensors)
        target_size = f", target size {format_shape(self.target_size)}" if self.target_size else ""
        return f"{self.batch} of {' and '.join(sizes)}{target_size}"


def format_shape(size: Iterable[int]) -> str:
    """Format a size or a shape: 5x7."""
    return "x".join(map(str, size))


def random_tensor(*shape: int) -> Tensor:
    """Draw a tensor from the normal distribution, with a seed that depends only on the shape."""
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, device="cpu", dtype=torch.float32)


PositionalArgs = tuple[Any, ...]
Outputs = tuple[Tensor, ...]


class Contract:
    """The contract of a kind; the base class is for parts that take maps of one size and return one tensor.

    The methods `find_*_error` return "" if there is no error.

    Attributes:
        title: the title of the kind.
        arg_names: the names of the positional parameters, in order.
        num_optional_args: the number of the last of them that a factory may leave out.
        needs_defaults: True if every option needs a default, so that the name alone creates the part.
        positional_cases: tuples of positional arguments to try. A part may reject some; checks that need only one take
            the first that the part accepts.
        takes_images: True if parts take images instead of maps. Images are large, so most checks use one tuple of
            positional arguments, and no layers before the part need gradients.
    """

    title = ""
    takes_images = False
    arg_names: tuple[str, ...] = ()
    num_optional_args = 0
    needs_defaults = True
    positional_cases: tuple[PositionalArgs, ...] = ()

    def find_declaration_error(self, part: Any) -> str:
        """Describe what is wrong with the attributes that a part declares."""
        return ""

    def make_inputs(self, part: Any, args: PositionalArgs) -> list[PartInput]:
        """Create the inputs for the checks, the usual one first."""
        shapes = VALID_SHAPES if getattr(part, "valid", False) else SHAPES
        return [self.make_input(args, shape) for shape in shapes]

    def select_inputs(self, inputs: list[PartInput]) -> list[PartInput]:
        """Select the inputs that are sufficient for the checks of options and gradients."""
        return inputs

    def make_input(self, args: PositionalArgs, shape: Shape) -> PartInput:
        """Create the input of shape (batch, height, width)."""
        batch, *size = shape
        return PartInput((random_tensor(batch, args[0], *size),))

    def with_target_size(self, part_input: PartInput, args: PositionalArgs) -> PartInput:
        """Add the size that a decoder stage would request, for kinds that are called with one."""
        return part_input

    def make_export_inputs(self, part: Any, args: PositionalArgs) -> tuple[int, list[PartInput]]:
        """Return the minimum height and width for torch.export, and inputs, the first of which is the example."""
        cropped = 10 if getattr(part, "valid", False) else 0
        shapes = [(2, height + cropped, width + cropped) for height, width in ((16, 12), (9, 11), (7, 6))]
        return 4 + cropped, [self.with_target_size(self.make_input(args, shape), args) for shape in shapes]

    def call(self, part: Any, part_input: PartInput) -> Any:
        """Call a part as a network does."""
        return part(*part_input.tensors)

    def compute_outputs(self, part: Any, part_input: PartInput) -> Outputs:
        """Run a part and return its outputs as a tuple.

        Raises:
            Nonconformity: The outputs are not the expected number of tensors of shape (B, C, H, W).
        """
        out = self.call(part, part_input)
        count = self.count_outputs(part)
        if count is None:
            if not isinstance(out, Tensor):
                raise Nonconformity(f"returns {format_type(out)}; expected one tensor")
            out = (out,)
        if not isinstance(out, list | tuple) or not all(isinstance(tensor, Tensor) for tensor in out):
            raise Nonconformity(f"returns {format_type(out)}; expected {count} tensors")
        if count is not None and len(out) != count:
            raise Nonconformity(f"returns {len(out)} tensors; expected {count}")
        if flat := [tensor for tensor in out if tensor.ndim != 4]:
            raise Nonconformity(f"returns a tensor of shape {format_shape(flat[0].shape)}; expected (B, C, H, W)")
        return tuple(out)

    def count_outputs(self, part: Any) -> int | None:
        """Return the number of tensors in the returned list or tuple; None if a single tensor is expected."""
        return None

    def expected_channels(self, part: Any, args: PositionalArgs) -> tuple[int, ...]:
        """Return the expected channels of each output."""
        return (args[1],)

    def describe_expected_channels(self, part: Any, args: PositionalArgs) -> str:
        """Describe the expected channels for a message."""
        return f"is called with {self.arg_names[1]}={args[1]}"

    def find_channel_error(self, part: Any, args: PositionalArgs, part_input: PartInput, outputs: Outputs) -> str:
        """Describe what is wrong with the batch size and the channels of the outputs."""
        if wrong := [len(out) for out in outputs if len(out) != part_input.batch]:
            return f"returns a batch of {wrong[0]}; expected {part_input.batch}"
        expected, returned = self.expected_channels(part, args), tuple(out.shape[1] for out in outputs)
        if expected == returned:
            return ""
        is_nhwc = looks_like_nhwc(outputs, expected, part_input.size)
        hint = "; the maps appear to be NHWC: permute them to NCHW" if is_nhwc else ""
        return f"{self.describe_expected_channels(part, args)}, but returns {_format_channels(returned)} channels{hint}"

    def find_size_error(self, part: Any, args: PositionalArgs, part_input: PartInput, outputs: Outputs) -> str:
        """Describe what is wrong with the height and width of the outputs."""
        return self.compare_sizes(part, args, part_input, [size_of(out) for out in outputs])

    def compare_sizes(self, part: Any, args: PositionalArgs, part_input: PartInput, returned: list[Size]) -> str:
        """Describe what is wrong with the sizes `returned` for an input."""
        if returned[0] == part_input.size:
            return ""
        return f"returns {format_shape(returned[0])}; a {self.title} must keep height and width"


def _format_channels(numbers: Sequence[int]) -> str:
    return str(numbers[0]) if len(numbers) == 1 else str(tuple(numbers))


class EncoderContract(Contract):
    """The contract `(in_channels)`: maps from shallow to deep, one for each declared channel count and stride."""

    title = "encoder"
    takes_images = True
    arg_names = ("in_channels",)
    positional_cases = ((3,), (1,), (4,))

    def find_declaration_error(self, part: Any) -> str:
        channels, strides = (getattr(part, name, None) for name in ("channels", "strides"))
        for name, numbers in (("channels", channels), ("strides", strides)):
            if not isinstance(numbers, tuple | list) or not all(isinstance(n, int) and n >= 1 for n in numbers):
                return f"must declare {name} as ints of at least 1, one per map; it is {numbers!r}"
        channels, strides = part.channels, part.strides
        if len(channels) != len(strides) or len(channels) < 2:
            counts = f"{len(channels)} channels and {len(strides)} strides"
            return f"declares {counts}; expected equal numbers, at least two"
        if any(a >= b for a, b in pairwise(strides)):
            return f"declares strides {strides}; strides must increase from shallow to deep"
        if len(widths := getattr(part, "widths", channels)) != len(channels):
            return f"declares {len(widths)} widths for {len(channels)} maps"
        return ""

    def make_inputs(self, part: Any, args: PositionalArgs) -> list[PartInput]:
        shapes = list_encoder_shapes(part)  # encoders are slow: only the smallest input for other in_channels
        return [self.make_input(args, shape) for shape in (shapes if args == self.positional_cases[0] else shapes[1:2])]

    def select_inputs(self, inputs: list[PartInput]) -> list[PartInput]:
        return inputs[1:2] or inputs

    def make_export_inputs(self, part: Any, args: PositionalArgs) -> tuple[int, list[PartInput]]:
        if fixed := getattr(part, "size", None):
            raise SkipCheck(f"it accepts only {format_shape(fixed)}")
        (_, height, width), (_, least, _) = list_encoder_shapes(part)[:2]
        # Below twice the deepest stride a map may have one pixel, which torch.export treats as a fixed size.
        least = least if getattr(part, "valid", False) else max(least, 2 * part.strides[-1])
        step = getattr(part, "multiple", 1)
        sizes = ((2 * height, 2 * width), (height, width), (height + 2 * step, 2 * width + step))
        return least, [self.make_input(args, (2, *size)) for size in sizes]

    def count_outputs(self, part: Any) -> int | None:
        return len(part.channels)

    def expected_channels(self, part: Any, args: PositionalArgs) -> tuple[int, ...]:
        return tuple(part.channels)

    def describe_expected_channels(self, part: Any, args: PositionalArgs) -> str:
        return f"declares channels={part.channels}"

    def compare_sizes(self, part: Any, args: PositionalArgs, part_input: PartInput, returned: list[Size]) -> str:
        for index, (stride, size) in enumerate(zip(part.strides, returned, strict=True)):
            for side, input_side in zip(size, part_input.size, strict=True):
                exact = input_side / stride
                # Models round up or down, and unpadded stems crop the map, so the size is approximate.
                is_short = exact - side > max(1, exact / 4) and not getattr(part, "valid", False)
                if side < 1 or is_short or side - exact > max(1, exact / 4):
                    approximate = format_shape(ceil_div(n, stride) for n in part_input.size)
                    description = f"declares stride {stride} for map {index}, which is about {approximate}"
                    return f"{description}, but returns {format_shape(size)}"
        return ""


def list_encoder_shapes(part: Any) -> list[Shape]:
    """Return shapes that fit an encoder's attributes: an odd size, the smallest, and a larger one."""
    deepest = part.strides[-1]
    if fixed := getattr(part, "size", None):
        return [(2, *fixed), (1, *fixed)]
    if getattr(part, "valid", False):
        least = 10 * deepest  # large enough for the unpadded convolutions of an encoder of usual depth
        return [(2, least + 4, least + 8), (1, least, least)]
    least = getattr(part, "min_size", deepest)
    usual = max(least, 2 * deepest)
    shapes = [(2, usual + 1, usual + 5), (2, 1, 1), (1, 4 * deepest + 3, 4 * deepest)]
    return [(batch, _round_up(part, height, least), _round_up(part, width, least)) for batch, height, width in shapes]


class _PredictionContract(Contract):
    """The contract of a kind that makes the outputs of a network: a prediction, or several outputs.

    The prediction comes first in what `compute_outputs` returns, and has the expected channels and size.
    """

    def find_declaration_error(self, part: Any) -> str:
        try:
            declared_outputs(part)
        except BuildError as error:
            return str(error)
        return ""

    def compute_outputs(self, part: Any, part_input: PartInput) -> Outputs:
        """Run a part and return its outputs as a tuple, the prediction first.

        Raises:
            Nonconformity: The outputs are neither a tensor of shape (B, C, H, W) nor several as the part declares them.
        """
        out = self.call(part, part_input)
        is_tuple = isinstance(out, tuple | list)
        if isinstance(out, Mapping) or (is_tuple and part.training) or (declared_outputs(part) and part.training):
            classes = prediction_of(out).shape[1] if collect_tensors(out) else 0
            if error := find_output_error(out, declared_outputs(part), classes):
                raise Nonconformity(error)
            return tuple(collect_tensors(out))
        if not isinstance(out, Tensor):
            raise Nonconformity(f"returns {format_type(out)}; expected one tensor, or a dict of named outputs")
        if out.ndim != 4:
            raise Nonconformity(f"returns a tensor of shape {format_shape(out.shape)}; expected (B, C, H, W)")
        return (out,)

    def find_channel_error(self, part: Any, args: PositionalArgs, part_input: PartInput, outputs: Outputs) -> str:
        if wrong := [len(out) for out in outputs if len(out) != part_input.batch]:
            return f"returns a batch of {wrong[0]}; expected {part_input.batch}"
        return super().find_channel_error(part, args, part_input, outputs[:1])


class ModelContract(_PredictionContract):
    """The contract `(in_channels, classes)`: logits of the input's size, for sizes that a network passes on."""

    title = "model"
    takes_images = True
    arg_names = ("in_channels", "classes")
    positional_cases = ((3, 5), (1, 1), (4, 2))

    def find_declaration_error(self, part: Any) -> str:
        for name in ("min_size", "multiple"):
            if not _is_side(found := getattr(part, name, 1)):
                return f"declares {name}={found!r}; expected an int of at least 1"
        size = getattr(part, "size", None)
        if size is not None and not (isinstance(size, tuple | list) and len(size) == 2 and all(map(_is_side, size))):
            return f"declares size={size!r}; expected (height, width) or None"
        return super().find_declaration_error(part)

    def make_inputs(self, part: Any, args: PositionalArgs) -> list[PartInput]:
        shapes = list_model_shapes(part)  # models are slow: only the smallest input for other arguments
        return [self.make_input(args, shape) for shape in (shapes if args == self.positional_cases[0] else shapes[1:2])]

    def select_inputs(self, inputs: list[PartInput]) -> list[PartInput]:
        return inputs[1:2] or inputs

    def make_export_inputs(self, part: Any, args: PositionalArgs) -> tuple[int, list[PartInput]]:
        if fixed := getattr(part, "size", None):
            raise SkipCheck(f"it accepts only {format_shape(fixed)}")
        least, multiple = _min_size(part), getattr(part, "multiple", 1)
        # Large enough that no inner map has a single pixel, which torch.export treats as a fixed size.
        side, near, far = (_round_up(part, 2 * max(least, 32) + more, least) for more in (0, 1, multiple + 2))
        return side, [self.make_input(args, (2, *size)) for size in ((far, near), (side, side), (near, far))]


def list_model_shapes(part: Any) -> list[Shape]:
    """Return shapes that fit a model's attributes: a usual size, the smallest, and a larger one.

    The batch size is at least 2, because batch norm after global pooling rejects a single image in training.
    """
    if fixed := getattr(part, "size", None):
        return [(3, *fixed), (2, *fixed)]
    usual, multiple = max(_min_size(part), 12), getattr(part, "multiple", 1)
    shapes = (3, usual + 1, usual + multiple + 1), (2, 1, 1), (2, 2 * usual + multiple + 2, 2 * usual + 1)
    least = _min_size(part)
    return [(batch, _round_up(part, height, least), _round_up(part, width, least)) for batch, height, width in shapes]


def _min_size(part: Any) -> int:
    return int(getattr(part, "min_size", 1))


def _round_up(part: Any, side: int, least: int) -> int:
    """Round a side up to one that is at least `least` and a multiple that the part accepts, as a network does."""
    return round_up(max(side, least), getattr(part, "multiple", 1))


def _is_side(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


class _OutChannelsContract(Contract):
    """The contract of a kind that declares `out_channels`."""

    def find_declaration_error(self, part: Any) -> str:
        out_channels = getattr(part, "out_channels", None)
        if isinstance(out_channels, int) and not isinstance(out_channels, bool) and out_channels >= 1:
            return ""
        what = "is missing" if out_channels is None else f"is {out_channels!r}"
        return f"must declare out_channels, an int of at least 1; it {what}"

    def expected_channels(self, part: Any, args: PositionalArgs) -> tuple[int, ...]:
        return (part.out_channels,)

    def describe_expected_channels(self, part: Any, args: PositionalArgs) -> str:
        return f"declares out_channels={part.out_channels}"


class FusionContract(_OutChannelsContract):
    """The contract `(x_channels, skip_channels)`: two maps of the same size are fused into one."""

    title = "fusion"
    arg_names = ("x_channels", "skip_channels")
    positional_cases = ((12, 5), (5, 12), (8, 8), (1, 1))

    def make_input(self, args: PositionalArgs, shape: Shape) -> PartInput:
        batch, *size = shape
        return PartInput((random_tensor(batch, args[0], *size), random_tensor(batch, args[1], *size) - 0.5))


class BlockContract(Contract):
    """The contract `(in_channels, out_channels)`: the size is kept, unless the block declares `valid = True`."""

    title = "block"
    arg_names = ("in_channels", "out_channels")
    positional_cases = ((12, 5), (5, 12), (8, 8), (1, 1))

    def compare_sizes(self, part: Any, args: PositionalArgs, part_input: PartInput, returned: list[Size]) -> str:
        if returned[0] == part_input.size:
            return ""
        if not getattr(part, "valid", False):
            rule = "a block must keep height and width, unless it declares valid = True"
            return f"returns {format_shape(returned[0])}; {rule}"
        grown = any(side > had for side, had in zip(returned[0], part_input.size, strict=True))
        return f"returns {format_shape(returned[0])}; a valid block must not enlarge the map" if grown else ""


class HeadContract(_PredictionContract):
    """The contract `(in_channels, classes)`: logits of the input's size, alone or with other outputs."""

    title = "head"
    arg_names = ("in_channels", "classes")
    positional_cases = ((8, 5), (8, 1), (5, 2), (1, 2))


class UpsamplerContract(_OutChannelsContract):
    """The contract `(channels, scale)`: a map of the target size, or of the closest size that is possible."""

    title = "upsampler"
    arg_names = ("channels", "scale")
    positional_cases = ((8, 2.0), (8, 4), (6, 1.5), (5, 2.0), (8, 1.0), (1, 2.0))

    def make_inputs(self, part: Any, args: PositionalArgs) -> list[PartInput]:
        found = super().make_inputs(part, args)
        x, (height, width) = found[0].tensors, self._scaled(found[0], args)
        # An odd skip is one pixel smaller than twice the map below it; logits may have to be one pixel larger.
        near = [PartInput(x, (height + d, width + e)) for d, e in ((-1, -1), (0, -1), (1, 1))]
        return [self.with_target_size(part_input, args) for part_input in found] + near

    def with_target_size(self, part_input: PartInput, args: PositionalArgs) -> PartInput:
        return PartInput(part_input.tensors, self._scaled(part_input, args))

    def _scaled(self, part_input: PartInput, args: PositionalArgs) -> Size:
        height, width = part_input.size
        return round(height * args[1]), round(width * args[1])

    def call(self, part: Any, part_input: PartInput) -> Any:
        return part(*part_input.tensors, part_input.target_size)

    def compare_sizes(self, part: Any, args: PositionalArgs, part_input: PartInput, returned: list[Size]) -> str:
        exact = self._scaled(part_input, args)
        if part_input.target_size == exact:
            return (
                ""
                if returned[0] == exact
                else f"returns {format_shape(returned[0])}; the scale times the input is {format_shape(exact)}"
            )
        far = [
            side
            for side, want in zip(returned[0], part_input.target_size or exact, strict=True)
            if abs(side - want) > args[1]
        ]
        return (
            f"returns {format_shape(returned[0])}, which differs from the target size by more than the scale"
            if far
            else ""
        )


class AlignContract(Contract):
    """The contract `()`: the upsampled map and the skip are returned with the same size."""

    title = "align"
    positional_cases = ((),)
    #: Sizes of the map and the skip: an odd skip, equal sizes, a larger or much larger skip, single pixels.
    PAIRS = (((10, 14), (9, 13)), ((10, 14), (10, 14)), ((8, 8), (9, 9)), ((6, 4), (12, 11)), ((2, 2), (1, 1)))

    def make_inputs(self, part: Any, args: PositionalArgs) -> list[PartInput]:
        batches = (3, 1, 2, 1, 2)
        pairs = zip(batches, self.PAIRS, strict=True)
        return [PartInput((random_tensor(batch, 4, *x), random_tensor(batch, 6, *skip))) for batch, (x, skip) in pairs]

    def make_export_inputs(self, part: Any, args: PositionalArgs) -> tuple[int, list[PartInput]]:
        pairs = (((16, 12), (30, 26)), ((9, 11), (17, 22)), ((14, 12), (14, 12)), ((8, 8), (7, 7)))
        return 4, [PartInput((random_tensor(2, 4, *x), random_tensor(2, 6, *skip))) for x, skip in pairs]

    def find_declaration_error(self, part: Any) -> str:
        if not callable(target_size := getattr(part, "target_size", None)):
            return "must define target_size(scaled, skip), the size that the upsampler should return"
        for scaled, skip in self.PAIRS:
            if (returned := target_size(scaled, skip)) not in (scaled, skip):
                return f"target_size({scaled}, {skip}) returns {returned!r}; expected one of the two sizes"
        return ""

    def count_outputs(self, part: Any) -> int | None:
        return 2

    def expected_channels(self, part: Any, args: PositionalArgs) -> tuple[int, ...]:
        return 4, 6

    def describe_expected_channels(self, part: Any, args: PositionalArgs) -> str:
        return "receives a map of 4 channels and a skip of 6"

    def compare_sizes(self, part: Any, args: PositionalArgs, part_input: PartInput, returned: list[Size]) -> str:
        if returned[0] != returned[1]:
            return f"returns {format_shape(returned[0])} and {format_shape(returned[1])}; both must have the same size"
        sides = zip(returned[0], *(size_of(tensor) for tensor in part_input.tensors), strict=True)
        outside = any(not min(a, b) <= side <= max(a, b) for side, a, b in sides)
        return f"returns {format_shape(returned[0])}, which is not between the two input sizes" if outside else ""


class LossContract(Contract):
    """Loss terms: `(target, activation, *, ...)`, then `(logits, masks, borders) -> (B,)`."""

    title = "loss"
    arg_names = ("target", "activation")


class TargetContract(Contract):
    """Targets of outputs: `(masks, *, ...)`, with an attribute `maps`; then `(mask) -> map`."""

    title = "target"
    arg_names = ("masks",)


class AugmentationContract(Contract):
    """Augmentation steps: `(*, ...)`, then `(pixels, generator) -> pixels`."""

    title = "augmentation"


class OptimizerContract(Contract):
    """Optimizers: `(*, ...) -> OptimizerConfig`."""

    title = "optimizer"


class DatasetContract(Contract):
    """Datasets: `(rules, *, ...) -> DatasetSplits`; one that has splits of its own leaves out the rules."""

    title = "dataset"
    arg_names = ("rules",)
    num_optional_args = 1
    needs_defaults = False


class MetricContract(Contract):
    """Metrics: `(bench_model)`, a function that measures; that of a class also takes its name; it has no options."""

    title = "metric"
    arg_names = ("bench_model", "class_name")
    num_optional_args = 1


class FormatContract(Contract):
    """Export formats: `(*, ...)`, an object with `suffix`, `write`, `open` and `read_metadata`."""

    title = "format"


CONTRACTS: dict[str, Contract] = {
    contract.title: contract
    for contract in (
        EncoderContract(),
        UpsamplerContract(),
        FusionContract(),
        AlignContract(),
        BlockContract(),
        HeadContract(),
        ModelContract(),
        LossContract(),
        TargetContract(),
        AugmentationContract(),
        OptimizerContract(),
        DatasetContract(),
        MetricContract(),
        FormatContract(),
    )
}
