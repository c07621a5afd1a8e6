"""The settings of a benchmark other than its grid, and the commands that repeat one row with them.

The module imports no torch.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from unetkit.bench.grid import Case, Mode, split_list
from unetkit.bench.training import DATA_FIELDS
from unetkit.errors import OptionError, UnetkitError
from unetkit.plan import Plan
from unetkit.plugins import absolute_target
from unetkit.train.config import TrainConfig
from unetkit.utils.config_fields import check_fields, config_field, flag_of, list_config_fields, reuse_field

if TYPE_CHECKING:
    from unetkit.bench.timing import TimingConfig

ENGINES = ("local", "ray")
_WEEK = 7 * 24 * 3600.0
#: Metrics that are measured by default if networks are trained.
_TRAINED_DEFAULT = ("parameters", "macs", "latency", "miou")


def _parse_seeds(value: str | int) -> int | None:
    if value == "auto":
        return None
    if not str(value).isdecimal() or not int(value):
        raise OptionError("must be a number of seeds, at least 1, or auto")
    return int(value)


def _parse_baseline(value: str) -> str:
    if not value.strip():
        raise OptionError("is empty; give options such as --encoder resnet18, or leave it out")
    return value


@dataclass(frozen=True)
class BenchConfig:
    """The settings with which the rows of a benchmark are measured. Every field but the plugins is an option.

    Attributes:
        plugins: files and modules to load in addition to the installed plugins.

    Raises:
        OptionError: A setting is out of range.
    """

    baseline: str = config_field(
        "",
        "Model to time each row against; with --data, one of the rows.",
        metavar="LINE",
        default_text="that of the first row that can be built",
        parse=_parse_baseline,
    )
    baseline_mode: str = config_field(
        "", "Execution mode of the baseline.", metavar="MODE", default_text="the first row's"
    )
    metrics: tuple[str, ...] = config_field(
        (),
        "Metrics to measure.",
        metavar="NAME,...",
        default_text="all that need no training, or with --data parameters,macs,latency,miou",
        parse=lambda value: tuple(
            item for text in ([value] if isinstance(value, str) else value) for item in split_list(text)
        ),
    )
    budget: float = config_field(20.0, "Time limit for each timed metric of a row, in seconds.", metavar="S")
    target_ci: float = config_field(
        0.02, "Stop timing at this half-width of the 95% interval of the ratio to the baseline.", metavar="X"
    )
    timeout: float | None = config_field(
        None,
        "Time limit for a row, and for a training, in seconds.",
        metavar="S",
        default_text="600, and twice the budget for each timed metric; none for trainings",
    )
    device: str = config_field(
        "", "cpu, cuda or cuda:0,cuda:1.", metavar="NAME,...", default_text="all GPUs, or the CPU"
    )
    jobs: int | None = config_field(
        None,
        "Rows to measure at the same time on a CPU, whose cores they share, and trainings at the same time.",
        metavar="N",
        default_text="1",
        least=1,
    )
    threads: int | None = config_field(
        None, "Number of torch's threads for each row.", metavar="N", default_text="its physical cores", least=1
    )
    seed: int = config_field(
        0, "Seed of weights, inputs and order; the first one of the trainings.", metavar="N", least=0
    )
    engine: str = config_field("local", "Measure on this machine or on a Ray cluster.", choices=ENGINES)
    ray_address: str | None = config_field(None, "Address of the Ray cluster: auto, or HOST:PORT.", metavar="ADDRESS")
    retry_failed: bool = config_field(
        default=False, help="Measure again the rows and trainings that failed or ran out of budget."
    )
    data: str = reuse_field(
        TrainConfig, "data", default="", help="Train every row on these data, and compare the scores."
    )
    seeds: int | None = config_field(
        6, "Trainings of each row, or auto for as many as the verdicts need.", metavar="N|auto", parse=_parse_seeds
    )
    max_seeds: int = config_field(16, "Largest number of trainings of each row with --seeds auto.", metavar="N")
    margin: float = config_field(0.005, "Largest difference of scores that counts as the same.", metavar="X")
    race: bool = config_field(
        default=False, help="With --seeds auto: train rows no further that are worse than the best one."
    )
    keep_weights: bool = config_field(default=False, help="Keep the weights of all trainings, not only the best row's.")
    val_fraction: float = reuse_field(TrainConfig, "val_fraction")
    group_by: str = reuse_field(TrainConfig, "group_by")
    split_seed: int | None = reuse_field(TrainConfig, "split_seed", default_text="that of the training")
    ignore_index: int | None = reuse_field(TrainConfig, "ignore_index")
    nodata: str = reuse_field(TrainConfig, "nodata")
    channels: str = reuse_field(TrainConfig, "channels")
    workers: int | None = reuse_field(TrainConfig, "workers")
    plugins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        self._check_training()
        seconds = "must be a number of seconds above 0, and at most a week"
        for option, value, is_valid, requirement in (
            ("--budget", self.budget, 0 < self.budget <= _WEEK, seconds),
            ("--target-ci", self.target_ci, 0 < self.target_ci < 1, "must be between 0 and 1, such as 0.02"),
            ("--timeout", self.timeout, self.timeout is None or 0 < self.timeout <= _WEEK, seconds),
        ):
            if not is_valid:
                raise OptionError(f"{option} {value}: {requirement}")
        if self.baseline_mode:
            Mode.parse(self.baseline_mode, "--baseline-mode")
        try:
            Plan.parse(self.baseline)
        except UnetkitError as error:
            raise OptionError(f"--baseline: {error}") from error
        if self.ray_address is not None and self.engine != "ray":
            raise OptionError(f"--ray-address {self.ray_address}: can only be used with --engine ray")

    def _check_training(self) -> None:
        """Raise OptionError if an option of trainings is given without data, or is out of range."""
        if not self.data:
            for name in TRAINING_FIELDS:
                if getattr(self, name) != getattr(BenchConfig, name):
                    raise OptionError(f"{flag_of(name)}: only applies to trainings; give --data, too")
            return
        TrainConfig(**self.data_settings)
        if not 0 <= self.margin < float("inf"):
            raise OptionError(f"--margin {self.margin:g}: must be at least 0; with 0, no rows are called the same")
        if self.seeds is not None and self.race:
            raise OptionError(f"--race: drops rows while seeds are added; give --seeds auto, not {self.seeds}")
        if self.seeds is not None and self.max_seeds != BenchConfig.max_seeds:
            raise OptionError(f"--max-seeds {self.max_seeds}: only applies to --seeds auto")
        if self.seeds is None and self.max_seeds < MIN_SEEDS:
            raise OptionError(f"--max-seeds {self.max_seeds}: must be at least {MIN_SEEDS}; fewer give no verdict")

    @property
    def data_settings(self) -> dict[str, Any]:
        """The fields of a TrainConfig that all rows share."""
        return {name: getattr(self, name) for name in (*DATA_FIELDS, "workers")}

    @property
    def measured_metrics(self) -> tuple[str, ...]:
        """The names of the metrics to measure; none if all are measured that need no training."""
        return self.metrics or (_TRAINED_DEFAULT if self.data else ())

    def row_timeout(self, num_timed: int) -> float:
        """Return the time limit of a row in seconds.

        Args:
            num_timed: number of timed metrics of the row.
        """
        return self.timeout or 600 + 2 * self.budget * num_timed

    @property
    def timing_config(self) -> TimingConfig:
        """The settings of each timing."""
        from unetkit.bench.timing import TimingConfig  # it takes a while to import, and help needs it not

        return TimingConfig(budget=self.budget, target_ci=self.target_ci, seed=self.seed)

    def comparable_settings(self) -> dict[str, Any]:
        """Return the settings that affect the measured values: rows can only be compared if these are equal."""
        names = ("budget", "target_ci", "seed", "device", "jobs", "threads", "engine")
        return {name: getattr(self, name) for name in names}


#: Fields that only apply to trainings.
TRAINING_FIELDS = (
    "seeds",
    "max_seeds",
    "margin",
    "race",
    "keep_weights",
    *DATA_FIELDS,
    "workers",
)
#: Smallest number of seeds that gives a verdict: with fewer, an exact test of signs cannot go below 5%.
MIN_SEEDS = 6
#: Fields that the command that repeats a row says in its own way, or not at all.
_NOT_REPEATED = {"baseline", "baseline_mode", "metrics", "retry_failed"}


def repeat_command(case: Case, config: BenchConfig, baseline: str, baseline_mode: Mode) -> str:
    """Return the command that measures one row again, quoted for a shell.

    Args:
        case: the row.
        config: settings of the benchmark.
        baseline: line of the baseline.
        baseline_mode: execution mode of the baseline.
    """
    modes = [str(case.mode)] if case.mode == baseline_mode else [str(case.mode), "--baseline-mode", str(baseline_mode)]
    tokens = ["--batch-size", str(case.batch_size), "--mode", *modes, "--baseline", baseline]
    if config.metrics:
        tokens += ["--metrics", ",".join(config.metrics)]
    for name in [one.name for one in list_config_fields(BenchConfig) if one.name not in _NOT_REPEATED]:
        value = getattr(config, name)
        if value != getattr(BenchConfig, name) and name not in (*TRAINING_FIELDS, "data"):
            tokens += [flag_of(name), f"{value:g}" if isinstance(value, float) else str(value)]
    line = str(replace(case.plan, seed=None, pretrained=None))
    return shlex.join(["unetkit", *_plugin_tokens(config), "bench", *shlex.split(line), *tokens])


def _plugin_tokens(config: BenchConfig) -> list[str]:
    return [token for plugin in config.plugins for token in ("--plugin", absolute_target(plugin))]


def train_command(plan: Plan, training: Iterable[tuple[str, str]], seed: int, config: BenchConfig) -> str:
    """Return the command that repeats one training, quoted for a shell.

    Args:
        plan: plan of the network.
        training: fields of a TrainConfig that the grid sets, as text.
        seed: seed of the training.
        config: settings of the benchmark.
    """
    tokens = ["--data", config.data, "--seed", str(seed)]
    for name, value in {**config.data_settings, "threads": config.threads}.items():
        if value != getattr(TrainConfig, name):
            tokens += [flag_of(name), str(value)]
    for name, value in training:
        tokens += [flag_of(name), value]
    line = shlex.split(str(replace(plan, seed=None)))
    return shlex.join(["unetkit", *_plugin_tokens(config), "train", *line, *tokens, "--out", "runs/again"])
