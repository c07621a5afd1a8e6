"""The rows of a network: of a U-Net its maps and stages, of a whole model its maps and what its parts do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import cast

from torch import Tensor, nn

from unetkit.inspect.figures import format_size
from unetkit.inspect.observe import Call
from unetkit.inspect.rows import STEPS, Row, Rows, Run, spec_at
from unetkit.sizes import size_of
from unetkit.unet import Stage, UNet


def rows_of(run: Run) -> Iterator[Row]:
    """The rows of a pass, from input to output."""
    return (UNetRows if isinstance(run.network, UNet) else WholeRows)(run).rows()


class UNetRows(Rows):
    """Of a U-Net of ours: what each of its parts does."""

    def parts(self) -> Iterator[Row]:
        encoder = self.call(self.network.encoder)
        sources = getattr(self.network.encoder, "source", None) or ("",) * len(encoder.gave)
        for index, (tensor, end) in enumerate(self.maps(encoder)):
            yield self.row(f"encoder.{index}", "", "down", sources[index], tensor, self.network.strides[index], end)
        for index, stage in enumerate(self.network.stages):
            yield from self._stage(f"stages.{index}", index, cast(Stage, stage))
        stride = cast(Stage, self.network.stages[-1]).stride
        head = self.call(self.network.head)
        yield self.row("head", "", "up", str(self.network.whole.head), head.gave[0], stride, head.end)
        if logits := self.find(self.network.logits):
            what = f"{self.network.whole.logits} {_change(logits.given[0], logits.gave[0])}"
            yield self.row("logits", "", "up", what, logits.gave[0], 1, logits.end)

    def _stage(self, level: str, index: int, stage: Stage) -> Iterator[Row]:
        whole = self.network.whole
        words = {step: spec_at(getattr(whole, step), index) for step in STEPS}
        for step in STEPS:
            if call := self.find(getattr(stage, step)):
                what = _what(step, words[step], stage, call)
                yield self.row(level, step, "up", what, call.gave[0], stage.stride, call.end)


class WholeRows(Rows):
    """Of a whole model: the maps of the part that gives several, and the steps of those that give one."""

    left_over = "what no step above does or uses"

    def parts(self) -> Iterator[Row]:
        rows = [*self._parts()]
        if all(row.side == "up" for row in rows):  # no part tells where it turns: at the coarsest map
            turn = max(range(len(rows)), key=lambda index: rows[index].stride)
            rows = [replace(row, side="down") if index <= turn else row for index, row in enumerate(rows)]
        yield from rows

    def _parts(self) -> Iterator[Row]:
        model = self.call(self.network.model)
        inside = self.run.seen.calls_within(self.network.model)
        for call in _outermost(inside, model):
            level = call.name.removeprefix(f"{model.name}.")
            tensors = [tensor for tensor in call.gave if tensor.ndim == 4]
            if len(tensors) > 1:
                yield from self._several(level, call)
            else:
                yield from self._steps(level, call, inside)

    def _several(self, level: str, call: Call) -> Iterator[Row]:
        own = [(tensor, end) for tensor, end in self.maps(call) if tensor.ndim == 4]
        sources = getattr(self.network.model, "source", ())
        said = sources if len(sources) == len(own) else ("",) * len(own)
        for index, ((tensor, end), source) in enumerate(zip(own, said, strict=True)):
            yield self.row(f"{level}.{index}", "", "down", source, tensor, self._stride(tensor), end)

    def _steps(self, level: str, call: Call, inside: list[Call]) -> Iterator[Row]:
        steps = [step for step in _outermost(inside, call) if _gives_a_map(step)]
        for step in steps:
            name = step.name.removeprefix(f"{call.name}.")
            yield self._step(level, name, step)
        if not steps or self.done < call.end:
            yield self._step(level, "", call)

    def _step(self, level: str, name: str, call: Call) -> Row:
        tensor = next((t for t in call.gave if t.ndim == 4), cast(Tensor, self.run.seen.output))
        what = type(call.module).__name__
        return self.row(level, name, "up", what, tensor, self._stride(tensor), call.end)

    def _stride(self, tensor: Tensor) -> float:
        """Input pixels to a pixel of a map, from their heights, since a whole model declares none."""
        return round(self.network.padded_size(size_of(self.run.x))[0] / tensor.shape[-2], 2)


def _outermost(calls: list[Call], within: Call) -> Iterator[Call]:
    """The calls of the modules of one that are in no other module of it."""
    last = ""
    for call in calls:
        if call.name.startswith(f"{within.name}.") and not (last and call.name.startswith(f"{last}.")):
            last = call.name
            yield call


def _gives_a_map(call: Call) -> bool:
    """Whether it makes one map; what passes its input on, as an nn.Identity does, makes none."""
    return len(call.gave) == 1 and call.gave[0].ndim == 4 and call.gave[0].numel() > 0 and call.end > call.start


def _change(before: Tensor, after: Tensor) -> str:
    return f"{format_size(size_of(before))} to {format_size(size_of(after))}"


def _what(step: str, word: str, stage: Stage, call: Call) -> str:
    match step:
        case "up":
            return f"{word} x{stage.scale:g}"
        case "align":
            return _align(word, call)
        case "fuse":
            return _fuse(word, call)
    return word


def _align(word: str, call: Call) -> str:
    (x, skip), (x_after, skip_after) = call.given, call.gave
    changes = [
        f"{what} {_change(before, after)}"
        for what, before, after in (("map", x, x_after), ("skip", skip, skip_after))
        if before.shape != after.shape
    ]
    return f"{word}: {', '.join(changes) or 'sizes agree'}"


def _fuse(word: str, call: Call) -> str:
    x, skip = call.given
    projections = [
        f"; {name} {m.kernel_size[0]}x{m.kernel_size[1]} conv {m.in_channels} to {m.out_channels}"
        for name, m in call.module.named_modules()
        if isinstance(m, nn.Conv2d)
    ]
    return f"{word} skip {skip.shape[1]} and map {x.shape[1]}{''.join(projections)}"
