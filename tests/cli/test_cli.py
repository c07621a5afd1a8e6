"""The command line: what it prints, what it refuses, and what it imports."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from click.testing import CliRunner, Result

import unetkit
from unetkit.cli import cli, main
from unetkit.cli.options import complete_part
from unetkit.plan import PLAN_FIELDS
from unetkit.plugins import load_parts

SMALL = ["--encoder", "plain:widths=[4,8]"]


def run(*words: str) -> Result:
    return CliRunner().invoke(cli, [*words])


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line that a refused command leaves on stderr."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["unetkit", *words])
        with pytest.raises(SystemExit) as ended:
            main()
    out, err = capsys.readouterr()
    assert ended.value.code == 2
    assert out == ""
    assert err.count("\n") == 1
    return err.removeprefix("Error: ").strip()


def test_build_shows_the_line_the_table_and_the_totals() -> None:
    result = run("build", "--encoder", "resnet101", "--fuse", "add")
    assert result.exit_code == 0
    assert result.output.startswith("--encoder resnet101 --fuse add\n")
    for text in ("↓ encoder.4   timm layer4", "↑ stages.4", "project_x 1x1 conv 2048 to 1024", "57,829,186"):
        assert text in result.output, text
    assert "receptive field" in result.output
    assert "encoder weights random" in result.output


@pytest.mark.parametrize(("size", "expected"), [("572", "388x388"), ("572x604", "388x420")])
def test_size_is_one_number_or_height_by_width(size: str, expected: str) -> None:
    assert expected in run("build", "--recipe", "unet-2015", "--size", size).output


def test_json_is_the_same_as_data() -> None:
    result = run("build", *SMALL, "--size", "32", "--json")
    model = unetkit.build("plain:widths=[4,8]", size=32, device="meta")
    assert json.loads(result.output) == {"trace": json.loads(json.dumps(unetkit.trace(model).to_dict()))}


def test_picture_save_and_check(tmp_path: Path) -> None:
    picture, file = tmp_path / "deep" / "u.svg", tmp_path / "m.safetensors"
    result = run(
        "build", *SMALL, "--size", "16", "--seed", "4", "--check", "--picture", str(picture), "--save", str(file)
    )
    assert result.exit_code == 0, result.output
    assert "check passed: 2x3x16x16 gives 2x2x16x16" in result.output
    assert ElementTree.parse(picture).getroot().tag.endswith("svg")
    loaded, again = unetkit.load(file), unetkit.build("plain:widths=[4,8]", seed=4)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), again.parameters(), strict=True))
    assert str(loaded.plan) == "--encoder 'plain:widths=[4,8]' --size 16 --seed 4"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "m.safetensors"]


def test_a_picture_that_cannot_be_written_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    message = refusal(capsys, "build", *SMALL, "--picture", str(tmp_path / "file" / "u.svg"))
    assert message.startswith(f"--picture {tmp_path / 'file' / 'u.svg'} cannot be written: ")


#: Refusals that name what other libraries have; `messages.txt` holds those that are the same on every machine.
REFUSALS = [
    (
        ["build", "--encoder", "resnet1O1"],
        "--encoder resnet1O1: no encoder is called 'resnet1O1' (did you mean resnet101",
    ),
    (["build", "--encoder", "vgg11:output_stride=8"], "timm/vgg11 does not take output_stride=8"),
    (["build", *SMALL, "--block", "double:act=rellu"], "act=rellu: timm has no such activation (did you mean"),
]


@pytest.mark.parametrize(("words", "expected"), REFUSALS, ids=[" ".join(words) for words, _ in REFUSALS])
def test_refusals_are_one_line_and_exit_with_2(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert expected in refusal(capsys, *words)


def test_the_traceback_is_shown_when_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["unetkit", "-v", "build", "--encoder", "resnet1O1"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert "Traceback (most recent call last)" in err
    assert err.splitlines()[-1].startswith("Error: --encoder resnet1O1: ")


def test_a_failed_check_exits_with_1(tmp_path: Path) -> None:
    file = tmp_path / "forgetful.py"
    file.write_text(
        "import torch\nimport unetkit\n\n"
        "class Forgetful(torch.nn.Conv2d):\n"
        '    """A 1x1 convolution with a weight that it forgets."""\n'
        "    def __init__(self, in_channels: int, out_channels: int):\n"
        "        super().__init__(in_channels, out_channels, 1)\n"
        "        self.forgotten = torch.nn.Parameter(torch.zeros(1))\n\n"
        "@unetkit.hookimpl\n"
        "def unetkit_register(parts):\n"
        "    parts.blocks.add('forgetful', Forgetful)\n"
    )
    result = run("--plugin", str(file), "build", *SMALL, "--block", "forgetful", "--size", "16", "--check")
    assert result.exit_code == 1
    assert "check FAILED: " in result.output
    assert "gradients do NOT reach stages.0.block.forgotten" in result.output


def test_every_word_is_an_option_with_help() -> None:
    text = run("build", "--help").output
    assert all(f"  {word.flag} " in text for word in PLAN_FIELDS)
    assert "unetkit build --recipe unet-2015" in text


def test_list_without_a_kind_counts_all() -> None:
    text = run("list").output
    assert all(kind in text for kind in ("encoders", "upsamplers", "fusions", "aligns", "blocks", "heads", "recipes"))
    assert "--fuse" in text


def test_list_of_a_kind_and_a_glob() -> None:
    assert run("list", "encoders", "resnet1?").output.split() == ["resnet18", "smp/resnet18"]
    recipes = run("list", "recipes").output
    assert "unet-2015" in recipes
    assert "(Ronneberger 2015)" in recipes
    encoders = run("list", "encoders").output
    assert "plain" in encoders
    assert len(encoders.split("\n")) > 1300


def test_list_of_metrics_says_what_they_measure() -> None:
    listed, one = run("list", "metrics").output, run("list", "metrics", "miou").output
    assert all(word in listed for word in ("measures", "cost", "time", "trained network", "unit", "more"))
    assert "trained network" in one
    assert "--data" in one


def test_list_of_one_part_says_options_types_defaults_owner_and_place() -> None:
    text = run("list", "up", "transposed").output
    for said in ("kernel", "an integer or none", "one of random, bilinear", "none means the scale", "unetkit"):
        assert said in text, said
    assert "upsamplers.py:" in text
    assert "This part has no options." in run("list", "fuse", "add").output
    assert "output_stride" in run("list", "encoders", "resnet50").output
    assert "registered by unetkit for all of timm, in" in run("list", "encoders", "resnet50").output


def test_completion_of_names_options_and_levels() -> None:
    parts = load_parts(isolated=True)

    def complete(kind: str, text: str) -> list[str]:
        return [item.value for item in complete_part(parts[kind], text)]

    assert complete("fuse", "") == ["concat", "add", "mean", "max"]
    assert complete("fuse", "add/c") == ["add/concat"]
    assert complete("block", "double+ba") == ["double+basic"]
    assert complete("block", "double/basic+preact:or") == ["double/basic+preact:order="]
    assert complete("up", "nearest+b") == []
    assert "resnet101" in complete("encoder", "resnet10")
    assert complete("up", "transposed:ini") == ["transposed:init="]
    assert complete("up", "bilinear/transposed:kernel=3,gro") == ["bilinear/transposed:kernel=3,groups="]
    assert complete("up", "nothing:a") == []


def completed(shell: str, *words: str) -> list[str]:
    """What a shell's completion script would be told."""
    environment = {
        **os.environ,
        "_UNETKIT_COMPLETE": f"{shell}_complete",
        "COMP_WORDS": " ".join(["unetkit", *words]),
        "COMP_CWORD": words[-1] if shell == "fish" else str(len(words)),
    }
    command = [sys.executable, "-c", "from unetkit.cli import main; main()"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.slow
def test_completion_in_bash_zsh_and_fish() -> None:
    words = ["build", "--encoder", "resnet10"]
    assert "plain,resnet101" in completed("bash", *words)
    assert "resnet101" in completed("zsh", *words)
    assert any("resnet101" in line for line in completed("fish", *words))


def test_help_list_completion_and_refusals_import_neither_torch_nor_timm() -> None:
    script = """
import sys
from click.testing import CliRunner
from unetkit.cli import cli
from unetkit.cli.options import complete_part
from unetkit.plugins import load_parts
for words in (["--help"], ["build", "--help"], ["list"], ["list", "encoders"], ["list", "encoders", "resnet*"],
              ["list", "fuse", "add"], ["list", "encoders", "resnet18"], ["list", "recipes", "unet-2015"],
              ["bench", "--help"], ["bench", "metrics"], ["bench", "show", "--help"], ["bench", "selftest", "--help"],
              ["data", "--help"], ["data", "check", "--help"], ["train", "--help"], ["eval", "--help"],
              ["predict", "--help"]):
    assert CliRunner().invoke(cli, words).exit_code == 0, words
for words in (["build", "--encoder", "resnet1O1"], ["build", "--encoder", "resnet18", "--up", "bilinear:nope=1"],
              ["bench", "--encoder", "resnet1O1*"], ["bench", "show", "nowhere"],
              ["train", "--encoder", "resnet1O1", "--out", "x"], ["train", "--encoder", "resnet18"]):
    assert CliRunner().invoke(cli, words).exit_code != 0, words
complete_part(load_parts().encoders, "res")
print([name for name in ("torch", "timm", "torchvision", "segmentation_models_pytorch") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_output_that_nobody_reads_ends_the_command_without_a_word() -> None:
    command = [sys.executable, "-m", "unetkit", "list", "fusions"]
    closed = subprocess.run(["sh", "-c", f"{shlex.join(command)} >&-"], capture_output=True, check=False)
    assert (closed.returncode, closed.stderr) == (0, b"")
    reading, writing = os.pipe()
    os.close(reading)
    for words in (command, [*command[:3], "--help"]):
        broken = subprocess.run(words, stdout=writing, stderr=subprocess.PIPE, check=False)
        assert (broken.returncode, broken.stderr) == (141, b"")
    os.close(writing)


def test_a_narrow_terminal_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    monkeypatch.setattr("rich.console.Console.width", 40)
    commands = (["list", "fusions"], ["list"], ["plugins"], ["bench", "metrics"], ["build", *SMALL])
    text = "\n".join(run(*words).output for words in commands)
    assert "…" not in text
    for whole in ("name: attention-gate", "option: --fuse", "metric: training-memory", "encoder.1  128x128"):
        assert whole in text


def test_hints_can_be_pasted(tmp_path: Path) -> None:
    done = run("data", "write", "cells:count=1,val=1,size=32", "--out", str(tmp_path / "a b"))
    assert f"unetkit data check '{tmp_path / 'a b'}'" in done.output


def test_a_real_process_refuses_in_one_line() -> None:
    command = [sys.executable, "-m", "unetkit", "build", "--encoder", "resnet18", "--fuse", "ad"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("Error: --fuse ad: ")
    assert done.stderr.endswith("; see `unetkit list fusions`\n")
    assert done.stderr.count("\n") == 1


def test_a_plugin_file_gives_parts_to_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "gate.py"
    file.write_text(
        "import torch\nimport unetkit\n\n"
        "class Gate(torch.nn.Module):\n"
        '    """Multiplies the skip by a gate."""\n'
        "    def __init__(self, x_channels: int, skip_channels: int, *, power: int = 1):\n"
        "        super().__init__()\n"
        "        self.out_channels = skip_channels\n"
        "        self.power = power\n"
        "        self.gate = torch.nn.Conv2d(x_channels, skip_channels, 1)\n"
        "    def forward(self, x, skip):\n"
        "        return skip * self.gate(x).sigmoid() ** self.power\n\n"
        "@unetkit.hookimpl\n"
        "def unetkit_register(parts):\n"
        "    parts.fusions.add('gate', Gate)\n"
    )
    result = run("--plugin", str(file), "build", *SMALL, "--fuse", "gate:power=2", "--size", "16")
    assert result.exit_code == 0, result.output
    assert "gate:power=2 skip 4 and map 8; gate 1x1 conv 8 to 4" in result.output
    assert "power" in run("--plugin", str(file), "list", "fuse", "gate").output


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["build", "--bogus"], "No such option '--bogus'"),
        (["bench", "shw"], "did you mean show"),
        (["build", "--plugin", "x.py"], "before the command: unetkit --plugin ... build ..."),
        (["bench", "show", "x", "--sort"], "`unetkit bench show --help`"),
        (["build", "--fuse", "add", "--fuse", "concat"], "--fuse is given twice"),
        (["plugins", "new", "x", "--kind", "block", "--kind", "head"], "--kind is given twice"),
    ],
)
def test_usage_errors_are_one_line_too(words: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert expected in refusal(capsys, *words)


def test_pretrained_alone_asks_for_timms_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    message = refusal(capsys, "build", "--encoder", "test_resnet", "--pretrained")
    assert "pretrained weights of timm/test_resnet" in message


def test_a_plugins_docstring_is_no_markup(tmp_path: Path) -> None:
    file = tmp_path / "marked.py"
    file.write_text(
        "import torch\nimport unetkit\n\n"
        "class Marked(torch.nn.Identity):\n"
        '    """Reads [/nothing] of it."""\n'
        "    def __init__(self, channels: int, scale: float, *, names: tuple[str, ...] = ('relu', 'gelu')):\n"
        "        super().__init__()\n\n"
        "@unetkit.hookimpl\n"
        "def unetkit_register(parts):\n"
        "    parts.upsamplers.add('marked', Marked)\n"
    )
    text = run("--plugin", str(file), "list", "up", "marked").output
    assert "Reads [/nothing] of it" in text
    assert "[relu,gelu]" in text


def test_completion_of_a_librarys_names() -> None:
    assert "timm/resnet101" in [item.value for item in complete_part(load_parts().encoders, "timm/resnet10")]


def test_what_a_part_prints_in_its_pass_does_not_spoil_json(tmp_path: Path) -> None:
    (tmp_path / "loud.py").write_text(
        "import unetkit\nfrom unetkit.parts.fusions import Add\n\nclass Loud(Add):\n"
        "    def forward(self, x, skip):\n        print('here')\n        return super().forward(x, skip)\n\n"
        "@unetkit.hookimpl\ndef unetkit_register(parts):\n    parts.fusions.add('loud', Loud)\n"
    )
    words = [
        "--plugin",
        str(tmp_path / "loud.py"),
        "build",
        *SMALL,
        "--fuse",
        "loud",
        "--json",
        "--check",
        "--size",
        "16",
    ]
    result = run(*words)
    assert json.loads(result.stdout)["check"]["passed"]
    assert "here" in result.stderr
