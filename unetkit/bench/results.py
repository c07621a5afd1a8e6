"""What a benchmark measured, as plain data: a Run of Rows, each with figures and timings.

Only what was measured is kept, every raw sample included; ratios, intervals and verdicts are worked out when it is read
(`unetkit.bench.statistics`), so that better statistics serve old runs too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Better = Literal["less", "more", ""]


@dataclass(frozen=True)
class Timing:
    """One callable timed against the baseline's, round by round.

    Attributes:
        candidate, baseline: seconds a call, one sample of each a round, in the order of the rounds. Within a round it
            was drawn which of the two went first.
        calls: how many calls a sample is the mean of: more than 1 where one is too short for the clock.
        warmup: rounds before these, left out.
        ended: "precise", where the interval was narrow enough, or "budget", where the time was up.
    """

    candidate: tuple[float, ...]
    baseline: tuple[float, ...]
    calls: int
    warmup: int
    ended: str

    @classmethod
    def of(cls, data: dict[str, Any]) -> Timing:
        """From plain data, as JSON gives it."""
        pairs = {name: tuple(data[name]) for name in ("candidate", "baseline")}
        return cls(**{**data, **pairs})


@dataclass(frozen=True)
class Row:
    """One combination under one condition, and what became of it.

    Attributes:
        id: a digest of the combination and its condition, the same in every run: what `diff` matches rows by.
        key: a digest of all that was measured, versions of plugins included: what resuming goes by.
        factors: what the grid chose for this row, by the axis: {"encoder": "resnet34", "fuse": "add", "size": "256",
            "batch": "8", "mode": "eager"}. size, batch and mode are always there.
        line: the shortest line that builds the network, as `unetkit build` takes it; as asked, where it cannot be
            built.
        size: height and width of the input, pixels.
        batch: images in an input.
        mode: "eager" or "compiled", then what else is on: "compiled+channels_last+bfloat16".
        cause: why there are no figures, in one line; "" where the row was measured.
        figures: a metric's name -> its number, in the metric's unit.
        timings: a timed metric's name -> its samples.
        failures: a metric's name -> why it alone has none.
        warnings: what a reader should know of this row, one line each.
        command: what measures this row again.
        others: of the time of its cores, what other work took meanwhile; 0 where the system does not tell.
        where: the device that it ran on, and the cores: "cpu 0-1, 2 threads" or "cuda:0 NVIDIA H100".
        seconds: that the row took.
        at: when it was done, ISO 8601, UTC.
    """

    id: str
    key: str
    factors: dict[str, str]
    line: str
    size: tuple[int, int]
    batch: int
    mode: str
    cause: str = ""
    figures: dict[str, float] = field(default_factory=dict)
    timings: dict[str, Timing] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    others: float = 0.0
    command: str = ""
    where: str = ""
    seconds: float = 0.0
    at: str = ""

    @classmethod
    def of(cls, data: dict[str, Any]) -> Row:
        """From plain data, as JSON gives it."""
        timings = {name: Timing.of(timing) for name, timing in data.get("timings", {}).items()}
        tuples: dict[str, Any] = {name: tuple(data[name]) for name in ("size", "warnings") if name in data}
        return cls(**{**data, **tuples, "timings": timings})

    @property
    def measured(self) -> bool:
        """Whether there are figures."""
        return not self.cause


@dataclass(frozen=True)
class MetricInfo:
    """What a run says of a metric, so that reading it needs no plugin.

    Attributes:
        name: as `--metrics` takes it, and as rows have it.
        unit: "s", "B" (bytes), "" for a count, or a plugin's own; of a timed metric always "s".
        timed: whether rows have it in `timings`, else in `figures`.
        summary: what it is and how it is measured, in a line.
        owner: the plugin that adds it, or "unetkit".
        better: which numbers are better: "less", "more", or "" where neither is.
    """

    name: str
    unit: str
    timed: bool
    summary: str
    owner: str = "unetkit"
    better: Better = "less"


@dataclass(frozen=True)
class Header:
    """What stands once for all rows of a run: rows under another cannot be compared, so a folder has one.

    Attributes:
        baseline: the line of the network that each row is timed against, under the row's own size and batch.
        baseline_mode: the mode that it runs in.
        metrics: what is measured.
        settings: what else the command chose: {"budget": 20.0, "precision": 0.02, "seed": 0, "threads": 2, ...}.
        machine: {"cpu": ..., "cores": ..., "memory": ..., "gpus": [...], "system": ...}.
        versions: {"unetkit": ..., "torch": ..., "timm": ..., "python": ...}.
    """

    baseline: str
    baseline_mode: str
    metrics: tuple[MetricInfo, ...]
    settings: dict[str, Any]
    machine: dict[str, Any]
    versions: dict[str, str]

    @classmethod
    def of(cls, data: dict[str, Any]) -> Header:
        """From plain data, as JSON gives it."""
        return cls(**{**data, "metrics": tuple(MetricInfo(**metric) for metric in data["metrics"])})


@dataclass(frozen=True)
class Run:
    """A folder of results.

    Attributes:
        folder: where it is.
        header: what stands for all rows.
        rows: in the order in which they were planned; those that were not planned by the last command come last.
        planned: how many rows the last command planned.
        missing: how many of them are not there.
        command: the last command.
        began: when it was started first, ISO 8601, UTC.
    """

    folder: Path
    header: Header
    rows: tuple[Row, ...]
    planned: int
    missing: int
    command: str
    began: str
