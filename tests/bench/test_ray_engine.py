"""The Ray engine, on a real cluster of nodes on this machine. Run as a program, this file is their holder or a driver.

Ray stays out of pytest's own process: there every warning of its would be an error, and it leaves threads behind.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

import psutil
import pytest

from unetkit import bench
from unetkit.bench import ray_engine as nodes
from unetkit.bench.devices import Slot
from unetkit.bench.ray_engine import MAX_ATTEMPTS, connect, import_ray, library_versions, run_on_ray
from unetkit.bench.results import read_results
from unetkit.errors import OptionError, UnetkitError

ROOT = Path(__file__).parents[2]
#: Seconds that Ray may take to start its nodes: on a machine where it takes longer there is nothing to test.
PATIENCE = 60
#: Seconds for what ought to come at once.
SOON = 30
#: Seconds that a child may take, which on a busy machine starts late; and after which one that stays is ended.
LONG, SHORT = 120, 3


# What children do


def child(task: tuple[str, str], slot: Slot, say: Callable[[dict[str, Any]], None]) -> None:
    """Say where it is, note the attempt in a folder, and end as the task's name says."""
    name, folder = task
    say({"device": str(slot), "torch_device": slot.device, "share": slot.num_slots})
    leader = parent_process()
    say({"gpus": os.environ.get("CUDA_VISIBLE_DEVICES"), "worker": leader and leader.pid})
    say({"environment": {name: value for name, value in os.environ.items() if name.startswith("UNETKIT_TEST")}})
    with Path(folder, name).open("a") as attempts:
        attempts.write(f"{os.getpid()}\n")
    ENDS[name.partition("-")[0]](Path(folder, name))
    say({"done": True})


def meet(attempts: Path) -> None:
    """Wait until another runs too."""
    while len([*attempts.parent.glob("meet-*")]) < 2:
        time.sleep(0.02)


def fail(attempts: Path) -> None:
    raise ZeroDivisionError("no such luck")


def die(attempts: Path) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def stay(attempts: Path) -> None:
    time.sleep(600)


def lose(attempts: Path) -> None:
    """Kill Ray's worker, which leads this process."""
    leader = parent_process()
    assert leader
    assert leader.pid
    os.kill(leader.pid, signal.SIGKILL)
    stay(attempts)


def lose_once(attempts: Path) -> None:
    if len(attempts.read_text().split()) == 1:
        lose(attempts)


def fine(attempts: Path) -> None:
    pass


ENDS: dict[str, Callable[[Path], None]] = {
    "meet": meet,
    "fail": fail,
    "die": die,
    "stay": stay,
    "lose": lose,
    "once": lose_once,
    "fine": fine,
}


# The programs


def hold() -> None:
    """Start the nodes, tell their address, and end them when standard input ends."""
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # short: a socket's path has at most 107 characters
    os.environ["RAY_TMPDIR"] = folder

    from ray.cluster_utils import Cluster

    small = {"object_store_memory": 80 * 2**20, "include_log_monitor": False}
    head = {"num_cpus": 1, "num_gpus": 0, "node_name": "one", "include_dashboard": False, "no_monitor": True, **small}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        cluster.add_node(num_cpus=1, num_gpus=2, node_name="two", **small)
        print(cluster.address, flush=True)
        sys.stdin.read()
    finally:
        cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def drive(address: str, asked: list[dict[str, Any]]) -> None:
    """Do in turn what is asked, tasks to run on the nodes, and print what came of each, a line for each.

    Args:
        address: of the cluster, to which this connects once for all that names no address of its own.
        asked: of each, "names" and "folder" of the tasks, and "options" of `run_on_ray`; perhaps "leave", the number of
            results after which to end, "strange", another version of torch that this machine has, and "environment",
            the variables that begin with UNETKIT_TEST.
    """
    own = [one for one in asked if "address" in one["options"]]
    for one in own:
        drive_one(**one)
    with connect(import_ray(), address):
        for one in asked:
            if one not in own:
                drive_one(**one)


def drive_one(
    name: str,
    names: list[str],
    folder: str,
    options: dict[str, Any],
    leave: int | None = None,
    strange: str = "",
    environment: dict[str, str] | None = None,
) -> None:
    vars(nodes)["library_versions"] = strange_versions if strange else library_versions
    os.environ["STRANGE_TORCH"] = strange
    for variable in [variable for variable in os.environ if variable.startswith("UNETKIT_TEST")]:
        del os.environ[variable]
    os.environ.update(environment or {})
    try:
        for number, one in enumerate(run := run_on_ray([(task, folder) for task in names], f"{NAME}:child", **options)):
            print(json.dumps([f"{name} {one.task[0]}", {"cause": one.error, **one.facts}]), flush=True)
            if number + 1 == leave:
                wait_for(Path(folder, "stay").exists)
                run.close()
    except UnetkitError as error:
        print(json.dumps([name, {"refused": f"{type(error).__name__}: {error}"}]), flush=True)


NAME = "tests.bench.test_ray_engine"


def strange_versions() -> dict[str, str]:
    """Return another version of torch if a variable says so, as it does in the driver and not on the nodes."""
    versions = library_versions()
    return {**versions, "torch": os.environ.get("STRANGE_TORCH") or versions["torch"]}


def wait_for(fact: Callable[[], bool], seconds: float = 2 * SOON) -> None:
    end = time.monotonic() + seconds
    while not fact():
        assert time.monotonic() < end
        time.sleep(0.05)


# The tests


def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen([sys.executable, "-m", NAME, *arguments], env=environment, text=True, **pipes)  # type: ignore[call-overload,no-any-return]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Start a cluster of the nodes "one" and "two" with a CPU each, of which "two" believes that it has two GPUs."""
    if not find_spec("ray"):
        pytest.skip("Ray is not installed")
    holder = start("hold", RAY_USAGE_STATS_ENABLED="0")
    assert holder.stdout
    os.set_blocking(holder.stdout.fileno(), False)
    end = time.monotonic() + PATIENCE
    while not (line := holder.stdout.readline()) and holder.poll() is None and time.monotonic() < end:
        time.sleep(0.1)
    os.set_blocking(holder.stdout.fileno(), True)
    if line:
        yield line.strip()
    _, said = holder.communicate()
    if not line:
        pytest.skip(f"Ray does not start on this machine within {PATIENCE} s: {said[-300:]}")


#: What the driver sets in its environment for one run and, on the same connection, for another.
VARIABLES = {"UNETKIT_TEST": "told", "UNETKIT_TEST_ONCE": "1"}
OTHER_VARIABLES = {"UNETKIT_TEST": "told something else"}
#: Addresses where no cluster is.
NOWHERE = ("127.0.0.1:9", "nohost.invalid:6379", "here", "ray://here:10001")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the folders in which the tasks of each run note their attempts."""
    folder = tmp_path_factory.mktemp("attempts")
    for name in ("kinds", "again", "late", "gpus", "left", "interrupted"):
        (folder / name).mkdir()
    return folder


@pytest.fixture(scope="module")
def ended(address: str, folder: Path) -> dict[str, dict[str, Any]]:
    """Return what came of everything that one driver is asked; it is interrupted in the last run."""

    def ask(name: str, *names: str, **asked: Any) -> dict[str, Any]:
        more: dict[str, Any] = {key: asked.pop(key) for key in ("leave", "strange", "environment") if key in asked}
        options = {"timeout": LONG, "gpus": 0, **asked}
        return {"name": name, "names": names, "folder": str(folder / name), "options": options, **more}

    asked = [
        *(ask(f"no {nowhere}", "fine", address=nowhere) for nowhere in NOWHERE),
        ask("many gpus", "fine", gpus=3, address=address),
        ask("many slots", "fine", slots=2),
        ask("strange", "fine", strange="0.1"),
        ask("kinds", "meet-1", "meet-2", "fail", "die", "lose", "once", environment=VARIABLES),
        ask("again", "meet-1", "meet-2", environment=OTHER_VARIABLES),
        ask("late", "stay", timeout=SHORT),
        ask("gpus", "meet-1", "meet-2", gpus=None),
        ask("left", "stay", "fine", leave=1),
        ask("interrupted", "stay"),
    ]
    driver = start("drive", address, json.dumps(asked))
    wait_for(lambda: driver.poll() is not None or (folder / "interrupted" / "stay").exists(), 10 * SOON)
    driver.send_signal(signal.SIGINT)
    said, noise = driver.communicate(timeout=2 * SOON)
    rows = dict(json.loads(line) for line in said.splitlines())
    if late := [row["refused"] for row in rows.values() if "started no worker within" in row.get("refused", "")]:
        pytest.skip(f"Ray starts no worker on this machine in reasonable time: {late[0]}")
    first, *_, last = noise.splitlines()
    assert (first, last) == ("Traceback (most recent call last):", "KeyboardInterrupt"), noise
    assert driver.returncode == -signal.SIGINT
    names = [*(one["name"] for one in asked[: len(NOWHERE) + 3])]
    names += [f"{one['name']} {name}" for one in asked[-6:-2] for name in one["names"]] + ["left fine"]
    assert {*rows} == {*names}
    return rows


def attempts(folder: Path, name: str) -> int:
    return len((folder / name).read_text().split())


pytestmark = pytest.mark.slow


def test_nodes_work_at_the_same_time_and_rows_say_which(ended: dict[str, dict[str, Any]]) -> None:
    met = [ended["kinds meet-1"], ended["kinds meet-2"]]
    assert [row["cause"] for row in met] == ["", ""]
    assert {row["device"] for row in met} == {"cpu of one, 1 thread", "cpu of two, 1 thread"}


def test_a_worker_runs_further_tasks_and_each_has_the_variables_that_its_own_run_has(
    ended: dict[str, dict[str, Any]],
) -> None:
    first = [ended[f"kinds {name}"] for name in ("meet-1", "meet-2", "fail", "die", "once")]
    again = [ended["again meet-1"], ended["again meet-2"]]
    assert {row["worker"] for row in first} & {row["worker"] for row in again}
    assert [row["environment"] for row in first] == [VARIABLES] * 5
    assert [row["environment"] for row in again] == [OTHER_VARIABLES] * 2


def test_an_error_is_a_result_and_not_tried_again(ended: dict[str, dict[str, Any]], folder: Path) -> None:
    assert ended["kinds fail"]["cause"] == "ZeroDivisionError: no such luck"
    assert ended["kinds fail"]["torch_device"] == "cpu"
    assert attempts(folder / "kinds", "fail") == 1


def test_a_trial_that_dies_is_a_result_with_what_it_said(ended: dict[str, dict[str, Any]], folder: Path) -> None:
    assert ended["kinds die"]["cause"] == "its process was killed by SIGSEGV"
    assert ended["kinds die"]["torch_device"] == "cpu"
    assert attempts(folder / "kinds", "die") == 1


def test_a_trial_that_takes_too_long_is_ended(ended: dict[str, dict[str, Any]], folder: Path) -> None:
    assert ended["late stay"]["cause"] == f"no result within {SHORT} s"
    assert not (folder / "late" / "stay").exists() or attempts(folder / "late", "stay") == 1


def test_a_worker_that_is_killed_is_replaced(ended: dict[str, dict[str, Any]], folder: Path) -> None:
    assert (ended["kinds once"]["cause"], ended["kinds once"]["done"]) == ("", True)
    assert attempts(folder / "kinds", "once") == 2


def test_a_task_that_loses_every_worker_ends_with_a_cause(ended: dict[str, dict[str, Any]], folder: Path) -> None:
    assert ended["kinds lose"]["cause"].startswith("lost its Ray worker 3 times, ")
    assert "WorkerCrashedError" in ended["kinds lose"]["cause"]
    assert ended["kinds lose"]["device"] in ("one", "two")
    assert attempts(folder / "kinds", "lose") == MAX_ATTEMPTS


def test_nothing_is_left_of_what_ended_was_left_early_or_interrupted(
    ended: dict[str, dict[str, Any]], folder: Path
) -> None:
    notes = [*folder.glob("*/*")]
    assert {folder / "left" / "stay", folder / "interrupted" / "stay"} < {*notes}
    wait_for(lambda: not any(map(alive, notes)))


def alive(attempts: Path) -> list[str]:
    return [pid for pid in attempts.read_text().split() if psutil.pid_exists(int(pid))]


def test_a_row_is_measured_and_trained_on_the_nodes_and_leaves_its_scores_here(address: str, tmp_path: Path) -> None:
    data = "cells:count=4,val=1,test=2,size=32"
    words = ["bench", "--encoder", "plain:widths=[4,8]", "--data", data, "--device", "cpu", "--budget", "0.2"]
    more = ["--steps", "2", "--epochs", "1", "--seeds", "1", "--metrics", "macs,latency,miou"]
    line = [sys.executable, "-m", "unetkit", *words, *more, "--engine", "ray", "--ray-address", address]
    done = subprocess.run(
        [*line, "--out", str(tmp_path / "run")], capture_output=True, text=True, timeout=10 * SOON, check=False
    )
    assert done.returncode == 0, done.stderr
    run = read_results(tmp_path / "run")
    assert [(row.error, [*row.timings]) for row in run.rows] == [("", ["latency"])]
    assert [(one.error, [*one.values]) for one in run.trainings] == [("", ["miou"])]
    assert {run.rows[0].device, run.trainings[0].device} <= {"cpu of one, 1 thread", "cpu of two, 1 thread"}
    assert len([*(tmp_path / "run" / "trainings").glob("*/seed-0/scores.npz")]) == 1


def test_each_gpu_is_a_place_and_the_first_that_its_trial_sees(ended: dict[str, dict[str, Any]]) -> None:
    rows = [ended["gpus meet-1"], ended["gpus meet-2"]]
    assert {row["gpus"] for row in rows} == {"0", "1"}
    assert {row["device"] for row in rows} == {"cuda:0 of two, 1 thread"}
    assert [row["share"] for row in rows] == [2, 2]


def test_what_no_node_has_is_refused(ended: dict[str, dict[str, Any]], address: str) -> None:
    gpus, slots = ended["many gpus"]["refused"], ended["many slots"]["refused"]
    assert "--engine ray: rows need nodes with 3 GPU, " in gpus
    assert "--engine ray: rows need nodes with 2 CPU, " in slots
    assert all(f" at {address} " in one and one.endswith("at most 1 CPU and 2 GPU") for one in (gpus, slots))


def test_a_node_with_other_versions_is_refused(ended: dict[str, dict[str, Any]]) -> None:
    assert f" has torch {library_versions()['torch']}, " in ended["strange"]["refused"]
    assert "this machine has 0.1, " in ended["strange"]["refused"]


def test_an_address_where_no_cluster_is_is_refused_at_once(ended: dict[str, dict[str, Any]]) -> None:
    port, host, name, client = (ended[f"no {nowhere}"]["refused"] for nowhere in NOWHERE)
    assert port.startswith("OptionError: --ray-address 127.0.0.1:9: ")
    assert host.startswith("OptionError: --ray-address nohost.invalid:6379: ")
    assert name.startswith("OptionError: --ray-address here: must be auto")
    assert client.startswith("OptionError: --ray-address ray://here:10001: ")


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(OptionError, match=r"--engine ray: .*pip install 'unetkit\[ray\]'"):
        import_ray()
    with pytest.raises(OptionError, match=r"--engine ray: "):  # before anything is built
        bench.run(["--encoder resnet18"], engine="ray")


if __name__ == "__main__":
    hold() if sys.argv[1] == "hold" else drive(sys.argv[2], json.loads(sys.argv[3]))
