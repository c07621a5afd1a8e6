"""The results of a benchmark: the data types, and the file `rows.jsonl` that stores them.

Only what was measured is stored, including every raw timing sample and every score. Ratios, intervals and verdicts are
computed when the results are read (`unetkit.bench.statistics`), so that improved statistics also apply to old runs.

A folder holds one run, as JSON lines. The first line is the header. Each start of the command appends a line with the
rows that it planned, and each measured row is appended and synced to disk before the next one is measured. If an id
occurs twice, the row was measured again, and the later line counts. The module imports neither torch nor numpy.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from unetkit.errors import FileError
from unetkit.registry import MetricInfo
from unetkit.utils.json_lines import JsonLine, JsonLinesWriter, read_json_lines


@dataclass(frozen=True)
class Timing:
    """Samples of one timed metric of a row, each paired with a sample of the baseline from the same round.

    Attributes:
        candidate, baseline: seconds for each call, one sample for each round, in the order of the rounds. Which of the
            two is timed first is drawn at random in each round.
        calls_per_sample: number of calls that a sample is the mean of, which is more than 1 for very short calls.
        warmup_rounds: number of rounds that were run before these and discarded.
        stop_reason: "precise" if the confidence interval became narrow enough, "budget" if the time was up.
    """

    candidate: tuple[float, ...]
    baseline: tuple[float, ...]
    calls_per_sample: int
    warmup_rounds: int
    stop_reason: str

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Timing:
        """Create a timing from plain data, as JSON stores it."""
        pairs = {name: tuple(data[name]) for name in ("candidate", "baseline")}
        return cls(**{**data, **pairs})


@dataclass(frozen=True)
class BenchRow:
    """One model under one condition, with its measurements or the error that prevented them.

    Attributes:
        id: digest of the model and the condition, equal in all runs; `unetkit bench diff` matches rows by it.
        cache_key: digest of everything that was measured, including the code of plugins. A row is only measured again
            if it changes.
        factors: everything that a grid can choose, by factor: {"model": "unet", "encoder": "resnet34", "fuse": "add",
            "size": "256", "batch_size": "8", "mode": "eager"}, and what was left at its default, so that rows of
            different commands can be compared. The factors model, size, batch_size and mode are always present.
        line: shortest line that builds the model, as `unetkit build` takes it; the requested line if it cannot be
            built.
        size: input height and width in pixels.
        batch_size: number of images in the input.
        mode: "eager" or "compiled", followed by other settings: "compiled+channels_last+bfloat16".
        error: why the row could not be measured, in one line; "" if it was measured.
        values: result of each metric that is not timed, by name, in the metric's unit.
        timings: samples of each timed metric, by name.
        failures: error of each metric that failed although the row was measured, by name.
        warnings: warnings about this row, one line each.
        cpu_contention: fraction of the CPU time of the row's cores that other processes used; 0 if it is unknown.
        command: command that measures this row again.
        device: device that the row was measured on: "cpu, cores 0-1, 2 threads" or "cuda:0 NVIDIA H100, 8 threads".
        seconds: time that the row took, in seconds.
        measured_at: time at which the row was finished, ISO 8601, UTC.
        training: fields of a TrainConfig that the grid set for this row, as text.
        pretrained: weights that the trainings of this row start from: "", "yes", or a path.
        defaults: names of the factors that the command left at their default.
    """

    id: str
    cache_key: str
    factors: dict[str, str]
    line: str
    size: tuple[int, int]
    batch_size: int
    mode: str
    error: str = ""
    values: dict[str, float] = field(default_factory=dict)
    timings: dict[str, Timing] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    cpu_contention: float = 0.0
    command: str = ""
    device: str = ""
    seconds: float = 0.0
    measured_at: str = ""
    training: dict[str, str] = field(default_factory=dict)
    pretrained: str = ""
    defaults: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> BenchRow:
        """Create a row from plain data, as JSON stores it."""
        timings = {name: Timing.from_dict(timing) for name, timing in data.get("timings", {}).items()}
        tuples: dict[str, Any] = {name: tuple(data[name]) for name in ("size", "warnings", "defaults") if name in data}
        return cls(**{**data, **tuples, "timings": timings})

    @property
    def is_measured(self) -> bool:
        """True unless the row failed as a whole."""
        return not self.error


@dataclass(frozen=True)
class TrainingRecord:
    """One training of a row, with its scores or the error that ended it.

    Attributes:
        row_id: id of the row.
        cache_key: digest of everything that was trained, as that of the row.
        seed: seed of everything random in it.
        error: why it gave no scores, in one line; "" if it did.
        values: score by metric.
        failures: error of each metric that failed, by name.
        epoch: the epoch whose weights were scored.
        memory: peak memory of the process (on a GPU, of its tensors), in bytes; 0 if it is unknown.
        device: device that it ran on.
        seconds: time that it took in the last process that worked on it, in seconds.
        measured_at: time at which it was finished, ISO 8601, UTC.
    """

    row_id: str
    cache_key: str
    seed: int
    error: str = ""
    values: dict[str, float] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    epoch: int = 0
    memory: int = 0
    device: str = ""
    seconds: float = 0.0
    measured_at: str = ""


@dataclass(frozen=True)
class TrainingHeader:
    """The part of a header that all trainings share. The rules of the verdicts are fixed here before the first one.

    Attributes:
        data: the text for `--data`.
        settings: fields of a TrainConfig that describe the data.
        seed: the first seed; the trainings of a row have this one and those that follow.
        grid: options of the first command that set the training of all its rows alike, such as the number of steps,
            which later commands take over.
        rules: fields of a `unetkit.bench.quality_statistics.QualityRules`.
        baseline_row: id of the row that the others are compared with.
        scored: the split that is scored: "test", or "val" if there are no test images.
        is_split: whether the data define which images are for validation; otherwise the seed does.
        classes: names of the classes.
        channels: number of image channels.
        outputs: number of outputs of the networks.
        crop: default height and width of a training crop.
        images: number of images of each split.
        fingerprints: fingerprint of each split, for the first seed.
    """

    data: str
    settings: dict[str, Any]
    seed: int
    rules: dict[str, Any]
    baseline_row: str
    scored: str
    is_split: bool
    classes: tuple[str, ...]
    channels: int
    outputs: int
    crop: tuple[int, int]
    images: dict[str, int]
    fingerprints: dict[str, str]
    grid: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TrainingHeader:
        """Create a header from plain data, as JSON stores it."""
        return cls(**{**data, "classes": tuple(data["classes"]), "crop": tuple(data["crop"])})


@dataclass(frozen=True)
class Header:
    """The settings and the environment that all rows of a run share, so that the rows can be compared.

    Attributes:
        baseline: line of the model that each row is timed against, with the row's own input size and batch size.
        baseline_mode: execution mode of the baseline.
        metrics: metrics that are measured.
        settings: other settings of the command: {"budget": 20.0, "target_ci": 0.02, "seed": 0, "threads": 2, ...}.
        machine: {"cpu": ..., "cores": ..., "memory": ..., "gpus": [...], "system": ...}.
        versions: {"unetkit": ..., "torch": ..., "timm": ..., "Python": ...}.
        training: what all trainings share; None if the rows were not trained.
    """

    baseline: str
    baseline_mode: str
    metrics: tuple[MetricInfo, ...]
    settings: dict[str, Any]
    machine: dict[str, Any]
    versions: dict[str, str]
    training: TrainingHeader | None = None

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Header:
        """Create a header from plain data, as JSON stores it."""
        metrics = tuple(MetricInfo(**metric) for metric in data["metrics"])
        training = TrainingHeader.from_dict(data["training"]) if data.get("training") else None
        return cls(**{**data, "metrics": metrics, "training": training})


@dataclass(frozen=True)
class BenchCommand:
    """A command that added rows to a folder.

    Attributes:
        command: the command as a shell takes it; "" if `unetkit.bench.run` was called in Python.
        planned: ids of the rows that it planned.
        started_at: time at which it was first started, ISO 8601, UTC.
    """

    command: str
    planned: tuple[str, ...]
    started_at: str


@dataclass(frozen=True)
class BenchRun:
    """The contents of a results folder.

    Attributes:
        folder: path of the folder.
        header: settings and environment of all rows.
        rows: all measured rows, in the order in which commands first planned them.
        num_planned: number of rows that the last command planned.
        num_missing: number of planned rows that are not measured yet.
        command: the last command.
        started_at: time at which the run was first started, ISO 8601, UTC.
        trainings: all trainings, in the order in which they were finished.
        commands: all commands that planned rows, each once, in the order in which they were first started.
        numbers: number of each row by its id, from 1, which later commands do not change. It has gaps where planned
            rows are not measured yet. By default rows are numbered in order.
    """

    folder: Path
    header: Header
    rows: tuple[BenchRow, ...]
    num_planned: int
    num_missing: int
    command: str
    started_at: str
    trainings: tuple[TrainingRecord, ...] = ()
    commands: tuple[BenchCommand, ...] = ()
    numbers: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.numbers:
            numbers = {row.id: number for number, row in enumerate(self.rows, 1)}
            object.__setattr__(self, "numbers", numbers)


_FILE_NAME = "rows.jsonl"
#: Kind of file, for error messages about its lines.
_CONTENT = "benchmark"


class ResultsFile:
    """The contents of the results file in a folder, read when this is created; empty if there is no such file.

    Args:
        folder: folder of the run.

    Raises:
        FileError: The file cannot be read, or is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.header: Header | None = None
        self.started_at = ""
        self.commands: list[BenchCommand] = []
        self.numbers: dict[str, int] = {}
        self.rows: dict[str, BenchRow] = {}
        self.trainings: dict[tuple[str, int], TrainingRecord] = {}
        read_json_lines(folder / _FILE_NAME, self._read_line, _CONTENT)

    def _read_line(self, line: JsonLine) -> None:
        if "header" in line:
            self.header, self.started_at = Header.from_dict(line["header"]), line["started_at"]
        elif "planned" in line:
            self._add_command(BenchCommand(line["command"], tuple(line["planned"]), line.get("started_at", "")))
        elif "training" in line:
            record = TrainingRecord(**line["training"])
            self.trainings[record.row_id, record.seed] = record
        else:
            row = BenchRow.from_dict(line["row"])
            self.numbers.setdefault(row.id, max(self.numbers.values(), default=0) + 1)
            self.rows[row.id] = row

    def _add_command(self, command: BenchCommand) -> None:
        """Add a command, and number the rows that it plans first. Planned rows that it gave up lose their number."""
        self.commands.append(command)
        planned = {*command.planned}
        self.numbers = {key: number for key, number in self.numbers.items() if key in self.rows or key in planned}
        for row_id in command.planned:
            self.numbers.setdefault(row_id, max(self.numbers.values(), default=0) + 1)

    @property
    def plugins(self) -> list[str]:
        """The files and modules that were given by --plugin for the rows, as the command of each row repeats them."""
        tokens = [token for row in self.rows.values() for token in pairwise(shlex.split(row.command))]
        return [*dict.fromkeys(value for option, value in tokens if option == "--plugin")]

    def is_done(self, row_id: str, cache_key: str, *, retry_failed: bool) -> bool:
        """Return whether a row need not be measured.

        Args:
            row_id: id of the row.
            cache_key: digest of what would be measured now.
            retry_failed: measure rows again that failed or ran out of budget.
        """
        row = self.rows.get(row_id)
        return row is not None and row.cache_key == cache_key and not (retry_failed and _can_improve(row))


def _can_improve(row: BenchRow) -> bool:
    """Return whether a row failed, at least in part, or ran out of budget."""
    ran_out = any(timing.stop_reason == "budget" for timing in row.timings.values())
    return bool(row.error or row.failures or ran_out)


def read_results(folder: Path) -> BenchRun:
    """Read the results in a folder, which may belong to a run that is still going on.

    Args:
        folder: folder of the run.

    Raises:
        FileError: The folder contains no results, or they are damaged.
    """
    file = ResultsFile(folder)
    if file.header is None:
        if not folder.exists():
            raise FileError(f"{folder} does not exist; give the folder that `unetkit bench --out FOLDER` wrote")
        if not folder.is_dir():
            raise FileError(f"{folder} is a file; give the folder that `unetkit bench --out FOLDER` wrote")
        advice = f"`unetkit bench ... --out {shlex.quote(str(folder))}` writes them"
        raise FileError(f"{folder} contains no benchmark results: there are no rows in {folder / _FILE_NAME}; {advice}")
    last = file.commands[-1] if file.commands else BenchCommand("", (), "")
    first_starts: dict[tuple[str, tuple[str, ...]], BenchCommand] = {}
    for command in file.commands:
        first_starts.setdefault((command.command, command.planned), command)
    return BenchRun(
        folder=folder,
        header=file.header,
        rows=tuple(sorted(file.rows.values(), key=lambda row: file.numbers[row.id])),
        num_planned=len({*last.planned}),
        num_missing=len({*last.planned} - file.rows.keys()),
        command=last.command,
        started_at=file.started_at,
        trainings=current_trainings(file),
        commands=tuple(first_starts.values()),
        numbers={row_id: number for row_id, number in file.numbers.items() if row_id in file.rows},
    )


def current_trainings(file: ResultsFile | ResultsWriter) -> tuple[TrainingRecord, ...]:
    """Return the trainings of what the rows are now; those from before an edit of a plugin are left out."""
    keys = {(row.id, row.cache_key) for row in file.rows.values()}
    return tuple(record for record in file.trainings.values() if (record.row_id, record.cache_key) in keys)


class ResultsWriter:
    """A writer that appends to the results file in a folder, and keeps other processes from doing so until `close`.

    Args:
        folder: folder of the run; it is created if it does not exist.

    Raises:
        FileError: The folder cannot be written, another process is writing to it, or its results file is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if folder.exists() and not folder.is_dir():
            raise FileError(f"--out {folder} is a file; give a folder")
        if (folder / "run.json").exists():
            raise FileError(f"--out {folder} contains a run of `unetkit train`; give another folder")
        self._lines = JsonLinesWriter(folder / _FILE_NAME, _CONTENT)
        try:
            file = ResultsFile(folder)
        except FileError:
            self._lines.close()
            raise
        self.header, self.rows, self.is_done = file.header, file.rows, file.is_done
        self.trainings = file.trainings

    def start(self, header: Header, command: str, planned: Iterable[str]) -> None:
        """Append what a command is going to measure.

        Args:
            header: settings and environment of the rows.
            command: the command, as a shell takes it.
            planned: ids of the planned rows.

        Raises:
            FileError: The folder contains rows that were measured with other settings.
        """
        if self.header is None or not self.rows:
            self._lines.append({"header": asdict(header), "started_at": utc_now()})
        elif difference := describe_differences(self.header, header):
            raise FileError(
                f"the rows in {self.folder} were measured with {difference}; give another --out{_advise(difference)}"
            )
        self.header = header
        self._lines.append({"command": command, "planned": [*planned], "started_at": utc_now()})

    def append(self, row: BenchRow) -> None:
        """Append a row; it is on disk when this returns."""
        self._lines.append({"row": asdict(row)})
        self.rows[row.id] = row

    def append_training(self, record: TrainingRecord) -> None:
        """Append a training; it is on disk when this returns."""
        self._lines.append({"training": asdict(record)})
        self.trainings[record.row_id, record.seed] = record

    def close(self) -> None:
        """Release the folder for other processes. If no row was written, remove the file and the empty folder."""
        self._lines.close()
        if not self.rows:
            self._lines.delete_file()


def utc_now() -> str:
    """Return the current time in UTC, as ISO 8601 with seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


#: Settings that affect how precisely values are known, but not the values.
_PRECISION_SETTINGS = {"budget", "target_ci", "timeout"}


def describe_differences(old: Header, new: Header) -> str:
    """Describe the first difference that makes rows of two headers incomparable; "" if there is none."""
    old_items, new_items = (_flatten(json.loads(json.dumps(asdict(header)))) for header in (old, new))
    for name in {**old_items, **new_items}:
        before, now = old_items.get(name, "none"), new_items.get(name, "none")
        if name == "--metrics":  # in any order
            before, now = (before, before) if {*before.split(",")} == {*now.split(",")} else (before, now)
        if name not in _PRECISION_SETTINGS and before != now:
            return f"{name} {before}, but this command uses {now}"
    return ""


#: Settings that only affect timings.
_OF_TIMINGS = ("jobs", "threads", "slots")
#: The options that set the rules of verdicts.
_RULE_OPTIONS = {"looks": "--seeds", "margin": "--margin", "race": "--race", "metric": "the first trained of --metrics"}


def _format_rule(value: Any) -> str:
    """Format a rule as its option takes it; several looks are `auto`, and the last one is --max-seeds."""
    if isinstance(value, list | tuple):
        return str(value[0]) if len(value) == 1 else f"auto --max-seeds {value[-1]}"
    return str(value)


def _advise(difference: str) -> str:
    """Return what to do about a difference between what is stored and what a command would do."""
    name = next((option for option in _RULE_OPTIONS.values() if difference.startswith(f"{option} ")), None)
    if name is not None:
        return f", or leave out {name.split()[-1]}: the rules of verdicts are fixed before the first training"
    if difference.startswith(
        ("unetkit ", "unetkit's code", "torch ", "timm ", "segmentation-models-pytorch ", "Python ")
    ):
        return ", since rows of different versions cannot be compared"
    return ", or the same settings"


def _flatten(header: dict[str, Any]) -> dict[str, str]:
    """Return the items of a header by name, as text; metrics only as a list of names."""
    metrics = ",".join(metric["name"] for metric in header["metrics"])
    training = header["training"] or {}
    rules = {_RULE_OPTIONS.get(name, name): _format_rule(value) for name, value in training.get("rules", {}).items()}
    shared = {name: training.get(name) for name in ("data", "seed", "scored", "fingerprints")}
    shared["settings"] = {name: value for name, value in training.get("settings", {}).items() if name != "workers"}
    is_timed = any(metric["timed"] for metric in header["metrics"])
    settings = {name: value for name, value in header["settings"].items() if is_timed or name not in _OF_TIMINGS}
    return {
        **{f"the {name} of trainings": str(value) for name, value in shared.items()},
        **rules,
        "baseline": header["baseline"],
        "baseline mode": header["baseline_mode"],
        "--metrics": metrics,
        **{
            name: str(value)
            for part in (settings, header["versions"], header["machine"])
            for name, value in part.items()
        },
    }
