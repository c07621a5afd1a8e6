"""What a benchmark measured, as plain data: a Run of Rows, each with figures and timings.

Only what was measured is kept, every raw sample included; ratios, intervals and verdicts are worked out when it is read
(`unetkit.bench.statistics`), so that better statistics serve old runs too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from unetkit.errors import FileError
from unetkit.registry import MetricInfo
from unetkit.utils.files import JsonLine, JsonLinesWriter, read_json_lines


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
class BenchRow:
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
    def of(cls, data: dict[str, Any]) -> BenchRow:
        """From plain data, as JSON gives it."""
        timings = {name: Timing.of(timing) for name, timing in data.get("timings", {}).items()}
        tuples: dict[str, Any] = {name: tuple(data[name]) for name in ("size", "warnings") if name in data}
        return cls(**{**data, **tuples, "timings": timings})

    @property
    def measured(self) -> bool:
        """Whether there are figures."""
        return not self.cause


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
class BenchRun:
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
    rows: tuple[BenchRow, ...]
    planned: int
    missing: int
    command: str
    began: str


#: Of the file in the folder.
_NAME = "rows.jsonl"
_WHAT = "benchmark"


class ResultsFile:
    """What a file holds."""

    def __init__(self, folder: Path) -> None:
        self.header: Header | None = None
        self.began = ""
        self.start: JsonLine = {"command": "", "planned": []}
        self.rows: dict[str, BenchRow] = {}
        read_json_lines(folder / _NAME, self._take, _WHAT)

    def _take(self, line: JsonLine) -> None:
        if "header" in line:
            self.header, self.began = Header.of(line["header"]), line["at"]
        elif "planned" in line:
            self.start = line
        else:
            row = BenchRow.of(line["row"])
            self.rows.pop(row.id, None)  # so that a later one stands where it was measured
            self.rows[row.id] = row

    def done(self, id_: str, key: str, *, again: bool) -> bool:
        """Whether a row needs not be measured; `again`: what failed, or ran short of its budget, does."""
        row = self.rows.get(id_)
        return row is not None and row.key == key and not (again and _weak(row))


def _weak(row: BenchRow) -> bool:
    """Whether measuring again may tell more."""
    short = any(timing.ended == "budget" for timing in row.timings.values())
    return bool(row.cause or row.failures or short)


def read_results(folder: Path) -> BenchRun:
    """A run as it stands, also while it goes on.

    Raises:
        FileError: there is none, or it is damaged.
    """
    held = ResultsFile(folder)
    if held.header is None:
        made = f"`unetkit bench ... --out {folder}` makes one"
        raise FileError(f"{folder} holds no benchmark: there is no {_NAME} with rows in it; {made}")
    ids = dict.fromkeys(held.start["planned"])
    planned = [held.rows[id_] for id_ in ids if id_ in held.rows]
    others = [row for row in held.rows.values() if row.id not in ids]
    number = len(ids)
    missing = number - len(planned)
    return BenchRun(folder, held.header, (*planned, *others), number, missing, held.start["command"], held.began)


class ResultsWriter:
    """The folder of a run that this process alone adds to, until `close`."""

    def __init__(self, folder: Path) -> None:
        """Make it if it is not there.

        Raises:
            FileError: it cannot be written, is no benchmark's, or another one is writing to it.
        """
        self.folder = folder
        if folder.exists() and not folder.is_dir():
            raise FileError(f"--out {folder}: is a file; give a folder")
        self._lines = JsonLinesWriter(folder / _NAME, _WHAT)
        try:
            held = ResultsFile(folder)
        except FileError:
            self._lines.close()
            raise
        self.header, self.rows, self.done = held.header, held.rows, held.done

    def start(self, header: Header, command: str, planned: Iterable[str]) -> None:
        """Say what is planned, by the ids of its rows.

        Raises:
            FileError: rows stand here under another header.
        """
        if self.header is None or not self.rows:
            self._lines.append({"header": asdict(header), "at": now()})
        elif other := describe_differences(self.header, header):
            raise FileError(f"{self.folder} was measured with {other}; give another --out, or the same again")
        self.header = header
        self._lines.append({"command": command, "planned": [*planned], "at": now()})

    def append(self, row: BenchRow) -> None:
        """Add a row; when this returns, it is on disk."""
        self._lines.append({"row": asdict(row)})
        self.rows[row.id] = row

    def close(self) -> None:
        """Let others write. A folder without rows is none, and what was made of it goes."""
        self._lines.close()
        if not self.rows:
            self._lines.remove()


def now() -> str:
    """ISO 8601, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def describe_differences(one: Header, other: Header) -> str:
    """In what two headers differ, in words; "" where in nothing."""
    flat = [_flat(json.loads(json.dumps(asdict(header)))) for header in (one, other)]
    for name in [name for name in {**flat[0], **flat[1]} if name not in _PRECISION]:
        was, is_ = (found.get(name, "none") for found in flat)
        if was != is_:
            return f"{name} {was}, and this is {is_}"
    return ""


#: Settings that change how well figures are known, and not what they are.
_PRECISION = {"budget", "precision", "timeout"}


def _flat(header: dict[str, Any]) -> dict[str, str]:
    """One name for each thing that a header says; of the metrics their names alone."""
    metrics = ",".join(metric["name"] for metric in header.pop("metrics"))
    named = {"baseline": header["baseline"], "baseline mode": header["baseline_mode"], "--metrics": metrics}
    return {
        **named,
        **{name: str(v) for part in ("settings", "versions", "machine") for name, v in header[part].items()},
    }
