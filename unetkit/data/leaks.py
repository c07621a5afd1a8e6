"""What stands in more than one split, so that what was learned by heart would be judged well."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from unetkit.data.folder import Found
from unetkit.data.seen import Seen
from unetkit.data.split import Rules, keys
from unetkit.errors import UnetkitError


def twins(seen: Sequence[Seen]) -> list[str]:
    """Images that stand in two splits."""
    alike: dict[str, dict[str, str]] = defaultdict(dict)
    for one in seen:
        if one.digest:
            alike[one.digest].setdefault(one.split, one.file)
    leaks = [[*files.values()] for files in alike.values() if len(files) > 1]
    return [f"{second}: is the same image as {first}, in another split: a leak" for first, second, *_ in leaks]


def torn_groups(found: Found, rules: Rules) -> list[str]:
    """Groups that the folders' own splits tear apart."""
    if not rules.group:
        return []
    sides: dict[str, set[str]] = defaultdict(set)
    try:
        for split, entries in found.splits.items():
            for key in keys([entry.name for entry in entries], rules.group):
                sides[key].add(split)
    except UnetkitError as error:
        return [str(error)] if str(error) not in found.problems else []
    torn = {key: splits for key, splits in sides.items() if len(splits) > 1}
    return [f"group {key!r}: is in {' and '.join(sorted(splits))}: a leak" for key, splits in torn.items()]
