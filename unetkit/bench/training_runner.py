"""The trainings of a benchmark: open the data once, train every row with every seed, and stop when all is decided.

The module imports no torch; trainings run in processes of their own, on this machine or on a Ray cluster.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unetkit.bench.config import BenchConfig
from unetkit.bench.devices import Slot
from unetkit.bench.engines import NoticeCallback, run_locally, run_on_cluster
from unetkit.bench.grid import Case, format_pretrained
from unetkit.bench.quality_statistics import QualityRules, make_looks, wanted_seeds
from unetkit.bench.results import (
    BenchRow,
    ResultsWriter,
    TrainingHeader,
    TrainingRecord,
    current_trainings,
    utc_now,
)
from unetkit.bench.training import (
    DataRequest,
    TrainingTask,
    digest_of_header,
    parse_training_values,
    train_settings,
    training_folder,
)
from unetkit.errors import FileError, OptionError
from unetkit.plan import Plan
from unetkit.utils.processes import TaskResult, run_tasks

if TYPE_CHECKING:
    from unetkit.registry import Metric

#: Functions that processes call.
OPEN_DATA, TRAIN = (f"unetkit.bench.training_worker:{name}" for name in ("open_training_data", "train_row"))
#: Modules that the processes of all trainings need.
PRELOAD = ("unetkit.bench.training_worker", "torchvision.transforms.v2", "tifffile", "PIL.Image")
#: Files of weights that `unetkit.bench.training_worker` leaves.
_WEIGHTS = ("best.safetensors", "last.safetensors")
_WEEK = 7 * 24 * 3600.0
#: What the errors of a full disk contain; torch's own say it in other words than the system's.
_FULL_DISK = ("No space left on device", "iostream error", "inline_container")


class TrainingRunner:
    """The trainings of a benchmark.

    Args:
        cases: the rows of the command.
        metrics: the metrics of trained networks, at least one; the verdicts are those of the first.
        config: settings of the benchmark, with data.
        plugins: files and modules to load in addition to the installed plugins.

    Attributes:
        facts: what opening the data found, as `unetkit.bench.training_worker.open_training_data` emits it.
        refused: error of each row that does not fit the data, by id.
    """

    def __init__(
        self, cases: Sequence[Case], metrics: Sequence[Metric], config: BenchConfig, plugins: tuple[str, ...]
    ) -> None:
        self.metrics, self.config, self.plugins = metrics, config, plugins
        self.cases = {case.id: case for case in cases}
        self.facts: dict[Any, Any] = {}
        self.refused: dict[str, str] = {}
        self.preload: Sequence[str] = PRELOAD
        self.retried: frozenset[tuple[str, int]] = frozenset()
        self.on_notice: NoticeCallback = lambda line: None

    @property
    def rules(self) -> QualityRules:
        """The rules by which rows are compared."""
        metric = self.metrics[0]
        return QualityRules(
            metric=metric.name,
            better="less" if metric.better == "less" else "more",
            margin=self.config.margin,
            looks=make_looks(self.config.seeds, self.config.max_seeds),
            race=self.config.race,
        )

    def open_data(self, *, check_images: bool = True) -> None:
        """Open the data in a process of its own, and check the rows against them.

        Args:
            check_images: whether to read all images, to find damaged ones before anything is trained.

        Raises:
            OptionError: The data cannot be opened, or a metric names a class that they do not have.
        """
        seeds = range(self.config.seed, self.config.seed + self.rules.looks[-1])
        cases = tuple(self.cases.values())
        request = DataRequest(
            self.config.data, self.config.data_settings, tuple(seeds), cases, self.plugins, check_images
        )
        [result] = run_tasks([request], OPEN_DATA, [None], timeout=_WEEK, preload=self.preload)
        if result.error:
            says_it = "--" in result.error or result.error.startswith(self.config.data)
            raise OptionError(result.error if says_it else f"--data {self.config.data}: {result.error}")
        self.facts = result.facts
        fitted = [self._fit(case) for case in self.cases.values()]
        facts: dict[Any, str] = self.facts
        refused = {old: facts.get(("refused", old), "") for old in self.cases}
        self.refused = {case.id: why for case, why in zip(fitted, refused.values(), strict=True) if why}
        self.cases = {case.id: case for case in fitted}
        classes = self.facts["classes"]
        for name in (metric.name for metric in self.metrics):
            if ":" in name and name.partition(":")[2] not in classes:
                raise OptionError(f"--metrics {name}: there is no such class; the classes are {', '.join(classes)}")

    def _fit(self, case: Case) -> Case:
        """Return a row with the channels and classes of the data, which then are those of its costs, too."""
        plan = replace(
            case.plan,
            in_channels=case.plan.in_channels or self.facts["channels"],
            classes=case.plan.classes or self.facts["outputs"],
        )
        return replace(case, plan=plan)

    def make_header(self, baseline_row: str) -> TrainingHeader:
        """Create what the header of the results has about trainings.

        Args:
            baseline_row: id of the row that the others are compared with.
        """
        names = ("scored", "is_split", "classes", "channels", "outputs", "crop", "images", "fingerprints")
        return TrainingHeader(
            data=self.config.data,
            settings=self.config.data_settings,
            seed=self.config.seed,
            rules=self.rules.to_dict(),
            baseline_row=baseline_row,
            grid=self._shared_training(),
            **{name: self.facts[name] for name in names},
        )

    def _shared_training(self) -> dict[str, list[str]]:
        """Return the fields of a TrainConfig that the grid sets alike for all rows."""
        first, *others = (_options_of(case) for case in self.cases.values())
        return {name: [value] for name, value in first.items() if all(one.get(name) == value for one in others)}

    def train(
        self,
        writer: ResultsWriter,
        slots: Sequence[Slot],
        connection: ExitStack,
        on_notice: NoticeCallback,
        on_plan: Callable[[int], None],
    ) -> Generator[TrainingRecord, None, None]:
        """Train until every row is decided or has all its seeds, and yield each record when it is on disk.

        Args:
            writer: writer of the folder, whose rows are measured.
            slots: slots of this machine; not used with a cluster.
            connection: keeps the connection to a cluster.
            on_notice: called with each line that a user should see.
            on_plan: called with the number of trainings that follow, each time more are added.
        """
        retried = {
            key
            for key, record in writer.trainings.items()
            if (record.error or record.failures) and self.config.retry_failed
        }
        self.retried = frozenset(retried)
        self.on_notice = on_notice
        while tasks := self._next_tasks(writer, retried):
            on_plan(len(tasks))
            options: dict[str, Any] = {"timeout": self.config.timeout or _WEEK, "preload": self.preload}
            if self.config.engine == "ray":
                results = run_on_cluster(tasks, TRAIN, self.config, connection, **options)
            else:
                results = run_locally(tasks, TRAIN, slots, on_notice=on_notice, timed=False, **options)
            with closing(results):
                for result in results:
                    record = self._make_record(result)
                    writer.append_training(record)
                    retried.discard((record.row_id, record.seed))
                    self._remove_weights(writer)
                    yield record
                    if any(sign in record.error for sign in _FULL_DISK):
                        raise FileError(
                            f"the disk of {writer.folder} is full, and a training failed ({record.error}); free some "
                            "space, and run the same command with --retry-failed"
                        )

    def _next_tasks(self, writer: ResultsWriter, retried: set[tuple[str, int]]) -> list[TrainingTask]:
        """Return the trainings until the next look, seed after seed, so that an interruption leaves whole seeds."""
        header, rules = get_training_header(writer), self.rules
        rows = {row.id: row for row in writer.rows.values() if row.is_measured}
        kept = [one for one in current_trainings(writer) if (one.row_id, one.seed) not in retried]
        done = {(one.row_id, one.seed) for one in kept}
        wanted = find_wanted_seeds(rows, kept, header, rules)
        if rules.looks[1:] and not wanted:
            self.on_notice("the baseline failed, so that no row can be compared; --retry-failed trains it again")
        return [
            self._make_task(rows[row_id], seed, writer.folder)
            for seed in range(header.seed, header.seed + max(wanted.values(), default=0))
            for row_id, count in wanted.items()
            if seed - header.seed < count and (row_id, seed) not in done
        ]

    def _make_task(self, row: BenchRow, seed: int, folder: Path) -> TrainingTask:
        case = self.cases.get(row.id)
        if case is not None:
            plan, settings = case.plan, train_settings(case)
        else:  # a row of an earlier command, which this one compares its rows with
            plan, settings = Plan.parse(row.line), parse_training_values(row.training)
            plan = replace(plan, pretrained={"": None, "yes": True}.get(row.pretrained, row.pretrained))
        place = training_folder(folder.resolve(), row.id, seed)
        return TrainingTask(
            row_id=row.id,
            plan=plan,
            settings={**self.config.data_settings, "preview_every": 0, **settings},
            seed=seed,
            data=self.config.data,
            opened=self.facts.get(("opened", seed if self._is_split_by_seed else self.config.seed)),
            folder=str(place),
            borders=str(folder.resolve() / "borders"),
            cache_key=row.cache_key,
            key=self._training_key(row),
            token=digest_of_header(folder),
            rescores=(row.id, seed) in self.retried,
            metrics=tuple(metric.name for metric in self.metrics),
            saves_predictions=self.config.keep_weights and seed == self.config.seed,
            plugins=self.plugins,
        )

    @property
    def _is_split_by_seed(self) -> bool:
        """True if the images for validation depend on the seed of the training."""
        return not self.facts["is_split"] and self.config.split_seed is None

    def _training_key(self, row: BenchRow) -> str:
        """Return a digest of all that a training of a row depends on, its seed apart."""
        settings = {name: value for name, value in self.config.data_settings.items() if name != "workers"}
        names = [metric.name for metric in self.metrics]
        parts = [row.cache_key, self.config.data, settings, self.facts["fingerprints"], names]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    def _make_record(self, result: TaskResult) -> TrainingRecord:
        task: TrainingTask = result.task
        facts = result.facts
        for name, content in facts.get("files", {}).items():
            path = Path(task.folder, name)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            except OSError as error:
                raise FileError(f"{path} cannot be written: {error.strerror or error}") from error
        return TrainingRecord(
            row_id=task.row_id,
            cache_key=task.cache_key,
            seed=task.seed,
            error=result.error,
            values=facts.get("values", {}),
            failures=facts.get("failures", {}),
            epoch=facts.get("epoch", 0),
            memory=facts.get("memory", 0),
            device=facts.get("device", ""),
            seconds=facts.get("seconds", result.seconds),
            measured_at=utc_now(),
        )

    def _remove_weights(self, writer: ResultsWriter) -> None:
        if self.config.keep_weights:
            return
        for one in find_discardable(current_trainings(writer), self.rules, self.config.seed):
            for name in _WEIGHTS:
                (training_folder(writer.folder, one.row_id, one.seed) / name).unlink(missing_ok=True)


def _options_of(case: Case) -> dict[str, str]:
    """Return the options that set the training of a case, as `unetkit bench` takes them."""
    options = dict(case.training)
    if case.plan.pretrained:
        options["pretrained"] = format_pretrained(case.plan.pretrained)
    if case.plan.size is not None:
        options["sizes"] = "x".join(map(str, case.plan.size))
    return {**options, "modes": str(case.mode)}


def get_training_header(results: ResultsWriter) -> TrainingHeader:
    """Return what the header of results has about trainings. Raises ValueError without."""
    if results.header is None or results.header.training is None:
        raise ValueError(f"{results.folder} contains no trainings")
    return results.header.training


def collect_scores(
    trainings: Sequence[TrainingRecord], metric: str, first_seed: int
) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Return the scores of each row in the order of its seeds, and the number of failed trainings of rows with any.

    Scores after a seed that is missing are left out.

    Args:
        trainings: the trainings of a run.
        metric: name of the metric.
        first_seed: the first seed.
    """
    by_row: dict[str, dict[int, float | None]] = {}
    for record in trainings:
        by_row.setdefault(record.row_id, {})[record.seed] = record.values.get(metric)
    scores: dict[str, list[float]] = {}
    failed: dict[str, int] = {}
    for row_id, values in by_row.items():
        if number := sum(value is None for value in values.values()):
            failed[row_id] = number
        scores[row_id] = []
        seed = first_seed
        while (value := values.get(seed)) is not None:
            scores[row_id].append(value)
            seed += 1
    return scores, failed


def find_wanted_seeds(
    rows: Iterable[str], trainings: Sequence[TrainingRecord], header: TrainingHeader, rules: QualityRules
) -> dict[str, int]:
    """Return how many seeds each row should have by now; none with several looks if a training of the baseline failed.

    Args:
        rows: ids of the rows that are measured.
        trainings: the trainings of the run.
        header: what all trainings share.
        rules: the rules of the verdicts.
    """
    if len(rules.looks) == 1:
        return dict.fromkeys(rows, rules.looks[0])
    scores, failed = collect_scores(trainings, rules.metric, header.seed)
    left = {row_id: scores.get(row_id, []) for row_id in rows if row_id not in failed}
    return wanted_seeds(left, header.baseline_row, rules) if header.baseline_row in left else {}


def find_discardable(trainings: Sequence[TrainingRecord], rules: QualityRules, first_seed: int) -> list[TrainingRecord]:
    """Return the trainings whose weights nobody needs: those of all rows but the best, of seeds that every row has.

    A training that is still running has no record, one that failed may be scored again, and a row whose earlier seeds
    still run may turn out the best: their weights are kept.

    Args:
        trainings: the trainings of a run.
        rules: the rules by which rows are compared.
        first_seed: the first seed.
    """
    scores, failed = collect_scores(trainings, rules.metric, first_seed)
    whole = {row_id: values for row_id, values in scores.items() if row_id not in failed}
    most = max(map(len, whole.values()), default=0)
    # Rows that were dropped, or that a later command adds, have fewer seeds than those that may be the best.
    leading = {row_id: values for row_id, values in whole.items() if len(values) >= most - 1}
    best = find_best_row(leading, rules)
    common = min(map(len, leading.values()), default=0)
    return [
        one
        for one in trainings
        if one.row_id != best and one.seed - first_seed < min(common, len(scores[one.row_id])) and not one.failures
    ]


def find_best_row(scores: Mapping[str, Sequence[float]], rules: QualityRules) -> str:
    """Return the row with the best mean over the seeds that all rows have; "" if there is none.

    Args:
        scores: scores of each row in the order of its seeds.
        rules: the rules, which tell the direction.
    """
    count = min((len(values) for values in scores.values()), default=0)
    sign = 1 if rules.better == "more" else -1
    return max(scores, key=lambda row_id: sign * sum(scores[row_id][:count]), default="") if count else ""
