"""The checks for a GPU, as far as a machine without one can show that they work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from tests.gpu.__main__ import find_missing_packages
from tests.gpu.checks import CHECKS
from tests.gpu.command import main
from tests.gpu.results import CheckResult, Fact, Report, print_table


def run(*words: object, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("sys.argv", ["gpu", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main([])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_a_report_passes_only_if_every_fact_is_known_and_met(tmp_path: Path) -> None:
    good, bad = Fact("1 GPU", "[1]", is_met=True), Fact("loss nan", "finite", is_met=False)
    cases = {
        "ok": CheckResult("a", (good,)),
        "FAILED": CheckResult("b", (good, bad)),
        "skipped": CheckResult("c", error="needs a GPU", is_run=False, is_skipped=True),
        "not run": CheckResult("d", error="no time", is_run=False),
    }
    failed = (CheckResult("e"), CheckResult("f", (good,), error="no result within 9 s"))
    assert [case.status for case in cases.values()] == [*cases]
    assert [case.status for case in failed] == ["FAILED", "FAILED"]
    for number, result in enumerate((*cases.values(), *failed)):
        report = Report({"device": "cpu"}, (cases["ok"], result), (), 1.0)
        report.write(tmp_path / f"{number}.json")
        assert report.is_passed == (number in (0, 2))
        assert json.loads((tmp_path / f"{number}.json").read_text())["results"][1]["status"] == result.status
    console = Console(width=120, record=True)
    print_table([*cases.values()], console)
    text = console.export_text()
    assert all(word in text for word in ("[1]", "loss nan", "needs a GPU", "no time"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.slow
def test_checks_are_rehearsed_on_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert find_missing_packages() == []
    out = tmp_path / "facts.json"
    assert run("--out", out, monkeypatch=monkeypatch) == 2
    assert "no CUDA device" in capsys.readouterr().err.splitlines()[-1]
    assert run("--out", out, "--device", "cpu", "delay", "bfloat16", monkeypatch=monkeypatch) == 0
    results = json.loads(out.read_text())["results"]
    assert [(result["name"], result["status"]) for result in results] == [("delay", "skipped"), ("bfloat16", "ok")]
    assert run("--out", out, "--device", "cpu", "--budget", 1, monkeypatch=monkeypatch) == 1
    found = {result["name"]: result["status"] for result in json.loads(out.read_text())["results"]}
    assert found == {name: "skipped" if check.needs_gpu else "not run" for name, check in CHECKS.items()}
