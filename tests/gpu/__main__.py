"""Run the checks with `python -m tests.gpu --out FILE`; docs/architecture.md describes them."""

from __future__ import annotations

import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

#: Packages without which the tool itself cannot start.
_NEEDED = {"click", "numpy", "psutil", "rich", "timm", "torch"}


def find_missing_packages() -> list[str]:
    """Return the packages that unetkit requires and that are not installed, and unetkit itself if it is not."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = [project["name"], *(requirement.partition(">=")[0] for requirement in project["dependencies"])]
    missing = []
    for name in names:
        try:
            distribution(name)
        except PackageNotFoundError:
            missing.append(name)
    return missing


def main() -> None:
    """Name what is not installed in one line, and run the command line if it can start without that."""
    missing = find_missing_packages()
    if missing:
        print(f"Not installed: {', '.join(missing)}; pip install --no-deps adds them", file=sys.stderr)
    if _NEEDED & {*missing}:
        sys.exit(2)
    from tests.gpu.command import main as run_command

    run_command(missing)


if __name__ == "__main__":  # the child processes import this module under another name
    main()
