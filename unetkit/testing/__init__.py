"""The conformance kit: checks that a part keeps the contract of its kind, as functions and as a pytest plugin.

Names are imported on first use, and torch with the first check, since pytest loads this package in every run.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unetkit.testing.catalog import CHECKS as CHECKS
    from unetkit.testing.catalog import CheckResult as CheckResult
    from unetkit.testing.catalog import Nonconformity as Nonconformity
    from unetkit.testing.runner import assert_conforms as assert_conforms
    from unetkit.testing.runner import check_part as check_part
    from unetkit.testing.runner import check_plugin as check_plugin
    from unetkit.testing.runner import collect_part_checks as collect_part_checks
    from unetkit.testing.runner import collect_plugin_checks as collect_plugin_checks

_HOMES = {
    "CHECKS": "unetkit.testing.catalog",
    "Nonconformity": "unetkit.testing.catalog",
    "CheckResult": "unetkit.testing.catalog",
    "assert_conforms": "unetkit.testing.runner",
    "check_part": "unetkit.testing.runner",
    "check_plugin": "unetkit.testing.runner",
    "collect_part_checks": "unetkit.testing.runner",
    "collect_plugin_checks": "unetkit.testing.runner",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'unetkit.testing' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
