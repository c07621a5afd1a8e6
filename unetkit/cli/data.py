"""`unetkit data`: what a folder of images and masks holds and what is wrong with it, and sets as folders."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from unetkit.errors import OptionError

if TYPE_CHECKING:
    from PIL.Image import Image

    from unetkit.data.validate import DatasetReport
    from unetkit.utils.tables import Listing

#: Samples on a sheet.
_MOST = 12


@click.group()
def data() -> None:
    """Look at data before a network does."""


@data.command()
@click.argument("folder")
@click.option("--overlay", metavar="FILE.png", type=click.Path(path_type=Path), help="Draw samples under their masks.")
@click.option("--val-fraction", metavar="SHARE", type=float, default=0.2, show_default=True, help="Of a split by seed.")
@click.option("--group-by", metavar="REGEX", default="", help="Files in whose names it finds the same stay together.")
@click.option("--seed", metavar="N", type=int, default=0, show_default=True, help="Of the split.")
@click.option("--ignore-index", metavar="N", type=int, help="The number in masks that counts nowhere.")
@click.option("--json", "as_json", is_flag=True, help="Print the same as JSON.")
@click.pass_context
def check(
    ctx: click.Context,
    /,
    folder: str,
    overlay: Path | None,
    val: float,
    group: str,
    seed: int,
    ignore: int | None,
    as_json: bool,
) -> None:
    """Tell what is understood of images and masks, and every problem with its file name.

    FOLDER holds images/ and masks/, matched by their files' names; or it is a set by name, as --data takes it. Exit
    code 1 where there are problems.

    \b
    unetkit data check scans --overlay scans.png
    unetkit data check scans --group-by '^(patient\\d+)' --ignore-index 255
    unetkit data check voc:root=/data
    """
    if overlay and overlay.suffix != ".png":
        raise OptionError(f"--overlay {overlay}: draws PNG; give a name that ends in .png")
    from unetkit.data.splits import SplitConfig
    from unetkit.data.validate import pick_samples, validate_folder

    report, splits, target = validate_folder(folder, SplitConfig(seed, val, group), ignore, _progress())
    done = []
    if overlay and target:
        from unetkit.data.visualize import contact_sheet

        samples = pick_samples(splits, _MOST)
        _write(contact_sheet(samples, target), overlay)
        done.append(f"{len(samples)} samples drawn to {overlay}")
    if as_json:
        click.echo(json.dumps(report.to_dict(), indent=2))
    else:
        _show(report, done)
    ctx.exit(1 if report.problems else 0)


@data.command()
@click.argument("name", metavar="SET")
@click.option("--out", metavar="FOLDER", type=click.Path(path_type=Path), required=True, help="Made, or empty.")
def write(name: str, out: Path) -> None:
    """Write a set by name as files: images, masks and instances, as --data reads them back.

    \b
    unetkit data write cells:count=50,size=256 --out cells50
    """
    from unetkit.data.datasets import open_data
    from unetkit.data.export import write_dataset

    count = write_dataset(open_data(name), out, _progress())
    click.echo(f"{count} samples written to {out}; `unetkit data check {out}` shows them")


def _progress() -> Callable[[int, int], None] | None:
    """A line that is written over, on a terminal."""
    if not sys.stderr.isatty():
        return None

    def tell(done: int, total: int) -> None:
        click.echo(f"\r{done} of {total} files\x1b[K" if done < total else "\r\x1b[K", nl=False, err=True)

    return tell


def _write(picture: Image, path: Path) -> None:
    from unetkit.utils.files import written_as_asked

    with written_as_asked(path, "--overlay") as temporary:
        picture.save(temporary, "PNG")


def _show(report: DatasetReport, done: list[str]) -> None:
    from unetkit.utils.tables import print_listing

    print_listing(_listing(report, done), None)


def _listing(report: DatasetReport, done: list[str]) -> Listing:
    from unetkit.data.folder import count_of
    from unetkit.utils.tables import Listing, TableData

    how = f", told apart by {report.class_encoding}" if report.class_encoding else ""
    head = [f"{report.said}: {report.kind}{how}" if report.kind else f"{report.said}: no mask can be read"]
    rows = [
        [one.name, "#{:02x}{:02x}{:02x}".format(*one.colour), f"{one.share:.1%}", str(one.images)]
        for one in report.classes
    ]
    tables = [TableData(["class", "colour", "share", "images"], rows)] if rows else []
    notes = [*_facts(report), *(f"note: {note}" for note in report.notes)]
    notes += [f"problem: {problem}" for problem in report.problems]
    verdict = count_of(len(report.problems), "problem") if report.problems else "no problems"
    return Listing(head, tables, [*notes, *done, verdict])


def _facts(report: DatasetReport) -> list[str]:
    smallest, largest = report.sizes or [(0, 0), (0, 0)]
    sizes = f"{smallest[0]}x{smallest[1]}" + (f" to {largest[0]}x{largest[1]}" if smallest != largest else "")
    told = {
        "splits": ", ".join(f"{name} {count}" for name, count in report.splits.items()),
        "sizes": sizes if report.sizes else "",
        "channels": _counts(report.channels),
        "numbers": _counts(report.depths),
        "files": _counts(report.files),
        "counts nowhere": f"{report.ignored:.1%} of all pixels" if report.ignored else "",
        "objects": "" if report.objects is None else str(report.objects),
    }
    return [f"{name}: {text}" for name, text in told.items() if text]


def _counts(found: dict[str, int]) -> str:
    """One kind alone, or each with how many there are."""
    return ", ".join(found if len(found) == 1 else [f"{kind} ({count})" for kind, count in found.items()])
