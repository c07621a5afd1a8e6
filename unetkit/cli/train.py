"""`unetkit train`: train a network on images and masks."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from unetkit.cli.options import get_parts, plan_options, size_option
from unetkit.errors import OptionError
from unetkit.plan import PLAN_FIELDS, Plan
from unetkit.resolve import resolve


@click.command()
@plan_options
@click.option("--data", metavar="FOLDER|SET", help="Training data, see above.  [default: cells]")
@click.option(
    "--val-fraction",
    type=float,
    metavar="X",
    help="Share of the images for validation where the data have no split.  [default: 0.2]",
)
@click.option(
    "--group-by", metavar="REGEX", help="Keep files in one split if REGEX finds the same text in their names."
)
@click.option("--ignore-index", type=int, metavar="N", help="Mask value to ignore in losses and scores.")
@click.option(
    "--crop", metavar="HxW", help="Size of the training crops.  [default: --size, or the first image's, at most 256]"
)
@click.option(
    "--loss", metavar="TERM[+...]", help="Sum of ce, bce, dice, focal and border.  [default: chosen by the data]"
)
@click.option("--augment", metavar="STEP,...", help="Augmentations, such as hflip,rotate90,elastic,light; or none.")
@click.option("--batch-size", type=int, metavar="N", help="Images in a training step, for each process.  [default: 8]")
@click.option("--epochs", type=int, metavar="N", help="Number of passes over the training images.  [default: 20]")
@click.option("--lr", type=float, metavar="X", help="Highest learning rate, after warm-up.  [default: 0.001]")
@click.option("--optimizer", metavar="NAME", help="Optimizer with its options, such as adamw:clip=1.  [default: adamw]")
@click.option("--freeze-encoder", metavar="EPOCHS|all", help="Keep the encoder frozen for the first EPOCHS, or always.")
@click.option("--dtype", metavar="TYPE", help="float32, bfloat16 or float16.  [default: chosen by the device]")
@click.option("--patience", type=int, metavar="N", help="Stop after N epochs without a better mIoU; 0 for never.")
@click.option("--preview-every", type=int, metavar="N", help="Draw predictions every N epochs.  [default: 5]")
@click.option("--workers", type=int, metavar="N", help="Number of data loading processes.  [default: 0 on a CPU]")
@click.option("--device", metavar="NAME", help="Device, such as cpu, cuda or cuda:1.  [default: a GPU if there is one]")
@click.option("--tensorboard", is_flag=True, help="Also write TensorBoard event files.")
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

    The run is saved after each epoch. If it is interrupted, --resume continues it and ends with the same weights; it
    can be combined only with --device, and with --data if the folder was moved. torchrun trains on several GPUs.

    \b
    unetkit train --encoder resnet18 --fuse add --out runs/cells
    unetkit train --data FOLDER --encoder resnet34 --pretrained --crop 256 --epochs 50 --out runs/a
    unetkit train --resume runs/a
    torchrun --nproc-per-node 2 -m unetkit train --data FOLDER --encoder resnet34 --out runs/b
    """
    given = {name: value for name, value in values.items() if value is not None and value is not False}
    if resume is not None:
        _resume(ctx, resume, out, given)
        return
    if out is None:
        raise OptionError("--out is missing; name a folder for the run, such as --out runs/a")
    fields = {field.name: given.pop(field.name) for field in PLAN_FIELDS if field.name in given}
    plan, parts = Plan.of(**fields), get_parts(ctx)
    resolve(plan, parts)  # rejects wrong names and options before torch is imported
    if "crop" in given:
        given["crop"] = size_option(given["crop"], "--crop")
    given["freeze_encoder"] = _parse_freeze(given.get("freeze_encoder", "0"))

    from unetkit.train.progress import TrainProgress
    from unetkit.train.runner import run

    plugins = tuple(map(str, ctx.find_root().params.get("plugins") or ()))
    command = shlex.join(["unetkit", *sys.argv[1:]])
    progress = TrainProgress()
    try:
        run(plan, out, parts=parts, plugins=plugins, command=command, callback=progress, **given)
    except KeyboardInterrupt:
        progress.close()
        _exit_interrupted(out)
    finally:
        progress.close()


def _resume(ctx: click.Context, folder: Path, out: Path | None, given: dict[str, Any]) -> None:
    from unetkit.train.progress import TrainProgress
    from unetkit.train.runner import resume

    device, data = given.pop("device", None), given.pop("data", None)
    if out is not None or given:
        name = "out" if out is not None else next(iter(given))
        raise OptionError(f"--{name.replace('_', '-')} cannot be changed by --resume; leave it out")
    progress = TrainProgress()
    try:
        resume(folder, data=data, device=device, callback=progress)
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


def _parse_freeze(text: str) -> int:
    if text == "all":
        return -1
    if not text.isdecimal():
        raise OptionError(f"--freeze-encoder {text}: must be a number of epochs, or all")
    return int(text)
