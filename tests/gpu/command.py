"""The command line of the GPU checks: each runs in a process of its own, within a time limit for all of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from time import monotonic
from typing import Any

import click
from rich.console import Console

from tests.gpu.checks import CHECKS, CheckTask
from tests.gpu.results import CheckResult, Fact, Report, print_table
from unetkit.errors import UnetkitError
from unetkit.utils.processes import run_tasks

_NAME = "python -m tests.gpu"
#: Functions that the child processes call.
_RUN_CHECK, _DESCRIBE = "tests.gpu.checks:run_check", "tests.gpu.checks:describe_device"
#: Modules that the child processes need. They initialize no GPU.
_PRELOAD = ("torch", "timm", "unetkit.bench.worker", "unetkit.bench.training_worker", "tests.gpu.checks")
#: A check is not begun if fewer seconds are left than this.
_LEAST_SECONDS = 10.0
#: Time limit of the process that describes the device, in seconds.
_DESCRIBE_TIMEOUT = 90.0


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="File for the results.")
@click.option("--device", default="cuda:0", show_default=True, help="A GPU, or cpu to rehearse the checks without one.")
@click.option(
    "--budget",
    type=click.FloatRange(1),
    default=330,
    show_default=True,
    metavar="S",
    help="Time limit for all checks together, in seconds; the check that exceeds it is ended.",
)
@click.argument("names", nargs=-1, type=click.Choice([*CHECKS]))
@click.pass_obj
def command(missing: list[str], names: tuple[str, ...], out: Path, device: str, budget: float) -> None:
    """Check on a GPU what can only be checked on one: all checks, or those with the given NAMES.

    The exit code is 1 if a fact is not as expected, a check failed, or a check was not run in time, and 2 if there is
    no such device. With --device cpu, checks that need a GPU are skipped.
    """
    start = monotonic()
    device = "cuda:0" if device == "cuda" else device
    machine = _describe_machine(device)
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(", ".join(f"{name} {value}" for name, value in machine.items()), markup=False, highlight=False)
    chosen = [name for name in CHECKS if name in names] if names else [*CHECKS]
    results: list[CheckResult] = []
    for result in run_checks(chosen, device, start + budget):
        results.append(result)
        click.echo(f"{result.status}: {result.name}, {result.seconds:.1f} s", err=True)
        Report(machine, tuple(results), tuple(missing), monotonic() - start).write(out)
    report = Report(machine, tuple(results), tuple(missing), monotonic() - start)
    print_table(results, console)
    console.print(_summarize(report, out), markup=False, highlight=False)
    sys.exit(0 if report.is_passed else 1)


def run_checks(names: Sequence[str], device: str, end: float) -> Iterator[CheckResult]:
    """Run checks one after the other, and yield each result.

    Args:
        names: names of CHECKS.
        device: "cpu", or a GPU such as "cuda:0".
        end: the time by `monotonic` at which a check is ended, and after which none is begun.
    """
    for name in names:
        if CHECKS[name].needs_gpu and device == "cpu":
            yield CheckResult(name, error="needs a GPU", is_run=False, is_skipped=True)
            continue
        left = end - monotonic()
        if left < _LEAST_SECONDS:
            yield CheckResult(name, error="not run, since the time limit is reached", is_run=False)
            continue
        [result] = run_tasks(
            [CheckTask(name, device)], _RUN_CHECK, [None], timeout=min(left, CHECKS[name].timeout), preload=_PRELOAD
        )
        given: dict[Any, Any] = result.facts
        facts = tuple(Fact(**value) for key, value in given.items() if isinstance(key, tuple))
        error = given.get("error", "") or result.error
        yield CheckResult(name, facts, error, given.get("traceback", ""), result.seconds)


def _describe_machine(device: str) -> dict[str, Any]:
    """Return the device, the driver and the versions. Raises UnetkitError if there is no such device."""
    [result] = run_tasks([device], _DESCRIBE, [None], timeout=_DESCRIBE_TIMEOUT, preload=_PRELOAD)
    if result.error:
        raise UnetkitError(f"--device {device}: cannot be used: {result.error}")
    versions = {name: version(name) for name in ("torch", "timm")}
    return {**result.facts, **versions, "python": ".".join(map(str, sys.version_info[:3]))}


def _summarize(report: Report, out: Path) -> str:
    counts = dict.fromkeys(("ok", "FAILED", "skipped", "not run"), 0)
    for result in report.results:
        counts[result.status] += 1
    text = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    return f"{text} in {report.seconds:.0f} s; written to {out}"


def main(missing: list[str]) -> None:
    """Run the command line. An error is printed as one line on stderr, with exit code 2.

    Args:
        missing: packages that are not installed.
    """
    try:
        command.main(prog_name=_NAME, standalone_mode=False, obj=missing)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Error: interrupted", err=True)
        sys.exit(130)
    except click.ClickException as error:
        click.echo(f"Error: {error.format_message().rstrip('.')}. See `{_NAME} --help`.", err=True)
        sys.exit(2)
    except UnetkitError as error:
        click.echo(f"Error: {' '.join(str(error).split())}", err=True)
        sys.exit(2)
