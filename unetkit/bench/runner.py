"""The process that leads a run: plans rows, examines all of them, has them measured, and writes down what comes back.

It imports no torch: children do, forked from a server that has.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

from unetkit.bench.choices import Choices, repeating
from unetkit.bench.engines import Notice, devices_of, local, on_cluster
from unetkit.bench.grid import Case
from unetkit.bench.keys import key_of
from unetkit.bench.ledger import ResultsWriter, now
from unetkit.bench.metrics import ANALYTIC, Metric, metrics_of
from unetkit.bench.mode import Mode
from unetkit.bench.others import disturbed
from unetkit.bench.rows import Header, Row, Timing
from unetkit.bench.slot import Slot, slots_of
from unetkit.bench.statistics import warnings_of
from unetkit.bench.task import PRELOAD, Trial
from unetkit.errors import CannotBuild
from unetkit.jobs.machine import cores
from unetkit.jobs.pool import Ended, run_tasks
from unetkit.plan import Plan
from unetkit.plugins import Host

#: What children do.
SURVEY = "unetkit.bench.survey:survey"
EXAMINE, MEASURE, PROBE = (f"unetkit.bench.trial:{name}" for name in ("examine", "measure", "probe"))
#: Seconds at least for what is not measured.
_PATIENCE = 300.0


@dataclass
class Leader:
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
    choices: Choices
    host: Host
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
            raise CannotBuild(f"a process that asks what this machine has does not run: {ended.cause}")
        return ended.said

    def rows(self, ledger: ResultsWriter, command: str) -> Generator[Row, None, None]:
        """Measure what a folder does not hold yet, and give each row when it is on disk.

        Raises:
            CannotBuild: the baseline cannot be built.
            BadFile: the folder holds rows that cannot be compared with these.
        """
        left = [case for case in self.cases if not ledger.done(case.id, self.key(case), again=self.choices.again)]
        machine = self.survey()
        slots = self.slots(machine["gpus"])
        failed = self.examine(left)
        if left and not self.examined and not ledger.rows:
            raise CannotBuild(f"no row can be built; the first: {failed[0].cause}")
        self.settle(ledger.header)
        ledger.start(self.header(machine, slots), command, [case.id for case in self.cases])
        self.planning(len(left), len(self.cases))
        with closing(self.measure(left, slots)) as measured:
            for row in chain(map(self._row, failed), measured):
                ledger.append(row)
                yield row

    def slots(self, gpus: Sequence[tuple[str, str]]) -> list[Slot]:
        """Where rows are measured on this machine; none, where that is a cluster.

        Raises BadOption for devices and numbers of slots that there are not.
        """
        if self.choices.engine == "ray":
            return []
        devices = devices_of(self.choices.device, gpus)
        return slots_of(devices, cores(), self.choices.slots, self.choices.threads)

    def examine(self, left: Sequence[Case]) -> list[Ended]:
        """Build each case on meta tensors and pass its input; gives those that fail, with their cause."""
        failed = []
        for number, ended in enumerate(self.children(map(self.trial, left), EXAMINE, [None] * len(cores())), 1):
            if ended.cause:
                failed.append(ended)
            else:
                self.examined[ended.task.case.id] = ended.said
            self.progress(number, len(left))
        return failed

    def settle(self, header: Header | None) -> None:
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
        """A baseline that builds. Raises CannotBuild with the cause."""
        size = next((found["size"] for found in self.examined.values()), None)
        case = Case(replace(plan, size=size), self.cases[0].batch, self.baseline_mode, ())
        for ended in self.children([self.trial(case)] if self.examined else [], EXAMINE, [None]):
            if ended.cause:
                raise CannotBuild(f"--baseline {plan}: {ended.cause}")
        return plan

    def header(self, machine: dict[str, Any], slots: Sequence[Slot]) -> Header:
        """What stands for all rows."""
        settings = {**self.choices.told(), "slots": [str(slot) for slot in slots]}
        metrics = tuple(metric.info for metric in self.metrics)
        told = (settings, machine["machine"], machine["versions"])
        return Header(str(self.baseline), str(self.baseline_mode), metrics, *told)

    def measure(self, left: Iterable[Case], slots: Sequence[Slot]) -> Generator[Row, None, None]:
        """A row for each case that was examined, as each is done."""
        trials = [self.trial(case) for case in left if case.id in self.examined]
        options: dict[str, Any] = {"timeout": self.timeout, "preload": self._preload()}
        if self.choices.engine == "ray":
            engine = on_cluster(trials, MEASURE, self.choices, **options)
        else:
            timed = any(metric.timed for metric in self.metrics)
            engine = local(trials, MEASURE, slots, notice=self.notice, timed=timed, **options)
        with closing(engine) as measured:
            yield from map(self._row, measured)

    def key(self, case: Case) -> str:
        """A digest of all that is measured: the case, and the code of the plugins that have a part in it."""
        return key_of(case, self.choices.baseline, {metric.owner for metric in self.metrics}, self.host)

    def children(self, tasks: Iterable[Any], ask: str, slots: Sequence[Any]) -> Generator[Ended, None, None]:
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

    def _row(self, ended: Ended) -> Row:
        """What is known of a case: what its planning, its examination and its child said."""
        case: Case = ended.task.case
        facts = {**self.examined.get(case.id, {}), **ended.said}
        found: dict[str, dict[str, Any]] = {"figures": {}, "timings": {}, "failures": {}}
        for (kind, name), value in [(told, value) for told, value in facts.items() if isinstance(told, tuple)]:
            found[kind][name] = value
        timings = {name: Timing.of(timing) for name, timing in found["timings"].items()}
        judged = [line for name, timing in timings.items() for line in warnings_of(timing, name)]
        others = facts.get("others", 0.0)
        busy = (
            f"other work took {others:.0%} of its cores: raw times are too long, ratios less certain; --threads 1 helps"
        )
        warnings = [*([busy] if timings and disturbed(others) else []), *judged]
        cause = self._spread(ended, found)
        return Row(
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
            command=repeating(case, self.choices, str(self.baseline), self.baseline_mode),
            where=facts.get("where", ""),
            seconds=ended.seconds,
            at=now(),
        )

    def _spread(self, ended: Ended, found: dict[str, dict[str, Any]]) -> str:
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
