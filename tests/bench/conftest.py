"""Prepare processes for tests of benchmarks, and run the command."""

from __future__ import annotations

import pytest
from click.testing import CliRunner, Result

from unetkit.bench import grid, training_runner
from unetkit.cli import cli
from unetkit.utils import processes


@pytest.fixture(scope="session", autouse=True)
def one_server() -> None:
    """Fork all processes from one server, which would start anew for each test that needs more modules."""
    processes._stop_server()
    modules = (*grid.PRELOAD, *training_runner.PRELOAD, "timm", "segmentation_models_pytorch", "torch._dynamo")
    processes._preloaded.update(dict.fromkeys(modules))


def run_cli(*arguments: str) -> Result:
    """Run `unetkit bench` with arguments, in this process."""
    return CliRunner().invoke(cli, ["bench", *arguments])
