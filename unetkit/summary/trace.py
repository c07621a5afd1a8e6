"""What a network is, level by level: shapes, parameters, MACs, activation memory."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from unetkit.errors import BadOption, CannotPass
from unetkit.inspect.field import ReceptiveField, receptive_field
from unetkit.inspect.figures import format_size
from unetkit.inspect.limits import nearest_sizes, refusal, smallest
from unetkit.inspect.observe import network_of, size_for
from unetkit.inspect.rows import Row, Run
from unetkit.inspect.steps import rows_of
from unetkit.meta import meta_copy, mode_kept
from unetkit.network import Network
from unetkit.plan import Size
from unetkit.unet import UNet


@dataclass(frozen=True)
class Trace:
    """Every step of one forward pass, with totals. `print` shows the table; `as_dict` is plain data.

    Attributes:
        line: the line that builds the network.
        batch: images in the pass.
        rows: the steps, in order: the input, the encoder's maps shallow to deep, each stage's steps deep to shallow,
            the head, and the logits' resize where there is one. Of a whole model: the maps of its encoder, and what
            its other parts do, by their names in it.
        skips: for each stage, the level ("encoder.1") whose map it joins, or None; empty for a whole model.
        weights: "random", or where the encoder's come from.
        receptive_field: input pixels that one output pixel can depend on.
        minimum: the smallest height and width that pass; None where none up to 2048 does.
        maximum: the largest size that passes, where the encoder is built for one; else None.
        notes: what a user should know of this size, one line each.
    """

    line: str
    batch: int
    rows: tuple[Row, ...]
    skips: tuple[str | None, ...]
    weights: str
    receptive_field: ReceptiveField
    minimum: int | None
    maximum: Size | None
    notes: tuple[str, ...]

    @property
    def parameters(self) -> int:
        """Of the whole network."""
        return sum(row.parameters for row in self.rows)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one forward pass of the batch."""
        return sum(row.macs for row in self.rows)

    @property
    def activation_bytes(self) -> int:
        """What autograd keeps for the backward pass of the batch, in float32."""
        return sum(row.activation_bytes for row in self.rows)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as `unetkit build --json` prints it."""
        totals = {"parameters": self.parameters, "macs": self.macs, "activation_bytes": self.activation_bytes}
        field = {"size": self.receptive_field.size, "because": self.receptive_field.because}
        return {**asdict(self), "receptive_field": field, "totals": totals}

    def __str__(self) -> str:
        from unetkit.inspect.table import as_text

        return as_text(self)


def trace(model: nn.Module, size: int | Size | None = None, *, batch: int = 1) -> Trace:
    """Follow one forward pass of a built network on meta tensors, which cost neither memory nor arithmetic.

    Args:
        model: as `unetkit.build` gives it, on any device; it is left as it was.
        size: height and width, or one number for both; the plan's own size, the encoder's fixed one, or 256, if None.
        batch: images in the pass.

    Raises:
        BadOption: a batch or size below 1.
        CannotPass: the network cannot take this size; names the level and the two nearest sizes that it takes.
    """
    if batch < 1:
        raise BadOption(f"batch={batch}: takes at least 1")
    network = network_of(model)
    wanted = size_for(network, size)
    with torch.inference_mode(False), torch.enable_grad():
        ghost = model if next(model.parameters()).device.type == "meta" else meta_copy(model)
        with mode_kept(ghost):
            run, notes = _run(ghost, wanted, batch)
            least = smallest(ghost) if network.valid else 1
            graph = run if run.x.requires_grad else Run(ghost, wanted, batch, follow=True)
            field = receptive_field(cast(Tensor, graph.seen.output), graph.x)
    return Trace(
        line=str(network.plan),
        batch=batch,
        rows=tuple(rows_of(run)),
        skips=_skips(network),
        weights=getattr(network.encoder, "weights_from", "random"),
        receptive_field=field,
        minimum=least,
        maximum=network.size,
        notes=tuple(notes),
    )


def _skips(network: Network) -> tuple[str | None, ...]:
    if not isinstance(network, UNet):
        return ()
    return tuple(f"encoder.{i}" for i in network.skips) + (None,) * (len(network.stages) - len(network.skips))


def _run(ghost: nn.Module, size: Size, batch: int) -> tuple[Run, list[str]]:
    """A pass in training mode, or in eval mode where that fails, and what to say of it."""
    network, notes = network_of(ghost), []
    follow = all(p.requires_grad for p in ghost.parameters())
    run = Run(ghost.train(), size, batch, follow=follow)
    if "more than 1 value per channel" in str(run.seen.error):
        notes.append("a norm is left with one value a channel: to train at this size takes a batch of 2 or more")
        run = Run(ghost.eval(), size, batch, follow=follow)
    ghost.eval()
    if run.seen.error is not None:
        raise refusal(ghost, size, run.seen) from run.seen.error
    if not isinstance(run.seen.output, Tensor):
        raise CannotPass(f"a plugin's wrapper gives a {type(run.seen.output).__name__}; a trace follows one tensor")
    if network.valid and (dropped := run.seen.dropped()):
        sizes = " and ".join(format_size(s) for s in nearest_sizes(ghost, size))
        notes.append(f"{dropped[0]}, which leaves out a row or column; {sizes} leave none out")
    if ghost is not network:
        notes.append(f"it is wrapped in a {type(ghost).__name__}: figures are of its pass in training")
    if run.seen.others:
        notes.append(f"in training it gives {run.seen.others} more outputs, which a loss may use")
    if (padded := network.padded_size(size)) != size:
        notes.append(f"the input is padded with zeros to {format_size(padded)}, and the output cut back")
    return run, notes
