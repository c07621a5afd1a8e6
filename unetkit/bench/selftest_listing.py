"""What a selftest came to, as a table, and whether its aims are reached."""

from __future__ import annotations

from collections.abc import Sequence

from unetkit.bench.listing import Cells, Listing
from unetkit.bench.selftest import VERDICTS, Tally
from unetkit.bench.slot import Slot
from unetkit.plan import Plan

#: Shares: of runs of the same that are called different, at most; of 5% more that are called slower, at least.
FALSE_ALARMS, FOUND = 0.05, 0.8


def passed(found: Sequence[Tally]) -> bool:
    """Whether paired rounds reach both aims."""
    return _false_alarms(found[0]) <= FALSE_ALARMS and found[2].verdicts["slower"] >= FOUND


def _false_alarms(tally: Tally) -> float:
    return tally.verdicts["slower"] + tally.verdicts["faster"]


def format_selftest(found: Sequence[Tally], plan: Plan, slot: Slot) -> Listing:
    """The table, and whether the aims are reached."""
    rows = [_cells(tally) for tally in found]
    heads = ["extra work", "method", "runs", *VERDICTS, "off by", "at worst", "interval holds it", "rounds", "seconds"]
    same, more = found[0], found[2]
    notes = [
        f"called different though the same: {_false_alarms(same):.0%} (aim: at most {FALSE_ALARMS:.0%})",
        f"called slower with 5% more work: {more.verdicts['slower']:.0%} (aim: at least {FOUND:.0%})",
    ]
    return Listing([f"{plan}, batch 1, on {slot}"], [Cells(heads, rows)], notes)


def _cells(tally: Tally) -> list[str]:
    shares = [f"{tally.verdicts[verdict]:.0%}" for verdict in VERDICTS]
    errors = [f"{tally.error:.1%}", f"{tally.worst:.1%}", f"{tally.holds:.0%}"]
    extra = f"{tally.truth - 1:.0%}"
    return [extra, tally.method, str(tally.runs), *shares, *errors, f"{tally.rounds:.0f}", f"{tally.seconds:.1f}"]
