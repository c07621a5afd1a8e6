"""What a network is, level by level: shapes, parameters, MACs, activation memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Row:
    """One step of the forward pass.

    Attributes:
        level: the module that it belongs to, as in the state_dict: "input", "encoder.0" (its first map), "stages.0",
            "head", "logits".
        step: "up", "align", "fuse" or "block" within a stage, else "".
        side: on which arm of the U it stands.
        what: in words.
        channels, height, width: of its output.
        stride: of its output, in input pixels.
        parameters: that this step alone has.
        macs: multiply-accumulates of this step, for the batch.
        activation_bytes: what autograd keeps of this step for the backward pass, for the batch.
    """

    level: str
    step: Literal["", "up", "align", "fuse", "block"]
    side: Literal["down", "up"]
    what: str
    channels: int
    height: int
    width: int
    stride: float
    parameters: int
    macs: int
    activation_bytes: int


@dataclass(frozen=True)
class Trace:
    """Every step of one forward pass, with totals. `print` shows the table; `as_dict` is plain data.

    Attributes:
        line: the line that builds the network.
        rows: the steps, in order: the input, the encoder's maps shallow to deep, each stage's steps deep to shallow,
            the head, and the logits' resize where there is one.
        skips: for each stage, the level ("encoder.1") whose map it joins, or None.
        notes: what a user should know of this size, one line each.
    """

    line: str
    rows: tuple[Row, ...]
    skips: tuple[str | None, ...]
    weights: str
    receptive_field: tuple[int, int] | None
    minimum: tuple[int, int]
    notes: tuple[str, ...]
