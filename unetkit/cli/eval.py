"""`unetkit eval`: how good a trained network is, by class and by image."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unetkit.cli.options import load_trained
from unetkit.errors import OptionError
from unetkit.train.metrics import RATES, known, known_mean
from unetkit.utils.isolation import stdout_to_stderr
from unetkit.utils.tables import Listing, TableData

if TYPE_CHECKING:
    from unetkit.train.metrics import Evaluation, ImageScores, Scores


@click.command("eval")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--data", metavar="FOLDER|SET", help="Images and masks.  [default: what it was trained on]")
@click.option("--split", type=click.Choice(["test", "val", "train", "all"]), help="Which images; see below.")
@click.option("--worst", metavar="N", type=click.IntRange(0), default=5, show_default=True, help="Images to show.")
@click.option("--boundary", metavar="PX", type=float, help="Tolerance of outlines.  [default: 0.75% of the diagonal]")
@click.option("--json", "as_json", metavar="FILE|-", type=click.Path(path_type=Path), help="All of it as JSON.")
@click.option("--picture", metavar="FILE.png", type=click.Path(path_type=Path), help="Draw the confusion of classes.")
@click.option("--weights", type=click.Choice(["best", "last"]), default="best", show_default=True, help="Of the run.")
@click.option("--device", metavar="NAME", help="cpu, cuda or cuda:1; the GPU where there is one.")
@click.pass_context
def eval_run(
    ctx: click.Context,
    /,
    run: Path,
    data: str | None,
    split: str | None,
    worst: int,
    boundary: float | None,
    as_json: Path | None,
    picture: Path | None,
    weights: str,
    device: str | None,
) -> None:
    """Score a trained network on images whose masks are known.

    RUN is the folder that `unetkit train --out RUN` wrote. Without --split its images are those of "test" where there
    are such; else "val" of what it was trained on, and all of other data. IoU, Dice, precision, recall and the boundary
    F-score are given for each class, over all pixels (micro) and as means over images (macro); a class that occurs
    neither in masks nor in predictions is left out. With --json - nothing else is printed.

    \b
    unetkit eval runs/a
    unetkit eval runs/a --data FOLDER --picture confusion.png --json scores.json
    unetkit eval runs/a --split val --worst 20 --weights last
    """
    if picture and picture.suffix != ".png":
        raise OptionError(f"--picture {picture}: draws PNG; give a name that ends in .png")
    if boundary is not None and not 0 <= boundary < float("inf"):
        raise OptionError(f"--boundary {boundary:g}: must be 0 or more")

    from unetkit.predict.evaluate import chosen, evaluate, open_evaluation, own, report
    from unetkit.train.checkpoint import read_run

    found = read_run(run)
    with stdout_to_stderr():  # what a part prints in its pass is not what this prints
        network = load_trained(ctx, found, weights, device)
        against = open_evaluation(found, data)
        name, images = chosen(found, against, split)
        with _bar() as tell:
            scored = evaluate(found, network, images, tolerance=boundary, tell=tell)
    about = {"run": str(run), "weights": weights, "plan": str(found.plan), "data": against.said, "split": name}
    seen = own(found, against) and name in ("train", "all")
    done = _written(scored, {**about, **report(scored)}, as_json, picture)
    if as_json == Path("-"):
        return
    head = [f"{run}, its {weights} weights: {found.plan}", f"{len(images)} images of {against.said} ({name})"]
    _show(scored, [*head, *["it was trained on some of them"] * seen], worst)
    for line in done:
        click.echo(line)


def _written(scored: Evaluation, told: dict[str, Any], as_json: Path | None, picture: Path | None) -> list[str]:
    """Write what was asked for; give a line for each file."""
    done = []
    if picture:
        from unetkit.train.plots import draw_confusion

        draw_confusion(scored.matrix, scored.target.names, picture)
        done.append(f"confusion drawn to {picture}")
    text = json.dumps(told, indent=2, allow_nan=False)
    if as_json == Path("-"):
        click.echo(text)
    elif as_json:
        _write(as_json, text)
        done.append(f"all scores in {as_json}")
    return done


def _write(path: Path, text: str) -> None:
    from unetkit.utils.files import written_as_asked

    with written_as_asked(path, "--json") as temporary:
        temporary.write_text(f"{text}\n", encoding="utf-8")


def _show(scored: Evaluation, head: list[str], worst: int) -> None:
    from unetkit.utils.tables import print_listing

    print_listing(format_scores(scored, head, worst), None)


@contextmanager
def _bar() -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, where that is a terminal; give what moves it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("images"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("left"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, count: bar.update(task, completed=done, total=count)


_HEADS = {"iou": "IoU", "dice": "Dice", "precision": "precision", "recall": "recall", "boundary": "boundary"}
#: More classes than these have no column each in the table of images.
_COLUMNS = 8


def format_scores(found: Evaluation, head: list[str], worst: int) -> Listing:
    """Each class with its scores, of all pixels and of images, and the worst of these."""
    micro, macro = found.micro(), found.macro()
    tables = [
        _classes(micro, "All pixels together (micro):", _shares(found)),
        _classes(macro, "Mean over the images in which a class occurs (macro):"),
    ]
    images = found.worst()[:worst]
    if images:
        more = f", the worst {len(images)} of {len(found.images)}" if len(images) < len(found.images) else ""
        tables.append(_images(images, f"IoU of each image{more}:"))
    return Listing(head, tables, _notes(found, micro))


def _classes(scores: Scores, title: str, shares: list[float] | None = None) -> TableData:
    rates = [rate for rate in RATES if getattr(scores, rate)]
    rows = [[name, *(_said(getattr(scores, rate)[at]) for rate in rates)] for at, name in enumerate(scores.names)]
    rows.append(["mean", *(_said(known_mean(getattr(scores, rate))) for rate in rates)])
    heads = ["class", *(_HEADS[rate] for rate in rates)]
    if shares:
        heads.append("of pixels")
        rows = [[*row, share] for row, share in zip(rows, [*(f"{share:.1%}" for share in shares), ""], strict=True)]
    return TableData(heads, rows, title)


def _images(images: list[ImageScores], title: str) -> TableData:
    names = images[0].classes if len(images[0].classes) <= _COLUMNS else ()
    rows = [[image.name, *map(_said, (image.scores.miou, *image.scores.iou[: len(names)]))] for image in images]
    return TableData(["image", "mean", *names], rows, title)


def _shares(found: Evaluation) -> list[float]:
    """Of the pixels that count, how many are of each class, or have each label."""
    matrix = found.matrix.double()
    counts = matrix[:, 1].sum(1) / matrix.sum((1, 2)).clamp_min(1) if matrix.ndim == 3 else matrix.sum(1) / matrix.sum()
    return counts.nan_to_num().tolist()


def _notes(found: Evaluation, micro: Scores) -> list[str]:
    notes = [f"accuracy {_said(micro.accuracy) or 'unknown, since no pixel counts'}"]
    if (touching := found.touching()) and touching[1]:
        notes.append(
            f"touching objects told apart: {touching[0]:,} of {touching[1]:,} ({touching[0] / touching[1]:.1%})"
        )
    away = "0.75% of the diagonal" if found.tolerance is None else f"{found.tolerance:g} px"
    return [*notes, f"boundary: F-score of outlines no farther apart than {away}"]


def _said(value: float) -> str:
    """Three digits; blank where there is nothing to count."""
    return "" if known(value) is None else f"{value:.3f}"
