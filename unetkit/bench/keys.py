"""What tells one measurement from another: digests of a row, and of the code that has a part in it."""

from __future__ import annotations

import hashlib
import inspect
import json
import pickle
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from unetkit.errors import BadOption, UnetkitError
from unetkit.plan import PartSpec, Plan
from unetkit.plugins import Host
from unetkit.registry import Plugin
from unetkit.resolve import kind_of, resolve

if TYPE_CHECKING:
    from unetkit.bench.grid import Case


def id_of(plan: Plan, *condition: object) -> str:
    """A digest of a combination and its condition, the same in every run.

    Raises BadOption for a plan that another process could not be sent.
    """
    try:
        factories = [pickle.dumps(spec.factory) for spec in _factories([plan])]
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        where = "a part given as a class or function is defined at the top of a module"
        raise BadOption(f"a plan cannot be sent to another process, where it is measured: {error}; {where}") from None
    return _short("\0".join(map(str, (plan, *condition))).encode(), *factories)


def key_of(case: Case, baseline: str, owners: set[str], host: Host) -> str:
    """A digest of a row and of all the code that has a part in it but unetkit's: what is edited is measured again.

    Args:
        case: the row.
        baseline: the line that it is timed against, where one is chosen.
        owners: of the metrics.
        host: the plugins.
    """
    plans = [case.plan, *([Plan.parse(baseline)] if baseline else [])]
    owners = owners.union(*(_owners(plan, host) for plan in plans)) - {"unetkit"}
    used = [p for p in host.loaded() if p.name in owners or host.implements("unetkit_wrap_model", p)]
    code = [f"{plugin} {_digest(plugin)}" for plugin in used]
    return _short(json.dumps([case.id, *code, *map(_source, _factories(plans))]).encode())


def _owners(plan: Plan, host: Host) -> set[str]:
    """Of a plan's parts; none where names are unknown."""
    try:
        whole, _ = resolve(plan, host.parts)
        specs = [(word, spec) for word, spec in whole.specs() if spec.factory is None and str(spec) != "none"]
        return {host.parts[kind_of(word)].get(spec.name).owner for word, spec in specs}
    except UnetkitError:
        return set()


def _factories(plans: list[Plan]) -> Iterator[PartSpec]:
    return (spec for plan in plans for _, spec in plan.specs() if spec.factory is not None)


def _source(spec: PartSpec) -> str:
    try:
        return inspect.getsource(getattr(spec.factory, "func", spec.factory))  # type: ignore[arg-type]
    except (OSError, TypeError):
        return ""


def _digest(plugin: Plugin) -> str:
    """Of every source file of a plugin's module, or of the package that it is."""
    file = Path(plugin.target).expanduser()
    if file.is_file():
        return _short(file.read_bytes())
    try:
        spec = find_spec(plugin.target.partition(":")[0])
    except (ImportError, ValueError):
        spec = None
    places = [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
    files = [path for place in places for path in sorted(place.rglob("*.py"))]
    files += [Path(spec.origin)] if spec and spec.origin and not places else []
    return _short(*(path.read_bytes() for path in files))


def _short(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()[:12]
