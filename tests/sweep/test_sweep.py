"""The sweep: a random sample of timm passes it, whatever dies or hangs is a row, and it goes on where it stopped."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from tests.sweep.checks import CheckFailedError, CheckSizes, check_training_step
from tests.sweep.command import main, run_sweep
from tests.sweep.config import CHECKS, RESULTS, SweepConfig
from tests.sweep.page import render_tables, update_page
from tests.sweep.peak_memory import PeakMemoryMode
from tests.sweep.results import SweepWriter, read_results
from tests.sweep.runner import measure_models
from tests.sweep.summary import find_slowest, format_share, group_failures, summarize_checks
from unetkit.builder import build
from unetkit.errors import FileError, UnknownNameError
from unetkit.parts.encoders.timm_catalog import timm_model_names
from unetkit.utils.lazy_init import defer_init
from unetkit.utils.oom import is_oom
from unetkit.utils.system import code_digest

#: Draws the sample below; another gives other models.
SEED = 4
GIB = 1 << 30
CHILDREN = "tests.sweep.children"


def small_names(number: int, largest: float) -> list[str]:
    """The first names of a random order whose timm models have at most so many parameters."""
    names = [*timm_model_names()]
    random.Random(SEED).shuffle(names)
    found: list[str] = []
    with torch.device("meta"), defer_init():
        while len(found) < number:
            name = names.pop()
            if sum(p.numel() for p in timm.create_model(name).parameters()) <= largest:
                found.append(name)
    return found


@pytest.mark.slow
def test_a_random_sample_of_small_models_passes_everything(tmp_path: Path) -> None:
    names = small_names(3, 10e6)
    run_sweep(SweepConfig(names=(*names,), jobs=2, memory=4 * GIB), tmp_path / "sweep.jsonl")
    measured = read_results(tmp_path / "sweep.jsonl").rows
    assert {name for _, name in measured} == {*names}
    assert group_failures(measured.values()) == []
    assert [row["name"] for row in measured.values() if not row["real"]] == []


class Network(nn.Module):
    """A network that gives what it is told to, and takes the sizes that it is told to."""

    def __init__(self, gives: Callable[[Tensor], Tensor] = lambda out: out, takes: int = 1) -> None:
        super().__init__()
        self.encoder = nn.Sequential(OrderedDict(model=nn.Conv2d(3, 2, 1), pyramid=nn.Conv2d(2, 2, 1)))
        self.gives = gives
        self.takes = takes

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] % self.takes:
            raise ValueError(f"takes multiples of {self.takes}")
        return self.gives(self.encoder(x))


def nowhere(out: Tensor) -> Tensor:
    return out.detach() + torch.ones(1, requires_grad=True)


@pytest.mark.parametrize(
    ("question", "gives", "message"),
    [
        ("odd", lambda out: out[..., 1:], "an input of shape 1x3x97x131 gives an output of shape 1x2x97x130"),
        ("small", lambda out: out[0], "an input of shape 1x3x33x65 gives an output of shape 2x33x65"),
        ("own", lambda out: out / 0, "the output contains values that are not finite"),
        ("backward", nowhere, "no gradient reaches timm's model in the encoder"),
        ("backward", lambda out: out * 0, "all 2 gradients of timm's model in the encoder are 0"),
        ("backward", lambda out: (out - out).sqrt(), "the gradients of 4 of 4 parameters are not finite"),
        ("backward", lambda out: out[..., ::2], "an input of shape 2x3x128x128 gives an output of shape 2x2x128x64"),
    ],
)
def test_what_is_not_met_says_what_came_back(question: str, gives: Callable[[Tensor], Tensor], message: str) -> None:
    sizes = CheckSizes((224, 224), (128, 128))
    sizes.run_check(question, Network())
    with pytest.raises(CheckFailedError) as found:
        sizes.run_check(question, Network(gives))
    assert str(found.value) == message


def test_that_only_what_stands_around_a_model_learns_is_not_enough() -> None:
    model = build("test_vit")
    check_training_step(model, (64, 64))
    model.encoder.model.register_forward_hook(lambda _, __, maps: [each.detach() for each in maps])
    with pytest.raises(CheckFailedError, match=r"^no gradient reaches timm's model"):
        check_training_step(model, (64, 64))


def test_a_model_that_takes_no_other_size_is_trained_at_its_own() -> None:
    sizes = CheckSizes((160, 160), (128, 128))
    sizes.run_check("backward", Network(takes=80))
    with pytest.raises(ValueError, match="takes multiples of 9"):
        sizes.run_check("backward", Network(takes=9))
    assert CheckSizes.for_model("vit_tiny_patch16_224") == CheckSizes((224, 224), (224, 224))
    assert CheckSizes.for_model("resnet18").training == (128, 128)


def test_the_peak_is_what_is_held_at_one_time() -> None:
    weight = torch.empty(100, 10, device="meta")
    with PeakMemoryMode([weight]) as peak:
        for _ in range(3):
            held = weight.t() + 1
            del held
    assert peak.peak_bytes == 4000
    with PeakMemoryMode([weight]) as peak:
        kept = [weight + 1, weight + 2]
        kept.append(kept[0].view(-1))
    assert peak.peak_bytes == 8000


@pytest.mark.slow
def test_smp_is_asked_the_same() -> None:
    config = SweepConfig(library="smp", names=("test_vit", "test_maxvit"), memory=GIB)
    vit, maxvit = sorted(measure_models(config.list_names(), config), key=lambda row: str(row["name"]), reverse=True)
    assert vit["built"] == "ValueError: Unsupported model downsampling pattern."
    assert {vit[question] for question in CHECKS} == {"not built"}
    assert (maxvit["own"], maxvit["backward"], maxvit["strides"]) == ("ok", "ok", [2, 4, 8, 16, 32])
    assert maxvit["odd"].startswith("RuntimeError: The size of tensor a")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"memory": 150 << 20}, "needs 17"),
        ({"memory": GIB, "real_up_to": 100_000}, "has 1.39 M parameters, which is more than 100 k"),
    ],
)
def test_what_is_too_large_is_asked_on_meta(given: dict[str, int], why: str) -> None:
    (row,) = measure_models(["test_resnet"], SweepConfig(**given))  # type: ignore[arg-type]
    assert [row[answer] for answer in RESULTS] == ["ok"] * 5
    assert (row["real"], row["family"], row["size"]) == (False, "resnet", (160, 160))
    assert row["meta_reason"].startswith(why)


@pytest.mark.slow
def test_what_runs_out_of_memory_is_asked_on_meta(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.sweep import measure

    facts: dict[str, Any] = {}
    monkeypatch.setattr(measure, "limit_memory", lambda share: None)

    def runs_out(name: str, *rest: Any) -> bool:
        facts["tried"] = name
        return False

    monkeypatch.setattr(measure, "_check_real_model", runs_out)
    measure.measure_model("test_resnet", SweepConfig(memory=GIB), facts.update)
    assert (facts["tried"], facts["real"], facts["meta_reason"], facts["required_memory"]) == (
        "test_resnet",
        False,
        "ran out of memory at 1 GiB",
        GIB + 1,
    )
    assert [facts[answer] for answer in RESULTS] == ["ok"] * 5


@pytest.mark.slow
def test_a_process_is_held_to_its_share() -> None:
    code = "import torch\nfrom unetkit.utils.oom import is_oom\nfrom unetkit.utils.system import limit_memory\n"
    code += "limit_memory(2**28)\ntry: torch.ones(2**28)\nexcept Exception as e: print(is_oom(e))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.stdout == (b"True\n" if sys.platform == "linux" else b"")


@pytest.mark.parametrize(
    ("error", "is_so"),
    [
        (MemoryError(), True),
        (RuntimeError("MemoryError in the encoder"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"), True),
        (OSError(12, "Cannot allocate memory"), True),
        (RuntimeError("could not create a memory object"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("could not create a primitive descriptor for a convolution forward propagation"), False),
        (ValueError("could not create a map"), False),
    ],
)
def test_what_tells_of_memory_is_told_from_other_errors(error: Exception, is_so: bool) -> None:
    assert is_oom(error) == is_so


@pytest.mark.slow
def test_what_dies_or_hangs_is_a_row_with_its_cause() -> None:
    names = ["killed", "hangs", "fine", "leaves", "raises"]
    found = {row["name"]: row for row in measure_models(names, SweepConfig(jobs=3, timeout=8), f"{CHILDREN}:strange")}
    assert {name: row["odd"] for name, row in found.items()} == {
        "killed": "its process was killed by SIGKILL",
        "hangs": "no result within 8 s",
        "fine": "ok",
        "leaves": "its process ended with exit code 3",
        "raises": "ZeroDivisionError: no such luck",
    }
    assert {row["own"] for row in found.values()} == {"ok"}
    assert [found["killed"][answer] for answer in ("small", "backward")] == ["not run"] * 2
    assert "error" not in found["raises"]


#: Leads a sweep whose children call a function of CHILDREN.
LEADER = """
import sys
from pathlib import Path
from tests.sweep import command
from tests.sweep.config import SweepConfig

class Line:
    def main(self, **_):
        command.run_sweep(SweepConfig(names=(sys.argv[2],)), Path("sweep.jsonl"), target=sys.argv[1])

if __name__ == "__main__":
    command.command = Line()
    command.main()
"""


def lead(folder: Path, ask: str, glob: str) -> subprocess.Popen[str]:
    """Start a sweep in a folder."""
    (folder / "leader.py").write_text(LEADER)
    environment = {**os.environ, "LINGERS": str(folder), "PYTHONPATH": str(Path(__file__).parents[2])}
    words = [sys.executable, "leader.py", f"{CHILDREN}:{ask}", glob]
    return subprocess.Popen(
        words, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_a_sweep_that_was_killed_goes_on(tmp_path: Path) -> None:
    out, names = tmp_path / "sweep.jsonl", sorted(SweepConfig(names=("test_*",)).list_names())
    first = lead(tmp_path, "slowly", "test_*")
    wait_for(lambda: out.exists() and out.read_bytes().count(b"\n") >= 3)
    first.kill()
    first.communicate()
    before = len(read_results(out).rows)
    assert 2 <= before < len(names)
    with out.open("ab") as file:
        file.write(b'{"name":"test_resnet","built":"o')
    second = lead(tmp_path, "slowly", "test_*")
    said, _ = second.communicate()
    assert (second.returncode, sorted(row["name"] for row in lines(out) if "name" in row)) == (0, names)
    assert f"{len(names)} models in sweep.jsonl, of which {before} were measured before" in said


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_children_end_with_their_leader(tmp_path: Path, how: signal.Signals) -> None:
    leader = lead(tmp_path, "lingers", "resnet18")
    told = tmp_path / "resnet18"
    wait_for(lambda: told.exists() and told.read_text() != "")
    leader.send_signal(how)
    _, said = leader.communicate()
    wait_for(lambda: not alive(int(told.read_text())))
    assert leader.returncode == {signal.SIGKILL: -9, signal.SIGINT: 130, signal.SIGTERM: 143}[how]
    if how == signal.SIGINT:
        assert said.startswith("Error: interrupted: 0 of 1 models ")


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def lines(path: Path) -> Iterator[dict[str, Any]]:
    yield from map(json.loads, path.read_text().splitlines())


def row(name: str, **facts: Any) -> dict[str, Any]:
    return {"name": name, "real": True, "duration": 1.0, **dict.fromkeys(RESULTS, "ok"), **facts}


def recorded(path: Path, *found: dict[str, Any], config: SweepConfig | None = None) -> Path:
    record = SweepWriter(path, config or SweepConfig())
    for each in found:
        record.append(each)
    record.close()
    return path


def test_what_was_measured_with_other_versions_is_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, config = tmp_path / "sweep.jsonl", SweepConfig(names=("resnet18", "resnet34"))
    with monkeypatch.context() as patch:
        patch.setattr("tests.sweep.config.version", lambda name: "0.0.1")
        recorded(path, row("resnet18"), row("vgg16"), config=config)
    assert not read_results(path).is_done("resnet18", config, retry_failed=False)
    run_sweep(config, path, target=f"{CHILDREN}:fine")
    held = read_results(path)
    assert sorted(held.rows) == [("unetkit", "resnet18"), ("unetkit", "resnet34"), ("unetkit", "vgg16")]
    assert [
        held.headers[held.rows["unetkit", name]["header_id"]]["timm"] == "0.0.1" for name in ("resnet18", "vgg16")
    ] == [
        False,
        True,
    ]
    assert len([*lines(path)]) == 5


def test_what_was_measured_with_other_code_is_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = read_results(recorded(tmp_path / "a", row("resnet18")))
    theirs = read_results(recorded(tmp_path / "b", row("resnet18"), config=SweepConfig(library="smp")))
    assert held.is_done("resnet18", SweepConfig(), retry_failed=False)
    monkeypatch.setattr("tests.sweep.config.code_digest", lambda: "another")
    assert not held.is_done("resnet18", SweepConfig(), retry_failed=False)
    assert theirs.is_done("resnet18", SweepConfig(library="smp"), retry_failed=False)


def test_the_digest_of_code_is_of_what_makes_networks(tmp_path: Path) -> None:
    found = []
    for name in ("network.py", "parts/unet.py", "train/pool.py", "cli/build.py", "notes.md"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("")
        found.append(code_digest.__wrapped__(source=tmp_path))
    assert len({*found[:3]}) == 2
    assert len({*found[1:]}) == 1
    assert SweepConfig().get_versions()["code"] == code_digest() == code_digest.__wrapped__()


def test_a_header_says_what_was_given() -> None:
    header = SweepConfig(jobs=2, memory=4 * GIB, real_up_to=10**7).make_header()
    assert (header["jobs"], header["memory"], header["real_up_to"]) == (2, "4 GiB", 10_000_000)


def test_a_row_of_meta_is_measured_again_where_it_fits_now(tmp_path: Path) -> None:
    held = read_results(
        recorded(
            tmp_path / "a", row("resnet18", real=False, meta_reason="needs", required_memory=2 * GIB, parameters=10**7)
        )
    )
    assert held.is_done("resnet18", SweepConfig(memory=GIB), retry_failed=False)
    assert not held.is_done("resnet18", SweepConfig(memory=4 * GIB), retry_failed=False)
    assert held.is_done("resnet18", SweepConfig(memory=4 * GIB, real_up_to=10**6), retry_failed=False)


def test_what_failed_is_measured_again_when_asked(tmp_path: Path) -> None:
    held = read_results(recorded(tmp_path / "a", row("resnet18", odd="no"), row("vgg16")))
    asked = [(name, retry) for name in ("resnet18", "vgg16") for retry in (False, True)]
    assert [held.is_done(name, SweepConfig(), retry_failed=retry) for name, retry in asked] == [True, False, True, True]
    assert not held.is_done("vgg16", SweepConfig(library="smp"), retry_failed=False)


def test_the_order_is_random_and_a_sample_is_its_beginning() -> None:
    names = timm_model_names()
    assert sorted(SweepConfig().list_names()) == sorted(names)
    assert SweepConfig().list_names() == SweepConfig().list_names() != SweepConfig(seed=1).list_names()
    assert SweepConfig(sample=20).list_names() == SweepConfig().list_names()[:20]
    assert SweepConfig(sample=20).make_header()["sample"] == SweepConfig(sample=20).make_header()["planned"] == 20
    assert SweepConfig(names=("vgg16", "test_res*")).list_names() in (
        ["vgg16", "test_resnet"],
        ["test_resnet", "vgg16"],
    )
    with pytest.raises(UnknownNameError, match=r"resnet19 .did you mean resnet18 or"):
        SweepConfig(names=("resnet19",)).list_names()


def test_a_file_is_written_by_one_sweep_at_a_time(tmp_path: Path) -> None:
    record = SweepWriter(tmp_path / "a", SweepConfig())
    with pytest.raises(FileError, match=r"written by another sweep; .*--out"):
        SweepWriter(tmp_path / "a", SweepConfig())
    record.close()
    SweepWriter(tmp_path / "a", SweepConfig()).close()


@pytest.mark.parametrize(
    "line", ["{", "[]", "3", '{"name": "resnet18"}', '{"name": "resnet18", "header_id": "nowhere"}']
)
def test_a_file_that_is_no_sweeps_is_left_alone(tmp_path: Path, line: str) -> None:
    path = tmp_path / "a"
    path.write_text(f"{line}\n")
    with pytest.raises(FileError, match="a, line 1, is not a line of a sweep"):
        SweepWriter(path, SweepConfig())
    assert path.read_text() == f"{line}\n"


def test_failures_of_one_cause_are_one() -> None:
    found = group_failures(
        [
            row("a", odd="a gives 12", small="b gives 3"),
            row("b", odd="b gives 7"),
            row("c", built="no", own="not built", odd="not run"),
        ]
    )
    assert [(f.check, f.error, f.names) for f in found] == [
        ("built", "no", ("c",)),
        ("odd", "a gives 12", ("a", "b")),
        ("small", "b gives 3", ("a",)),
    ]
    assert format_share(1370, 1371) == "1370 of 1371 (99.9%)"
    assert [each["name"] for each in find_slowest([row("a", seconds=1), row("b", seconds=2), row("c")], 2)] == [
        "b",
        "a",
    ]


def test_the_page_says_what_the_files_hold(tmp_path: Path) -> None:
    ours = recorded(tmp_path / "a", row("resnet18", family="resnet", strides=[2, 4], parameters=5, seconds=0.5))
    theirs = recorded(
        tmp_path / "b", row("resnet18", built="no | <b>", own="not built"), config=SweepConfig(library="smp")
    )
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- rendered: sweep -->\nold\n<!-- end -->\nafter\n")
    update_page(page, [ours, theirs])
    table = render_tables([ours, theirs])
    assert page.read_text() == f"before\n<!-- rendered: sweep -->\n\n{table}\n\n<!-- end -->\nafter\n"
    assert "| built | 1 of 1 (100.0%) | 0 of 1 (0.0%) |" in table
    assert "not recorded" not in table
    assert table.count("| [2, 4] | 1 | ") == 2
    assert "| built | no \\| \\<b\\> | 1 | resnet18 |" in table
    assert table.count("#### No failures") == 1
    page.write_text("no marks")
    with pytest.raises(FileError, match="has no `<!-- rendered: sweep -->`"):
        update_page(page, [ours])
    with pytest.raises(FileError, match=r"does not exist; .*tests\.sweep --out "):
        render_tables([tmp_path / "nowhere"])


def test_the_totals_tell_real_tensors_from_shapes_alone() -> None:
    meta = {"real": False, "meta_reason": "needs more"}
    unbuilt = row("d", real=False, **dict.fromkeys(RESULTS, "not built"))
    found = dict(summarize_checks([row("a"), row("b", odd="no"), row("c", **meta), unbuilt]))
    assert found["built"] == "3 of 4 (75.0%)"
    assert found["97x131"] == "2 of 4 (50.0%)"
    assert found["97x131, on real tensors"] == "1 of 2 (50.0%)"
    assert found["97x131, on meta tensors"] == "1 of 1 (100.0%)"
    assert found["built models that were checked on real tensors"] == "2 of 3 (66.6%)"


def test_a_header_of_an_earlier_sweep_shows_what_it_lacks(tmp_path: Path) -> None:
    path = tmp_path / "a"
    recorded(path, row("resnet18"))
    header, *rest = lines(path)
    kept = {key: value for key, value in header.items() if key not in ("code", "jobs", "memory", "real_up_to")}
    path.write_text("".join(json.dumps(line) + "\n" for line in (kept, *rest)))
    table = render_tables([path])
    for key in ("code", "jobs", "memory", "real_up_to"):
        assert f"| {key} | not recorded |" in table


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--names resnet19", "timm has no model that matches resnet19 (did you mean"),
        (
            "--library torch",
            "Invalid value for '--library': 'torch' is not one of 'unetkit', 'smp'. See `python -m tests.sweep",
        ),
        (
            "mine.jsonl",
            "files are read only with --table, but mine.jsonl was given; use --out for results. "
            "See `python -m tests.sweep --help`",
        ),
        ("--table nowhere.jsonl", "the file nowhere.jsonl does not exist"),
        ("--names resnet18 --out .", ". cannot be written: Is a directory; give another --out"),
    ],
)
def test_what_is_refused_is_one_line(
    line: str, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["sweep", *line.split()])
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert (ended.value.code, said.count("\n"), said.startswith(f"Error: {message}")) == (2, 1, True), said
