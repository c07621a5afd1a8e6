"""`unetkit data`: check a folder of images and masks, and write data sets as folders."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from unetkit.cli.command import FilePath
from unetkit.cli.options import Group, emit_json, get_parts, json_options, nodata_option
from unetkit.errors import OptionError
from unetkit.utils.formatting import format_plural

if TYPE_CHECKING:
    from PIL.Image import Image

    from unetkit.data.validate import DatasetReport
    from unetkit.utils.tables import Listing

#: The number of samples on a contact sheet.
_SAMPLES_ON_SHEET = 12


_new_folder_option = click.option(
    "--out",
    metavar="FOLDER",
    type=FilePath(),
    required=True,
    help="Folder to write to; it must be new or empty.",
)


@click.group(cls=Group)
def data() -> None:
    """Check data before training, and write data sets as folders."""


@data.command()
@click.argument("folder", type=FilePath(str))
@click.option("--overlay", metavar="FILE.png", type=FilePath(is_output=True), help="Draw samples with their masks.")
@click.option(
    "--val-fraction",
    metavar="X",
    type=float,
    default=0.2,
    show_default=True,
    help="Share of the images for validation where the data have no split.",
)
@click.option(
    "--group-by",
    metavar="REGEX",
    default="",
    help="Keep files in one split if REGEX finds the same text in their names.",
)
@click.option("--seed", metavar="N", type=int, default=0, show_default=True, help="Seed of the split.")
@click.option("--ignore-index", metavar="N", type=int, help="Mask value to ignore in losses and scores.")
@nodata_option("what a TIFF file declares")
@json_options
@click.pass_context
def check(
    ctx: click.Context,
    /,
    folder: str,
    overlay: Path | None,
    val_fraction: float,
    group_by: str,
    seed: int,
    ignore_index: int | None,
    nodata: float | None,
    as_json: bool,
    json_out: Path | None,
) -> None:
    """Show how a data folder is interpreted, and list every problem with its file name.

    FOLDER is a folder with images/ and masks/, whose files are matched by name, or the name of a data set, as for
    `unetkit train --data`. The exit code is 1 if there are problems.

    \b
    unetkit data check scans --overlay scans.png
    unetkit data check scans --group-by '^(patient\\d+)' --ignore-index 255
    unetkit data check voc:root=/data
    """
    if overlay and overlay.suffix != ".png":
        raise OptionError(f"--overlay {overlay}: only PNG can be drawn; give a file name that ends in .png")
    from unetkit.data.splits import SplitConfig
    from unetkit.data.validate import pick_samples, validate_folder

    report, splits, target = validate_folder(
        folder, SplitConfig(seed, val_fraction, group_by), ignore_index, nodata, _progress_line(), get_parts(ctx)
    )
    done = []
    if overlay and target:
        from unetkit.data.contact_sheet import contact_sheet

        samples = pick_samples(splits, _SAMPLES_ON_SHEET)
        _write_png(contact_sheet(samples, target), overlay)
        done.append(f"{format_plural(len(samples), 'sample')} drawn to {overlay}")
    done.append(emit_json(report.to_dict(), as_json, json_out))
    if not as_json:
        _print_report(report, [*filter(None, done)])
    ctx.exit(1 if report.problems else 0)


@data.command()
@click.argument("name", metavar="SET")
@_new_folder_option
@click.pass_context
def write(ctx: click.Context, /, name: str, out: Path) -> None:
    """Write a data set as a folder of images, masks and instances, which --data can read.

    \b
    unetkit data write cells:count=50,size=256 --out cells50
    """
    from unetkit.data.datasets import open_data
    from unetkit.data.export import write_dataset

    count = write_dataset(open_data(name, parts=get_parts(ctx)), out, _progress_line())
    click.echo(f"{format_plural(count, 'sample')} written to {out}; {_check_hint(out)}")


@data.command("import")
@click.argument("kind", type=click.Choice(["labelme", "coco", "yolo"]))
@click.argument("source", type=FilePath())
@_new_folder_option
def import_data(kind: str, source: Path, out: Path) -> None:
    """Turn annotations into a folder of images, masks and instances, which --data can read.

    SOURCE is the folder with the annotations and the images: JSON files of labelme beside the images, JSON files of
    COCO (or one such file), or text files of YOLO in labels/ with a YAML file that has the names of the classes.
    Folders such as train/ and valid/ become splits. Crowds of COCO and __ignore__ of labelme are ignored.

    \b
    unetkit data import labelme photos --out cells
    unetkit data import coco annotations/instances_val2017.json --out coco
    """
    from unetkit.data.import_annotations import import_annotations

    count, names = import_annotations(kind, source, out, _progress_line())
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    click.echo(f"{format_plural(count, 'image')} with {shown} written to {out}; {_check_hint(out)}")


def _check_hint(folder: Path) -> str:
    return f"`unetkit data check {shlex.quote(str(folder))}` shows them"


def _progress_line() -> Callable[[int, int], None] | None:
    """Return a callback that shows progress in one line of a terminal; None without a terminal."""
    if not sys.stderr.isatty():
        return None

    def advance(done: int, total: int) -> None:
        click.echo(f"\r{done} of {total} files\x1b[K" if done < total else "\r\x1b[K", nl=False, err=True)

    return advance


def _write_png(picture: Image, path: Path) -> None:
    from unetkit.utils.files import write_requested_file

    with write_requested_file(path, "--overlay") as temporary:
        picture.save(temporary, "PNG")


def _print_report(report: DatasetReport, done: list[str]) -> None:
    from unetkit.utils.tables import print_listing

    print_listing(_format_report(report, done), None)


def _format_report(report: DatasetReport, done: list[str]) -> Listing:
    from unetkit.utils.tables import Listing, TableData

    how = f", encoded by {report.class_encoding}" if report.class_encoding else ""
    head = [f"{report.data}: {report.kind}{how}" if report.kind else f"{report.data}: no mask can be read"]
    splits = [*report.splits] if len(report.splits) > 1 else []
    rows = [
        [
            one.name,
            "#{:02x}{:02x}{:02x}".format(*one.colour),
            f"{one.share:.1%}",
            str(one.images),
            *(str(one.splits[split]) for split in splits),
        ]
        for one in report.classes
    ]
    heads = ["class", "colour", "share", "images", *splits]
    tables = [TableData(heads, rows)] if rows else []
    notes = [*_format_facts(report), *(f"note: {note}" for note in report.notes)]
    notes += [f"problem: {problem}" for problem in report.problems]
    verdict = format_plural(len(report.problems), "problem") if report.problems else "no problems"
    return Listing(head, tables, [*notes, *done, verdict])


def _format_facts(report: DatasetReport) -> list[str]:
    smallest, largest = report.sizes or [(0, 0), (0, 0)]
    sizes = f"{smallest[0]}x{smallest[1]}" + (f" to {largest[0]}x{largest[1]}" if smallest != largest else "")
    splits = report.splits.items()
    facts = {
        "splits": ", ".join(f"{name} {count}" if name else f"none, {count} in all" for name, count in splits),
        "sizes": sizes if report.sizes else "",
        "channels": _format_counts(report.channels),
        "numbers": _format_counts(report.depths),
        "range": "" if report.range is None else f"{report.range[0]:g} to {report.range[1]:g} (99% of the numbers)",
        "no data": f"{report.missing:.1%} of all pixels" if report.missing else "",
        "files": _format_counts(report.files),
        "ignored": f"{report.ignored:.1%} of all pixels" if report.ignored else "",
        "objects": "" if report.objects is None else str(report.objects),
    }
    return [f"{name}: {text}" for name, text in facts.items() if text]


def _format_counts(found: dict[str, int]) -> str:
    """Join the kinds with their counts; a single kind goes without its count."""
    return ", ".join(found if len(found) == 1 else [f"{kind} ({count})" for kind, count in found.items()])
