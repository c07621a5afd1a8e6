"""No command, and no process that one starts, runs a file because it lies in the current folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

RAN = "RAN"
#: Says that it ran, since whoever imports it may survive.
HOSTILE = f"open(__file__.rpartition('/')[0] + '/{RAN}', 'a').write(__name__ + '\\n')\nraise ImportError(__name__)\n"
LIBRARIES = ("unetkit", "torch", "numpy", "timm", "click", "sitecustomize", "usercustomize")
NETWORK = ["--encoder", "plain:widths=[4,8]"]
DATA = ["--data", "cells:count=4,val=2,test=1,size=32"]
COSTS = ["--metrics", "parameters,latency"]
COMMANDS = {
    "help": ["--help"],
    "build": ["build", *NETWORK],
    "list": ["list", "fusions"],
    "plugins": ["plugins"],
    "check": ["plugins", "check", "../mine/gates.py"],
    "new": ["plugins", "new", "my-gate", "--kind", "fusion"],
    "data": ["data", "check", "cells:count=2,size=32"],
    "bench": ["bench", *NETWORK, "--fuse", "add,concat", "--size", "32", "--device", "cpu", "--budget", "0.1", *COSTS],
    "eval": ["eval", "run", "--device", "cpu"],
}
#: Those that read and write files, in a process of their own each: what one imports, the next finds.
TRAIN = ["train", *NETWORK, *DATA, "--epochs", "1", "--workers", "1", "--device", "cpu", "--out", "run"]
PREDICT = ["predict", "run", "../mine/image.png", "--out", "out", "--device", "cpu"]
INSTALLED = Path(sys.executable).with_name("unetkit")  # `python -m` would put the folder first itself
GATES = '''
import unetkit
from unetkit.parts.fusions import Add

class Gate(Add):
    """A sum."""

@unetkit.hookimpl
def unetkit_register(parts):
    parts.fusions.add("mine", Gate)
'''


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file for each module of the standard library and some others, and beside it a plugin."""
    from PIL import Image

    mine = tmp_path_factory.mktemp("folders") / "mine"
    folder = mine.with_name("hostile")
    mine.mkdir()
    folder.mkdir()
    (mine / "gates.py").write_text(GATES)
    Image.new("L", (32, 32)).save(mine / "image.png")
    for name in (*sys.stdlib_module_names, *LIBRARIES):
        (folder / f"{name}.py").write_text(HOSTILE)
    return folder


#: What the script `unetkit` does, for one command after another, since torch takes longer to import than most run.
SCRIPT = """
import json, os, sys
from unetkit.cli import cli

if __name__ == "__main__":
    for name, words in json.loads(sys.argv[1]).items():
        code = cli.main(words, standalone_mode=False)
        assert not code, (name, code)
        assert not os.path.exists("RAN"), (name, open("RAN").read())
        assert os.getcwd() not in map(os.path.realpath, sys.path), (name, sys.path)  # as which "" counts, too
"""


@pytest.fixture(scope="module")
def trained(hostile: Path) -> Path:
    """The hostile folder, in which a network was trained."""
    run(hostile, INSTALLED, *TRAIN)
    return hostile


def test_commands_run_nothing_of_the_current_folder(trained: Path) -> None:
    script = trained.with_name("script.py")
    script.write_text(SCRIPT)
    run(trained, script, json.dumps(COMMANDS))


def test_the_installed_script_runs_nothing_of_the_current_folder(trained: Path) -> None:
    run(trained, INSTALLED, *PREDICT)
    assert list((trained / "out").iterdir())


def run(hostile: Path, script: Path, *words: str) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"}
    done = subprocess.run(
        [sys.executable, str(script), *words], cwd=hostile, env=environment, capture_output=True, text=True, check=False
    )
    assert not (hostile / RAN).exists(), (hostile / RAN).read_text()
    assert done.returncode == 0, done.stderr[-2000:]
