"""`unetkit eject`: write a network as one file of plain PyTorch."""

from __future__ import annotations

from keyword import iskeyword
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unetkit.cli.command import FilePath
from unetkit.cli.options import Command, get_parts, get_run_parts, plan_options
from unetkit.errors import OptionError
from unetkit.plan import Plan
from unetkit.resolve import resolve
from unetkit.utils.isolation import stdout_to_stderr

if TYPE_CHECKING:
    from unetkit.ejection.eject import Usage
    from unetkit.network import Network
    from unetkit.registry import Parts


#: Packages that an ejected file imports; a file of the same name would hide them.
_IMPORTED = ("torch", "timm", "safetensors", "segmentation_models_pytorch")


@click.command(cls=Command)
@click.argument("source", metavar="[RUN|FILE.safetensors]", required=False, type=FilePath())
@click.option(
    "--out",
    required=True,
    metavar="FILE.py",
    type=FilePath(is_output=True),
    help="Python file to write the network to.",
)
@plan_options
@click.pass_context
def eject(ctx: click.Context, /, source: Path | None, out: Path, **fields: Any) -> None:
    """Write a network as one Python file that needs torch, and timm where the encoder is timm's, but not unetkit.

    The network is the one that the options describe, as in `unetkit build`; or that of RUN, the folder that
    `unetkit train --out RUN` wrote; or that of a file that `unetkit.save` wrote. The Python file has a function build()
    that returns the network, and load(path) that returns it with the weights of such a file. Before it is written, the
    outputs of both networks are compared to the bit.

    \b
    unetkit eject --encoder resnet34 --out net.py
    unetkit eject runs/a --out net.py
    unetkit eject model.safetensors --out net.py
    """
    if out.suffix != ".py":
        raise OptionError(f"--out {out}: give a file name that ends in .py")
    if not out.stem.isidentifier() or iskeyword(out.stem):
        raise OptionError(f"--out {out}: Python cannot import a module of this name; give one such as net.py")
    if out.stem in _IMPORTED:
        raise OptionError(f"--out {out}: hides the package {out.stem}, which the file imports; give another name")
    plan = Plan.of(**fields)
    if source is not None and plan.explicit():
        given = next(iter(plan.explicit())).replace("_", "-")
        raise OptionError(f"--{given} describes a model, but {source} already is one; leave one of them out")
    if source is None and not plan.explicit():
        raise OptionError("nothing says what the network is; give options such as --encoder resnet34, a run, or a file")
    if source is None:
        resolve(plan, get_parts(ctx))  # rejects wrong names and options before torch is imported

    from unetkit.ejection.eject import Usage, write_file

    with stdout_to_stderr():  # keeps what a part prints out of this command's output
        if source is None:
            write_file(plan, out, get_parts(ctx), Usage())
            returned = "build() returns the network, and its load(FILE.safetensors) also loads weights"
        else:
            model, parts, usage = _load(ctx, source)
            write_file(model, out, parts, usage)
            returned = f'load("{usage.weights}") returns the network with its weights'
    click.echo(f"written to {out}: its {returned}")


def _load(ctx: click.Context, source: Path) -> tuple[Network, Parts, Usage]:
    """Return the network of a run or a file, the parts that it was built from, and what to say of its use."""
    from unetkit.ejection.eject import Usage

    if source.is_dir():
        from unetkit.train.checkpoint import BEST, read_run

        run = read_run(source)
        parts = get_run_parts(ctx, run)
        return run.network(parts=parts), parts, Usage(str(source / BEST), (run.mean, run.std))
    from unetkit.serialization import load

    parts = get_parts(ctx)
    return load(source, parts=parts, device="cpu"), parts, Usage(str(source))
