"""Run the command in tests of benchmarks."""

from __future__ import annotations

from click.testing import CliRunner, Result

from unetkit.cli import cli


def run_cli(*arguments: str) -> Result:
    """Run `unetkit bench` with arguments, in this process."""
    return CliRunner().invoke(cli, ["bench", *arguments])
