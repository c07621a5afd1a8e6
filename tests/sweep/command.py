"""The command line of the sweep."""

from __future__ import annotations

import signal
import sys
from collections.abc import Generator
from pathlib import Path
from typing import NoReturn

import click
from rich.console import Console

from tests.sweep.config import SweepConfig
from tests.sweep.libraries import LIBRARIES
from tests.sweep.page import update_page
from tests.sweep.progress import print_summary, with_progress
from tests.sweep.results import SweepWriter
from tests.sweep.runner import MEASURE, measure_models
from tests.sweep.summary import Row
from unetkit.errors import UnetkitError
from unetkit.utils.system import available_cores, free_memory

_NAME = "python -m tests.sweep"
#: Share of the free memory that a sweep uses by default; the rest is for other processes.
_MEMORY_SHARE = 0.7
_PATH: click.Path = click.Path(path_type=Path)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--library", type=click.Choice([*LIBRARIES]), default="unetkit", show_default=True, help="Library to check."
)
@click.option("--names", multiple=True, metavar="GLOB", help="Check only matching names; may be repeated.")
@click.option("--sample", type=click.IntRange(1), metavar="N", help="Check only N names, drawn at random.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of order, sample, weights and images.")
@click.option("--out", type=_PATH, default=Path("sweep.jsonl"), show_default=True, help="File for the results.")
@click.option(
    "--jobs", type=click.IntRange(1), metavar="N", help="Number of models to check at a time.  [default: all cores]"
)
@click.option(
    "--memory",
    type=click.FloatRange(0.5),
    metavar="GiB",
    help="Memory for all jobs together.  [default: 0.7 of the free memory]",
)
@click.option(
    "--real-up-to",
    type=click.FloatRange(0),
    metavar="N",
    help="Check models with more than N parameters only on meta tensors.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(1),
    default=600,
    show_default=True,
    metavar="S",
    help="Time limit for a model, in seconds.",
)
@click.option("--retry-failed", is_flag=True, help="Check again the models that failed.")
@click.option("--table", is_flag=True, help="Check nothing, and write the tables of FILES to --page.")
@click.option(
    "--page", type=_PATH, default=Path("docs/sweep.md"), show_default=True, help="Page to update with --table."
)
@click.argument("files", nargs=-1, type=_PATH)
def command(
    library: str,
    names: tuple[str, ...],
    sample: int | None,
    seed: int,
    out: Path,
    jobs: int | None,
    memory: float | None,
    real_up_to: float | None,
    timeout: float,
    retry_failed: bool,
    table: bool,
    page: Path,
    files: tuple[Path, ...],
) -> None:
    """Check whether each model of timm builds, runs at several sizes, and trains.

    The results are written to a file, one line for each model. If a sweep is interrupted, the same command continues
    it.

    \b
    python -m tests.sweep --names 'resnet*' --out resnets.jsonl
    python -m tests.sweep --library smp --sample 100 --seed 1
    python -m tests.sweep --table docs/sweep.jsonl docs/sweep-smp.jsonl
    """
    if table:
        update_page(page, files or (out,))
        click.echo(f"tables written to {page}")
        return
    if files:
        raise click.UsageError(f"files are read only with --table, but {files[0]} was given; use --out for results")
    num_jobs = jobs or len(available_cores())
    config = SweepConfig(
        library=library,
        names=names or ("*",),
        sample=sample,
        seed=seed,
        jobs=num_jobs,
        memory=int(memory * 2**30) if memory else int(_MEMORY_SHARE * free_memory()),
        real_up_to=int(real_up_to) if real_up_to is not None else SweepConfig.real_up_to,
        timeout=timeout,
    )
    run_sweep(config, out, retry_failed=retry_failed)


def run_sweep(config: SweepConfig, out: Path, *, retry_failed: bool = False, target: str = MEASURE) -> None:
    """Check all names of a sweep that have no valid result yet, and print a summary of all names.

    Args:
        config: what to check.
        out: file of the results, to which each row is appended as soon as it is known.
        retry_failed: also check again the models that failed.
        target: function that the child processes call, as in `measure_models`.

    Raises:
        UnknownNameError: No name matches.
        FileError: The file cannot be written, or contains something else.
    """
    names = config.list_names()
    writer = SweepWriter(out, config)
    try:
        left = [name for name in names if not writer.results.is_done(name, config, retry_failed=retry_failed)]
        if left:
            _append_rows(measure_models(left, config, target), len(left), writer)
        writer.compact()
    finally:
        writer.close()
    print_summary([writer.results.rows[config.library, name] for name in names])
    click.echo(f"{len(names)} models in {out}, of which {len(names) - len(left)} were measured before")


def _append_rows(rows: Generator[Row, None, None], total: int, writer: SweepWriter) -> None:
    done = 0
    try:
        for row in with_progress(rows, total, Console(stderr=True)):
            writer.append(row)
            done += 1
    except KeyboardInterrupt:
        message = f"interrupted: {done} of {total} models are in {writer.path}; the same command continues"
        raise _InterruptedError(message) from None
    finally:
        rows.close()  # ends the child processes


class _InterruptedError(Exception):
    """A sweep that the user interrupted; the message says how to continue."""


def main() -> None:
    """Run the command line. An error is printed as one line on stderr, with exit code 2."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the child processes as well
    try:
        command.main(prog_name=_NAME, standalone_mode=False)
    except _InterruptedError as error:
        _exit_with_error(str(error), 130)
    except (click.Abort, KeyboardInterrupt):
        _exit_with_error("interrupted", 130)
    except click.ClickException as error:
        _exit_with_error(f"{error.format_message().rstrip('.')}. See `{_NAME} --help`.")
    except UnetkitError as error:
        _exit_with_error(str(error))


def _exit_with_error(message: str, code: int = 2) -> NoReturn:
    click.echo(f"Error: {' '.join(message.split())}", err=True)
    sys.exit(code)
