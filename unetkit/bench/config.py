"""What is chosen of a run beside its grid, and the command that says it. Nothing here imports torch."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from typing import Any

from unetkit.bench.grid import Case, Mode
from unetkit.bench.timing import TimingConfig
from unetkit.errors import OptionError

ENGINES = ("local", "ray")
_LONGEST = 7 * 24 * 3600.0


@dataclass(frozen=True)
class BenchConfig:
    """How rows are measured.

    Attributes:
        metrics: names of what is measured; all, if empty.
        baseline: the line of the network that each row is timed against; the first row's that can be built, if "".
        baseline_mode: how that runs; as the first row, if "".
        budget: seconds for each timed metric of a row.
        target_ci: half-width of the interval of the ratio to the baseline, relative, at which timing stops.
        seed: fixes weights, input, and which of two goes first.
        device: "cpu", "cuda", or some of them: "cuda:0,cuda:1"; all GPUs, or else the CPU, if "".
        jobs: trials at a time on a CPU, each with its share of the cores.
        threads: of torch's, for each; as many as it has cores, if None.
        timeout: seconds that one row may take; 600, and twice the budget for each timed metric, if None.
        plugins: files and modules named beside what is installed.
        engine: "local" or "ray".
        ray_address: of a cluster: "auto", or "HOST:PORT".
        retry_failed: whether rows that failed are measured again.
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
        for name, value, good in (
            ("--budget", self.budget, 0 < self.budget <= _LONGEST),
            ("--target-ci", self.target_ci, 0 < self.target_ci < 1),
            ("--timeout", self.timeout, self.timeout is None or 0 < self.timeout <= _LONGEST),
            ("--jobs", self.jobs, self.jobs is None or self.jobs >= 1),
            ("--threads", self.threads, self.threads is None or self.threads >= 1),
            ("--engine", self.engine, self.engine in ENGINES),
        ):
            if not good:
                raise OptionError(f"{name} {value}: {_TAKES[name]}")
        if self.ray_address is not None and self.engine != "ray":
            raise OptionError(f"--ray-address {self.ray_address}: is for --engine ray")

    def row_timeout(self, timed: int) -> float:
        """Seconds that a row of so many timed metrics may take."""
        return self.timeout or 600 + 2 * self.budget * timed

    @property
    def rules(self) -> TimingConfig:
        """For how long, and how precisely, a pair is timed."""
        return TimingConfig(budget=self.budget, target_ci=self.target_ci, seed=self.seed)

    def told(self) -> dict[str, Any]:
        """What decides the figures: rows measured with other choices cannot be compared."""
        names = ("budget", "target_ci", "seed", "device", "jobs", "threads", "engine")
        return {name: getattr(self, name) for name in names}


_TAKES = {
    "--budget": "takes seconds, more than 0, at most a week's",
    "--target-ci": "takes a share such as 0.02",
    "--timeout": "takes seconds, more than 0, at most a week's",
    "--jobs": "takes at least 1",
    "--threads": "takes at least 1",
    "--engine": "takes local or ray",
}
#: Choices that a command says only where they are not the default.
_SAID = ("budget", "target_ci", "seed", "device", "jobs", "threads", "timeout", "engine", "ray_address")


def repeat_command(case: Case, choices: BenchConfig, baseline: str, baseline_mode: Mode) -> str:
    """The command that measures one row again, as a shell takes it."""
    modes = [str(case.mode)] if case.mode == baseline_mode else [str(case.mode), "--baseline-mode", str(baseline_mode)]
    tokens = ["--batch-size", str(case.batch), "--mode", *modes, "--baseline", baseline]
    if choices.metrics:
        tokens += ["--metrics", ",".join(choices.metrics)]
    for name in _SAID:
        value = getattr(choices, name)
        if value != getattr(BenchConfig, name):
            tokens += ["--" + name.replace("_", "-"), f"{value:g}" if isinstance(value, float) else str(value)]
    plugins = [token for plugin in choices.plugins for token in ("--plugin", plugin)]
    line = str(replace(case.plan, seed=None, pretrained=None))
    return shlex.join(["unetkit", *plugins, "bench", *shlex.split(line), *tokens])
