"""`unetkit eval`: how good a trained network is, by class and by image."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unetkit.cli.runs import trained
from unetkit.errors import BadOption
from unetkit.foreign import quiet

if TYPE_CHECKING:
    from unetkit.train.metrics import Evaluation


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
        raise BadOption(f"--picture {picture}: draws PNG; give a name that ends in .png")
    if boundary is not None and not 0 <= boundary < float("inf"):
        raise BadOption(f"--boundary {boundary:g}: must be 0 or more")

    from unetkit.predict.evaluate import chosen, evaluate, opened, own, report
    from unetkit.train.record import read_run

    found = read_run(run)
    with quiet():  # what a part prints in its pass is not what this prints
        network = trained(ctx, found, weights, device)
        against = opened(found, data)
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
        from unetkit.train.confusion_picture import draw_confusion

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
    from unetkit.atomic import written_as_asked

    with written_as_asked(path, "--json") as temporary:
        temporary.write_text(f"{text}\n", encoding="utf-8")


def _show(scored: Evaluation, head: list[str], worst: int) -> None:
    from unetkit.cli.bench.pages import put
    from unetkit.cli.scores import format_scores

    put(format_scores(scored, head, worst), None)


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
