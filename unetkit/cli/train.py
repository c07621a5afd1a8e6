"""`unetkit train`: from images and masks to a network."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from unetkit.cli.options import parts_of, plan_options
from unetkit.errors import OptionError
from unetkit.plan import PLAN_FIELDS, Plan
from unetkit.resolve import resolve

_DEFAULT = "cells"


@click.command()
@plan_options
@click.option("--data", metavar="FOLDER|SET", help="Images and masks, or a set: see below.  [default: cells]")
@click.option(
    "--val-fraction", type=float, metavar="X", help="Share set aside where there is no split.  [default: 0.2]"
)
@click.option("--group-by", metavar="REGEX", help="Names that it matches alike stay on one side of that split.")
@click.option("--ignore-index", type=int, metavar="N", help="The number in masks that counts nowhere.")
@click.option("--crop", metavar="HxW", help="Size of the training crops: 256, or 256x320 (height first).")
@click.option("--loss", metavar="TERM[+...]", help="A sum of ce, bce, dice, focal, border; by the data.")
@click.option("--augment", metavar="WORD,...", help="hflip, turn, rotate, scale, elastic, light ...; none.")
@click.option("--batch-size", type=int, metavar="N", help="Images a step, of each process.  [default: 8]")
@click.option("--epochs", type=int, metavar="N", help="Passes over the training images.  [default: 20]")
@click.option("--lr", type=float, metavar="X", help="The highest learning rate.  [default: 0.001]")
@click.option("--optimizer", metavar="NAME", help="adamw, with options after a colon.  [default: adamw]")
@click.option("--freeze-encoder", metavar="EPOCHS|all", help="Leave the encoder as it is for so long.")
@click.option("--dtype", metavar="TYPE", help="float32, bfloat16 or float16; by the device.")
@click.option("--patience", type=int, metavar="N", help="Stop after so many epochs without a better mIoU.")
@click.option("--preview-every", type=int, metavar="N", help="Draw predictions every so many epochs.  [default: 5]")
@click.option("--workers", type=int, metavar="N", help="Processes that read and augment; 0 on a CPU.")
@click.option("--device", metavar="NAME", help="cpu, cuda or cuda:1; the GPU where there is one.")
@click.option("--tensorboard", is_flag=True, help="Write TensorBoard's event files too.")
@click.option("--out", type=click.Path(path_type=Path), metavar="FOLDER", help="Where the run goes.")
@click.option("--resume", type=click.Path(path_type=Path), metavar="FOLDER", help="Go on with a run that was stopped.")
@click.pass_context
def train(ctx: click.Context, /, out: Path | None, resume: Path | None, **asked: Any) -> None:
    """Train a network, and leave a folder for `unetkit eval` and `unetkit predict`.

    --data takes a folder with images/ and masks/, or a set by name: cells (microscopy made on the fly),
    voc:root=DIR, pet:root=DIR, cityscapes:root=DIR. Classes and channels are those of the data. --size is that of the
    crops that the network is trained on, --seed that of all that is random. After each epoch everything is saved:
    killed at any moment, --resume goes on to the same weights; beside it only --device and --data (where the same
    folder lies now) may stand. Several processes train together under torchrun.

    \b
    unetkit train --encoder resnet18 --fuse add --out runs/cells
    unetkit train --data FOLDER --encoder resnet34 --pretrained --size 256 --epochs 50 --out runs/a
    unetkit train --resume runs/a
    torchrun --nproc-per-node 2 -m unetkit train --data FOLDER --encoder resnet34 --out runs/b
    """
    given = {name: value for name, value in asked.items() if value is not None and value is not False}
    if resume is not None:
        _resume(ctx, resume, out, given)
        return
    if out is None:
        raise OptionError("--out: say where the run goes, such as --out runs/a")
    words = {word.name: given.pop(word.name) for word in PLAN_FIELDS if word.name in given}
    plan, parts = Plan.of(**words), parts_of(ctx)
    resolve(plan, parts)  # refuses a wrong name or option before torch is imported
    given["freeze_encoder"] = _freeze(given.get("freeze_encoder", "0"))

    from unetkit.train.progress import TrainProgress
    from unetkit.train.run import run

    plugins = tuple(map(str, ctx.find_root().params.get("plugins") or ()))
    command = shlex.join(["unetkit", *sys.argv[1:]])
    watch = TrainProgress()
    try:
        run(plan, out, parts=parts, plugins=plugins, command=command, watch=watch, **given)
    except KeyboardInterrupt:
        watch.close()
        _interrupted(out)
    finally:
        watch.close()


def _resume(ctx: click.Context, folder: Path, out: Path | None, given: dict[str, Any]) -> None:
    from unetkit.train.progress import TrainProgress
    from unetkit.train.run import resume

    device, data = given.pop("device", None), given.pop("data", None)
    if out is not None or given:
        name = "out" if out is not None else next(iter(given))
        raise OptionError(f"--{name.replace('_', '-')} with --resume: a run goes on as it began; leave it out")
    watch = TrainProgress()
    try:
        resume(folder, data=data, device=device, watch=watch)
    except KeyboardInterrupt:
        watch.close()
        _interrupted(folder)
    finally:
        watch.close()


def _interrupted(folder: Path) -> None:
    begun = (folder / "run.json").exists()
    then = f"; go on with: unetkit train --resume {shlex.quote(str(folder))}" if begun else " before the run began"
    click.echo(f"Error: interrupted{then}", err=True)
    sys.exit(130)


def _freeze(said: str) -> int:
    if said == "all":
        return -1
    if not said.isdecimal():
        raise OptionError(f"--freeze-encoder {said}: takes a number of epochs, or all")
    return int(said)
