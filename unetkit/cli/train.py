"""`unetkit train`: train a network on images and masks."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unetkit.cli.command import FilePath, config_options, take_config_values
from unetkit.cli.options import Command, get_parts, plan_options
from unetkit.errors import OptionError
from unetkit.plan import Plan
from unetkit.resolve import resolve
from unetkit.train.config import CHANGEABLE, TrainConfig
from unetkit.utils.config_fields import flag_of

if TYPE_CHECKING:
    from unetkit.train.progress import TrainProgress


@click.command(cls=Command)
@plan_options
@config_options(TrainConfig)
@click.option("--out", type=FilePath(), metavar="FOLDER", help="Folder to write the run to.")
@click.option("--resume", type=FilePath(), metavar="FOLDER", help="Continue the interrupted run in FOLDER.")
@click.pass_context
def train(ctx: click.Context, /, out: Path | None, resume: Path | None, **values: Any) -> None:
    """Train a network and write a run folder for `unetkit eval` and `unetkit predict`.

    --data takes a folder that contains images/ and masks/, or the name of a data set: cells (synthetic microscopy
    images), voc:root=DIR, pet:root=DIR or cityscapes:root=DIR. The data determine the network's classes and input
    channels. --seed fixes everything that is random: weights, split, order and augmentation.

    The run is saved after each epoch. If it is interrupted, the same command, or --resume, continues it and ends with
    the same weights. --resume can be combined with the options that do not change what is trained (--device,
    --threads, --workers, --preview-every, --tensorboard), and with --data if the folder was moved. torchrun trains on
    several GPUs.

    \b
    unetkit train --encoder resnet18 --fuse add --out runs/cells
    unetkit train --data FOLDER --encoder resnet34 --pretrained --crop 256 --epochs 50 --out runs/a
    unetkit train --resume runs/a
    torchrun --nproc-per-node 2 -m unetkit train --data FOLDER --encoder resnet34 --out runs/b
    """
    options = {"out": out, **values}
    given = {name: value for name, value in options.items() if value is not None and value is not False}
    if resume is not None:
        _resume(resume, given)
        return
    if out is None:
        raise OptionError("--out is missing; name a folder for the run, such as --out runs/a")
    del given["out"]
    config = take_config_values(TrainConfig, given)
    plan, parts = Plan.of(**given), get_parts(ctx)
    resolve(plan, parts)  # rejects wrong names and options before torch is imported

    from unetkit.train.runner import run

    plugins = tuple(map(str, ctx.find_root().params.get("plugins") or ()))
    command = shlex.join(["unetkit", *sys.argv[1:]])
    with _show_progress(out) as progress:
        run(plan, out, parts=parts, plugins=plugins, command=command, callback=progress, **config)


def _resume(folder: Path, given: dict[str, Any]) -> None:
    if fixed := [name for name in given if name not in ("data", *CHANGEABLE)]:
        raise OptionError(f"{flag_of(fixed[0])} cannot be changed by --resume; leave it out")
    config = take_config_values(TrainConfig, given)

    from unetkit.train.runner import resume

    with _show_progress(folder) as progress:
        resume(folder, callback=progress, **config)


@contextmanager
def _show_progress(folder: Path) -> Iterator[TrainProgress]:
    """Show the progress of a run; an interruption ends the command with a line that says how to continue."""
    from unetkit.train.progress import TrainProgress

    try:
        with closing(TrainProgress()) as progress:
            yield progress
    except KeyboardInterrupt:
        has_begun = (folder / "run.json").exists()
        then = (
            f"; continue with: unetkit train --resume {shlex.quote(str(folder))}"
            if has_begun
            else " before the run began"
        )
        click.echo(f"Error: interrupted{then}", err=True)
        sys.exit(130)
