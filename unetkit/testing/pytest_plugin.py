"""The pytest plugin: one test for each check of a plugin and its parts.

Every run of pytest loads it, so it imports nothing else. To use it, mark a test:

@pytest.mark.unetkit("my-gate")  # the name of an installed plugin, a module, or a file
def test_conforms(unetkit_check):
    unetkit_check()
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from unetkit.testing.runner import PendingCheck

_HELP = "unetkit(target): create one test for each conformance check of a plugin, run by the fixture `unetkit_check`"


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker, so that --strict-markers accepts it."""
    config.addinivalue_line("markers", _HELP)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Create a test for each check."""
    marker = metafunc.definition.get_closest_marker("unetkit")
    if marker is None or "unetkit_check" not in metafunc.fixturenames:
        return
    if len(marker.args) != 1 or marker.kwargs:
        raise pytest.UsageError(f"{metafunc.definition.nodeid}: write @pytest.mark.unetkit(target), with one target")
    from unetkit.testing.runner import collect_plugin_checks

    beside = metafunc.definition.path.parent / str(marker.args[0])
    target = str(beside) if beside.suffix == ".py" and beside.is_file() else marker.args[0]
    pending_checks = collect_plugin_checks(target)
    ids = [f"{pending.part}: {pending.check}" for pending in pending_checks]
    metafunc.parametrize("unetkit_check", pending_checks, ids=ids, indirect=True)


@pytest.fixture
def unetkit_check(request: pytest.FixtureRequest) -> Callable[[], None]:
    """Return a function that runs the check; it fails or skips the test with one line and the part's own frames."""
    pending: PendingCheck | None = getattr(request, "param", None)
    if pending is None:
        raise pytest.UsageError(f"{request.node.nodeid}: mark the test with @pytest.mark.unetkit(target)")

    def check() -> None:
        result = pending.run()
        if result.outcome == "failed":
            shown = f"\n{result.traceback}" if result.traceback else ""
            pytest.fail(f"{result.full_message} (expected: {pending.title}){shown}", pytrace=False)
        if result.outcome == "skipped":
            pytest.skip(result.message)

    return check
