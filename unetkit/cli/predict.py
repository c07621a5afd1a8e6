"""`unetkit predict`: segment images with a trained network."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from unetkit.cli.options import Command, config_options, get_run_parts, take_config_values, trained_options
from unetkit.predict.config import PredictConfig
from unetkit.utils.formatting import format_plural
from unetkit.utils.isolation import stdout_to_stderr


@click.command(cls=Command)
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out", required=True, metavar="DIR", type=click.Path(path_type=Path), help="Folder to write the masks to."
)
@config_options(PredictConfig)
@trained_options
@click.pass_context
def predict(
    ctx: click.Context,
    /,
    run: Path,
    images: tuple[Path, ...],
    out: Path,
    weights: str,
    device: str | None,
    **given: Any,
) -> None:
    """Segment images of any size, tile by tile.

    RUN is the folder that `unetkit train --out RUN` wrote. IMAGE is a file, or a folder for all images in it. For each
    image, its classes are written to DIR/NAME.png as an indexed PNG: its numbers are 0, 1, 2, ..., and its palette has
    the colours of the classes, so that a program which shows it in grey shows the brightness of these colours. With
    --format binary, the masks of two classes are grey, 0 and 255; with --format color, they are RGB. A multi-label
    network writes one NAME-LABEL.png of 0 and 255 for each label.

    Where the network allows it, the tiles give exactly what a single pass over the whole image would give; otherwise
    they overlap and are blended. TIFF files are read in windows, so an image may be larger than memory. An image that
    cannot be read is reported and skipped, and the exit code is then 1. Files in DIR are not read as images.

    \b
    unetkit predict runs/a cells.tif --out masks
    unetkit predict runs/a images/ --out masks --overlay --probabilities
    unetkit predict runs/a slide.tif --out masks --tile 1024 --tta --check
    """
    values = {name: value for name, value in given.items() if value is not None}
    config = PredictConfig(**take_config_values(PredictConfig, values))

    from unetkit.predict.predictor import plan_outputs, predict_all
    from unetkit.predict.progress import PredictProgress
    from unetkit.predict.torch_engine import make_predictor
    from unetkit.train.checkpoint import read_run
    from unetkit.utils.modules import default_device

    found = read_run(run)
    jobs = plan_outputs(images, out, found.target, config)
    with stdout_to_stderr():  # keeps what a part prints out of this command's output
        network = found.network(default_device(device), get_run_parts(ctx, found), weights)
        predictor = make_predictor(found, network, config)
        shown = PredictProgress(len(jobs))
        try:
            failed = predict_all(predictor.predict, jobs, shown)
        except KeyboardInterrupt:
            shown.close()
            done = f"{shown.done} of {format_plural(len(jobs), 'image')} complete"
            click.echo(f"Error: interrupted: {done}, in {out}", err=True)
            sys.exit(130)
        finally:
            shown.close()
    written = f" to {out}" if failed < len(jobs) else ""
    click.echo(f"{len(jobs) - failed} of {format_plural(len(jobs), 'image')} written{written}")
    if failed:
        ctx.exit(1)
