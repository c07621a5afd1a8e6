"""Every built-in part keeps the promises of its kind; of libraries' encoders and models a few that differ."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from unetkit.plugins import load_parts
from unetkit.testing import collect_part_checks
from unetkit.testing.runner import PendingCheck


@pytest.mark.slow
@pytest.mark.unetkit("unetkit")
def test_built_in_parts_conform(unetkit_check: Callable[[], None]) -> None:
    unetkit_check()


#: Widths in stages, depthwise convolutions, maps that agree only at multiples, valid convolutions, one fixed size.
ENCODERS = ("resnet18", "test_resnet.r160_in1k", "test_efficientnet", "plain:widths=[4,8,16],padding=0")
#: One of any size, and one that takes multiples, and in training no image alone.
MODELS = ("smp/unet:encoder=timm/test_resnet", "smp/deeplabv3plus:encoder=timm/test_resnet")
PARTS = load_parts(isolated=True)
JOBS = [job for name in ENCODERS for job in collect_part_checks("encoder", name, parts=PARTS)]
JOBS += [job for name in MODELS for job in collect_part_checks("model", name, parts=PARTS)]


@pytest.mark.slow
@pytest.mark.parametrize("job", JOBS, ids=lambda job: f"{job.part}: {job.check}")
def test_parts_of_libraries_conform(job: PendingCheck) -> None:
    result = job.run()
    assert result.outcome != "failed", result.message
