"""`unetkit predict`: segment images with a trained network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from unetkit.cli.options import Command, get_run_parts, trained_options
from unetkit.cli.prediction import (
    FILES_HELP,
    predict_files,
    predict_with_onnx,
    prediction_options,
    take_predict_config,
)
from unetkit.errors import OptionError
from unetkit.utils.isolation import stdout_to_stderr

_HELP = f"""Segment images of any size, tile by tile.

RUN is the folder that `unetkit train --out RUN` wrote, or an .onnx file that `unetkit export` wrote, which ONNX Runtime
runs on the CPU.
{FILES_HELP}
\b
unetkit predict runs/a cells.tif --out masks
unetkit predict runs/a images/ --out masks --overlay --probabilities
unetkit predict runs/a slide.tif --out masks --tile 1024 --tta --check
unetkit predict model.onnx cells.tif --out masks
"""


@click.command(cls=Command, help=_HELP)
@click.argument("run", type=click.Path(path_type=Path))
@prediction_options
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
    """Segment images of any size, tile by tile."""
    config = take_predict_config(given)
    if run.suffix == ".onnx" and not run.is_dir():
        if ctx.get_parameter_source("weights") is not ParameterSource.DEFAULT:
            raise OptionError(
                f"--weights {weights}: {run} has no other weights; leave it out, or give the run's folder"
            )
        if device not in (None, "cpu"):
            raise OptionError(f"--device {device}: {run} is run on the CPU; leave it out, or give the run's folder")
        predict_with_onnx(ctx, run, images, out, config)
        return

    from unetkit.predict.predictor import plan_outputs
    from unetkit.predict.torch_engine import make_predictor
    from unetkit.train.checkpoint import read_run
    from unetkit.utils.modules import default_device

    found = read_run(run)
    jobs = plan_outputs(images, out, found.target, config)
    with stdout_to_stderr():  # keeps what a part prints out of this command's output
        network = found.network(default_device(device), get_run_parts(ctx, found), weights)
        predictor = make_predictor(found, network, config)
    predict_files(ctx, predictor, jobs, out)
