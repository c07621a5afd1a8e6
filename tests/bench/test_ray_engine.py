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
from unetkit.bench.ray_engine import MAX_ATTEMPTS, import_ray, library_versions, run_on_ray
from unetkit.bench.results import read_results
from unetkit.errors import OptionError, UnetkitError

ROOT = Path(__file__).parents[2]
#: Seconds that Ray may take to start its nodes: on a machine where it takes longer there is nothing to test.
PATIENCE = 60
#: Seconds for what ought to come at once.
SOON = 30
#: Seconds that a child may take, which on a busy machine starts late; and after which one that stays is ended.
LONG, SHORT = 120, 8


# What children do


def child(task: tuple[str, str], slot: Slot, say: Callable[[dict[str, Any]], None]) -> None:
    """Say where it is, note the attempt in a folder, and end as the task's name says."""
    name, folder = task
    say({"device": str(slot), "torch_device": slot.device, "share": slot.num_slots})
    say({"gpus": os.environ.get("CUDA_VISIBLE_DEVICES"), "environment": os.environ.get("UNETKIT_TEST")})
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

    small = {"object_store_memory": 80 * 2**20}
    head = {"num_cpus": 1, "num_gpus": 0, "node_name": "one", "include_dashboard": False, **small}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        cluster.add_node(num_cpus=1, num_gpus=0, node_name="two", **small)
        cluster.add_node(num_cpus=0, num_gpus=2, node_name="three", **small)
        print(cluster.address, flush=True)
        sys.stdin.read()
    finally:
        cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def drive(asked: list[dict[str, Any]]) -> None:
    """Run tasks and print how each ended, a line each, or why none can run; leave after so many as `leave` says."""
    for one in asked:
        vars(nodes)["library_versions"] = strange_versions if one.get("strange") else library_versions
        try:
            drive_one(one["names"], one["folder"], one.get("leave"), {"timeout": 60, "gpus": 0, **one["options"]})
        except UnetkitError as error:
            print(json.dumps({"refused": f"{type(error).__name__}: {error}"}))


def drive_one(names: list[str], folder: str, leave: int | None, options: dict[str, Any]) -> None:
    ended = run_on_ray([(name, folder) for name in names], f"{NAME}:child", **options)
    for number, one in enumerate(ended, 1):
        print(json.dumps({"name": one.task[0], "cause": one.error, **one.facts}), flush=True)
        if number == leave:
            wait_for(Path(folder, "stay").exists)
            ended.close()


NAME = "tests.bench.test_ray_engine"


def strange_versions() -> dict[str, str]:
    """Another torch where this variable says so, as it does here and not on the nodes."""
    return {**library_versions(), "torch": os.environ.get("STRANGE_TORCH", library_versions()["torch"])}


def wait_for(fact: Callable[[], bool]) -> None:
    end = time.monotonic() + 2 * SOON
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
    """Of a cluster of nodes "one" and "two" with a CPU each, and "three" with two GPUs, so it believes, and no CPU."""
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


def driven(*asked: dict[str, Any], **environment: str) -> list[dict[str, Any]]:
    driver = start("drive", json.dumps(asked), **environment)
    said, noise = driver.communicate(timeout=10 * SOON)
    assert (noise, driver.returncode) == ("", 0)
    rows = [json.loads(line) for line in said.splitlines()]
    if late := [row["refused"] for row in rows if "started no worker within" in row.get("refused", "")]:
        pytest.skip(f"Ray starts no worker on this machine in reasonable time: {late[0]}")
    return rows


NAMES = ["meet-1", "meet-2", "fail", "die", "lose", "once"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("attempts")


@pytest.fixture(scope="module")
def ended(address: str, folder: Path) -> dict[str, dict[str, Any]]:
    """How every kind of task ended, in one run."""
    asked = {"names": NAMES, "folder": str(folder), "options": {"address": address, "timeout": LONG}}
    stays = {"names": ["stay"], "folder": str(folder), "options": {"address": address, "timeout": SHORT}}
    gpus = {
        "names": ["meet-3", "meet-4"],
        "folder": str(folder / "gpus"),
        "options": {"address": address, "gpus": None},
    }
    (folder / "gpus").mkdir()
    rows = driven(asked, stays, gpus, UNETKIT_TEST="told")
    (folder / "gpus").rename(folder.with_name("gpus"))
    names = [*NAMES, "stay", "meet-3", "meet-4"]
    assert sorted(row.get("name", row.get("refused", "")) for row in rows) == sorted(names)
    return {row["name"]: row for row in rows}


def attempts(folder: Path, name: str) -> int:
    return len((folder / name).read_text().split())


pytestmark = pytest.mark.slow


def test_nodes_work_at_the_same_time_and_rows_say_which(ended: dict[str, dict[str, Any]]) -> None:
    met = [ended["meet-1"], ended["meet-2"]]
    assert [row["cause"] for row in met] == ["", ""]
    assert {row["device"] for row in met} == {"cpu of one, 1 thread", "cpu of two, 1 thread"}


def test_a_child_has_the_variables_of_its_driver(ended: dict[str, dict[str, Any]]) -> None:
    assert ended["meet-1"]["environment"] == "told"


def test_an_error_is_a_result_and_not_tried_again(ended: dict[str, dict[str, Any]], folder: Path) -> None:
    assert ended["fail"]["cause"] == "ZeroDivisionError: no such luck"
    assert ended["fail"]["torch_device"] == "cpu"
    assert attempts(folder, "fail") == 1


def test_a_trial_that_dies_is_a_result_with_what_it_said(ended: dict[str, dict[str, Any]], folder: Path) -> None:
    assert ended["die"]["cause"] == "its process was killed by SIGSEGV"
    assert ended["die"]["torch_device"] == "cpu"
    assert attempts(folder, "die") == 1


def test_a_trial_that_takes_too_long_is_ended(ended: dict[str, dict[str, Any]], folder: Path) -> None:
    assert ended["stay"]["cause"] == f"no result within {SHORT} s"
    assert not (folder / "stay").exists() or attempts(folder, "stay") == 1


def test_a_worker_that_is_killed_is_replaced(ended: dict[str, dict[str, Any]], folder: Path) -> None:
    assert (ended["once"]["cause"], ended["once"]["done"]) == ("", True)
    assert attempts(folder, "once") == 2


def test_a_task_that_loses_every_worker_ends_with_a_cause(ended: dict[str, dict[str, Any]], folder: Path) -> None:
    assert ended["lose"]["cause"].startswith(
        "lost its Ray worker 3 times, the last time with WorkerCrashedError: The worker died"
    )
    assert ended["lose"]["device"] in ("one", "two")
    assert attempts(folder, "lose") == MAX_ATTEMPTS


def test_nothing_is_left_of_what_ended(ended: dict[str, dict[str, Any]], folder: Path) -> None:
    wait_for(lambda: not any(map(alive, folder.iterdir())))


def alive(attempts: Path) -> list[str]:
    return [pid for pid in attempts.read_text().split() if psutil.pid_exists(int(pid))]


def test_a_benchmark_is_measured_on_the_nodes(address: str, tmp_path: Path) -> None:
    words = ["bench", "--encoder", "plain:widths=[4,8]", "--fuse", "concat,add", "--size", "32", "--device", "cpu"]
    more = ["--metrics", "macs,latency", "--budget", "0.2", "--engine", "ray", "--ray-address", address]
    line = [sys.executable, "-m", "unetkit", *words, *more, "--out", str(tmp_path / "run")]
    done = subprocess.run(line, capture_output=True, text=True, timeout=10 * SOON, check=False)
    assert done.returncode == 0, done.stderr
    rows = read_results(tmp_path / "run").rows
    assert [(row.error, len(row.timings)) for row in rows] == [("", 1), ("", 1)]
    assert {row.device for row in rows} == {"cpu of one, 1 thread", "cpu of two, 1 thread"}


def test_trainings_run_on_the_nodes_and_leave_their_scores_here(address: str, tmp_path: Path) -> None:
    data = "cells:count=4,val=1,test=2,size=32"
    words = ["bench", "--encoder", "plain:widths=[4,8]", "--fuse", "concat,add", "--data", data, "--device", "cpu"]
    more = ["--steps", "2", "--epochs", "1", "--seeds", "1", "--metrics", "miou", "--engine", "ray"]
    line = [sys.executable, "-m", "unetkit", *words, *more, "--ray-address", address, "--out", str(tmp_path / "run")]
    done = subprocess.run(line, capture_output=True, text=True, timeout=10 * SOON, check=False)
    assert done.returncode == 0, done.stderr
    run = read_results(tmp_path / "run")
    assert [(one.error, [*one.values]) for one in run.trainings] == [("", ["miou"])] * 2
    assert {one.device for one in run.trainings} == {"cpu of one, 1 thread", "cpu of two, 1 thread"}
    assert len([*(tmp_path / "run" / "trainings").glob("*/seed-0/scores.npz")]) == 2


def test_each_gpu_is_a_place_and_the_first_that_its_trial_sees(ended: dict[str, dict[str, Any]]) -> None:
    rows = [ended["meet-3"], ended["meet-4"]]
    assert {row["gpus"] for row in rows} == {"0", "1"}
    assert {row["device"] for row in rows} == {"cuda:0 of three, 1 thread"}
    assert [row["share"] for row in rows] == [2, 2]


def test_leaving_early_ends_what_runs_and_leaves_the_cluster(address: str, tmp_path: Path) -> None:
    asked = {"names": ["stay", "fine"], "folder": str(tmp_path), "leave": 1, "options": {"address": address}}
    assert [row["name"] for row in driven(asked)] == ["fine"]
    wait_for(lambda: not alive(tmp_path / "stay"))


def test_an_interrupt_ends_what_runs(address: str, tmp_path: Path) -> None:
    asked = {"names": ["stay"], "folder": str(tmp_path), "options": {"address": address}}
    driver = start("drive", json.dumps([asked]))
    wait_for((tmp_path / "stay").exists)
    driver.send_signal(signal.SIGINT)
    said, noise = driver.communicate(timeout=2 * SOON)
    assert (said, noise.splitlines()[-1]) == ("", "KeyboardInterrupt")
    wait_for(lambda: not alive(tmp_path / "stay"))


def refused(*options: dict[str, Any], **environment: str) -> list[str]:
    """Why runs that ask this cannot be."""
    strange = bool(environment)
    asked = [{"names": ["fine"], "folder": "/", "options": option, "strange": strange} for option in options]
    return [said["refused"] for said in driven(*asked, **environment)]


def test_what_no_node_has_is_refused(address: str) -> None:
    gpus, slots = refused({"address": address, "gpus": 3}, {"address": address, "slots": 2})
    most = f"but those of the Ray cluster at {address} have at most 1 CPU and 2 GPU"
    assert gpus == f"OptionError: --engine ray: rows need nodes with 3 GPU, {most}"
    assert slots == f"OptionError: --engine ray: rows need nodes with 2 CPU, {most}"


def test_a_node_with_other_versions_is_refused(address: str) -> None:
    (why,) = refused({"address": address}, STRANGE_TORCH="0.1")
    assert (
        f" has torch {library_versions()['torch']}, but this machine has 0.1, so that rows could not be compared" in why
    )


def test_an_address_where_no_cluster_is_is_refused_at_once() -> None:
    if not find_spec("ray"):
        pytest.skip("Ray is not installed")
    addresses = ("127.0.0.1:9", "nohost.invalid:6379", "here", "ray://here:10001")
    port, host, name, client = refused(*({"address": address} for address in addresses))
    assert port.startswith("OptionError: --ray-address 127.0.0.1:9: no Ray cluster answers there (")
    assert host.startswith("OptionError: --ray-address nohost.invalid:6379: no Ray cluster answers there (")
    assert name.startswith(
        "OptionError: --ray-address here: must be auto, or HOST:PORT such as `ray start --head` prints it"
    )
    assert client.startswith("OptionError: --ray-address ray://here:10001: must be auto, or HOST:PORT")


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        OptionError, match=r"--engine ray: Ray is not installed; install it with pip install 'unetkit\[ray\]'"
    ):
        import_ray()
    with pytest.raises(OptionError, match=r"--engine ray: Ray is not installed"):  # before anything is built
        bench.run(["--encoder resnet18"], engine="ray")


if __name__ == "__main__":
    hold() if sys.argv[1] == "hold" else drive(json.loads(sys.argv[2]))
