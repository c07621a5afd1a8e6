"""What the command line says when it refuses: `messages.txt` holds the commands with their exact answers.

`python -m tests.cli.test_messages --write` runs all commands of that file and writes it anew, so that a changed wording
is one command and one diff to review. A new command is added as a line that begins with `$`.
"""

from __future__ import annotations

import gc
import io
import shlex
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.cli.workplace import list_files, make_workplace
from unetkit.cli import main
from unetkit.plugins import default_manager

TRANSCRIPT = Path(__file__).with_name("messages.txt")
PROMPT = "$ "
#: Stands for the folder in which the commands are run.
FOLDER = "FOLDER"
_ENVIRONMENT = {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}
_UNSET = ("UNETKIT_PLUGINS", "UNETKIT_DISABLE", "UNETKIT_STRICT", "FORCE_COLOR")


@dataclass(frozen=True)
class Block:
    """A command line, and what it answers; or lines of a heading, which stand before commands."""

    command: str
    text: str

    def __str__(self) -> str:
        return f"{PROMPT}{self.command}\n{self.text}" if self.command else self.text


def read_blocks(text: str) -> list[Block]:
    """Split the transcript at its empty lines."""
    blocks = []
    for part in text.strip().split("\n\n"):
        first, _, rest = part.strip("\n").partition("\n")
        is_command = first.startswith(PROMPT)
        blocks.append(Block(first.removeprefix(PROMPT), rest) if is_command else Block("", part.strip("\n")))
    return blocks


def answer(command: str) -> str:
    """Run a command line in this process, and return all that it prints, with its exit code if that is not 2."""
    printed, code = io.StringIO(), 0
    program, *words = shlex.split(command)
    assert program == "unetkit"
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed), redirect_stderr(printed):
        patch.setattr(sys, "argv", ["unetkit", *words])
        for name, value in _ENVIRONMENT.items():
            patch.setenv(name, value)
        for name in _UNSET:
            patch.setenv(name, "")
            patch.delenv(name)
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        except Exception:
            printed.write(traceback.format_exc())
    if "--disable" in words:
        default_manager.cache_clear()
    text = (
        printed.getvalue().replace(str(Path.cwd()), FOLDER).replace(f"unetkit {version('unetkit')}", "unetkit VERSION")
    )
    lines = [line.rstrip() or "." for line in text.splitlines()]  # an empty line ends a block
    return "\n".join([*lines, *([f"(exit code {code})"] if code != 2 else [])])


def write_anew() -> None:
    """Run all commands of the transcript, and write it with what they answer now."""
    blocks = read_blocks(TRANSCRIPT.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        place = make_workplace(Path(folder, "place").resolve())
        with chdir(place):
            blocks = [Block(one.command, answer(one.command)) if one.command else one for one in blocks]
    TRANSCRIPT.write_text("\n\n".join(map(str, blocks)) + "\n", encoding="utf-8")


BLOCKS = [one for one in read_blocks(TRANSCRIPT.read_text(encoding="utf-8")) if one.command]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    made = make_workplace(tmp_path_factory.mktemp("messages").resolve() / "place")
    before = list_files(made)
    default_manager.cache_clear()
    yield made
    assert list_files(made) == before, "a command that was refused left files behind"


@pytest.mark.parametrize("block", BLOCKS, ids=[one.command for one in BLOCKS])
def test_a_refusal_says_what_it_said(block: Block, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    assert answer(block.command) == block.text


def test_no_command_is_written_twice() -> None:
    commands = [one.command for one in BLOCKS]
    assert len({*commands}) == len(commands)


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("Usage: python -m tests.cli.test_messages --write")
    write_anew()
    gc.collect()
