"""Runs: real networks in real children; whatever dies is a row; what is stopped goes on; a folder holds one run."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import unetkit
from tests.bench.conftest import run_cli
from unetkit import bench
from unetkit.bench.columns import filter_rows, make_columns
from unetkit.bench.effects import estimate_effects
from unetkit.bench.results import BenchRow, ResultsWriter, read_results
from unetkit.bench.statistics import MIN_ROUNDS
from unetkit.errors import BuildError, FileError, OptionError, UnetkitError, UnknownNameError
from unetkit.utils.json_lines import JsonLinesWriter

pytestmark = pytest.mark.slow

TINY = "--encoder plain:widths=[4,8]"
#: What a run of tests costs beside imports should be little.
QUICK: dict[str, Any] = {"budget": 0.2, "threads": 1, "size": [32]}


def rows_in(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    return [line["row"] for line in lines if "row" in line]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> bench.BenchRows:
    """Measure everything of a small U-Net, of another, of a whole model, and of one that cannot be built."""
    plans = ["--encoder test_resnet", "--encoder test_resnet --fuse add", "--encoder test_resnet --fuse nope"]
    plans.append("--model smp/linknet --encoder timm/test_resnet")
    return bench.run(plans, out=tmp_path_factory.mktemp("run"), **QUICK | {"size": [64], "budget": 0.1})


def test_every_metric_is_measured_of_every_row(measured: bench.BenchRows) -> None:
    names = [metric.name for metric in measured.run.header.metrics]
    assert names == [
        "parameters",
        "macs",
        "activations",
        "build",
        "disk",
        "memory",
        "training-memory",
        "latency",
        "training",
    ]
    for row in (measured[0], measured[1], measured[3]):
        assert (row.error, row.failures) == ("", {})
        assert {*row.values, *row.timings} == {*names}
        for timing in row.timings.values():
            assert len(timing.candidate) == len(timing.baseline) >= MIN_ROUNDS
            assert min(timing.candidate + timing.baseline) > 0


def test_figures_are_those_of_the_network(measured: bench.BenchRows, tmp_path: Path) -> None:
    for row in (measured[0], measured[3]):
        model = unetkit.build(unetkit.Plan.parse(row.line))
        traced = unetkit.trace(model, 64)
        assert row.values["parameters"] == traced.parameters == sum(p.numel() for p in model.parameters())
        assert (row.values["macs"], row.values["activations"]) == (traced.macs, traced.activation_bytes)
        unetkit.save(model, tmp_path / "model.safetensors")
        written = (tmp_path / "model.safetensors").stat().st_size
        assert abs(row.values["disk"] - written) < 64  # the seed stands in its plan
        weights = 4 * traced.parameters
        assert weights < row.values["memory"] < row.values["training-memory"]
        assert row.values["training-memory"] > 4 * weights  # weights, gradients and two moments of AdamW


def test_what_cannot_be_built_is_a_row_with_its_reason(measured: bench.BenchRows) -> None:
    row = measured[2]
    assert row.error.startswith("--fuse nope: ")
    assert "the fusions are concat, add, " in row.error
    assert (row.values, row.timings, row.is_measured) == ({}, {}, False)


def test_rows_say_where_and_how_they_were_measured(measured: bench.BenchRows) -> None:
    assert measured.run.header.baseline == "--encoder test_resnet"
    assert measured[1].line == "--encoder test_resnet --fuse add --size 64"
    assert {
        name: measured[1].factors[name] for name in ("model", "encoder", "up", "fuse", "size", "batch_size", "mode")
    } == {
        "model": "unet",
        "encoder": "test_resnet",
        "up": "bilinear",
        "fuse": "add",
        "size": "64",
        "batch_size": "1",
        "mode": "eager",
    }
    assert measured[1].device.startswith("cpu, core")
    assert measured[1].device.endswith(" 1 thread")
    assert measured.run.header.machine["cores"] == len(os.sched_getaffinity(0))


def test_rows_that_a_later_command_adds_pair_with_what_is_there(tmp_path: Path) -> None:
    encoder = "--encoder plain:widths=[4,8]"
    common: dict[str, Any] = {"metrics": ["parameters"], "out": tmp_path / "run"}
    before = bench.run([f"{encoder} --fuse add", encoder], size=32, **common).run
    again = bench.run([f"{encoder} --up nearest", f"{encoder} --fuse concat --up bilinear"], size=[32, 64], **common)
    assert [row.factors["up"] for row in again] == ["nearest", "nearest", "bilinear", "bilinear"]
    run = read_results(tmp_path / "run")
    assert run.rows[:2] == before.rows
    assert [*run.numbers.values()] == [1, 2, 3, 4, 5]  # the row that both commands plan is measured once
    assert [len(one.planned) for one in run.commands] == [2, 4]
    chosen = filter_rows(run.rows, make_columns(run), ["model=unet", "fuse=concat", "up=bilinear", "size=32"])
    assert [run.numbers[row.id] for row in chosen] == [2]
    for rows in (run.rows, run.rows[::-1]):  # a choice has one direction, whichever rows are left
        changes = [(one.factor, one.a, one.b, len(one.pairs)) for one in estimate_effects(run, "parameters", rows)]
        assert changes == [("up", "bilinear", "nearest", 2), ("fuse", "add", "concat", 1)]


def test_measuring_again_measures_nothing(measured: bench.BenchRows) -> None:
    seen: list[BenchRow] = []
    again = bench.run(
        [row.line.replace(" --size 64", "") for row in measured[:2]],
        out=measured.run.folder,
        on_row=seen.append,
        **QUICK | {"size": [64], "budget": 0.2, "target_ci": 0.01},  # these decide precision alone
    )
    assert seen == []
    assert again == measured[:2]
    assert len(rows_in(measured.run.folder)) == 4


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"seed": 1}, "were measured with seed 0, but this command uses 1; "),
        (
            {"metrics": ["macs"]},
            "were measured with --metrics parameters,macs,activations,build,disk,memory,training-mem",
        ),
        (
            {"baseline": "--encoder test_vit"},
            "were measured with baseline --encoder test_resnet, ",
        ),
    ],
)
def test_rows_that_cannot_be_compared_do_not_mix(
    measured: bench.BenchRows, choice: dict[str, Any], message: str
) -> None:
    with pytest.raises(FileError) as found:
        bench.run(["--encoder test_resnet"], out=measured.run.folder, **QUICK | {"size": [64]} | choice)
    assert message in str(found.value)


def test_a_frame_has_the_rows(measured: bench.BenchRows) -> None:
    frame = measured.to_pandas()
    assert len(frame) == 4
    assert frame["parameters"][0] == measured[0].values["parameters"]


STRANGE = '''
import ctypes, os, signal, sys, time
import torch, unetkit

class Strange(torch.nn.Conv2d):
    """A head that ends its process, or does not, as its option says, where it has real numbers to pass."""

    def __init__(self, in_channels: int, classes: int, *, way: str = "fine"):
        super().__init__(in_channels, classes, 1)
        self.way = way
        if way == "early":
            self.killed()

    def forward(self, x):
        if x.device.type != "meta":
            getattr(self, self.way)()
        return super().forward(x)

    def fine(self):
        pass

    def killed(self):
        os.kill(os.getpid(), signal.SIGKILL)

    def crashes(self):
        ctypes.string_at(0)

    def hangs(self):
        time.sleep(600)

    def leaves(self):
        sys.exit(3)

    def raises(self):
        raise ZeroDivisionError("no such luck")

    def exhausts(self):
        torch.empty(2**50)

@unetkit.hookimpl
def unetkit_register(parts):
    parts.heads.add("strange", Strange)
    parts.metrics.add("depth", depth)
    parts.metrics.add("twice", twice, timed=True)
    parts.metrics.add("broken", broken, unit="J")

def depth(subject):
    """Modules of the network."""
    return len([*subject.model.modules()])

def twice(subject):
    """Two passes."""
    return lambda: (subject.forward(), subject.forward())

def broken(subject):
    """A metric that fails."""
    raise KeyError("nothing here")
'''


@pytest.fixture
def strange(tmp_path: Path) -> str:
    path = tmp_path / "strange.py"
    path.write_text(STRANGE)
    return str(path)


def test_what_dies_or_hangs_is_a_row_with_its_cause(strange: str, tmp_path: Path) -> None:
    ways = ("fine", "killed", "crashes", "hangs", "leaves", "raises", "exhausts")
    plans = [f"{TINY} --head strange:way={way}" for way in ways]
    options = QUICK | {"jobs": min(2, len(os.sched_getaffinity(0)))}  # the others run while one hangs
    found = bench.run(plans, plugins=[strange], metrics=["macs", "latency"], timeout=5, **options)
    fine, killed, crashes, hangs, leaves, raises, exhausts = found
    assert (fine.error, fine.failures) == ("", {})
    assert re.fullmatch("its process .* SIGKILL, .* latency", killed.error)
    assert re.fullmatch("its process .* SIGSEGV, .* latency", crashes.error)
    assert re.fullmatch("no result within 5 s, .* latency", hangs.error)
    assert re.fullmatch("its process .* exit code 3, .* latency", leaves.error)
    assert raises.failures == {"latency": "ZeroDivisionError: no such luck"}
    assert exhausts.failures["latency"].startswith("ran out of memory: RuntimeError: ")
    assert all(row.values["macs"] == fine.values["macs"] for row in found)


def test_a_row_whose_build_kills_its_process_costs_no_other_row(strange: str) -> None:
    ways = ("fine", "fine", "early", "raises", "killed")  # several rows are built in one process
    plans = [f"{TINY} --head strange:way={way} --classes {2 + i}" for i, way in enumerate(ways)]
    found = bench.run([*plans, f"{TINY} --head strange:nope=1"], plugins=[strange], metrics=["macs"], **QUICK)
    errors = [row.error for row in found]
    assert errors[:5] == ["", "", "its process was killed by SIGKILL", "", ""]
    assert "nope" in errors[5]
    assert all(row.values["macs"] for row in found if not row.error)


def test_plugins_add_metrics(strange: str) -> None:
    [row] = bench.run([TINY], plugins=[strange], metrics=["depth", "twice", "broken"], **QUICK)
    assert row.values == {"depth": len([*unetkit.build("plain:widths=[4,8]").modules()])}
    assert len(row.timings["twice"].candidate) >= MIN_ROUNDS
    assert re.fullmatch(r"KeyError: 'nothing here' \(.*strange\.py:\d+\)", row.failures["broken"])


def test_an_edited_plugin_is_measured_again(strange: str, tmp_path: Path) -> None:
    plans = [TINY, f"{TINY} --head strange"]
    options: dict[str, Any] = {"plugins": [strange], "metrics": ["macs"], "out": tmp_path / "run", **QUICK}
    bench.run(plans, **options)
    Path(strange).write_text(STRANGE + "\n# edited\n")
    seen: list[BenchRow] = []
    bench.run(plans, on_row=seen.append, **options)
    assert [row.factors.get("head") for row in seen] == ["strange"]


def test_a_size_that_a_plan_says_is_that_of_the_row() -> None:
    [row] = bench.run([f"{TINY} --in-channels 1 --size 40x24"], metrics=["macs"])
    assert (row.size, row.factors["size"]) == ((40, 24), "40x24")


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        (
            {"baseline": "--encoder resnet81"},
            BuildError,
            "--baseline --encoder resnet81: --encoder resnet81: no encoder",
        ),
        (
            {"metrics": ["latencies"]},
            UnknownNameError,
            "--metrics: no metric is called 'latencies' (did you mean latency",
        ),
        ({"device": "cuda:7"}, OptionError, "--device cuda:7: there is no device 'cuda:7'; "),
        ({"jobs": 1000}, OptionError, "--jobs 1000: must be at most the number of cores, "),
        ({"budgets": 1}, OptionError, "bench.run: there is no argument 'budgets' (did you mean budget?)"),
        ({"mode": ["fast"]}, OptionError, "--mode fast: no mode is called 'fast'"),
    ],
)
def test_what_cannot_be_chosen_is_one_line(given: dict[str, Any], kind: type[UnetkitError], message: str) -> None:
    with pytest.raises(kind) as found:
        bench.run([TINY], **given)
    assert str(found.value).startswith(message)


def test_a_part_that_no_other_process_finds_is_refused() -> None:
    class Local:
        pass

    with pytest.raises(OptionError, match=r"^the plan cannot be sent "):
        bench.run([unetkit.Plan.of(encoder="resnet18", fuse=Local)])
    with pytest.raises(OptionError, match=r"^no plan is given"):
        bench.run([])


def test_a_script_from_standard_input_runs_and_libraries_are_not_memory_of_the_network() -> None:
    measured = f"bench.run(['{TINY}'], metrics=['parameters', 'training-memory'], size=32)"
    script = f"import json\nfrom unetkit import bench\n(row,) = {measured}\nprint(json.dumps(row.values))"
    done = subprocess.run([sys.executable, "-"], input=script, capture_output=True, text=True, timeout=120, check=False)
    values = json.loads(done.stdout or done.stderr)
    assert values["parameters"] == 1766
    assert values["training-memory"] < 8 * 2**20  # an optimizer imports modules of 70 MiB


def test_a_script_without_a_guard_is_told_so(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(f"from unetkit import bench\nbench.run([{TINY!r}])\n")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert '`if __name__ == "__main__":`' in done.stderr


def grid(folder: Path) -> list[str]:
    encoders = "plain:widths=[2,3],plain:widths=[2,4]"
    words = ["--encoder", encoders, "--fuse", "concat,add,mean", "--size", "16", "--threads", "1"]
    return [*words, "--metrics", "macs,latency", "--budget", "0.05", "--out", str(folder)]


def start(folder: Path) -> subprocess.Popen[str]:
    """Start the command in a process of its own, which can be interrupted or killed."""
    line = [sys.executable, "-m", "unetkit", "bench", *grid(folder)]
    return subprocess.Popen(line, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Interrupt a run after its first row, while a second command asks for the same folder."""
    folder = tmp_path_factory.mktemp("interrupted") / "run"
    process = start(folder)
    wait_for_rows(folder, process, 1)
    process.send_signal(signal.SIGSTOP)  # or it might end before the second one has started
    try:
        second = run_cli(*grid(folder))
        assert isinstance(second.exception, FileError)
        assert f"{folder}/rows.jsonl is being written by another benchmark" in str(second.exception)
    finally:
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGCONT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    (folder / "said").write_text(said)
    return folder


def test_an_interrupt_ends_cleanly_and_says_how_to_go_on(interrupted: Path) -> None:
    said = (interrupted / "said").read_text()
    assert "stored in" in said.splitlines()[-1]
    assert ": unetkit bench --encoder" in said.splitlines()[-1]
    assert "Traceback" not in said


def test_a_run_that_is_interrupted_and_then_killed_has_every_row_once(interrupted: Path) -> None:
    folder = interrupted
    held = len(rows_in(folder))
    assert 0 < held < 6
    process = start(folder)
    wait_for_rows(folder, process, held + 1)
    time.sleep(random.Random(5).uniform(0, 0.7))
    process.kill()
    process.communicate()
    assert len(rows_in(folder)) > held  # it was killed in the middle, or at its end
    done = run_cli(*grid(folder))
    assert done.exit_code == 0, done.output
    counted = Counter(row["id"] for row in rows_in(folder))
    assert len(counted) == 6
    assert {*counted.values()} == {1}
    run = read_results(folder)
    assert (run.num_planned, len(run.rows), [row.error for row in run.rows if row.error]) == (6, 6, [])


def test_the_exit_code_tells_of_what_failed(tmp_path: Path) -> None:
    words = ["--encoder", "plain:widths=[4,8]", "--size", "2", "--device", "cpu", "--threads", "1"]
    for name, metrics, code in (("a", "parameters", 0), ("b", "parameters,training", 1)):
        done = run_cli(*words, "--metrics", metrics, "--out", str(tmp_path / name))
        assert done.exit_code == code, done.output
        [row] = read_results(tmp_path / name).rows
        assert row.values["parameters"] > 0
    assert "a batch norm gets one value for each channel" in row.failures["training"]


def wait_for_rows(folder: Path, process: subprocess.Popen[Any], number: int) -> None:
    until = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < until:
        if number == 0 or ((folder / "rows.jsonl").exists() and len(rows_in_torn(folder)) >= number):
            return
        time.sleep(0.02)


def rows_in_torn(folder: Path) -> Sequence[bytes]:
    return [line for line in (folder / "rows.jsonl").read_bytes().split(b"\n")[:-1] if line.startswith(b'{"row"')]


def test_a_torn_line_is_no_row(measured: bench.BenchRows, tmp_path: Path) -> None:
    lines = (measured.run.folder / "rows.jsonl").read_bytes().splitlines(keepends=True)
    text = b"".join(lines[:2] + [line for line in lines if line.startswith(b'{"row"')])
    (tmp_path / "rows.jsonl").write_bytes(text[:-20])
    assert len(read_results(tmp_path).rows) == 3
    ledger = ResultsWriter(tmp_path)
    ledger.append(measured[3])
    ledger.close()
    assert len(read_results(tmp_path).rows) == 4


def test_a_row_that_was_measured_again_counts_once(measured: bench.BenchRows, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes((measured.run.folder / "rows.jsonl").read_bytes())
    ledger = ResultsWriter(tmp_path)
    ledger.append(replace(measured[0], error="another"))
    assert ledger.is_done(measured[0].id, measured[0].cache_key, retry_failed=False)
    assert not ledger.is_done(measured[0].id, measured[0].cache_key, retry_failed=True)
    assert not ledger.is_done(measured[0].id, "edited", retry_failed=False)
    ledger.close()
    assert [row.error for row in read_results(tmp_path).rows].count("another") == 1
    assert len(read_results(tmp_path).rows) == 4


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"no benchmark results: .*rows\.jsonl; "):
        read_results(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"what": 1}\n')
    with pytest.raises(FileError, match=r"rows\.jsonl, line 1, "):
        ResultsWriter(tmp_path)
    JsonLinesWriter(tmp_path / "rows.jsonl", "benchmark").close()  # it is left unlocked
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match=r"^--out .*file is a file; give a folder$"):
        ResultsWriter(tmp_path / "file")
