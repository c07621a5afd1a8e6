"""`unetkit-run`: segment images with an exported network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from unetkit.cli.command import StrictCommand, run_command
from unetkit.cli.prediction import FILES_HELP, predict_with_onnx, prediction_options, take_predict_config

_HELP = f"""Segment images of any size, tile by tile, with a network that unetkit exported.

MODEL is the .onnx file that `unetkit export` wrote. The masks are those of `unetkit predict`.
{FILES_HELP}
\b
unetkit-run model.onnx cells.tif --out masks
unetkit-run model.onnx images/ --out masks --overlay --probabilities
unetkit-run model.onnx slide.tif --out masks --tile 1024 --tta --check
"""


@click.command(cls=StrictCommand, help=_HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", type=click.Path(path_type=Path))
@prediction_options
@click.option("-v", "--verbose", is_flag=True, expose_value=False, help="Show the traceback of errors.")
@click.version_option(package_name="unetkit-runner")
@click.pass_context
def run(ctx: click.Context, /, model: Path, images: tuple[Path, ...], out: Path, **given: Any) -> None:
    """Segment images of any size, tile by tile, with a network that unetkit exported."""
    predict_with_onnx(ctx, model, images, out, take_predict_config(given))


def main() -> None:
    """Run the command line. An error is printed as one line on stderr, and the exit code is 2."""
    run_command(run, "unetkit-run")
