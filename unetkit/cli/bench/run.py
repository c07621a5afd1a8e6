"""What `unetkit bench` does where no command follows."""

from __future__ import annotations

import hashlib
import shlex
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from unetkit.bench.choices import Choices
from unetkit.bench.grid import AXES, Case, exclude_cases, make_cases, make_plans, parse_axis, split_axis
from unetkit.bench.leader import Leader
from unetkit.bench.ledger import ResultsWriter
from unetkit.bench.mode import Mode
from unetkit.cli.bench.pages import put, width
from unetkit.cli.words import host_of
from unetkit.errors import BadOption
from unetkit.registry import Parts

_CHOSEN = (
    *("baseline", "baseline_mode", "budget", "precision", "timeout", "device", "slots", "threads", "seed"),
    *("engine", "ray_address", "again"),
)

_NO_OTHER_ROWS = ("again", "timeout", "ray_address")


def run(ctx: click.Context, given: dict[str, Any]) -> None:
    """Plan, and measure or tell. `given` holds the options that stand on the command line."""
    host = host_of(ctx)
    plugins = tuple(map(str, ctx.find_root().params.get("plugins") or ()))
    metrics = tuple(split_axis("metrics", [given["metrics"]] if "metrics" in given else []))
    if str(given.get("out", "x")) in ("", "."):
        raise BadOption("--out: takes a folder of its own, such as runs/first")
    chosen = {name: given[name] for name in _CHOSEN if name in given}
    choices = Choices(metrics=metrics, plugins=plugins, **chosen)
    leader = Leader(planned(given, host.parts), choices, host)
    if given.get("dry_run"):
        _rehearse(leader, given.get("out"))
    else:
        _measure(leader, given.get("out") or Path("runs", _name({**given, "plugins": plugins})))


def planned(given: dict[str, Any], parts: Parts) -> list[Case]:
    """The rows that a command line asks for, at least one."""
    words = {word.name: parse_axis(word.name, given.get(word.name, ()), parts) for word in AXES}
    modes = [Mode.parse(mode) for mode in split_axis("mode", given.get("modes", ("eager",)))]
    batches = [_batch(text) for text in split_axis("batch", given.get("batches", ("1",)))]
    found = make_cases(make_plans(words, parts), split_axis("size", given.get("sizes", ())), batches, modes)
    left = exclude_cases(found, given.get("excepted", ()))[: given.get("limit")]
    if not left:
        raise BadOption("--except leaves no row; leave out less")
    return left


def _batch(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise BadOption(f"--batch {text}: takes numbers of images, such as 1,8")
    return int(text)


def _name(given: dict[str, Any]) -> str:
    """A folder's name that the same command finds again."""
    told = sorted((name, str(value)) for name, value in given.items() if name not in _NO_OTHER_ROWS)
    return hashlib.sha256(repr(told).encode()).hexdigest()[:8]


def _measure(leader: Leader, folder: Path) -> None:
    from unetkit.bench.watch import Watch

    command = shlex.join(["unetkit", *sys.argv[1:]])
    ledger = ResultsWriter(folder)
    watch = Watch(leader, folder)
    try:
        with closing(leader.rows(ledger, command)) as rows:
            watch.follow(rows)
    except KeyboardInterrupt:
        held = f"{len(ledger.rows)} rows are in {folder}"
        click.echo(f"Error: interrupted: {held}; the same command goes on from there: {command}", err=True)
        sys.exit(130)
    finally:
        ledger.close()
    _show(folder)


def _rehearse(leader: Leader, folder: Path | None) -> None:
    """The rows that would be measured, and how long that would take."""
    from unetkit.bench.columns import varied
    from unetkit.bench.listing import Cells, Listing
    from unetkit.bench.rehearsal import rehearse
    from unetkit.inspect.figures import format_count

    found = rehearse(leader, folder)
    names = varied([dict(case.factors) for case in leader.cases])
    lines = [[*_factors(case, names), format_count(said["macs"])] for case, said in found.left]
    failed = [[*_factors(case, names), cause] for case, cause in found.failed]
    tables = [Cells([*names, "macs"], lines), Cells([*names, "cause"], failed, "cannot be built or passed:")]
    about = _duration(found.seconds)
    told = f"{len(lines)} rows would be measured against {found.baseline}, in about {about}"
    done = [f"{found.done} rows are measured already"] if found.done else []
    put(Listing([], [cells for cells in tables if cells.rows], [*done, told]), None)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _factors(case: Case, names: list[str]) -> list[str]:
    return [dict(case.factors).get(name, "") for name in names]


def _show(folder: Path) -> None:
    """What the rows come to, as `unetkit bench show` prints it."""
    from unetkit.bench.choose import select_columns
    from unetkit.bench.columns import columns_of
    from unetkit.bench.ledger import read_results
    from unetkit.bench.show import format_run

    found = read_results(folder)
    put(format_run(found, found.rows, select_columns(columns_of(found), None), width()), None)
    click.echo(f"`unetkit bench show {folder}` shows more; `unetkit bench report {folder}` draws it")
