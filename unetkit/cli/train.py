"""`unetkit train`: train a network on images and masks."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from unetkit.cli.command import config_options, take_config_values
from unetkit.cli.options import Command, get_parts, plan_options
from unetkit.errors import OptionError
from unetkit.plan import Plan
from unetkit.resolve import resolve
from unetkit.train.config import CHANGEABLE, TrainConfig
from unetkit.utils.config_fields import flag_of


@click.command(cls=Command)
@plan_options
@config_options(TrainConfig)
@click.option("--out", type=click.Path(path_type=Path), metavar="FOLDER", help="Folder to write the run to.")
@click.option(
    "--resume", type=click.Path(path_type=Path), metavar="FOLDER", help="Continue the interrupted run in FOLDER."
)
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
    given = {name: value for name, value in values.items() if value is not None and value is not False}
    if resume is not None:
        _resume(resume, out, given)
        return
    if out is None:
        raise OptionError("--out is missing; name a folder for the run, such as --out runs/a")
    config = take_config_values(TrainConfig, given)
    plan, parts = Plan.of(**given), get_parts(ctx)
    resolve(plan, parts)  # rejects wrong names and options before torch is imported

    from unetkit.train.progress import TrainProgress
    from unetkit.train.runner import run

    plugins = tuple(map(str, ctx.find_root().params.get("plugins") or ()))
    command = shlex.join(["unetkit", *sys.argv[1:]])
    progress = TrainProgress()
    try:
        run(plan, out, parts=parts, plugins=plugins, command=command, callback=progress, **config)
    except KeyboardInterrupt:
        progress.close()
        _exit_interrupted(out)
    finally:
        progress.close()


def _resume(folder: Path, out: Path | None, given: dict[str, Any]) -> None:
    from unetkit.train.progress import TrainProgress
    from unetkit.train.runner import resume

    fixed = [name for name in ("out", *given) if name not in ("data", *CHANGEABLE) and (name != "out" or out)]
    if fixed:
        raise OptionError(f"{flag_of(fixed[0])} cannot be changed by --resume; leave it out")
    progress = TrainProgress()
    try:
        resume(folder, callback=progress, **take_config_values(TrainConfig, given))
    except KeyboardInterrupt:
        progress.close()
        _exit_interrupted(folder)
    finally:
        progress.close()


def _exit_interrupted(folder: Path) -> None:
    begun = (folder / "run.json").exists()
    then = f"; continue with: unetkit train --resume {shlex.quote(str(folder))}" if begun else " before the run began"
    click.echo(f"Error: interrupted{then}", err=True)
    sys.exit(130)
