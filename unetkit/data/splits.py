"""Split images into training and validation by a seed."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from unetkit.data.rng import derive_seed
from unetkit.errors import OptionError
from unetkit.utils.formatting import format_plural

#: The default fraction of validation images.
_USUAL = 0.2


@dataclass(frozen=True)
class SplitConfig:
    """The rules by which images are split.

    Attributes:
        seed: the seed of the order in which groups are chosen for validation.
        val_fraction: the share of images for validation, at least 0 and below 1; each split gets at least one group.
            None leaves a folder without splits undivided, and is the default share for other data sets.
        group_by: a regular expression that must match each name. Names are in one group if its first group (or, without
            groups, the whole match) is the same. "" makes each name a group.
    """

    seed: int = 0
    val_fraction: float | None = _USUAL
    group_by: str = ""

    def __post_init__(self) -> None:
        """Check the rules, also for data that have splits, where a wrong value would otherwise go unnoticed.

        Raises:
            OptionError: The share is out of range, or `group_by` is not a regular expression.
        """
        if self.seed < 0:
            raise OptionError(f"--seed {self.seed}: must be at least 0")
        if self.val_fraction is not None and not 0 <= self.val_fraction < 1:
            raise OptionError(f"--val-fraction {self.val_fraction:g}: must be at least 0 and below 1")
        try:
            re.compile(self.group_by)
        except re.error as error:
            raise OptionError(f"--group-by {self.group_by}: is not a regular expression: {error}") from error


def split_names(names: Sequence[str], rules: SplitConfig) -> tuple[list[int], list[int]]:
    """Return the indices of the names for training and for validation, each in order.

    Groups are not divided. They are chosen in the order of a hash of seed and key, so that a new name moves at most one
    other group of a single file.

    Raises:
        OptionError: There are fewer than two groups, or a name does not match `group_by`.
    """
    val = _USUAL if rules.val_fraction is None else rules.val_fraction
    groups: dict[str, list[int]] = defaultdict(list)
    for index, key in enumerate(group_keys(names, rules.group_by)):
        groups[key].append(index)
    if len(groups) < 2:
        what = (
            f"--group-by {rules.group_by} gives only one group"
            if rules.group_by
            else f"there is only {format_plural(len(names), 'image')}"
        )
        raise OptionError(f"{what}, so none is left for validation; add images, or add a folder val/")
    ordered = sorted(groups, key=lambda key: (derive_seed(rules.seed, "split", key), key))
    held = sorted(
        index for key in _choose_validation(ordered, groups, round(val * len(names))) for index in groups[key]
    )
    return sorted({*range(len(names))} - {*held}), held


def _choose_validation(ordered: list[str], groups: dict[str, list[int]], target: int) -> list[str]:
    """Choose the groups for validation: each that brings the number of images closer to the wanted number."""
    held: list[str] = []
    count = 0
    for key in ordered:
        size = len(groups[key])
        if len(held) < len(ordered) - 1 and abs(count + size - target) < abs(count - target):
            held.append(key)
            count += size
    return held or [min(ordered, key=lambda key: len(groups[key]))]


def group_keys(names: Sequence[str], group: str) -> list[str]:
    """Return the group of each name. Raises OptionError for a name without a group."""
    if not group:
        return list(names)
    pattern = re.compile(group)
    found = [pattern.search(name) for name in names]
    lacking = [name for name, match in zip(names, found, strict=True) if match is None]
    if lacking:
        raise OptionError(f"--group-by {group}: matches nothing in {lacking[0]!r}; give one that matches every name")
    return [_key(match) for match in found if match]


def _key(match: re.Match[str]) -> str:
    first = match.group(1) if match.re.groups else None
    return match.group(0) if first is None else str(first)
