"""`unetkit bench`: measure every combination of a grid; and the commands under it, which read what was measured."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from unetkit.bench.grid import AXES
from unetkit.cli.words import complete_part, parts_of
from unetkit.errors import BadOption
from unetkit.plan import Word
from unetkit.registry import KINDS
from unetkit.resolve import kind_of

F = TypeVar("F", bound=Callable[..., Any])
_UNDER = ("show", "report", "diff", "metrics", "selftest")
_KINDS = {kind.word for kind in KINDS}


class _Group(click.Group):
    """A group that imports a command when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*_UNDER]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _UNDER:
            return None
        command: click.Command = getattr(import_module(f"unetkit.cli.bench.{name}"), name)
        return command


def _axes(command: F) -> F:
    """Give a command an option for each word of a plan that a grid takes lists of, in order."""
    return reduce(lambda wrapped, word: _axis(word)(wrapped), reversed(AXES), command)


def _axis(word: Word) -> Callable[[F], F]:
    kind = kind_of(word.name)
    complete: dict[str, Any] = {"shell_complete": _completer(kind)} if kind in _KINDS else {}
    listed = word.metavar if word.name == "widths" else f"{word.metavar},..."
    said = f"{word.help[0].upper()}{word.help[1:]}."
    return click.option(word.flag, word.name, metavar=listed, multiple=True, help=said, **complete)


def _completer(kind: str) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem]]:
    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        before, comma, last = incomplete.rpartition(",")
        found = complete_part(parts_of(ctx)[kind], last)
        return [CompletionItem(before + comma + item.value, help=item.help) for item in found]

    return complete


@click.group(cls=_Group, invoke_without_command=True, subcommand_metavar="[COMMAND]")
@_axes
@click.option("--size", "sizes", multiple=True, metavar="HxW,...", help="Input sizes; a network's own, or 256.")
@click.option("--batch", "batches", multiple=True, metavar="N,...", help="Images in an input.  [default: 1]")
@click.option("--mode", "modes", multiple=True, metavar="MODE[+...],...", help="How a network runs: see above.")
@click.option("--except", "excepted", multiple=True, metavar="LINE", help="Leave out rows that say so.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Only the first so many rows.")
@click.option("--baseline", metavar="LINE", help="What each row is timed against; the first row's network.")
@click.option("--baseline-mode", metavar="MODE", help="How that runs; as the first row.")
@click.option("--metrics", metavar="NAME,...", help="What is measured; all that `unetkit bench metrics` lists.")
@click.option("--budget", type=float, metavar="S", help="Seconds for each timed metric of a row.  [default: 20]")
@click.option("--precision", type=float, metavar="X", help="Half-width of the interval to stop at.  [default: 0.02]")
@click.option("--timeout", type=float, metavar="S", help="Seconds that one row may take.  [default: 600 and more]")
@click.option("--device", metavar="NAME,...", help="cpu, cuda, or some of cuda:0,cuda:1; all GPUs, or the CPU.")
@click.option("--slots", type=int, metavar="N", help="Rows at a time on a CPU, each with its share of the cores.")
@click.option("--threads", type=int, metavar="N", help="Of torch, for each row; as many as it has cores.")
@click.option("--seed", type=int, metavar="N", help="Fixes weights, input and order.  [default: 0]")
@click.option("--engine", metavar="local|ray", help="Where rows are measured.  [default: local]")
@click.option("--ray-address", metavar="ADDRESS", help="Of a Ray cluster: auto, or HOST:PORT.")
@click.option("--out", type=click.Path(path_type=Path), metavar="FOLDER", help="Where rows go; one in runs/.")
@click.option("--again", is_flag=True, help="Measure again what failed or ran out of budget.")
@click.option("--dry-run", is_flag=True, help="Measure nothing; show what would be, and how long it would take.")
@click.pass_context
def bench(ctx: click.Context, /, **asked: Any) -> None:
    """Measure every combination of a grid, each in a process of its own, in turns with a baseline.

    Words take lists, globs ('resnet*'), one word a level (add/concat), or stand several times. A --model, such as
    smp/unet, is a row beside those of parts. Modes are eager and compiled, then channels_last, bfloat16 and float16
    after a plus: eager,compiled+channels_last. Stopped in any way, the same command goes on where it was.

    \b
    unetkit bench --encoder resnet18,resnet34 --up bilinear,transposed --fuse concat,add --batch 1,8 --out runs/first
    unetkit bench --encoder 'resnet*' --except '--encoder resnet152' --metrics parameters,macs,latency --dry-run
    unetkit bench show runs/first --sort latency
    unetkit bench report runs/first
    """
    given = {name: value for name, value in asked.items() if value is not None and value is not False and value != ()}
    if ctx.invoked_subcommand is None:
        from unetkit.cli.bench.run import run

        run(ctx, given)
    elif given:
        first = next(param for param in ctx.command.params if param.name in given)
        raise BadOption(f"{first.opts[0]} is for measuring; leave it out, or leave out {ctx.invoked_subcommand}")
