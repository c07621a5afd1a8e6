"""The command line of the sweep: parse, call, print."""

from __future__ import annotations

import signal
import sys
from collections.abc import Generator
from pathlib import Path
from typing import NoReturn

import click
from rich.console import Console

from tests.sweep.page import refresh
from tests.sweep.record import Record
from tests.sweep.rows import MEASURE, rows
from tests.sweep.settings import Settings
from tests.sweep.show import followed, summary
from tests.sweep.subjects import SUBJECTS
from tests.sweep.tally import Row
from unetkit.errors import UnetkitError
from unetkit.utils.system import available_cores, free_memory

_NAME = "python -m tests.sweep"
#: Of the memory that is free: others need some too.
_SHARE = 0.7
_PATH: click.Path = click.Path(path_type=Path)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--of", type=click.Choice([*SUBJECTS]), default="unetkit", show_default=True, help="Who is asked.")
@click.option("--names", multiple=True, metavar="GLOB", help="Only names that match; may be repeated.")
@click.option("--sample", type=click.IntRange(1), metavar="N", help="Only so many, drawn at random.")
@click.option("--seed", type=int, default=0, show_default=True, help="Fixes order, sample, weights and images.")
@click.option("--out", type=_PATH, default=Path("sweep.jsonl"), show_default=True, help="The file.")
@click.option("--jobs", type=click.IntRange(1), metavar="N", help="Models at a time; as many as there are cores.")
@click.option("--memory", type=click.FloatRange(0.5), metavar="GiB", help="For all jobs; 0.7 of what is free.")
@click.option(
    "--real-up-to", type=click.FloatRange(0), metavar="N", help="Models with more parameters are asked on meta only."
)
@click.option(
    "--timeout", type=click.FloatRange(1), default=600, show_default=True, metavar="S", help="Seconds for one model."
)
@click.option("--retry-failed", is_flag=True, help="Measure names that failed again.")
@click.option("--table", is_flag=True, help="Measure nothing; write the table of FILES into the page.")
@click.option("--page", type=_PATH, default=Path("docs/sweep.md"), show_default=True, help="For --table.")
@click.argument("files", nargs=-1, type=_PATH)
def command(
    of: str,
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
    """Ask every model of timm's whether it builds, passes its own and odd sizes, and trains.

    One line a model goes into a file; the same command goes on where it was stopped.

    \b
    python -m tests.sweep --names 'resnet*' --out resnets.jsonl
    python -m tests.sweep --of smp --sample 100 --seed 1
    python -m tests.sweep --table docs/sweep.jsonl docs/sweep-smp.jsonl
    """
    if table:
        refresh(page, files or (out,))
        click.echo(f"written into {page}")
        return
    if files:
        raise click.UsageError(f"{files[0]} is a file for --table; --out says where rows go")
    workers = jobs or len(available_cores())
    settings = Settings(
        of=of,
        names=names or ("*",),
        sample=sample,
        seed=seed,
        jobs=workers,
        memory=int(memory * 2**30) if memory else int(_SHARE * free_memory()),
        real_up_to=int(real_up_to) if real_up_to is not None else Settings.real_up_to,
        timeout=timeout,
    )
    sweep(settings, out, again=retry_failed)


def sweep(settings: Settings, out: Path, *, again: bool = False, ask: str = MEASURE) -> None:
    """Measure what is planned and not done, row by row into a file, and print what all planned rows come to."""
    planned = settings.order()
    record = Record(out, settings)
    try:
        left = [name for name in planned if not record.recorded.done(name, settings, again=again)]
        if left:
            _measure(rows(left, settings, ask), len(left), record)
        record.tidy()
    finally:
        record.close()
    summary([record.recorded.rows[settings.of, name] for name in planned])
    click.echo(f"{len(planned)} models, {len(planned) - len(left)} of them measured before, in {out}")


def _measure(measured: Generator[Row, None, None], left: int, record: Record) -> None:
    done = 0
    try:
        for row in followed(measured, left, Console(stderr=True)):
            record.append(row)
            done += 1
    except KeyboardInterrupt:
        told = f"interrupted: {done} of {left} are in {record.path}; the same command continues"
        raise _Interrupted(told) from None
    finally:
        measured.close()  # ends the children


class _Interrupted(Exception):
    """Ended by its user, with what to say of it."""


def main() -> None:
    """Run the command line. What is refused is one line on stderr and exit code 2."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that children are ended
    try:
        command.main(prog_name=_NAME, standalone_mode=False)
    except _Interrupted as error:
        _refuse(str(error), 130)
    except (click.Abort, KeyboardInterrupt):
        _refuse("interrupted", 130)
    except click.ClickException as error:
        _refuse(f"{error.format_message().rstrip('.')}. `{_NAME} --help` describes it.")
    except UnetkitError as error:
        _refuse(str(error))


def _refuse(message: str, code: int = 2) -> NoReturn:
    click.echo(f"Error: {' '.join(message.split())}", err=True)
    sys.exit(code)
