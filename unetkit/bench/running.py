"""`unetkit.bench.run`: measure plans from Python."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unetkit.bench.choices import Choices
from unetkit.bench.grid import make_cases
from unetkit.bench.leader import Leader
from unetkit.bench.ledger import ResultsWriter, read_results
from unetkit.bench.mode import Mode
from unetkit.bench.rows import Row, Run
from unetkit.errors import BadOption
from unetkit.plan import Plan
from unetkit.plugins import load_host

if TYPE_CHECKING:
    from pandas import DataFrame


class Rows(list[Row]):
    """Rows, in the order of their plans.

    Attributes:
        run: with what stands for all rows: baseline, metrics, machine.
    """

    def __init__(self, run: Run) -> None:
        super().__init__(run.rows)
        self.run = run

    def to_pandas(self) -> DataFrame:
        """Raw numbers, a column for each that `unetkit bench show --columns` knows; needs pandas."""
        from unetkit.bench.frame import rows_to_dataframe

        return rows_to_dataframe(self.run)


def read(folder: str | Path) -> Rows:
    """The rows of a folder that `unetkit bench` or `run` wrote, also while it goes on. Raises BadFile."""
    return Rows(read_results(Path(folder)))


def run(
    plans: Iterable[Plan | str],
    *,
    sizes: Sequence[Any] = (),
    batches: Sequence[int] = (1,),
    modes: Sequence[str] = ("eager",),
    out: str | Path | None = None,
    on_row: Callable[[Row], object] = lambda row: None,
    **choices: Any,
) -> Rows:
    """Measure every plan under every condition, each in a process of its own, beside a baseline.

    In a script, call it under `if __name__ == "__main__":`, since a child imports the script that started it.

    Args:
        plans: a Plan each, or a line such as "--encoder resnet34 --fuse add".
        sizes: of the input: 256 or (480, 640), each a row; the network's own, or 256, if empty.
        batches: images in an input.
        modes: "eager", "compiled", and after a plus "channels_last", "bfloat16", "float16".
        out: a folder that keeps the rows; what it holds already is not measured again.
        on_row: called with each row when it is measured.
        choices: what `unetkit.bench.choices.Choices` has: metrics, baseline, budget, device, plugins ...

    Returns:
        A row for each, failed ones with their cause; `.to_pandas()` gives a frame.

    Raises:
        UnetkitError: a line, a choice or a folder that it cannot take.
    """
    if isinstance(plans, str | Plan):
        raise BadOption(f"bench.run: takes a list of plans; give [{str(plans)!r}]")
    chosen = _choices(choices)
    found = [plan if isinstance(plan, Plan) else Plan.parse(plan) for plan in plans]
    planned = make_cases(found, sizes, batches, [Mode.parse(mode) for mode in modes])
    if not planned:
        raise BadOption("no plan is given; give lines such as '--encoder resnet34 --fuse add'")
    with ExitStack() as stack:
        folder = Path(out) if out is not None else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        held = ResultsWriter(folder)
        stack.callback(held.close)
        for row in Leader(planned, chosen, load_host(chosen.plugins)).rows(held, ""):
            on_row(row)
        whole = read_results(folder)
        return Rows(replace(whole, rows=whole.rows[: len(planned)]))


def _choices(given: dict[str, Any]) -> Choices:
    """Lists become tuples, and paths text, as they are sent to children."""
    for name in ("metrics", "plugins"):
        if name in given:
            value = [given[name]] if isinstance(given[name], str | Path) else given[name]
            given[name] = tuple(map(str, value))
    try:
        return Choices(**given)
    except TypeError as error:
        raise BadOption(f"bench.run: {str(error).removeprefix('Choices.__init__() ')}") from None
