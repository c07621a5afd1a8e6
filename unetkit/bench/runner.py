"""Run benchmarks: `run` and `read` for Python, and the BenchRunner behind them and behind `unetkit bench`.

A runner first builds all planned rows on meta tensors, then has those that can be built measured, each in a process of
its own, and writes each row to disk. With data, it then trains them (`unetkit.bench.training_runner`). `dry_run` only
does the first step, and estimates the time of the second. The module imports no torch: the processes that it starts are
forked from a server that has imported it.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unetkit.bench.config import BenchConfig, repeat_command, train_command
from unetkit.bench.devices import Slot, is_contended, make_slots
from unetkit.bench.engines import NoticeCallback, require_ray, run_locally, run_on_cluster, select_devices
from unetkit.bench.grid import (
    PRELOAD,
    Case,
    Mode,
    Trial,
    cache_key,
    format_pretrained,
    list_libraries,
    make_cases,
    shorten,
    size_as_factor,
)
from unetkit.bench.metrics import ANALYTIC_METRICS, collect_metrics, split_absent_metrics
from unetkit.bench.results import (
    BenchRow,
    BenchRun,
    Header,
    ResultsFile,
    ResultsWriter,
    Timing,
    TrainingRecord,
    read_results,
    utc_now,
)
from unetkit.bench.statistics import find_timing_warnings
from unetkit.bench.training import (
    TRAINING_AXES,
    combine_trainings,
    find_training_owners,
    parse_training_axis,
    train_settings,
)
from unetkit.bench.training_runner import PRELOAD as TRAINING_PRELOAD
from unetkit.bench.training_runner import TrainingRunner
from unetkit.data.source import with_absolute_path
from unetkit.errors import BuildError, OptionError
from unetkit.plan import Plan
from unetkit.plugins import PluginManager, absolute_target, load_manager
from unetkit.registry import Metric, MetricInfo
from unetkit.train.config import TrainConfig
from unetkit.utils.config_fields import flag_of, make_config
from unetkit.utils.formatting import Size
from unetkit.utils.processes import TaskResult, run_tasks
from unetkit.utils.system import available_cores

if TYPE_CHECKING:
    from pandas import DataFrame


class BenchRows(list[BenchRow]):
    """The rows of a run, in the order in which they were planned.

    Args:
        run: the run.

    Attributes:
        run: the run, with what its rows share: baseline, metrics and machine.
    """

    def __init__(self, run: BenchRun) -> None:
        super().__init__(run.rows)
        self.run = run

    def to_pandas(self, by: str = "row") -> DataFrame:
        """Convert the rows to a data frame with the columns of `unetkit bench show --columns`, in seconds and bytes.

        Args:
            by: "row"; or of trained networks in long form "seed", for a line for each training, or "image", for a line
                for each scored image of each training.

        Raises:
            OptionError: `by` is something else.
            UnetkitError: pandas is not installed.
        """
        from unetkit.bench.show import rows_to_dataframe

        return rows_to_dataframe(self.run, by)


def read(folder: str | Path) -> BenchRows:
    """Read the rows of a folder that `unetkit bench` or `run` wrote, or is still writing.

    Args:
        folder: folder of the results.

    Raises:
        FileError: The folder contains no results, or they are damaged.
    """
    return BenchRows(read_results(Path(folder)))


def run(
    plans: Iterable[Plan | str],
    *,
    size: Any = (),
    batch_size: Any = (),
    mode: Any = "eager",
    out: str | Path | None = None,
    on_row: Callable[[BenchRow], object] = lambda row: None,
    **config: Any,
) -> BenchRows:
    """Measure every plan under every condition, each in a process of its own and paired with a baseline.

    With `data`, every plan is also trained with each of `seeds`, and the fields of a TrainConfig such as `steps=2000`
    or `lr=[1e-3, 1e-4]` are settings of the trainings; each value of a list makes rows of its own.

    In a script, call it under `if __name__ == "__main__":`, since each process imports the script that started it.

    Args:
        plans: plans, or lines such as "--encoder resnet34 --fuse add".
        size: input size, such as 256 or (480, 640), or a list of sizes; by default the size of each plan, the model's
            own, or 256.
        batch_size: number of images in the input, by default 1, or of a training step, by default 8; or a list.
        mode: execution mode: "eager" or "compiled", optionally followed by "+channels_last", "+bfloat16" or "+float16";
            or "onnxruntime" or "openvino"; or a list.
        out: folder for the results; rows that it already contains are not measured again, and its metrics are the
            default. If None, the results are only returned.
        on_row: called with each row when it is measured, before it is trained.
        config: fields of `unetkit.bench.config.BenchConfig`, such as metrics, baseline, data, seeds, device and
            plugins; and with data those of `unetkit.train.config.TrainConfig` in TRAINING_AXES.

    Returns:
        A row for each plan and condition; those that failed have an `error`.

    Raises:
        UnetkitError: A plan, a setting or the folder cannot be used.
    """
    if isinstance(plans, str | Plan):
        raise OptionError(f"bench.run takes a list of plans; give [{str(plans)!r}]")
    axes = {name: _values_as_text(config.pop(name)) for name in TRAINING_AXES if name in config}
    bench_config = _make_config(config)
    manager = load_manager(bench_config.plugins)
    absent: tuple[MetricInfo, ...] = ()
    header = ResultsFile(Path(out)).header if out is not None and Path(out).is_dir() else None
    if header is not None and not bench_config.metrics:
        names, absent = split_absent_metrics(header.metrics, manager)
        bench_config = replace(bench_config, metrics=names)
    axes = {name: parse_training_axis(name, values, manager.parts) for name, values in axes.items()}
    parsed = [plan if isinstance(plan, Plan) else Plan.parse(plan) for plan in plans]
    cases: list[Case] = []
    sizes, batch_sizes = _as_list(size), _as_list(batch_size, tuple)
    modes = [Mode.parse(one) for one in _as_list(mode, tuple)]
    is_trained = bool(bench_config.data)
    for images in batch_sizes or [1]:
        trained = {"batch_size": [str(images)]} if batch_sizes and is_trained else {}
        trainings = combine_trainings({**axes, **trained}, trained=is_trained)
        cases += make_cases(parsed, sizes, [images], modes, manager.parts, trainings, trained=is_trained)
    if not cases:
        raise OptionError("no plan is given; give lines such as '--encoder resnet34 --fuse add'")
    with ExitStack() as stack:
        folder = Path(out) if out is not None else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        writer = ResultsWriter(folder)
        stack.callback(writer.close)
        runner = stack.enter_context(closing(BenchRunner(cases, bench_config, manager, absent_metrics=absent)))
        for row in runner.measure_rows(writer, ""):
            on_row(row)
        for _ in runner.train_rows(writer):
            pass
        results = read_results(folder)
        rows = {row.id: row for row in results.rows}
        return BenchRows(replace(results, rows=tuple(rows[case.id] for case in runner.cases if case.id in rows)))


def _values_as_text(values: Any) -> list[str]:
    """Return one value or each of a list as an option of the command takes it: (480, 640) is 480x640."""
    return ["x".join(map(str, one)) if isinstance(one, tuple) else str(one) for one in _as_list(values)]


def _as_list(values: Any, *several: type) -> list[Any]:
    """Return a list; a single value is a list of one. A list, (), and each type of `several` have several values."""
    return [*values] if isinstance(values, (list, *several)) or values == () else [values]


def _make_config(fields: dict[str, Any]) -> BenchConfig:
    """Create a configuration; lists become tuples and paths become text, so that it can be sent to other processes."""
    if "data" in fields:
        fields["data"] = str(fields["data"])
    for name in ("metrics", "plugins"):
        if name in fields:
            values = [fields[name]] if isinstance(fields[name], str | Path) else fields[name]
            fields[name] = tuple(map(str, values))
    return make_config(BenchConfig, fields, "bench.run")


#: Metrics from 0 to 1, and the largest margin that is no mistake for them.
_SHARES, _MAX_MARGIN = ("miou", "dice", "iou", "boundary-f", "separated-instances"), 0.2

#: Functions that processes call.
DESCRIBE_MACHINE = "unetkit.bench.worker:describe_machine"
DRY_BUILD, MEASURE, PROBE = (f"unetkit.bench.worker:{name}" for name in ("dry_build", "measure", "probe"))
#: Shortest time limit of processes that do not measure, in seconds.
_MIN_TIMEOUT = 300.0
#: Largest number of cases that one process builds on meta tensors.
_MAX_BATCH = 16


@dataclass
class BenchRunner:
    """A benchmark: its cases, its settings, and the methods that measure it.

    Attributes:
        cases: planned cases, at least one.
        config: settings.
        manager: loaded plugins, with the parts.
        on_notice: called with each line that a user should see during the run.
        on_dry_build: called with the number of cases that are built on meta tensors, and the number of those to build.
        on_plan: called with the number of cases that have to be measured, and the number of all cases, once that is
            known.
        baseline: plan of the baseline of all rows; set by `choose_baseline`.
        baseline_mode: execution mode of the baseline; set by `choose_baseline`.
        absent_metrics: metrics of the rows that a folder contains which no plugin has any more.
        dry_builds: what `dry_build` found of each case that can be built, by its id: "line", "macs", "size", and
            ("values", name) for each analytic metric.
    """

    cases: Sequence[Case]
    config: BenchConfig
    manager: PluginManager
    on_notice: NoticeCallback = lambda line: print(f"unetkit: {line}", file=sys.stderr)
    on_dry_build: Callable[[int, int], None] = lambda done, total: None
    on_plan: Callable[[int, int], None] = lambda pending, total: None
    baseline: Plan = field(default_factory=Plan)
    baseline_mode: Mode = field(default_factory=Mode)
    baseline_row: str = ""
    dry_builds: dict[str, dict[Any, Any]] = field(default_factory=dict)
    absent_metrics: tuple[MetricInfo, ...] = ()

    def __post_init__(self) -> None:
        config, data = self.config, self.config.data
        if config.engine == "ray":
            require_ray()
        if data:
            data = with_absolute_path(data, self.manager.parts)
            config = self.config = replace(config, data=data)
        chosen = collect_metrics(self.manager, config.measured_metrics, trained=bool(data))
        self.metrics: list[Metric] = [metric for metric in chosen if not metric.trained]
        self.trained_metrics: list[Metric] = [metric for metric in chosen if metric.trained]
        self.training: TrainingRunner | None = None
        self.connection = ExitStack()
        self.on_training_plan: Callable[[int], None] = lambda count: None
        if not data:
            for case in self.cases:
                if case.training or case.plan.pretrained:
                    names = [name for name, _ in case.training if name != "batch_size"] or ["pretrained"]
                    raise OptionError(f"{flag_of(names[0])}: only applies to trainings; give --data, too")
            return
        if not self.trained_metrics:
            raise OptionError("--metrics: names no metric of trained networks; add one, such as miou")
        if len({case.mode for case in self.cases}) > 1:
            raise OptionError("--mode: give one mode with --data, since trainings are the same in all")
        for case in self.cases:
            TrainConfig(**train_settings(case))  # rejects values that do not fit each other
        if self.trained_metrics[0].name.partition(":")[0] in _SHARES and config.margin > _MAX_MARGIN:
            what = f"--margin {config.margin:g}: must be at most {_MAX_MARGIN:g} for scores from 0 to 1"
            raise OptionError(f"{what}; 0.005 is half a point")
        self.training = TrainingRunner(self.cases, self.trained_metrics, config, self._plugin_paths())
        self.training.preload = self._preload()

    @property
    def timeout(self) -> float:
        """The time limit of a row, in seconds."""
        return self.config.row_timeout(sum(metric.timed for metric in self.metrics))

    def measure_rows(self, writer: ResultsWriter, command: str) -> Generator[BenchRow, None, None]:
        """Measure the cases that a folder does not contain yet, and yield each row after it is written to disk.

        Args:
            writer: writer of the folder.
            command: command of this run, which is stored in the results.

        Raises:
            BuildError: The baseline cannot be built, or no case can be built and the folder contains no rows.
            FileError: The folder contains rows that cannot be compared with these.
        """
        self.open_data()
        pending = self.pending_cases(writer)
        machine = self.machine
        if self.training is not None and self.config.engine != "ray":
            self.training_slots()  # refuses what does not fit this machine before anything is measured
        slots = self.select_slots(machine["gpus"])
        failed = self.dry_build(pending)
        if pending and not self.dry_builds and not writer.rows:
            raise BuildError(f"none of the rows can be built; the first: {failed[0].error}")
        self.choose_baseline(writer.header)
        writer.start(self.make_header(machine, slots), command, [case.id for case in self.cases])
        self.on_plan(len(pending), len(self.cases))
        with closing(self.measure(pending, slots)) as measured:
            for row in chain(map(self._make_row, failed), measured):
                writer.append(row)
                yield row

    def open_data(self, *, check_images: bool = True) -> None:
        """Open the data of the trainings, and fit all rows to their channels and classes. Without data, do nothing.

        Args:
            check_images: whether to read all images, to find damaged ones before anything is trained.

        Raises:
            OptionError: The data cannot be opened.
        """
        if self.training is None or self.training.facts:
            return
        self.training.open_data(check_images=check_images)
        self.cases = [*self.training.cases.values()]
        for note in self.training.facts["notes"]:
            self.on_notice(f"note: {note}")

    def train_rows(self, writer: ResultsWriter) -> Generator[TrainingRecord, None, None]:
        """Train what is missing, and yield each training when it is on disk. Without data, yield nothing.

        Args:
            writer: writer of the folder, after `measure_rows`.
        """
        if self.training is None:
            return
        slots = self.training_slots() if self.config.engine != "ray" else []
        training = self.training.train(writer, slots, self.connection, self.on_notice, self.on_training_plan)
        with closing(training) as records:
            yield from records

    def close(self) -> None:
        """End the connection to a cluster, if there is one."""
        self.connection.close()

    def pending_cases(self, results: ResultsFile | ResultsWriter) -> list[Case]:
        """Return the cases that have to be measured.

        Args:
            results: the rows that are measured already.
        """
        return [
            case
            for case in self.cases
            if not results.is_done(case.id, self.cache_key(case), retry_failed=self.config.retry_failed)
        ]

    def training_slots(self) -> list[Slot]:
        """Return the slots of this machine for trainings, which may share a GPU."""
        devices = select_devices(self.config.device, self.machine["gpus"])
        return make_slots(devices, available_cores(), self.config.jobs, self.config.threads, shares_gpus=True)

    @cached_property
    def machine(self) -> dict[str, Any]:
        """The description of this machine that `unetkit.bench.worker.describe_machine` emits."""
        [result] = self.run_children([None], DESCRIBE_MACHINE, [None])
        if result.error:
            raise BuildError(f"the process that examines this machine failed: {result.error}")
        return result.facts

    def select_slots(self, gpus: Sequence[tuple[str, str]]) -> list[Slot]:
        """Return the slots of this machine in which rows are measured; none if they are measured on a cluster.

        Args:
            gpus: (device, name) pairs of the GPUs of this machine.

        Raises:
            OptionError: A device does not exist, or there are not enough cores.
        """
        if self.config.engine == "ray":
            return []
        devices = select_devices(self.config.device, gpus)
        is_shared = self.training is not None and devices[0][0] != "cpu"  # trainings may share a GPU, timings may not
        jobs = len(devices) if is_shared else self.config.jobs
        return make_slots(devices, available_cores(), jobs, self.config.threads)

    def dry_build(self, cases: Sequence[Case]) -> list[TaskResult]:
        """Build cases on meta tensors, run their input through them, and store what that finds in `dry_builds`.

        Args:
            cases: cases to build.

        Returns:
            The results of the cases that failed, in the order of the cases.
        """
        refused = self.training.refused if self.training else {}
        failed = [TaskResult(self.make_trial(case), {}, refused[case.id], 0.0) for case in cases if case.id in refused]
        trials = [self.make_trial(case) for case in cases if case.id not in refused]
        for done, result in enumerate(self._run_dry_builds(trials), len(failed) + 1):
            if result.error:
                failed.append(result)
            else:
                self.dry_builds[result.task.case.id] = result.facts
            self.on_dry_build(done, len(cases))
        order = {case.id: index for index, case in enumerate(cases)}
        return sorted(failed, key=lambda result: order[result.task.case.id])

    def _run_dry_builds(self, trials: Sequence[Trial]) -> Iterator[TaskResult]:
        """Build cases, several in each process, and yield each result.

        What a process that died or hung left is built again, each case in a process of its own.
        """
        slots = [None] * len(available_cores())
        ordered = sorted(trials, key=lambda trial: str(trial.case.plan.encoder))  # what they share is imported once
        length = min(_MAX_BATCH, ceil(len(trials) / (2 * len(slots)))) or 1
        batches = [ordered[start : start + length] for start in range(0, len(trials), length)]
        while batches:
            left = []
            for result in self.run_children(batches, DRY_BUILD, slots):
                for trial in result.task:
                    facts = result.facts.get(trial.case.id, {"error": result.error})
                    if trial.case.id not in result.facts and len(result.task) > 1:
                        left.append([trial])
                        continue
                    error = facts.pop("error", "")
                    yield TaskResult(trial, facts, error, round(result.seconds / len(result.task), 2))
            batches = left

    def choose_baseline(self, header: Header | None) -> None:
        """Set the baseline: that of the settings, or of the existing rows, or the first case that can be built.

        Args:
            header: header of the existing rows, if there are any.

        Raises:
            BuildError: The given baseline cannot be built.
        """
        line, mode = (header.baseline, header.baseline_mode) if header else ("", "")
        line, mode = self.config.baseline or line, self.config.baseline_mode or mode
        self.baseline_mode = Mode.parse(mode) if mode else self.cases[0].mode
        if self.training is not None:
            self._choose_baseline_row(header, line)
        elif line:
            self.baseline = self._parse_baseline(line)
            self._check_baseline()
        else:
            first = next((case for case in self.cases if case.id in self.dry_builds), self.cases[0])
            self.baseline = replace(first.plan, size=None)

    def _choose_baseline_row(self, header: Header | None, line: str) -> None:
        """Set the baseline where rows are trained: it is a row of its own."""
        if header is not None and header.training is not None:
            self.baseline, self.baseline_row = Plan.parse(header.baseline), header.training.baseline_row
            given = self._parse_baseline(self.config.baseline).explicit()
            if any(getattr(self.baseline, name) != value for name, value in given.items()):
                raise OptionError(
                    f"--baseline {self.config.baseline}: that of this folder is {self.baseline}; leave it out"
                )
            return
        cases = [case for case in self.cases if case.id in self.dry_builds]
        if line:
            wanted = self._parse_baseline(line)
            cases = [case for case in cases if replace(case.plan, size=None, pretrained=None) == wanted]
            if not cases:
                raise OptionError(f"--baseline {line}: is not one of the rows that can be built; add it to the grid")
        first = cases[0] if cases else self.cases[0]
        self.baseline, self.baseline_row = replace(first.plan, size=None, pretrained=None), first.id

    def _parse_baseline(self, line: str) -> Plan:
        """Parse the line of a baseline, without what its rows determine and what equals its default."""
        return shorten(replace(Plan.parse(line), size=None, seed=None, pretrained=None), self.manager.parts)

    def _check_baseline(self) -> None:
        """Raise BuildError if there are rows to measure and the baseline cannot be built."""
        size = next((results["size"] for results in self.dry_builds.values()), None)
        case = Case(replace(self.baseline, size=size), self.cases[0].batch_size, self.baseline_mode, ())
        for result in self._run_dry_builds([self.make_trial(case)] if self.dry_builds else []):
            if result.error:
                raise BuildError(f"--baseline {self.baseline}: {result.error}")

    def make_header(self, machine: dict[str, Any], slots: Sequence[Slot]) -> Header:
        """Create the header of the results.

        Args:
            machine: as `machine` has it.
            slots: slots in which rows are measured.
        """
        return Header(
            baseline=str(self.baseline),
            baseline_mode=str(self.baseline_mode),
            metrics=(*(metric.info for metric in (*self.metrics, *self.trained_metrics)), *self.absent_metrics),
            settings={**self.config.comparable_settings(), "slots": [str(slot) for slot in slots]},
            machine=machine["machine"],
            versions=machine["versions"],
            training=self.training.make_header(self.baseline_row) if self.training else None,
        )

    def measure(self, cases: Iterable[Case], slots: Sequence[Slot]) -> Generator[BenchRow, None, None]:
        """Measure the cases that can be built, and yield a row for each when it is done.

        Args:
            cases: cases to measure; those that are not in `dry_builds` are left out.
            slots: slots of this machine; not used with a cluster.
        """
        sharing: dict[tuple[str, Size | None], list[Trial]] = {}
        for case in cases:
            if case.id in self.dry_builds:
                sharing.setdefault((case.cost_id, self._find_crop(case)), []).append(self.make_trial(case))
        trials = [first for first, *_ in sharing.values()]
        options: dict[str, Any] = {"timeout": self.timeout, "preload": self._preload()}
        if all(metric.name in ANALYTIC_METRICS for metric in self.metrics):
            results = (TaskResult(trial, {}, "", 0.0) for trial in trials)  # all is known without a measurement
        elif self.config.engine == "ray":
            results = run_on_cluster(trials, MEASURE, self.config, self.connection, **options)
        else:
            is_timed = any(metric.timed for metric in self.metrics)
            results = run_locally(trials, MEASURE, slots, on_notice=self.on_notice, timed=is_timed, **options)
        with closing(results):
            for result in results:
                case = result.task.case
                for trial in sharing[case.cost_id, self._find_crop(case)]:
                    yield self._make_row(replace(result, task=trial))

    def cache_key(self, case: Case) -> str:
        """Return the digest of a case and of the code of the plugins that it and the metrics use."""
        owners = {metric.owner for metric in (*self.metrics, *self.trained_metrics)}
        if self.config.data:
            owners |= find_training_owners(case, self.config.data, self.manager.parts)
        return cache_key(case, "" if self.config.data else self.config.baseline, owners, self.manager)

    def run_children(
        self, tasks: Iterable[Any], target: str, slots: Sequence[Any]
    ) -> Generator[TaskResult, None, None]:
        """Run tasks that do not measure, each in a process of its own, and yield each result.

        Args:
            tasks: objects that can be pickled.
            target: function that a process calls, as `unetkit.utils.processes.run_tasks` takes it.
            slots: an argument of the function; as many tasks run at the same time.
        """
        return run_tasks(tasks, target, slots, timeout=max(self.timeout, _MIN_TIMEOUT), preload=self._preload())

    def _preload(self) -> list[str]:
        baselines = [self.baseline] if self.baseline != Plan() else []
        libraries = list_libraries([*baselines, *(case.plan for case in self.cases)])
        if not {"training", "training-memory"}.isdisjoint(metric.name for metric in self.metrics):
            libraries.append("torch._dynamo")  # every optimizer imports it
        of_trainings = TRAINING_PRELOAD if self.training else ()
        return [*PRELOAD, *of_trainings, *libraries]

    def make_trial(self, case: Case) -> Trial:
        """Return a case with everything that the process which builds or measures it has to know."""
        names = tuple(metric.name for metric in self.metrics)
        size = self.dry_builds.get(case.id, {}).get("size")
        timing, crop = self.config.timing_config, self._find_crop(case)
        return Trial(case, self.baseline, self.baseline_mode, size, names, timing, crop, self._plugin_paths())

    def _find_crop(self, case: Case) -> Size | None:
        """Return the size of a training crop, for which the costs of a row are those if its plan has no input size."""
        if self.training is None or not self.training.facts:
            return None
        crop: Size = train_settings(case).get("crop") or self.training.facts["crop"]
        return crop

    def _plugin_paths(self) -> tuple[str, ...]:
        return tuple(map(absolute_target, self.config.plugins))

    def _make_row(self, result: TaskResult) -> BenchRow:
        """Create a row from what `dry_build` found of a case and from what its process emitted."""
        case: Case = result.task.case
        emitted = {**self.dry_builds.get(case.id, {}), **result.facts}
        by_metric: dict[str, dict[str, Any]] = {"values": {}, "timings": {}, "failures": {}}
        for key, value in emitted.items():
            if isinstance(key, tuple):
                row_field, name = key
                by_metric[row_field][name] = value
        timings = {name: Timing.from_dict(timing) for name, timing in by_metric["timings"].items()}
        contention = emitted.get("cpu_contention", 0.0)
        warnings = [line for name, timing in timings.items() for line in find_timing_warnings(timing, name)]
        device = emitted.get("device", "")
        if timings and is_contended(contention):
            advice = "" if device.endswith(" 1 thread") else "; --threads 1 helps"
            warnings.insert(0, _CONTENTION_WARNING.format(contention) + advice)
        error = self._attribute_error(result, by_metric)
        return BenchRow(
            id=case.id,
            cache_key=self.cache_key(case),
            factors=self._find_factors(case, emitted),
            defaults=case.defaults,
            line=self._find_line(case, emitted),
            size=emitted.get("size") or case.plan.size or (0, 0),
            batch_size=case.batch_size,
            mode=str(case.mode),
            error=error,
            values=by_metric["values"],
            timings=timings,
            failures=by_metric["failures"],
            warnings=tuple(warnings),
            cpu_contention=contention,
            command=self._repeat_command(case),
            device=device,
            seconds=result.seconds,
            measured_at=utc_now(),
            training=dict(case.training),
            pretrained="" if not case.plan.pretrained else format_pretrained(case.plan.pretrained),
        )

    def _find_factors(self, case: Case, emitted: dict[Any, Any]) -> dict[str, str]:
        """Return the factors of a row; one without an input size has that of its network, at which it is measured."""
        if self.training is not None or case.plan.size is not None or "size" not in emitted:
            return dict(case.factors)
        return {**dict(case.factors), "size": size_as_factor(emitted["size"])}

    def _find_line(self, case: Case, emitted: dict[Any, Any]) -> str:
        """Return the line of a row; a size that only its costs are measured at is not part of a trained network."""
        line: str = emitted.get("line", str(case.plan))
        has_other_size = self.training is not None and case.plan.size is None and "line" in emitted
        return str(replace(Plan.parse(line), size=None)) if has_other_size else line

    def _repeat_command(self, case: Case) -> str:
        if self.training is not None:
            return train_command(case.plan, case.training, self.config.seed, self.config)
        return repeat_command(case, self.config, str(self.baseline), self.baseline_mode)

    def _attribute_error(self, result: TaskResult, by_metric: dict[str, dict[str, Any]]) -> str:
        """Return the error of a row as a whole; "" if it has results, and its error is that of a metric.

        If a process died while it measured a metric, that metric and those after it are added to the failures.
        """
        current_metric = result.facts.get("current_metric")
        if not result.error or not current_metric:
            return result.error
        measured = {**by_metric["values"], **by_metric["timings"], **by_metric["failures"]}
        if not measured.keys() - {*ANALYTIC_METRICS}:
            return f"{result.error}, while measuring {current_metric}"
        missing = [metric.name for metric in self.metrics if metric.name not in measured]
        by_metric["failures"] |= {
            name: result.error if name == current_metric else "not measured, since its process ended before"
            for name in missing
        }
        return ""


_CONTENTION_WARNING = (
    "other processes used {:.0%} of the CPU time of its cores, so that times are too long and ratios less certain"
)

#: Rounds that a timing typically takes on a quiet machine.
_TYPICAL_ROUNDS = 40
#: Rounds that a timing takes even if they exceed the budget, including warm-up.
_MIN_ROUNDS = 9
#: Seconds to start the process of a row and to build its model.
_OVERHEAD = 4.0
#: Calls in which memory is measured.
_MEMORY_CALLS = 4


@dataclass(frozen=True)
class DryRun:
    """The rows that a command would measure, and the time that this would take.

    Attributes:
        pending: cases that would be measured, each with what `BenchRunner.dry_build` found: "line", "size", "macs" ...
        failed: cases that cannot be built, each with its error.
        num_done: number of cases that are measured already.
        baseline: line of the baseline.
        estimated_seconds: approximate time without trainings, in seconds.
        trainings: number of trainings of all rows that can be built, those that are done among them; with several looks
            the smallest and the largest number.
        num_trained: number of trainings that are done.
    """

    pending: tuple[tuple[Case, dict[Any, Any]], ...]
    failed: tuple[tuple[Case, str], ...]
    num_done: int
    baseline: str
    estimated_seconds: float
    trainings: tuple[int, int] = (0, 0)
    num_trained: int = 0


def dry_run(runner: BenchRunner, folder: Path | None) -> DryRun:
    """Build every case that is not measured yet on meta tensors, and time one call of the baseline.

    Args:
        runner: the benchmark.
        folder: folder that may contain rows; it is not changed.

    Raises:
        BuildError: The baseline cannot be built.
    """
    results = ResultsFile(folder) if folder is not None and folder.exists() else None
    runner.open_data(check_images=False)
    pending = runner.pending_cases(results) if results else [*runner.cases]
    machine = runner.machine
    failed = runner.dry_build(pending)
    runner.choose_baseline(results.header if results else None)
    buildable = [case for case in pending if case.id in runner.dry_builds]
    slots = runner.select_slots(machine["gpus"]) or [Slot("cpu", (), len(available_cores()))]
    return DryRun(
        pending=tuple((case, runner.dry_builds[case.id]) for case in buildable),
        failed=tuple((result.task.case, result.error) for result in failed),
        num_done=len(runner.cases) - len(pending),
        baseline=str(runner.baseline),
        estimated_seconds=_estimate_seconds(runner, buildable, slots[0]) / len(slots),
        trainings=_count_trainings(runner, len(runner.cases) - len(failed)),
        num_trained=sum(row_id in {case.id for case in runner.cases} for row_id, _ in results.trainings)
        if results
        else 0,
    )


def _count_trainings(runner: BenchRunner, rows: int) -> tuple[int, int]:
    if runner.training is None:
        return 0, 0
    looks = runner.training.rules.looks
    return rows * looks[0], rows * looks[-1]


def _estimate_seconds(runner: BenchRunner, cases: list[Case], slot: Slot) -> float:
    """Estimate the time to measure cases one after another, from their MACs and one timed call of the baseline."""
    if not cases:
        return 0.0
    first = cases[0]
    baseline_case = replace(first, plan=replace(runner.baseline, size=first.plan.size))
    [result] = runner.run_children([replace(runner.make_trial(first), case=baseline_case)], PROBE, [slot])
    probed = result.facts
    timed = [metric.name for metric in runner.metrics if metric.timed]
    seconds_per_mac = [probed[name] / max(1, probed["macs"]) for name in timed if name in probed]
    total = _OVERHEAD * len(cases)
    for case in cases:
        macs: int = runner.dry_builds[case.id]["macs"]
        pair_macs = macs + probed.get("macs", 0) * _num_pixels(runner, case) / _num_pixels(runner, first)
        for rate in seconds_per_mac:
            rounds = min(runner.config.budget, _TYPICAL_ROUNDS * pair_macs * rate)
            total += max(_MIN_ROUNDS * pair_macs * rate, rounds) + _MEMORY_CALLS * macs * rate
    return total


def _num_pixels(runner: BenchRunner, case: Case) -> int:
    """Return the number of pixels in the input of a case, of all images together."""
    height, width = runner.dry_builds[case.id]["size"]
    return int(case.batch_size * height * width)
