"""`unetkit export`: write a network to a file that other programs run, check it, and verify such a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unetkit.cli.command import FilePath
from unetkit.cli.options import Command, emit_json, get_parts, get_run_parts, json_options, plan_options
from unetkit.errors import OptionError
from unetkit.plan import Plan
from unetkit.resolve import resolve
from unetkit.utils.formatting import Size, format_bytes, format_plural, format_size
from unetkit.utils.isolation import stdout_to_stderr
from unetkit.utils.parsing import parse_size
from unetkit.utils.tables import Listing, TableData

if TYPE_CHECKING:
    from unetkit.exporter.export import ExportReport
    from unetkit.exporter.quality import EngineCost, PrecisionCost, Ratio


@click.command("export", cls=Command)
@click.argument("source", metavar="[RUN|FILE.safetensors]", required=False, type=FilePath())
@click.option("--out", metavar="FILE", type=FilePath(), help="File to write.")
@click.option(
    "--format", "form", metavar="FORMAT", help="Format, such as onnx:opset=18.  [default: by the ending of --out]"
)
@click.option("--probabilities", is_flag=True, help="Return probabilities (sigmoid or softmax) instead of logits.")
@click.option("--half", is_flag=True, help="Use float16 for weights and computation.")
@click.option("--int8", is_flag=True, help="Use 8-bit integers for weights and computation (ONNX only).")
@click.option(
    "--calibrate",
    metavar="FOLDER|SET",
    type=FilePath(str),
    help="Images on which --int8 finds the ranges of values.  [default: training images of the run]",
)
@click.option("--fixed-size", metavar="HxW", help="Export for images of this size only, such as 512 or 512x768.")
@click.option(
    "--tolerance",
    metavar="SHARE",
    type=float,
    help="Largest difference, as a share of the range of the outputs.  [default: 1e-4; --half: 2e-2; --int8: any]",
)
@click.option("--verify", metavar="FILE", type=FilePath(), help="Verify an exported file instead.")
@click.option(
    "--weights",
    type=click.Choice(["best", "last"]),
    default="best",
    show_default=True,
    help="Weights of the run to use.",
)
@plan_options
@json_options
@click.pass_context
def export(
    ctx: click.Context,
    /,
    source: Path | None,
    out: Path | None,
    form: str | None,
    probabilities: bool,
    half: bool,
    int8: bool,
    calibrate: str | None,
    fixed_size: str | None,
    tolerance: float | None,
    verify: Path | None,
    weights: str,
    as_json: bool,
    json_out: Path | None,
    **fields: Any,
) -> None:
    """Export a network to a file that other programs run, and check it.

    RUN is the folder that `unetkit train --out RUN` wrote, and FILE.safetensors is from `unetkit build --save`. Without
    them, the options that describe a model build one, with random weights unless --pretrained is given. The ending of
    --out chooses the format: .onnx (ONNX), .pt2 (torch.export) or .xml (OpenVINO); `unetkit list formats` shows all.

    The file takes batches of normalized float32 images (B, C, H, W) of any size that the network takes, and returns
    logits of the input's size. Classes, normalization, tiles and all else that a program needs to know are in its
    metadata. It is run by its own engine (ONNX Runtime for ONNX), compared with the network, and kept only if all
    outputs agree. With --verify, a file is compared with what it stores of the network's outputs.

    --int8, and --half for a run, also print what they cost and gain beside float32: the mean IoU on the validation
    images, the size of the file, and the time of a pass. --int8 finds the ranges of values on images of the training
    data, or on those of --calibrate: a data set, a data folder, or a folder of images without masks.

    \b
    unetkit export runs/a --out model.onnx
    unetkit export runs/a --out model.onnx --probabilities --half
    unetkit export runs/a --out model.onnx --int8
    unetkit export --encoder resnet34 --classes 3 --pretrained --out model.pt2
    unetkit export --verify model.onnx
    """
    if verify is not None:
        _verify(ctx, verify, form, as_json, json_out, given=bool(source or out or any(fields.values())))
        return
    if out is None:
        raise OptionError("--out is missing; give the file to write, such as --out model.onnx")
    given = {name: value for name, value in fields.items() if value is not None}
    if source is not None and given:
        flag = next(iter(given)).replace("_", "-")
        raise OptionError(f"--{flag} describes a model, but {source} already is one; leave one of them out")
    if source is None and not given:
        raise OptionError(
            "there is no network to export; give the folder of a run, a .safetensors file, or the parts of a model, "
            "such as --encoder resnet34"
        )
    size = None if fixed_size is None else _parse_fixed_size(fixed_size)
    parts = get_parts(ctx)
    plan = Plan.of(**fields)
    if source is None:
        resolve(plan, parts)  # rejects wrong names and options before torch is imported

    from unetkit.exporter.export import check_precision, find_format
    from unetkit.exporter.export import export as export_network

    find_format(parts, out, form)  # before a network is built
    check_precision(half, int8, calibrate)
    if int8 and calibrate is None and (source is None or not source.is_dir()):
        raise OptionError("--int8 needs images to calibrate with; give a folder or a data set by --calibrate")
    with stdout_to_stderr():  # keeps what a part prints out of this command's output
        model: Any = source
        if source is None:
            from unetkit.builder import build_plan

            model = build_plan(plan, parts, device="cpu")
        elif source.is_dir() and (source / "run.json").is_file():
            from unetkit.train.checkpoint import read_run

            model = read_run(source)
            parts = get_run_parts(ctx, model)
        report = export_network(
            model,
            out,
            format=form,
            probabilities=probabilities,
            half=half,
            int8=int8,
            calibrate=calibrate,
            fixed_size=size,
            tolerance=tolerance,
            weights=weights,
            parts=parts,
            on_notice=lambda line: click.echo(line, err=True),
        )
    done = emit_json(report.to_dict(), as_json, json_out)
    if not as_json:
        _print_report(report, str(plan) if source is None else f"{source}")
        if done:
            click.echo(done)


def _parse_fixed_size(text: str) -> Size:
    try:
        return parse_size(text)
    except OptionError as error:
        raise OptionError(f"--fixed-size {text}: {error}") from None


def _print_report(report: ExportReport, source: str) -> None:
    from unetkit.utils.tables import print_listing

    rows = [
        [one.what, "x".join(map(str, one.shape)), f"{one.difference:.1e}", f"{one.changed:,.0f}"]
        for one in report.comparisons
    ]
    table = TableData(["checked on", "images", "largest difference", "pixels per million decided otherwise"], rows)
    head = [
        f"{report.path}: {source} as {report.format}, {format_bytes(report.bytes)}",
        f"takes {report.sizes}; returns {report.output}",
    ]
    limit = "any are allowed" if report.tolerance is None else f"at most {report.tolerance:g} is allowed"
    notes = [f"differences are shares of the range of the outputs; {limit}"]
    if not report.is_sealed:
        notes.append("the format stores no digest, so --verify compares outputs only")
    if report.calibration:
        head.append(f"calibrated on {report.calibration}")
    tables = [table]
    if report.cost is not None:
        tables.append(_cost_table(report.cost, report.precision))
        notes += _describe_cost(report.cost)
    print_listing(Listing(head, tables, notes), None)


def _cost_table(cost: PrecisionCost, precision: str) -> TableData:
    def points(one: EngineCost) -> str:
        if one.difference is None:
            return ""
        bounds = f" ({100 * one.interval[0]:+.2f} to {100 * one.interval[1]:+.2f})" if one.interval else ""
        return f"{100 * one.difference:+.2f}{bounds}"

    def ratio(one: Ratio) -> str:
        return f"{one.ratio:.2f} ({one.low:.2f} to {one.high:.2f})"

    rows = [
        [
            one.engine,
            "" if one.miou is None else f"{one.miou:.4f}",
            points(one),
            ratio(one.to_float32),
            ratio(one.to_torch),
        ]
        for one in cost.engines
    ]
    heads = ["engine", "mIoU", "difference in points", "time / float32 there", "time / torch in float32"]
    before = "" if cost.miou is None else f"; mIoU {cost.miou:.4f} in float32 on {cost.images} validation images"
    title = f"{precision}: {format_bytes(cost.bytes)}, and {format_bytes(cost.float32_bytes)} in float32{before}"
    return TableData(heads, rows, title)


def _describe_cost(cost: PrecisionCost) -> list[str]:
    threads = format_plural(cost.threads, "thread")
    return [
        "intervals are 95% ones: of mIoU over images that are resampled for both, of times over rounds",
        f"passes of {format_size(cost.size)} on {threads}, median of {cost.rounds} rounds; fastest: "
        f"{cost.fastest.engine}, {cost.fastest.to_torch.ratio:.2f} of the time of torch in float32",
        *cost.notes,
    ]


def _verify(
    ctx: click.Context, path: Path, form: str | None, as_json: bool, json_out: Path | None, *, given: bool
) -> None:
    if given:
        raise OptionError("--verify FILE cannot be combined with a network or --out; leave them out")
    from unetkit.exporter.export import verify

    with stdout_to_stderr():
        report = verify(path, format=form, parts=get_parts(ctx))
    done = emit_json(report.to_dict(), as_json, json_out)
    if as_json:
        return
    intact = "its bytes are those that were written" if report.is_intact else "it has no digest of its bytes"
    click.echo(f"{path}: {report.plan}")
    click.echo(
        f"verified: {intact}, and its outputs here differ by at most {report.difference:.1e} of their range from those "
        f"when it was exported (allowed: {report.tolerance:g})"
    )
    if done:
        click.echo(done)
