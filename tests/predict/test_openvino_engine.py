"""Test engines of OpenVINO in a process of their own, since a fault may end it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.predict.onnx_files import INFO, graph, write

#: Opens two files by OpenVINO, lets go of them, and then receives a signal: a child process ends.
SIGNALLED = """
import signal, subprocess, sys
from pathlib import Path
import numpy as np
from tests.predict.onnx_files import INFO
from unetkit.predict.openvino_engine import open_openvino

def use(path):
    engine = open_openvino(Path(path), INFO)
    print(engine.run(np.ones((1, 1, 4, 4), np.float32)).sum())
    return engine

received = set()
signal.signal(signal.SIGCHLD, lambda *_: received.add("signal"))
first = use(sys.argv[1])
second = use(sys.argv[1])
del first
del second
subprocess.run([sys.executable, "-c", ""])
print(*received)
assert "torch" not in sys.modules
"""


def test_a_process_that_has_closed_engines_takes_signals(tmp_path: Path) -> None:
    """On a processor with AMX, OpenVINO gives and takes the memory on which signals are handled."""
    path = write(graph(), tmp_path / "a.onnx", INFO)
    command = [sys.executable, "-c", SIGNALLED, str(path)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()) == (0, ["16.0", "16.0", "signal"]), done.stderr
