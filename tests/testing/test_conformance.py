"""Every built-in part keeps the promises of its kind; of libraries' encoders and models a few that differ."""

from __future__ import annotations

import pytest

from unetkit.plugins import load_parts
from unetkit.testing import collect_part_checks
from unetkit.testing.runner import PendingCheck, collect_plugin_checks

PARTS = load_parts(isolated=True)
#: Built-in parts with other options than their defaults: with its default widths, plain takes as long as all others.
SPECS = {"plain": "plain:widths=[4,8,16]"}
BUILT_IN = [
    job
    for registry in PARTS
    for entry in registry.entries.values()
    for job in collect_part_checks(registry.kind.field, SPECS.get(entry.name, entry.name), parts=PARTS)
]
#: Maps that agree only at multiples, and valid convolutions.
LIBRARIES = [("encoder", "test_efficientnet"), ("encoder", "plain:widths=[4,8,16],padding=0")]
#: A model that takes multiples, and in training no image alone.
LIBRARIES += [("model", "smp/deeplabv3plus:encoder=timm/test_resnet")]
JOBS = [job for kind, name in LIBRARIES for job in collect_part_checks(kind, name, parts=PARTS)]


@pytest.mark.slow
@pytest.mark.parametrize("job", BUILT_IN, ids=lambda job: f"{job.part}: {job.check}")
def test_built_in_parts_conform(job: PendingCheck) -> None:
    result = job.run()
    assert result.outcome != "failed", result.message


@pytest.mark.slow
@pytest.mark.parametrize("job", JOBS, ids=lambda job: f"{job.part}: {job.check}")
def test_parts_of_libraries_conform(job: PendingCheck) -> None:
    result = job.run()
    assert result.outcome != "failed", result.message


@pytest.mark.slow
def test_unetkit_itself_conforms_as_a_plugin() -> None:
    jobs = [job for job in collect_plugin_checks("unetkit") if job.part.startswith("plugin")]
    assert len(jobs) == 4
    assert [result.message for job in jobs if (result := job.run()).outcome == "failed"] == []
