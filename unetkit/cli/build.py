"""`unetkit build`: show a network level by level, draw it, check it, save it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unetkit.cli.options import parts_of, plan_options
from unetkit.errors import OptionError
from unetkit.plan import Plan
from unetkit.resolve import resolve
from unetkit.utils.isolation import stdout_to_stderr

if TYPE_CHECKING:
    from unetkit.summary.report import Trace


@click.command()
@plan_options
@click.option("--json", "as_json", is_flag=True, help="Print the same as JSON.")
@click.option("--picture", metavar="FILE.svg", type=click.Path(path_type=Path), help="Draw the U as SVG.")
@click.option("--check", is_flag=True, help="Run one real forward and backward pass and report on it.")
@click.option("--save", metavar="FILE.safetensors", type=click.Path(path_type=Path), help="Write weights and plan.")
@click.pass_context
def build(
    ctx: click.Context, /, as_json: bool, picture: Path | None, check: bool, save: Path | None, **words: Any
) -> None:
    """Build a U-Net and show it level by level.

    A PART is a name, with options after a colon: transposed:kernel=4,init=bilinear. Where PART/PART stands, a part
    may be given for each level, deep to shallow: add/add/concat/concat. `unetkit list` shows all parts and options.
    Words beside --recipe override it. Without --save, --check or --pretrained no weights are made.

    \b
    unetkit build --encoder resnet101 --fuse add
    unetkit build --recipe unet-2015 --size 572 --picture unet.svg
    unetkit build --encoder timm/vgg16 --up transposed:init=bilinear --classes 21
    """
    if picture and picture.suffix != ".svg":
        raise OptionError(f"--picture {picture}: draws SVG; give a name that ends in .svg")
    if save and save.suffix != ".safetensors":
        raise OptionError(f"--save {save}: writes safetensors; give a name that ends in .safetensors")
    plan = Plan.of(**words)
    parts = parts_of(ctx)
    resolve(plan, parts)  # refuses a wrong name or option before torch is imported

    from unetkit.builder import build_plan
    from unetkit.summary.sanity_check import run_sanity_check
    from unetkit.summary.trace import trace

    real = bool(save or check or plan.pretrained)
    with stdout_to_stderr():  # what a part prints in its pass is not what this prints
        model = build_plan(plan, parts, device=None if real else "meta")
        traced = trace(model)
    report = {"trace": traced.to_dict()}
    done = []
    if check:
        with stdout_to_stderr():
            checked = run_sanity_check(model)
        report["check"] = checked.to_dict()
        done.append(str(checked))
    if picture:
        _draw(traced, picture)
        done.append(f"drawn to {picture}")
    if save:
        from unetkit.serialization import save as save_model

        save_model(model, save)
        given = ctx.find_root().params.get("plugins") or ()
        parts_said = f", parts=unetkit.load_parts({[*given]!r})" if given else ""
        done.append(f"saved to {save}; unetkit.load({str(save)!r}{parts_said}) gives it back")
    if as_json:
        click.echo(json.dumps(report, indent=2))
    else:
        _show(traced, done)
    if check and not checked.passed:
        ctx.exit(1)


def _draw(traced: Trace, picture: Path) -> None:
    from unetkit.summary.svg import draw
    from unetkit.utils.files import written_as_asked

    with written_as_asked(picture, "--picture") as temporary:
        temporary.write_text(draw(traced), encoding="utf-8")


def _show(traced: Trace, done: list[str]) -> None:
    from rich.console import Console

    from unetkit.summary.report import PAGE, render

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = PAGE
    console.print(render(traced, console.width))
    for line in done:
        click.echo(line)
