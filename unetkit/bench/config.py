"""The settings of a benchmark other than its grid, and the command that repeats one row with them.

The module imports no torch.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from typing import Any

from unetkit.bench.grid import Case, Mode
from unetkit.bench.timing import TimingConfig
from unetkit.errors import OptionError, UnetkitError
from unetkit.plan import Plan

ENGINES = ("local", "ray")
_WEEK = 7 * 24 * 3600.0


@dataclass(frozen=True)
class BenchConfig:
    """The settings with which the rows of a benchmark are measured.

    Attributes:
        metrics: names of the metrics to measure; all metrics if empty.
        baseline: line of the model that each row is timed against; the first row that can be built if "".
        baseline_mode: execution mode of the baseline; that of the first row if "".
        budget: time limit for each timed metric of a row, in seconds.
        target_ci: timing stops when the half-width of the 95% interval of the ratio to the baseline is at most this,
            relative to the ratio, between 0 and 1.
        seed: seed of the weights, of the input, and of the order in which candidate and baseline are timed.
        device: "cpu", "cuda", or a list such as "cuda:0,cuda:1"; all GPUs if "", or the CPU if there are none.
        jobs: number of rows that are measured at the same time on a CPU; each gets an equal share of the cores.
        threads: number of torch's threads for each row; the number of its physical cores if None.
        timeout: time limit for a row, in seconds; if None, 600 plus twice the budget for each timed metric.
        plugins: files and modules to load in addition to the installed plugins.
        engine: "local" or "ray".
        ray_address: address of the Ray cluster: "auto", or "HOST:PORT".
        retry_failed: measure rows again that failed or ran out of budget.

    Raises:
        OptionError: A setting is out of range.
    """

    metrics: tuple[str, ...] = ()
    baseline: str = ""
    baseline_mode: str = ""
    budget: float = 20.0
    target_ci: float = 0.02
    seed: int = 0
    device: str = ""
    jobs: int | None = None
    threads: int | None = None
    timeout: float | None = None
    plugins: tuple[str, ...] = ()
    engine: str = "local"
    ray_address: str | None = None
    retry_failed: bool = False

    def __post_init__(self) -> None:
        seconds, count = "must be a number of seconds above 0, and at most a week", "must be at least 1"
        for option, value, is_valid, requirement in (
            ("--budget", self.budget, 0 < self.budget <= _WEEK, seconds),
            ("--target-ci", self.target_ci, 0 < self.target_ci < 1, "must be between 0 and 1, such as 0.02"),
            ("--timeout", self.timeout, self.timeout is None or 0 < self.timeout <= _WEEK, seconds),
            ("--jobs", self.jobs, self.jobs is None or self.jobs >= 1, count),
            ("--threads", self.threads, self.threads is None or self.threads >= 1, count),
            ("--engine", self.engine, self.engine in ENGINES, f"must be {' or '.join(ENGINES)}"),
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

    def row_timeout(self, num_timed: int) -> float:
        """Return the time limit of a row in seconds.

        Args:
            num_timed: number of timed metrics of the row.
        """
        return self.timeout or 600 + 2 * self.budget * num_timed

    @property
    def timing_config(self) -> TimingConfig:
        """The settings of each timing."""
        return TimingConfig(budget=self.budget, target_ci=self.target_ci, seed=self.seed)

    def comparable_settings(self) -> dict[str, Any]:
        """Return the settings that affect the measured values: rows can only be compared if these are equal."""
        names = ("budget", "target_ci", "seed", "device", "jobs", "threads", "engine")
        return {name: getattr(self, name) for name in names}


#: Settings that are part of a command unless they have their default value.
_COMMAND_OPTIONS = ("budget", "target_ci", "seed", "device", "jobs", "threads", "timeout", "engine", "ray_address")


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
    for name in _COMMAND_OPTIONS:
        value = getattr(config, name)
        if value != getattr(BenchConfig, name):
            tokens += ["--" + name.replace("_", "-"), f"{value:g}" if isinstance(value, float) else str(value)]
    plugins = [token for plugin in config.plugins for token in ("--plugin", plugin)]
    line = str(replace(case.plan, seed=None, pretrained=None))
    return shlex.join(["unetkit", *plugins, "bench", *shlex.split(line), *tokens])
