"""What a kind of part is made with, called with, and promises of what it gives back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from unetkit.plan import Size
from unetkit.sizes import size_of
from unetkit.testing.inputs import SHAPES, VALID_SHAPES, Input, Shape, by, drawn
from unetkit.testing.results import Nonconformity

Wiring = tuple[Any, ...]
Outputs = tuple[Tensor, ...]


class Contract:
    """Of a kind whose parts take maps of one size and give one tensor.

    Attributes:
        title: of the kind.
        names: of the wiring, in order.
        wirings: to try; the first is the one that checks of one wiring take. A part may refuse some.
        takes_images: whether parts are given images, not maps: they are large, so that one wiring has to do for most
            checks, and nothing before them learns.
    """

    title = ""
    takes_images = False
    names: tuple[str, ...] = ()
    wirings: tuple[Wiring, ...] = ()

    def declares(self, part: Any) -> str:
        """What is wrong with what a part says of itself; "" where nothing is."""
        return ""

    def inputs(self, part: Any, wiring: Wiring) -> list[Input]:
        """What to pass, the usual one first. Batch norm in training refuses one value a channel: see `trains`."""
        shapes = VALID_SHAPES if getattr(part, "valid", False) else SHAPES
        return [self.given(wiring, shape) for shape in shapes]

    def few(self, inputs: list[Input]) -> list[Input]:
        """Of these, the ones that suffice to try an option or a gradient with."""
        return inputs

    def given(self, wiring: Wiring, shape: Shape) -> Input:
        """The input of a shape."""
        batch, *size = shape
        return Input((drawn(batch, wiring[0], *size),))

    def asking(self, given: Input, wiring: Wiring) -> Input:
        """The same input, with the size that a stage would ask for where the kind is asked for one."""
        return given

    def exported(self, part: Any, wiring: Wiring) -> tuple[int, list[Input]]:
        """For torch.export: the smallest side, and inputs, of which the first is the example."""
        taken = 10 if getattr(part, "valid", False) else 0
        shapes = [(2, height + taken, width + taken) for height, width in ((16, 12), (9, 11), (7, 6))]
        return 4 + taken, [self.asking(self.given(wiring, shape), wiring) for shape in shapes]

    def call(self, part: Any, given: Input) -> Any:
        """The call that a network makes."""
        return part(*given.tensors)

    def outputs(self, part: Any, given: Input) -> Outputs:
        """What comes back, as tensors. Raises Nonconformity where it is something else."""
        out = self.call(part, given)
        count = self.count(part)
        if count is None:
            if not isinstance(out, Tensor):
                raise Nonconformity(f"gives a {type(out).__name__}; promised is one tensor")
            out = (out,)
        if not isinstance(out, list | tuple) or not all(isinstance(tensor, Tensor) for tensor in out):
            raise Nonconformity(f"gives a {type(out).__name__}; promised are {count} tensors")
        if count is not None and len(out) != count:
            raise Nonconformity(f"gives {len(out)} tensors; promised are {count}")
        if flat := [tensor for tensor in out if tensor.ndim != 4]:
            raise Nonconformity(f"gives a tensor of shape {by(flat[0].shape)}; promised is (B, C, H, W)")
        return tuple(out)

    def count(self, part: Any) -> int | None:
        """How many tensors come back in a list or tuple; None for one tensor by itself."""
        return None

    def channels(self, part: Any, wiring: Wiring) -> tuple[int, ...]:
        """Those promised, a number for each output."""
        return (wiring[1],)

    def promise(self, part: Any, wiring: Wiring) -> str:
        """The same in words."""
        return f"is asked for {self.names[1]}={wiring[1]}"

    def channel_fault(self, part: Any, wiring: Wiring, given: Input, outputs: Outputs) -> str:
        """What is wrong with batch and channels; "" where nothing is."""
        if wrong := [len(out) for out in outputs if len(out) != given.batch]:
            return f"gives a batch of {wrong[0]}; promised is one of {given.batch}"
        promised, gave = self.channels(part, wiring), tuple(out.shape[1] for out in outputs)
        if promised == gave:
            return ""
        last = tuple(out.shape[-1] for out in outputs)
        hint = "; its maps look NHWC: permute them to NCHW" if last == promised else ""
        return f"{self.promise(part, wiring)}, but gives {_plain(gave)} channels{hint}"

    def size_fault(self, part: Any, wiring: Wiring, given: Input, outputs: Outputs) -> str:
        """What is wrong with heights and widths; "" where nothing is."""
        return self.sizes(part, wiring, given, [size_of(out) for out in outputs])

    def sizes(self, part: Any, wiring: Wiring, given: Input, gave: list[Size]) -> str:
        """The same, from the sizes alone."""
        if gave[0] == given.size:
            return ""
        return f"gives {by(gave[0])}; a {self.title} keeps height and width"


def _plain(numbers: Sequence[int]) -> str:
    return str(numbers[0]) if len(numbers) == 1 else str(tuple(numbers))
