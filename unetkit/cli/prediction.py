"""The arguments, options and help that `unetkit predict` and `unetkit-run` share, and the run over all images."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unetkit.cli.command import F, FilePath, config_options, take_config_values
from unetkit.predict.config import PredictConfig
from unetkit.utils.files import check_requested_path
from unetkit.utils.formatting import format_plural
from unetkit.utils.isolation import stdout_to_stderr

if TYPE_CHECKING:
    from unetkit.predict.predictor import PredictionJob, Predictor

#: What the help says of images and of the files that are written.
FILES_HELP = """
IMAGE is a file, or a folder for all images in it. For each image, its classes are written to DIR/NAME.png as an indexed
PNG: its numbers are 0, 1, 2, ..., and its palette has the colours of the classes, so that a program which shows it in
grey shows the brightness of these colours. With --format binary, the masks of two classes are grey, 0 and 255; with
--format color, they are RGB. A multi-label network writes one NAME-LABEL.png of 0 and 255 for each label.

Where the network allows it, the tiles give exactly what a single pass over the whole image would give; otherwise they
overlap and are blended. TIFF files are read in windows, so an image may be larger than memory. An image that cannot be
read is reported and skipped, and the exit code is then 1. Files in DIR are not read as images.
"""


def prediction_options(command: F) -> F:
    """Add the images, --out, and the options that set the fields of PredictConfig, to a command."""
    path = FilePath()
    options = (
        click.argument("images", metavar="IMAGE...", nargs=-1, required=True, type=path),
        click.option("--out", required=True, metavar="DIR", type=path, help="Folder to write the masks to."),
        config_options(PredictConfig),
    )
    return reduce(lambda wrapped, option: option(wrapped), reversed(options), command)


def take_predict_config(given: dict[str, Any]) -> PredictConfig:
    """Create the configuration from the options that were given. Raises OptionError."""
    values = {name: value for name, value in given.items() if value is not None}
    return PredictConfig(**take_config_values(PredictConfig, values))


def predict_with_onnx(
    ctx: click.Context, path: Path, images: tuple[Path, ...], out: Path, config: PredictConfig
) -> None:
    """Predict images with an exported network, without torch; the exit code is 1 if one of them fails."""
    from unetkit.predict.onnx_engine import open_onnx
    from unetkit.predict.predictor import Predictor, plan_outputs

    info, engine = open_onnx(path)
    jobs = plan_outputs(images, out, info.target, config)
    predict_files(ctx, lambda notify: Predictor(info, engine, config), jobs, out)


def predict_files(
    ctx: click.Context,
    make_predictor: Callable[[Callable[[str], None]], Predictor],
    jobs: list[PredictionJob],
    out: Path,
) -> None:
    """Predict images and show the progress; the exit code is 1 if one of them fails, and 130 after an interrupt.

    `make_predictor` is called with a function that prints a line beside the progress.
    """
    from unetkit.predict.predictor import predict_all
    from unetkit.predict.progress import PredictProgress

    check_requested_path(out, "--out", is_folder=True)
    shown = PredictProgress(len(jobs))
    try:
        with stdout_to_stderr():  # keeps what a part prints out of this command's output
            failed = predict_all(make_predictor(shown.print_line).predict, jobs, shown)
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
