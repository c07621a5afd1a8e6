"""`unetkit predict`: segment images with a trained network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from unetkit.cli.command import FilePath
from unetkit.cli.options import Command, get_run_parts, trained_options
from unetkit.cli.prediction import (
    FILES_HELP,
    predict_files,
    predict_with_onnx,
    prediction_options,
    take_predict_config,
)
from unetkit.errors import FileError, OptionError
from unetkit.predict.engines import AUTO
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
@click.argument("run", type=FilePath())
@prediction_options
@trained_options(AUTO)
@click.pass_context
def predict(
    ctx: click.Context,
    /,
    run: Path,
    images: tuple[Path, ...],
    out: Path,
    weights: str,
    engine: str,
    device: str | None,
    **given: Any,
) -> None:
    """Segment images of any size, tile by tile."""
    config = take_predict_config(given)
    if run.suffix.lower() == ".onnx" and not run.is_dir():
        if ctx.get_parameter_source("weights") is not ParameterSource.DEFAULT:
            raise OptionError(
                f"--weights {weights}: {run} has no other weights; leave it out, or give the run's folder"
            )
        if engine not in (AUTO, "onnxruntime"):
            raise OptionError(f"--engine {engine}: ONNX Runtime runs {run}; leave it out, or give the run's folder")
        if device not in (None, "cpu"):
            raise OptionError(f"--device {device}: {run} is run on the CPU; leave it out, or give the run's folder")
        predict_with_onnx(ctx, run, images, out, config)
        return

    if run.is_file():
        raise FileError(f"{run} is no .onnx file; export the network once more, with --out NAME.onnx, or give a run")

    from unetkit.exporter.engines import open_engine
    from unetkit.predict.predictor import Predictor, count_passes, plan_outputs
    from unetkit.predict.torch_engine import describe_run
    from unetkit.train.checkpoint import read_run
    from unetkit.utils.modules import check_device, default_device

    check_device(device, meta=False)
    found = read_run(run)
    jobs = plan_outputs(images, out, found.target, config)
    with stdout_to_stderr():  # keeps what a part prints out of this command's output
        parts = get_run_parts(ctx, found)
        network = found.network(default_device(device), parts, weights)
        info = describe_run(found, network)

    def make_predictor(notify: Callable[[str], None]) -> Predictor:
        expected = count_passes(jobs, info, config)
        how: dict[str, Any] = {"weights": weights, "parts": parts, "expected": expected, "on_notice": notify}
        return Predictor(info, open_engine(engine, found, network, info, **how), config)

    predict_files(ctx, make_predictor, jobs, out)
