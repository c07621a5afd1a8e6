"""`unetkit predict`: segment images with a trained network."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

import click

from unetkit.cli.options import get_run_parts, load_trained, nodata_option, size_option
from unetkit.utils.isolation import stdout_to_stderr


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out", required=True, metavar="DIR", type=click.Path(path_type=Path), help="Folder to write the masks to."
)
@click.option(
    "--format",
    "mask_format",
    type=click.Choice(["index", "binary", "color"]),
    help="Numbers in masks, see above.  [default: index]",
)
@click.option("--probabilities", is_flag=True, help="Also write NAME-probabilities.tif (float32).")
@click.option("--overlay", is_flag=True, help="Also write NAME-overlay.png, the mask drawn over the image.")
@click.option("--tta", is_flag=True, help="Test-time augmentation: average over the image and its three mirror images.")
@click.option("--tile", metavar="HxW", help="Tile size, such as 512 or 512x768.  [default: 512]")
@click.option("--overlap", metavar="N", type=int, help="Blend tiles that overlap by N pixels.")
@click.option("--batch-size", metavar="N", type=int, default=1, show_default=True, help="Tiles in a forward pass.")
@click.option(
    "--channels",
    type=click.Choice(["grey", "rgb"]),
    help="Convert images of one or three channels.  [default: as in training]",
)
@nodata_option("as in training, and what a TIFF file declares")
@click.option("--check", is_flag=True, help="Compare with a single pass over the whole image.")
@click.option(
    "--weights",
    type=click.Choice(["best", "last"]),
    default="best",
    show_default=True,
    help="Weights of the run to use.",
)
@click.option("--device", metavar="NAME", help="Device, such as cpu, cuda or cuda:1.  [default: a GPU if there is one]")
@click.pass_context
def predict(
    ctx: click.Context,
    /,
    run: Path,
    images: tuple[Path, ...],
    out: Path,
    probabilities: bool,
    overlay: bool,
    tile: str | None,
    weights: Literal["best", "last"],
    device: str | None,
    **how: Any,
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
    size = None if tile is None else size_option(tile, "--tile")

    from unetkit.predict.predictor import PredictConfig, Predictor, plan_outputs, predict_all
    from unetkit.predict.progress import PredictProgress
    from unetkit.train.checkpoint import read_run

    found, passed = read_run(run), PredictConfig(size, **how)
    jobs = plan_outputs(
        images, out, found.target, probabilities=probabilities, overlays=overlay, mask_format=passed.mask_format
    )
    with stdout_to_stderr():  # keeps what a part prints out of this command's output
        network = load_trained(found, weights, device, get_run_parts(ctx, found))
        predictor = Predictor(found, network, passed)
        shown = PredictProgress(len(jobs))
        try:
            failed = predict_all(predictor.predict, jobs, shown)
        except KeyboardInterrupt:
            shown.close()
            done = f"{shown.done} of {len(jobs)} images are complete"
            click.echo(f"Error: interrupted: {done}, in {out}", err=True)
            sys.exit(130)
        finally:
            shown.close()
    click.echo(f"{len(jobs) - failed} of {len(jobs)} images written to {out}")
    if failed:
        ctx.exit(1)
