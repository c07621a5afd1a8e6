"""`unetkit build`: build a network, print it level by level, draw it, check it and save it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unetkit.cli.command import FilePath
from unetkit.cli.options import Command, emit_json, get_parts, json_options, plan_options
from unetkit.errors import OptionError
from unetkit.plan import Plan
from unetkit.resolve import resolve
from unetkit.utils.isolation import stdout_to_stderr
from unetkit.utils.tables import make_console

if TYPE_CHECKING:
    from unetkit.summary.report import Trace

#: Endings of the pictures that can be written.
PICTURE_SUFFIXES = (".svg", ".png", ".pdf")


@click.command(cls=Command)
@plan_options
@json_options
@click.option(
    "--picture", metavar="FILE", type=FilePath(is_output=True), help="Draw the network to an .svg, .png or .pdf file."
)
@click.option("--check", is_flag=True, help="Run a forward and a backward pass, and report problems.")
@click.option(
    "--save", metavar="FILE.safetensors", type=FilePath(is_output=True), help="Save the model with its weights."
)
@click.pass_context
def build(
    ctx: click.Context,
    /,
    as_json: bool,
    json_out: Path | None,
    picture: Path | None,
    check: bool,
    save: Path | None,
    **fields: Any,
) -> None:
    """Build a U-Net and print it level by level.

    A PART is a name, with options after a colon: transposed:kernel=4,init=bilinear. PART[/PART...] takes one part for
    all levels, or one for each level from deep to shallow: add/add/concat/concat. `unetkit list` shows all parts and
    their options. Weights are created only with --save, --check or --pretrained.

    \b
    unetkit build --encoder resnet101 --fuse add
    unetkit build --recipe unet-2015 --size 572 --picture unet.svg
    unetkit build --encoder timm/vgg16 --up transposed:init=bilinear --classes 21
    """
    if picture and picture.suffix.lower() not in PICTURE_SUFFIXES:
        raise OptionError(f"--picture {picture}: give a file name that ends in .svg, .png or .pdf")
    if save and save.suffix != ".safetensors":
        raise OptionError(f"--save {save}: only safetensors can be written; give a file name that ends in .safetensors")
    plan = Plan.of(**fields)
    parts = get_parts(ctx)
    resolve(plan, parts)  # rejects wrong names and options before torch is imported

    from unetkit.builder import build_plan
    from unetkit.summary.sanity_check import run_sanity_check
    from unetkit.summary.trace import trace

    real = bool(save or check or plan.pretrained)
    with stdout_to_stderr():  # keeps what a part prints during its pass out of this command's output
        model = build_plan(plan, parts, device=None if real else "meta")
        traced = trace(model)
        if traced.outputs:
            from unetkit.train.outputs import find_target_mistake

            if mistake := find_target_mistake(traced.outputs, traced.rows[-1].channels, parts):
                traced = replace(traced, notes=(*traced.notes, f"`unetkit train` refuses this network: {mistake}"))
    report = {"trace": traced.to_dict()}
    done = []
    if check:
        with stdout_to_stderr():
            checked = run_sanity_check(model)
        report["check"] = checked.to_dict()
        done.append(str(checked))
    if picture:
        from unetkit.summary.picture import write_picture

        write_picture(traced, picture)
        done.append(f"drawn to {picture}")
    if save:
        from unetkit.serialization import save as save_model

        save_model(model, save)
        given = ctx.find_root().params.get("plugins") or ()
        parts_argument = f", parts=unetkit.load_parts({[*given]!r})" if given else ""
        done.append(f"saved to {save}; unetkit.load({str(save)!r}{parts_argument}) loads it")
    done.append(emit_json(report, as_json, json_out))
    if not as_json:
        _print_trace(traced, [*filter(None, done)])
    if check and not checked.passed:
        ctx.exit(1)


def _print_trace(traced: Trace, done: list[str]) -> None:
    from unetkit.summary.report import PAGE_WIDTH, render

    console = make_console()
    if not console.is_terminal:
        console.width = PAGE_WIDTH
    console.print(render(traced, console.width))
    for line in done:
        click.echo(line)
