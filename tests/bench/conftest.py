"""What tests of benchmarks share."""

from __future__ import annotations

import pytest

from unetkit.bench import grid, training_runner
from unetkit.utils import processes


@pytest.fixture(scope="session", autouse=True)
def one_server() -> None:
    """Fork all processes from one server, which would start anew for each test that needs more modules."""
    processes._stop_server()
    modules = (*grid.PRELOAD, *training_runner.PRELOAD, "timm", "segmentation_models_pytorch", "torch._dynamo")
    processes._preloaded.update(dict.fromkeys(modules))
