"""Training and validation from one heap of files, by seed."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from unetkit.data.rng import derive_seed
from unetkit.errors import OptionError

#: The share that validates.
_USUAL = 0.2


@dataclass(frozen=True)
class SplitConfig:
    """How a heap is split.

    Attributes:
        seed: fixes the order in which groups are set aside.
        val: the share of files that validates, from 0 to below 1; at least one group does, and one trains. None leaves
            a folder that has no splits whole, and is the usual share elsewhere.
        group: a regular expression that each name must match somewhere; names are of one group where its first
            parenthesis (or, without one, all that it matches) is the same. "" makes each name a group.
    """

    seed: int = 0
    val_fraction: float | None = _USUAL
    group_by: str = ""


def split_names(names: Sequence[str], rules: SplitConfig) -> tuple[list[int], list[int]]:
    """The indices of names that train, and of those that validate, each in order.

    A group goes to validation as a whole. Groups are asked in an order of their own (a hash of seed and key), so a
    name that is added moves at most one other group of single files.

    Raises:
        OptionError: fewer than two groups, or a name that `group` does not match.
    """
    val = _USUAL if rules.val_fraction is None else rules.val_fraction
    if not 0 <= val < 1:
        raise OptionError(f"--val-fraction {val:g}: takes a share from 0 to below 1")
    groups: dict[str, list[int]] = defaultdict(list)
    for index, key in enumerate(group_keys(names, rules.group_by)):
        groups[key].append(index)
    if len(groups) < 2:
        what = (
            f"--group-by {rules.group_by} finds one group only"
            if rules.group_by
            else f"there is {len(names)} image only"
        )
        raise OptionError(f"{what}: none is left to validate on; add images, or give a folder val/")
    ordered = sorted(groups, key=lambda key: (derive_seed(rules.seed, "split", key), key))
    held = sorted(index for key in _held(ordered, groups, round(val * len(names))) for index in groups[key])
    return sorted({*range(len(names))} - {*held}), held


def _held(ordered: list[str], groups: dict[str, list[int]], wanted: int) -> list[str]:
    """The keys that are set aside: each that brings their files nearer to how many are wanted."""
    held: list[str] = []
    count = 0
    for key in ordered:
        size = len(groups[key])
        if len(held) < len(ordered) - 1 and abs(count + size - wanted) < abs(count - wanted):
            held.append(key)
            count += size
    return held or [min(ordered, key=lambda key: len(groups[key]))]


def group_keys(names: Sequence[str], group: str) -> list[str]:
    """The group of each name. Raises OptionError where one has none."""
    if not group:
        return list(names)
    try:
        pattern = re.compile(group)
    except re.error as error:
        raise OptionError(f"--group-by {group}: is no regular expression: {error}") from error
    found = [pattern.search(name) for name in names]
    lacking = [name for name, match in zip(names, found, strict=True) if match is None]
    if lacking:
        raise OptionError(f"--group-by {group}: matches nothing in {lacking[0]!r}; every name must be of a group")
    return [_key(match) for match in found if match]


def _key(match: re.Match[str]) -> str:
    first = match.group(1) if match.re.groups else None
    return match.group(0) if first is None else str(first)
