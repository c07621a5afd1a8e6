"""`unetkit eval`: score a trained network by class and by image."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from unetkit.cli.command import FilePath
from unetkit.cli.options import Command, emit_json, get_run_parts, json_options, nodata_option, trained_options
from unetkit.errors import OptionError
from unetkit.utils.formatting import format_plural
from unetkit.utils.isolation import stdout_to_stderr
from unetkit.utils.tables import Listing, TableData

if TYPE_CHECKING:
    from unetkit.network import Network
    from unetkit.predict.engines import Engine
    from unetkit.train.checkpoint import TrainRun
    from unetkit.train.metrics import Evaluation, ImageScores, Scores


@click.command("eval", cls=Command)
@click.argument("run", type=FilePath())
@click.option(
    "--data", metavar="FOLDER|SET", type=FilePath(str), help="Data to score on.  [default: the training data]"
)
@click.option("--split", type=click.Choice(["test", "val", "train", "all"]), help="Images to score, see above.")
@click.option(
    "--worst",
    metavar="N",
    type=click.IntRange(0),
    default=5,
    show_default=True,
    help="Show the N images with the lowest IoU.",
)
@click.option(
    "--boundary", metavar="PX", type=float, help="Tolerance of the boundary F-score.  [default: 0.75% of the diagonal]"
)
@nodata_option("as in training, and what a TIFF file declares")
@json_options
@click.option("--picture", metavar="FILE.png", type=FilePath(is_output=True), help="Draw the confusion matrix.")
@trained_options("torch")
@click.pass_context
def eval_run(
    ctx: click.Context,
    /,
    run: Path,
    data: str | None,
    split: str | None,
    worst: int,
    boundary: float | None,
    nodata: float | None,
    as_json: bool,
    json_out: Path | None,
    picture: Path | None,
    weights: str,
    engine: str,
    device: str | None,
) -> None:
    """Score a trained network on images with known masks.

    RUN is the folder that `unetkit train --out RUN` wrote. Without --split, the test images are scored; if there are
    none, the validation images are, or with --data all images. IoU, Dice, precision, recall and
    the boundary F-score are computed for each class, over all pixels (micro) and as means over images (macro). A class
    that occurs in neither masks nor predictions has no score.

    \b
    unetkit eval runs/a
    unetkit eval runs/a --data FOLDER --picture confusion.png --json-out scores.json
    unetkit eval runs/a --split val --worst 20 --weights last
    """
    if picture and picture.suffix != ".png":
        raise OptionError(f"--picture {picture}: only PNG can be drawn; give a file name that ends in .png")

    from unetkit.exporter.engines import open_engine
    from unetkit.predict.evaluate import evaluate, is_training_data, report
    from unetkit.predict.torch_engine import describe_run
    from unetkit.train.checkpoint import read_run

    found = read_run(run)
    parts = get_run_parts(ctx, found)
    # Standard output is kept free of what a part prints.
    with stdout_to_stderr(), _progress_bar() as (callback, notify):

        def open_it(run: TrainRun, network: Network) -> Engine:
            info = describe_run(run, network)
            return open_engine(engine, run, network, info, weights=weights, parts=parts, on_notice=notify)

        scored = evaluate(
            found,
            data,
            split=split,
            boundary=boundary,
            nodata=nodata,
            weights=weights,
            device=device,
            parts=parts,
            open_engine=open_it,
            callback=callback,
        )
    about = {"run": str(run), "weights": weights, "plan": str(found.plan), "data": scored.data, "split": scored.split}
    seen = is_training_data(found, scored.data) and scored.split in ("train", "all")
    done = []
    if picture:
        from unetkit.train.plots import draw_confusion

        draw_confusion(scored.matrix, scored.target.names, picture)
        done.append(f"confusion matrix drawn to {picture}")
    done.append(emit_json({**about, **report(scored)}, as_json, json_out))
    if as_json:
        return
    head = [
        f"{run}, its {weights} weights: {found.plan}",
        f"{format_plural(len(scored.images), 'image')} of {scored.data} ({scored.split})",
    ]
    _print_scores(scored, [*head, *["the network was trained on some of these images"] * seen], worst)
    for line in filter(None, done):
        click.echo(line)


def _print_scores(scored: Evaluation, head: list[str], worst: int) -> None:
    from unetkit.utils.tables import print_listing

    print_listing(format_scores(scored, head, worst), None)


@contextmanager
def _progress_bar() -> Iterator[tuple[Callable[[int, int], None], Callable[[str], None]]]:
    """Show a progress bar on stderr if that is a terminal; yields functions that advance it, and that print a line."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.text import Text

    console = Console(stderr=True)
    columns = (TextColumn("images"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("left"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)
        yield (
            lambda done, count: bar.update(task, completed=done, total=count),
            lambda line: console.print(Text(line), soft_wrap=True),
        )


_HEADS = {"iou": "IoU", "dice": "Dice", "precision": "precision", "recall": "recall", "boundary": "boundary"}
#: With more classes than this, the table of images has no column for each class.
_COLUMNS = 8


def format_scores(found: Evaluation, head: list[str], worst: int) -> Listing:
    """Format the scores of each class, over all pixels and over images, and the images with the lowest scores."""
    micro, macro = found.micro(), found.macro()
    tables = [
        _class_table(micro, "Over all pixels (micro):", _pixel_shares(found)),
        _class_table(macro, "Mean over the images in which the class occurs (macro):"),
    ]
    images = found.lowest_first()[:worst]
    if images:
        more = f", the lowest {len(images)} of {len(found.images)}" if len(images) < len(found.images) else ""
        tables.append(_image_table(images, f"IoU of each image{more}:"))
    return Listing(head, tables, _notes(found, micro))


def _class_table(scores: Scores, title: str, shares: list[float] | None = None) -> TableData:
    from unetkit.train.metrics import RATES, mean_of_defined

    rates = [rate for rate in RATES if getattr(scores, rate)]
    rows = [
        [name, *(_format_score(getattr(scores, rate)[at]) for rate in rates)] for at, name in enumerate(scores.names)
    ]
    rows.append(["mean", *(_format_score(mean_of_defined(getattr(scores, rate))) for rate in rates)])
    heads = ["class", *(_HEADS[rate] for rate in rates)]
    if shares:
        heads.append("of pixels")
        rows = [[*row, share] for row, share in zip(rows, [*(f"{share:.1%}" for share in shares), ""], strict=True)]
    return TableData(heads, rows, title)


def _image_table(images: list[ImageScores], title: str) -> TableData:
    names = images[0].classes if len(images[0].classes) <= _COLUMNS else ()
    rows = [[image.name, *map(_format_score, (image.scores.miou, *image.scores.iou[: len(names)]))] for image in images]
    return TableData(["image", "mean", *names], rows, title)


def _pixel_shares(found: Evaluation) -> list[float]:
    """Compute the share of the pixels that each class, or each label, takes; ignored pixels do not count."""
    matrix = found.matrix.double()
    counts = matrix[:, 1].sum(1) / matrix.sum((1, 2)).clamp_min(1) if matrix.ndim == 3 else matrix.sum(1) / matrix.sum()
    return counts.nan_to_num().tolist()


def _notes(found: Evaluation, micro: Scores) -> list[str]:
    notes = [f"accuracy {_format_score(micro.accuracy) or 'unknown, since all pixels are ignored'}"]
    if (touching := found.count_separated()) and touching[1]:
        notes.append(
            f"touching objects separated: {touching[0]:,} of {touching[1]:,} ({touching[0] / touching[1]:.1%})"
        )
    distance = "0.75% of the diagonal" if found.tolerance is None else f"{found.tolerance:g} px"
    return [*notes, f"boundary: F-score of the outlines, with a tolerance of {distance}"]


def _format_score(value: float) -> str:
    """Format a score with three digits, or as blank where it is undefined."""
    from unetkit.train.metrics import none_if_undefined

    return "" if none_if_undefined(value) is None else f"{value:.3f}"
