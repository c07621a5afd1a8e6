"""The process that leads a run: plans rows, examines all of them, has them measured, and writes down what comes back.

It imports no torch: children do, forked from a server that has.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unetkit.bench.config import BenchConfig, repeat_command
from unetkit.bench.devices import Slot, contention_warning, make_slots
from unetkit.bench.engines import Notice, run_locally, run_on_cluster, select_devices
from unetkit.bench.grid import PRELOAD, Case, Mode, Trial, cache_key, make_cases
from unetkit.bench.metrics import ANALYTIC, metrics_of
from unetkit.bench.results import BenchRow, BenchRun, Header, ResultsFile, ResultsWriter, Timing, now, read_results
from unetkit.bench.statistics import timing_warnings
from unetkit.errors import BuildError, OptionError
from unetkit.plan import Plan
from unetkit.plugins import PluginManager, load_manager
from unetkit.registry import Metric
from unetkit.utils.processes import TaskResult, run_tasks
from unetkit.utils.system import available_cores

if TYPE_CHECKING:
    from pandas import DataFrame


#: What children do.
SURVEY = "unetkit.bench.worker:survey"
DRY_BUILD, MEASURE, PROBE = (f"unetkit.bench.worker:{name}" for name in ("dry_build", "measure", "probe"))
#: Seconds at least for what is not measured.
_PATIENCE = 300.0


@dataclass
class BenchRunner:
    """A run under way.

    Attributes:
        cases: all that are planned, at least one.
        choices: beside them.
        host: plugins and parts.
        notice: told what a user should know while it goes on, a line each.
        progress: told how many of how many cases are examined.
        planning: told how many of how many cases are left to be measured, when that is known.
        baseline, baseline_mode: of all rows; chosen by `settle`.
        examined: of cases that can be built, their line, size and figures, by id.
    """

    cases: Sequence[Case]
    choices: BenchConfig
    host: PluginManager
    notice: Notice = lambda line: print(f"unetkit: {line}", file=sys.stderr)
    progress: Callable[[int, int], None] = lambda done, total: None
    planning: Callable[[int, int], None] = lambda left, total: None
    baseline: Plan = field(default_factory=Plan)
    baseline_mode: Mode = field(default_factory=Mode)
    examined: dict[str, dict[Any, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.metrics: list[Metric] = metrics_of(self.host).chosen(self.choices.metrics)

    @property
    def timeout(self) -> float:
        """Seconds that one row may take."""
        return self.choices.row_timeout(sum(metric.timed for metric in self.metrics))

    def survey(self) -> dict[str, Any]:
        """The machine, the versions and the GPUs."""
        [ended] = self.children([None], SURVEY, [None])
        if ended.cause:
            raise BuildError(f"a process that asks what this machine has does not run: {ended.cause}")
        return ended.said

    def rows(self, ledger: ResultsWriter, command: str) -> Generator[BenchRow, None, None]:
        """Measure what a folder does not hold yet, and give each row when it is on disk.

        Raises:
            BuildError: the baseline cannot be built.
            FileError: the folder holds rows that cannot be compared with these.
        """
        left = [
            case for case in self.cases if not ledger.done(case.id, self.key(case), again=self.choices.retry_failed)
        ]
        machine = self.survey()
        slots = self.slots(machine["gpus"])
        failed = self.dry_build(left)
        if left and not self.examined and not ledger.rows:
            raise BuildError(f"no row can be built; the first: {failed[0].cause}")
        self.choose_baseline(ledger.header)
        ledger.start(self.header(machine, slots), command, [case.id for case in self.cases])
        self.planning(len(left), len(self.cases))
        with closing(self.measure(left, slots)) as measured:
            for row in chain(map(self._row, failed), measured):
                ledger.append(row)
                yield row

    def slots(self, gpus: Sequence[tuple[str, str]]) -> list[Slot]:
        """Where rows are measured on this machine; none, where that is a cluster.

        Raises OptionError for devices and numbers of slots that there are not.
        """
        if self.choices.engine == "ray":
            return []
        devices = select_devices(self.choices.device, gpus)
        return make_slots(devices, available_cores(), self.choices.jobs, self.choices.threads)

    def dry_build(self, left: Sequence[Case]) -> list[TaskResult]:
        """Build each case on meta tensors and pass its input; gives those that fail, with their cause."""
        failed = []
        for number, ended in enumerate(
            self.children(map(self.trial, left), DRY_BUILD, [None] * len(available_cores())), 1
        ):
            if ended.cause:
                failed.append(ended)
            else:
                self.examined[ended.task.case.id] = ended.said
            self.progress(number, len(left))
        return failed

    def choose_baseline(self, header: Header | None) -> None:
        """Take the baseline: as chosen, else that of the rows that are there, else the first case that builds."""
        chosen, mode = (header.baseline, header.baseline_mode) if header else ("", "")
        chosen, mode = self.choices.baseline or chosen, self.choices.baseline_mode or mode
        self.baseline_mode = Mode.parse(mode) if mode else self.cases[0].mode
        if chosen:
            self.baseline = self._proved(replace(Plan.parse(chosen), size=None, seed=None, pretrained=None))
        else:
            first = next((case for case in self.cases if case.id in self.examined), self.cases[0])
            self.baseline = replace(first.plan, size=None)

    def _proved(self, plan: Plan) -> Plan:
        """A baseline that builds. Raises BuildError with the cause."""
        size = next((found["size"] for found in self.examined.values()), None)
        case = Case(replace(plan, size=size), self.cases[0].batch, self.baseline_mode, ())
        for ended in self.children([self.trial(case)] if self.examined else [], DRY_BUILD, [None]):
            if ended.cause:
                raise BuildError(f"--baseline {plan}: {ended.cause}")
        return plan

    def header(self, machine: dict[str, Any], slots: Sequence[Slot]) -> Header:
        """What stands for all rows."""
        settings = {**self.choices.told(), "slots": [str(slot) for slot in slots]}
        metrics = tuple(metric.info for metric in self.metrics)
        told = (settings, machine["machine"], machine["versions"])
        return Header(str(self.baseline), str(self.baseline_mode), metrics, *told)

    def measure(self, left: Iterable[Case], slots: Sequence[Slot]) -> Generator[BenchRow, None, None]:
        """A row for each case that was examined, as each is done."""
        trials = [self.trial(case) for case in left if case.id in self.examined]
        options: dict[str, Any] = {"timeout": self.timeout, "preload": self._preload()}
        if self.choices.engine == "ray":
            engine = run_on_cluster(trials, MEASURE, self.choices, **options)
        else:
            timed = any(metric.timed for metric in self.metrics)
            engine = run_locally(trials, MEASURE, slots, notice=self.notice, timed=timed, **options)
        with closing(engine) as measured:
            yield from map(self._row, measured)

    def key(self, case: Case) -> str:
        """A digest of all that is measured: the case, and the code of the plugins that have a part in it."""
        return cache_key(case, self.choices.baseline, {metric.owner for metric in self.metrics}, self.host)

    def children(self, tasks: Iterable[Any], ask: str, slots: Sequence[Any]) -> Generator[TaskResult, None, None]:
        """Tasks in processes of their own, one a slot at a time."""
        return run_tasks(tasks, ask, slots, timeout=max(self.timeout, _PATIENCE), preload=self._preload())

    def _preload(self) -> list[str]:
        with_smp = any("smp/" in str(plan) for plan in (self.baseline, *(case.plan for case in self.cases)))
        return [*PRELOAD, *(["segmentation_models_pytorch"] if with_smp else [])]

    def trial(self, case: Case) -> Trial:
        """What a child is sent."""
        names = tuple(metric.name for metric in self.metrics)
        size = self.examined.get(case.id, {}).get("size")
        plugins = tuple(os.path.abspath(p) if os.path.exists(p) else p for p in self.choices.plugins)
        return Trial(case, self.baseline, self.baseline_mode, size, names, self.choices.rules, plugins)

    def _row(self, ended: TaskResult) -> BenchRow:
        """What is known of a case: what its planning, its examination and its child said."""
        case: Case = ended.task.case
        facts = {**self.examined.get(case.id, {}), **ended.said}
        found: dict[str, dict[str, Any]] = {"figures": {}, "timings": {}, "failures": {}}
        for (kind, name), value in [(told, value) for told, value in facts.items() if isinstance(told, tuple)]:
            found[kind][name] = value
        timings = {name: Timing.of(timing) for name, timing in found["timings"].items()}
        judged = [line for name, timing in timings.items() for line in timing_warnings(timing, name)]
        others = facts.get("others", 0.0)
        busy = (
            f"other work took {others:.0%} of its cores: raw times are too long, ratios less certain; --threads 1 helps"
        )
        warnings = [*([busy] if timings and contention_warning(others) else []), *judged]
        cause = self._spread(ended, found)
        return BenchRow(
            id=case.id,
            key=self.key(case),
            factors=dict(case.factors),
            line=facts.get("line", str(case.plan)),
            size=facts.get("size") or case.plan.size or (0, 0),
            batch=case.batch,
            mode=str(case.mode),
            cause=cause,
            figures=found["figures"],
            timings=timings,
            failures=found["failures"],
            warnings=tuple(warnings),
            others=others,
            command=repeat_command(case, self.choices, str(self.baseline), self.baseline_mode),
            where=facts.get("where", ""),
            seconds=ended.seconds,
            at=now(),
        )

    def _spread(self, ended: TaskResult, found: dict[str, dict[str, Any]]) -> str:
        """The cause of a row without figures. Where it has some, what its child died of is a metric's failure."""
        doing = ended.said.get("doing")
        if not ended.cause or not doing:
            return ended.cause
        told = {**found["figures"], **found["timings"], **found["failures"]}
        if not told.keys() - {*ANALYTIC}:
            return f"{ended.cause}, at {doing}"
        left = [metric.name for metric in self.metrics if metric.name not in told]
        found["failures"] |= {name: ended.cause if name == doing else "not reached" for name in left}
        return ""


#: Rounds that a pair takes on a quiet machine, about, and those that are timed whatever the budget, warm-up included.
_ROUNDS, _LEAST = 40, 9
#: What a row does beside timing: seconds for its process and for building, and calls in which memory is measured.
_BESIDE, _CALLS = 4.0, 4


@dataclass(frozen=True)
class DryRun:
    """What a command would do.

    Attributes:
        left: the rows that it would measure, each with its examination: "line", "size", ("figures", "macs") ...
        failed: the rows that cannot be built, each with its cause.
        done: how many rows are measured already.
        baseline: the line that rows would be timed against.
        seconds: that it would take, about.
    """

    left: tuple[tuple[Case, dict[Any, Any]], ...]
    failed: tuple[tuple[Case, str], ...]
    done: int
    baseline: str
    seconds: float


def dry_run(leader: BenchRunner, folder: Path | None) -> DryRun:
    """Examine every row that is not done, and time one pass of the baseline.

    Raises BuildError where the baseline cannot be built.
    """
    held = _held(leader, folder)
    left = [case for case in leader.cases if case.id not in held[1]]
    machine = leader.survey()
    failed = leader.dry_build(left)
    leader.choose_baseline(held[0])
    able = [case for case in left if case.id in leader.examined]
    slots = leader.slots(machine["gpus"]) or [Slot("cpu", (), len(available_cores()))]
    return DryRun(
        left=tuple((case, leader.examined[case.id]) for case in able),
        failed=tuple((ended.task.case, ended.cause) for ended in failed),
        done=len(leader.cases) - len(left),
        baseline=str(leader.baseline),
        seconds=_seconds(leader, able, slots[0]) / len(slots),
    )


def _held(leader: BenchRunner, folder: Path | None) -> tuple[Header | None, set[str]]:
    """The header of a folder, and which cases it has already."""
    if folder is None or not folder.exists():
        return None, set()
    held, again = ResultsFile(folder), leader.choices.retry_failed
    return held.header, {case.id for case in leader.cases if held.done(case.id, leader.key(case), again=again)}


def _seconds(leader: BenchRunner, able: list[Case], slot: Slot) -> float:
    """For all rows one after another, by the MACs of each and a call of the baseline."""
    timed = [metric.name for metric in leader.metrics if metric.timed]
    if not able:
        return 0.0
    first = able[0]
    probed = replace(leader.trial(first), case=replace(first, plan=replace(leader.baseline, size=first.plan.size)))
    [ended] = leader.children([probed], PROBE, [slot])
    rates = [ended.said[name] / max(1, ended.said["macs"]) for name in timed if name in ended.said]
    about = _BESIDE * len(able)
    for case in able:
        own: int = leader.examined[case.id]["macs"]
        both = own + ended.said.get("macs", 0) * _images(leader, case) / _images(leader, first)
        for rate in rates:
            about += max(_LEAST * both * rate, min(leader.choices.budget, _ROUNDS * both * rate)) + _CALLS * own * rate
    return about


def _images(leader: BenchRunner, case: Case) -> int:
    """Pixels of an input."""
    height, width = leader.examined[case.id]["size"]
    return int(case.batch * height * width)


class BenchRows(list[BenchRow]):
    """Rows, in the order of their plans.

    Attributes:
        run: with what stands for all rows: baseline, metrics, machine.
    """

    def __init__(self, run: BenchRun) -> None:
        super().__init__(run.rows)
        self.run = run

    def to_pandas(self) -> DataFrame:
        """Raw numbers, a column for each that `unetkit bench show --columns` knows; needs pandas."""
        from unetkit.bench.show import rows_to_dataframe

        return rows_to_dataframe(self.run)


def read(folder: str | Path) -> BenchRows:
    """The rows of a folder that `unetkit bench` or `run` wrote, also while it goes on. Raises FileError."""
    return BenchRows(read_results(Path(folder)))


def run(
    plans: Iterable[Plan | str],
    *,
    sizes: Sequence[Any] = (),
    batches: Sequence[int] = (1,),
    modes: Sequence[str] = ("eager",),
    out: str | Path | None = None,
    on_row: Callable[[BenchRow], object] = lambda row: None,
    **choices: Any,
) -> BenchRows:
    """Measure every plan under every condition, each in a process of its own, beside a baseline.

    In a script, call it under `if __name__ == "__main__":`, since a child imports the script that started it.

    Args:
        plans: a Plan each, or a line such as "--encoder resnet34 --fuse add".
        sizes: of the input: 256 or (480, 640), each a row; the network's own, or 256, if empty.
        batches: images in an input.
        modes: "eager", "compiled", and after a plus "channels_last", "bfloat16", "float16".
        out: a folder that keeps the rows; what it holds already is not measured again.
        on_row: called with each row when it is measured.
        choices: what `unetkit.bench.config.Choices` has: metrics, baseline, budget, device, plugins ...

    Returns:
        A row for each, failed ones with their cause; `.to_pandas()` gives a frame.

    Raises:
        UnetkitError: a line, a choice or a folder that it cannot take.
    """
    if isinstance(plans, str | Plan):
        raise OptionError(f"bench.run: takes a list of plans; give [{str(plans)!r}]")
    chosen = _choices(choices)
    found = [plan if isinstance(plan, Plan) else Plan.parse(plan) for plan in plans]
    planned = make_cases(found, sizes, batches, [Mode.parse(mode) for mode in modes])
    if not planned:
        raise OptionError("no plan is given; give lines such as '--encoder resnet34 --fuse add'")
    with ExitStack() as stack:
        folder = Path(out) if out is not None else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        held = ResultsWriter(folder)
        stack.callback(held.close)
        for row in BenchRunner(planned, chosen, load_manager(chosen.plugins)).rows(held, ""):
            on_row(row)
        whole = read_results(folder)
        return BenchRows(replace(whole, rows=whole.rows[: len(planned)]))


def _choices(given: dict[str, Any]) -> BenchConfig:
    """Lists become tuples, and paths text, as they are sent to children."""
    for name in ("metrics", "plugins"):
        if name in given:
            value = [given[name]] if isinstance(given[name], str | Path) else given[name]
            given[name] = tuple(map(str, value))
    try:
        return BenchConfig(**given)
    except TypeError as error:
        raise OptionError(f"bench.run: {str(error).removeprefix('Choices.__init__() ')}") from None
