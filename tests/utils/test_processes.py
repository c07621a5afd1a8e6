"""Processes and their results on disk, apart from what they are used for."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import zipfile
from multiprocessing import get_all_start_methods
from pathlib import Path
from typing import Any

import pytest

from unetkit.errors import BuildError, FileError
from unetkit.utils import processes as pool
from unetkit.utils.json_lines import JsonLinesWriter, read_json_lines
from unetkit.utils.system import available_cores

CHILDREN = "tests.sweep.children"


def test_where_nothing_can_be_forked_children_are_spawned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "get_all_start_methods", lambda: ["spawn"])
    ended = [*pool.run_tasks(["a", "b"], f"{CHILDREN}:fine", [None], timeout=60, preload=["nowhere"])]
    assert [(each.task, each.error, each.facts["built"]) for each in ended] == [("a", "", "ok"), ("b", "", "ok")]


def test_a_folder_for_temporary_files_that_is_too_deep_is_told() -> None:
    def start() -> None:
        raise OSError("AF_UNIX path too long")

    with pytest.raises(BuildError) as found:
        pool._start_process(start, True)
    assert str(found.value).startswith("no process can be started: OSError: AF_UNIX ")


def test_a_child_starts_processes_as_any_process_does() -> None:
    [ended] = pool.run_tasks(["a"], f"{CHILDREN}:method", [None], timeout=60)
    assert ended.facts == {"method": get_all_start_methods()[0]}  # the system's default, which DataLoader uses


def test_a_breakpoint_in_a_process_is_told_with_its_place() -> None:
    (ended,) = pool.run_tasks(["stops"], f"{CHILDREN}:strange", [None], timeout=60)
    assert re.search(r"^breakpoint\(\) in .*children\.py:\d+ .*terminal", ended.error), ended.error


def test_an_interrupt_waits_until_a_process_has_started_and_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    class Interrupted(pool._Child):
        def __init__(self, *arguments: Any) -> None:
            signal.raise_signal(signal.SIGINT)
            super().__init__(*arguments)
            started.append(self)

    monkeypatch.setattr(pool, "_Child", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        [*pool.run_tasks(["a"], f"{CHILDREN}:slowly", [None], timeout=60)]
    assert [child.process.exitcode for child in started] == [-signal.SIGKILL]


def test_a_child_without_its_leader_ends_in_silence() -> None:
    """As one does whose leader was interrupted while it started it."""
    code = "from multiprocessing import Pipe; from unetkit.utils.processes import _run_child; mine, its = Pipe(); "
    code += "mine.close(); _run_child(its, None, None, 'builtins:print')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")


SCRIPT = """
import multiprocessing.forkserver
from unetkit.utils.processes import run_tasks

tasks = run_tasks(["a"], "tests.sweep.children:fine", [None], timeout=60, needs_script=False)
print([(each.error, each.facts["built"]) for each in tasks])
print(multiprocessing.forkserver._forkserver._forkserver_pid)
"""
#: A task of its own type, which its processes unpickle.
ZIPPED = """
from unetkit.utils.processes import run_tasks

class Name(str):
    pass

if __name__ == "__main__":
    tasks = run_tasks([Name("a")], "tests.sweep.children:fine", [None], timeout=60)
    print([(each.error, each.facts.get("built")) for each in tasks])
"""


def run_python(*words: str, path: str = "") -> str:
    """What a new process of Python prints, which finds this checkout and `path`."""
    places = [path, str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places))}
    done = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    return done.stdout


def test_a_script_without_a_guard_starts_processes_that_do_not_need_it(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    assert run_python(str(script)) == "[('', 'ok')]\nNone\n"  # and the server that multiprocessing shares was not used


def test_a_module_of_a_zip_starts_processes_that_need_it(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "app.zip", "w") as archive:
        archive.writestr("zipped.py", ZIPPED)
    assert run_python("-m", "zipped", path=str(tmp_path / "app.zip")) == "[('', 'ok')]\n"


def test_no_task_starts_no_child() -> None:
    assert [*pool.run_tasks([], f"{CHILDREN}:fine", [None], timeout=1)] == []


def test_lines_are_on_disk_one_by_one_and_one_process_writes(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "lines.jsonl"
    lines = JsonLinesWriter(path, "test")
    lines.append({"a": 1})
    assert path.read_bytes() == b'{"a":1}\n'
    with pytest.raises(FileError, match=r"written by another test; .*--out$"):
        JsonLinesWriter(path, "test")
    lines.close()
    path.write_bytes(b'{"a":1}\n{"b":')
    JsonLinesWriter(path, "test").close()
    found: list[object] = []
    read_json_lines(path, found.append, "test")
    assert found == [{"a": 1}]


def test_the_cores_are_those_that_this_process_may_use() -> None:
    assert set(available_cores()) == os.sched_getaffinity(0)
