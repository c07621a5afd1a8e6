"""`unetkit plugins`, and the commands that plugins add."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.cli.test_cli import refusal
from unetkit.cli import cli, main
from unetkit.plugins import default_manager
from unetkit.testing import CHECKS

COMMAND = """
import click
import unetkit

@unetkit.hookimpl
def unetkit_register_commands(cli):
    @cli.command()
    @click.argument("number", type=int)
    @click.option("--twice", is_flag=True, help="Double it.")
    def {name}(number, twice):
        \"\"\"Says a number.\"\"\"
        {body}
        click.echo(number * (1 + twice))
"""


@pytest.fixture
def plugin(tmp_path: Path) -> str:
    return written(tmp_path / "saying.py")


def written(path: Path, name: str = "say", body: str = "pass", source: str = COMMAND) -> str:
    path.write_text(source.format(name=name, body=body))
    return str(path)


def run(*words: str) -> Result:
    return CliRunner().invoke(cli, [*words])


def test_a_plugins_command(plugin: str) -> None:
    assert run("--plugin", plugin, "say", "21", "--twice").output == "42\n"
    shown = run("--plugin", plugin, "--help").output
    assert "say      Says a number." in shown
    assert shown.index("build") < shown.index("plugins") < shown.index("say")
    assert "Double it." in run("--plugin", plugin, "say", "--help").output
    assert run("say", "21").exit_code == 2


def test_a_plugins_command_refuses_as_ours_do(plugin: str, capsys: pytest.CaptureFixture[str]) -> None:
    message = refusal(capsys, "--plugin", plugin, "say", "x")
    assert message.startswith("Invalid value for 'NUMBER': ")
    assert "`unetkit say --help`" in message


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("1 / 0", "`unetkit say` of plugin saying failed: ZeroDivisionError"),
        ("raise unetkit.UnetkitError('no such cell')", "no such cell"),
        ("raise click.ClickException('not today')", "not today"),
    ],
)
def test_a_command_that_fails_costs_one_line(
    tmp_path: Path, body: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path / "saying.py", body=body)
    assert refusal(capsys, "--plugin", file, "say", "1").startswith(message)


def test_an_exit_code_is_the_commands_own(tmp_path: Path) -> None:
    file = written(tmp_path / "saying.py", body="click.get_current_context().exit(7)")
    assert run("--plugin", file, "say", "1").exit_code == 7


def test_our_own_mistakes_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unetkit.cli.list._kinds_table", lambda parts: 1 / 0)
    assert isinstance(run("list").exception, ZeroDivisionError)


@pytest.mark.parametrize(
    ("name", "owner"), [("build", "unetkit"), ("plugins", "unetkit"), ("say", "first")], ids=["build", "plugins", "say"]
)
def test_a_command_whose_name_is_taken(
    tmp_path: Path, name: str, owner: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = written(tmp_path / "first.py"), written(tmp_path / "second.py", name)
    shown = run("--plugin", first, "--plugin", second, "--help")
    assert shown.exit_code == 0
    lines = shown.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("unetkit: plugin second failed in unetkit ")
    assert lines[0].endswith(f"command {name!r} of second is already registered by {owner}; rename it")
    assert "Says a number." in shown.stdout
    listed = run("--plugin", first, "--plugin", second, "plugins").stdout
    assert "command say" in listed
    assert "failing" in listed
    assert f"second: command {name!r} of second is already registered by {owner}; rename it" in listed


FAILING = """
import unetkit

@unetkit.hookimpl
def unetkit_register(parts):
    parts.blocks.add("mine", "nowhere:Mine")

@unetkit.hookimpl
def unetkit_register_commands(cli):
    {body}
"""


@pytest.mark.parametrize("body", ["1 / 0", "import sys; sys.exit(3)"])
def test_a_hook_for_commands_that_fails_leaves_all_else(tmp_path: Path, body: str) -> None:
    bad, good = written(tmp_path / "bad.py", body=body, source=FAILING), written(tmp_path / "good.py")
    shown = run("--plugin", bad, "--plugin", good, "say", "1")
    assert (shown.exit_code, shown.stdout) == (0, "1\n")
    assert shown.stderr.startswith("unetkit: plugin bad failed in unetkit ")
    assert shown.stderr.count("\n") == 1
    assert "mine" in run("--plugin", bad, "list", "blocks").stdout


def test_strict_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("UNETKIT_STRICT", "1")
    file = written(tmp_path / "bad.py", body="1 / 0", source=FAILING)
    assert "plugin bad failed in unetkit" in refusal(capsys, "--plugin", file, "--help")


def test_plugins_are_shown_with_what_they_add_and_their_state(plugin: str, tmp_path: Path) -> None:
    broken = written(tmp_path / "broken.py", source="1 / 0\n")
    shown = run("--plugin", plugin, "--plugin", broken, "plugins").stdout
    rows = [" ".join(line.split()) for line in shown.splitlines()]
    assert "attention-gate 0.1.0 unetkit-attention-gate fusion attention-gate loaded" in rows
    supervision = rows.index("deep-supervision 0.1.0 unetkit-deep-supervision head deep-supervision loaded")
    assert rows[supervision + 1] == "wraps models"
    assert "saying saying.py command say loaded" in rows
    assert "broken broken.py failed" in rows
    assert "broken: ZeroDivisionError: division by zero" in rows
    names = [row.split()[0] for row in rows if row.endswith(("loaded", "failed"))]
    assert names == sorted(names)
    assert "Traceback" not in shown


@pytest.mark.parametrize("words", [["list"], ["bench", "show", "nowhere"]])
def test_a_plugin_that_was_asked_for_must_load(
    tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    broken = written(tmp_path / "broken.py", source="1 / 0\n")
    assert refusal(capsys, "--plugin", broken, *words).endswith("ZeroDivisionError: division by zero")


@pytest.mark.parametrize("words", [["-v", "plugins"], ["plugins", "-v"], ["plugins", "--verbose"]])
def test_the_traceback_is_shown_when_asked_for(tmp_path: Path, words: list[str]) -> None:
    broken = written(tmp_path / "broken.py", source="1 / 0\n")
    shown = run("--plugin", broken, *words).stdout
    assert "Traceback (most recent call last):" in shown
    assert f'File "{broken}", line 1' in shown


METRICS = """
import unetkit

def layers(subject):
    \"\"\"Layers.\"\"\"
    return len([*subject.model.modules()])

@unetkit.hookimpl
def unetkit_register(parts):
    parts.metrics.add("layers", layers)
    {body}
"""


def test_the_metrics_of_plugins_are_shown(tmp_path: Path) -> None:
    good = written(tmp_path / "good.py", source=METRICS)
    bad = written(tmp_path / "bad.py", body="1 / 0", source=METRICS.replace('"layers"', '"also"'))
    shown = run("--plugin", good, "--plugin", bad, "plugins", "-v")
    rows = [" ".join(line.split()) for line in shown.stdout.splitlines()]
    assert "good good.py metric layers loaded" in rows
    assert "bad bad.py failed" in rows
    assert "bad: ZeroDivisionError: division by zero" in rows
    assert f'File "{bad}", line 11, in unetkit_register' in rows
    assert len(shown.stderr.splitlines()) == 1


def test_no_plugins() -> None:
    script = (
        "import unetkit.plugins as p\np.installed_plugins = lambda: iter(())\n"
        "from unetkit.cli import main\nimport sys\nsys.argv = ['unetkit', 'plugins']\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "`unetkit plugins new my-gate --kind fusion`" in done.stdout


def plugins_with(target: str, folder: Path) -> str:
    """What `unetkit plugins` prints in a new process that finds modules in a folder, too."""
    command = [sys.executable, "-m", "unetkit", "--plugin", target, "plugins"]
    paths = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": paths})
    return " ".join(done.stdout.split())


def test_who_slows_every_command_is_told(tmp_path: Path) -> None:
    file = written(tmp_path / "heavy.py", source="import numpy\n" + COMMAND)
    assert "heavy: imports numpy " in plugins_with("heavy", tmp_path)
    assert "imports numpy" not in plugins_with(file, tmp_path)  # a file slows only the commands that name it


def test_help_and_lists_with_first_party_plugins_import_no_torch() -> None:
    script = """
import sys
from click.testing import CliRunner
from unetkit.cli import cli, main
from unetkit.plugins import default_manager
from unetkit.testing import CHECKS
for words in (["--help"], ["plugins"], ["plugins", "--help"], ["plugins", "new", "--help"], ["list", "fusions"]):
    assert CliRunner().invoke(cli, words).exit_code == 0, words
assert "attention-gate" in CliRunner().invoke(cli, ["plugins"]).output
print([name for name in ("torch", "timm", "torchvision", "numpy") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


CONFORMING = '''
import unetkit

def narrow(in_channels: int, out_channels: int):
    """One 1x1 convolution."""
    from torch import nn

    return nn.Conv2d(in_channels, out_channels, {kernel})

@unetkit.hookimpl
def unetkit_register(parts):
    parts.blocks.add("narrow", narrow)
'''


@pytest.mark.slow
def test_check_shows_a_row_a_check_and_a_column_a_part() -> None:
    shown = run("plugins", "check", "attention-gate")
    assert shown.exit_code == 0, shown.output
    rows = [" ".join(line.split()) for line in shown.stdout.splitlines()]
    assert "check what it checks plugin fusion attention-gate" in rows
    for check in CHECKS:
        absent = check.name in ("libraries", "commands", "wrapping")
        asked = {"plugin", "fusion"} & {*check.kinds} and not absent
        assert (f"{check.name} {check.title} ok" in rows) == bool(asked)
    assert rows[-1].endswith("0 failed, 0 skipped")
    assert "wrapping" not in shown.stdout


@pytest.mark.slow
def test_check_fails_where_a_promise_is_broken(tmp_path: Path) -> None:
    file = tmp_path / "narrow.py"
    source = CONFORMING.format(kernel=3)
    file.write_text("import torch\n" + source.replace("return", "print('noise')\n    return"))
    shown = run("plugins", "check", str(file))
    assert shown.exit_code == 1
    assert "noise" not in shown.stdout
    assert "noise" in shown.stderr
    rows = [" ".join(line.split()) for line in shown.stdout.splitlines()]
    assert [row.split()[0] for row in rows if row.endswith("FAIL")] == ["forward", "size"]
    assert any(row.startswith("failed: block narrow: size: ") and "returns 3x5" in row for row in rows), shown.stdout
    assert "skipped: plugin: imports: it imports torch and numpy; " in shown.stdout
    assert "(3 because " in rows[-1]


@pytest.mark.slow
def test_check_shows_where_a_part_fails(tmp_path: Path) -> None:
    file = tmp_path / "narrow.py"
    file.write_text(CONFORMING.format(kernel="int('three')"))
    shown = run("plugins", "check", str(file))
    assert "ValueError: invalid literal for int() " in shown.stdout
    assert f"({file}:8)" in shown.stdout
    assert "in narrow" not in shown.stdout
    for options in (("-v", "plugins", "check"), ("plugins", "-v", "check"), ("plugins", "check", "-v")):
        assert f'File "{file}", line 8, in narrow' in run(*options, str(file)).stdout


def test_check_of_what_does_not_load(tmp_path: Path) -> None:
    broken = written(tmp_path / "broken.py", source="def divide():\n    1 / 0\n\ndivide()\n")
    shown = run("plugins", "check", broken)
    assert shown.exit_code == 1
    assert "failed: plugin: loading: " in shown.stdout
    assert f"({broken}:2)" in shown.stdout
    assert shown.stderr == ""


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("attention-gat", "did you mean attention-gate or block-attention?)"),
        ("no_such_plugin_at_all", "called no_such_plugin_at_all"),
        ("./nowhere.py", "the file nowhere.py does not exist"),
    ],
)
def test_check_of_what_is_not_there(target: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in refusal(capsys, "plugins", "check", target)


def test_check_leaves_a_wide_plugin_in_several_tables() -> None:
    from unetkit.cli.plugins import _matrices
    from unetkit.testing import CheckResult
    from unetkit.testing.runner import PendingCheck

    results = [CheckResult(f"block number-{index}", "construction", "passed") for index in range(9)]
    jobs = [PendingCheck(result.part, "construction", "it is created", lambda: results[0]) for result in results]
    matrices = list(_matrices(jobs, results, 80))
    headers = [[column.header for column in matrix.columns[2:]] for matrix in matrices]
    assert [name for group in headers for name in group] == [result.part for result in results]
    assert {len(group) for group in headers[:-1]} == {2}


def test_new_writes_a_plugin_that_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shown = run("plugins", "new", "my-gate", "--kind", "fusion")
    assert shown.exit_code == 0
    assert "pip install -e my-gate" in shown.stdout
    assert "pytest my-gate" in shown.stdout
    monkeypatch.syspath_prepend(tmp_path / "my-gate")
    assert "my-gate" in run("--plugin", "my_gate", "list", "fusions").stdout
    sys.modules.pop("my_gate")


def test_new_refuses_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-gate").mkdir()
    (tmp_path / "my-gate" / "notes.txt").touch()
    assert "my-gate" in refusal(capsys, "plugins", "new", "my-gate", "--kind", "fusion")
    assert "; the kinds are encoder, " in refusal(capsys, "plugins", "new", "x", "--kind", "gate")
    assert [path.name for path in tmp_path.rglob("*")] == ["my-gate", "notes.txt"]


@pytest.mark.parametrize("body", ["return 3", "return {'a': 1}", "raise SystemExit(0)"])
def test_what_a_command_returns_is_no_exit_code(
    tmp_path: Path, body: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path / "saying.py", body=body)
    monkeypatch.setattr(sys, "argv", ["unetkit", "--plugin", file, "say", "1"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert (ended.value.code or 0, capsys.readouterr()) == (0, ("", ""))


def test_a_missing_file_of_a_command_is_no_trouble_with_the_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path / "saying.py", body="open('/no/such/file')")
    message = refusal(capsys, "--plugin", file, "say", "1")
    assert message.startswith("`unetkit say` of plugin saying failed: File")


def test_bare_groups_show_their_help(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["unetkit"])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert err.startswith("Usage: unetkit [OPTIONS] COMMAND [ARGS]...\n\n")


NOT_COMMANDS = {
    "object": ("cli.commands['mine'] = 3", "command 'mine' is an int"),
    "help": (
        "import click\n    class Bad(click.Command):\n        def get_short_help_str(self, limit=45): 1 / 0\n"
        "    cli.add_command(Bad('mine'))",
        "ZeroDivisionError: division by zero",
    ),
}


@pytest.mark.parametrize("case", NOT_COMMANDS)
def test_what_is_no_command_leaves_the_help_of_all(tmp_path: Path, case: str) -> None:
    body, message = NOT_COMMANDS[case]
    shown = run("--plugin", written(tmp_path / "bad.py", body=body, source=FAILING), "--help")
    assert shown.exit_code == 0
    assert message in shown.stderr
    assert "Commands:" in shown.stdout


def test_a_hook_for_commands_that_imports_what_is_slow_is_told(tmp_path: Path) -> None:
    written(tmp_path / "heavy.py", body="import numpy", source=FAILING)
    assert "heavy: imports numpy " in plugins_with("heavy", tmp_path)


def test_completion_is_not_spoilt_by_a_plugin_that_fails(tmp_path: Path) -> None:
    broken = written(tmp_path / "broken.py", source="1 / 0\n")
    late = written(tmp_path / "late.py", body="pass", source=FAILING)
    environment = {
        **os.environ,
        "UNETKIT_PLUGINS": f"{broken},{late}",
        "_UNETKIT_COMPLETE": "zsh_complete",
        "COMP_WORDS": "unetkit build --block ",
        "COMP_CWORD": "3",
    }
    command = [sys.executable, "-c", "from unetkit.cli import main; main()"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert {"double", "mine"} <= {*done.stdout.splitlines()}


def test_a_plugin_is_left_out_of_the_list(plugin: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNETKIT_PLUGINS", plugin)
        patch.setenv("UNETKIT_DISABLE", "atention-gate")
        assert "atention-gate (did you mean attention-gate" in run("plugins").stderr
        patch.setenv("UNETKIT_DISABLE", "")
        default_manager.cache_clear()
        shown = run("plugins", "--disable", "saying").output
        assert re.search(r"^ saying .* disabled *$", shown, re.MULTILINE)
        assert shown.endswith("export UNETKIT_DISABLE=saying\n")
        assert "did you mean attention-gate" in refusal(capsys, "plugins", "--disable", "atention-gate")
    default_manager.cache_clear()


READING = """
import unetkit
from unetkit.data.synthetic_cells import cells

@unetkit.hookimpl
def unetkit_register(parts):
    parts.recipes.add("{name}", recipe)

def recipe():
    \"\"\"A recipe that reads a file.\"\"\"
    {body}
"""


def test_an_error_of_the_system_in_a_plugin_is_not_one_of_the_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path / "reading.py", body="open('/no/such/file')", source=READING)
    message = refusal(capsys, "--plugin", file, "build", "--recipe", "say")
    assert message.startswith("the plugin's code failed at ")
    assert f" {file}:11: FileNotFoundError: " in message
