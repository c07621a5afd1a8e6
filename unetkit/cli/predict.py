"""`unetkit predict`: from images to masks, with what `unetkit train` left."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from unetkit.cli.options import load_trained
from unetkit.errors import OptionError
from unetkit.utils.isolation import stdout_to_stderr

if TYPE_CHECKING:
    pass


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", required=True, metavar="DIR", type=click.Path(path_type=Path), help="Where the files go.")
@click.option("--probabilities", is_flag=True, help="Write them too: NAME-probabilities.tif, float32.")
@click.option("--overlay", is_flag=True, help="Lay the mask over the image too: NAME-overlay.png.")
@click.option("--tta", is_flag=True, help="Take the mean over the image and its three mirror images.")
@click.option("--tile", metavar="HxW", help="What is passed at a time; one number for both. [default: 512]")
@click.option("--overlap", metavar="N", type=int, help="Blend tiles that overlap by N pixels.")
@click.option("--batch-size", metavar="N", type=int, default=1, show_default=True, help="Tiles a pass.")
@click.option("--check", is_flag=True, help="Compare with one pass over the whole image.")
@click.option("--weights", type=click.Choice(["best", "last"]), default="best", show_default=True, help="Of the run.")
@click.option("--device", metavar="DEVICE", help="cpu, cuda or cuda:1; the GPU where there is one.")
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

    RUN is the folder that `unetkit train --out RUN` wrote; IMAGE a file, or a folder for all images in it. Of each,
    DIR/NAME.png is written, an indexed PNG of its classes; of several labels, NAME-LABEL.png each. Tiles are put
    together exactly as one pass over the whole image gives it, where the network allows that, and blended elsewhere.
    TIFF is read by windows, so that an image may be larger than memory. An image that cannot be read is reported, and
    the others are done; the exit code is then 1.

    \b
    unetkit predict runs/a cells.tif --out masks
    unetkit predict runs/a images/ --out masks --overlay --probabilities
    unetkit predict runs/a slide.tif --out masks --tile 1024 --tta --check
    """
    size = _size(tile)

    from unetkit.predict.predictor import PredictConfig, Predictor, plan_outputs, predict_all
    from unetkit.predict.progress import PredictProgress
    from unetkit.train.checkpoint import read_run

    found, passed = read_run(run), PredictConfig(size, **how)
    jobs = plan_outputs(images, out, found.target, probabilities=probabilities, overlays=overlay)
    with stdout_to_stderr():  # what a part prints is not what this prints
        network = load_trained(ctx, found, weights, device)
        predictor = Predictor(found, network, passed)
        shown = PredictProgress(len(jobs))
        try:
            failed = predict_all(predictor.predict, jobs, shown)
        except KeyboardInterrupt:
            shown.close()
            done = f"{shown.done} of {len(jobs)} images are done and whole"
            click.echo(f"Error: interrupted: {done}, in {out}", err=True)
            sys.exit(130)
        finally:
            shown.close()
    click.echo(f"{len(jobs) - failed} of {len(jobs)} images are done, in {out}")
    if failed:
        ctx.exit(1)


def _size(said: str | None) -> tuple[int, int] | None:
    if said is None:
        return None
    sides = re.fullmatch(r"(\d+)(?:x(\d+))?", said)
    if not sides:
        raise OptionError(f"--tile {said}: takes height by width, such as 512x768, or one number for both")
    return int(sides[1]), int(sides[2] or sides[1])
