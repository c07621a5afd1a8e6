"""Every step of "Write one in five minutes", in order and for real: from nothing to a plugin on another machine."""

from __future__ import annotations

import base64
import ensurepip
import os
import re
import shutil
import subprocess
import sysconfig
import threading
import venv
import zipfile
from collections.abc import Iterator
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.rendered import blocks
from unetkit.scaffold import TITLES, plugin_files

PAGE = Path(__file__).parents[2] / "docs" / "plugins.md"
TOKEN = "a-token-of-this-test"


class Index(ThreadingHTTPServer):
    """A package index on loopback: takes uploads as PyPI does, and lists them as pip asks for them."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files: dict[str, bytes] = {}
        self.url = f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    server: Index

    def do_POST(self) -> None:
        allowed = "Basic " + base64.b64encode(f"__token__:{TOKEN}".encode()).decode()
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path != "/legacy/" or self.headers["Authorization"] != allowed:
            return self.answer(403)
        form = message_from_bytes(f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode() + body)
        for field in form.walk():
            content = field.get_payload(decode=True)
            if (name := field.get_filename()) and isinstance(content, bytes):
                self.server.files[name] = content
        return self.answer(200)

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2]
        if self.path == "/simple/my-gate/":
            links = "".join(f'<a href="/files/{file}">{file}</a>' for file in self.server.files)
            return self.answer(200, f"<!DOCTYPE html><html><body>{links}</body></html>".encode())
        if self.path.startswith("/files/") and name in self.server.files:
            return self.answer(200, self.server.files[name], "application/octet-stream")
        return self.answer(404)

    def answer(self, status: int, body: bytes = b"", kind: str = "text/html") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing: the output of a test is for what went wrong."""


@pytest.fixture
def index() -> Iterator[Index]:
    with Index() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def pip_wheel() -> Path:
    """The pip that comes with Python, and that a virtual environment has."""
    folder = sysconfig.get_config_var("WHEEL_PKG_DIR") or Path(ensurepip.__file__).parent / "_bundled"
    return next(Path(folder).glob("pip-*.whl"))


class Machine:
    """A folder with a fresh virtual environment, in which torch, unetkit and pytest are there without installing."""

    def __init__(self, folder: Path, index: Index, like: Machine | None = None) -> None:
        """Make an environment, or copy that of another machine on which nothing was done yet."""
        folder.mkdir()
        self.folder = folder
        self.venv = folder / ".venv"
        bin_folder = self.venv / "bin"
        if like:
            shutil.copytree(like.venv, self.venv, symlinks=True)
        else:
            venv.create(self.venv, symlinks=True)
            (site,) = self.venv.glob("lib/*/site-packages")
            with zipfile.ZipFile(pip_wheel()) as wheel:  # ensurepip would take as long as some steps, and bring more
                wheel.extractall(site)
        (site,) = self.venv.glob("lib/*/site-packages")
        here = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
        (site / "here.pth").write_text("".join(f"import site; site.addsitedir({path!r})\n" for path in sorted(here)))
        for command in ("unetkit", "pytest", "pip"):
            script = bin_folder / command
            script.write_text(f'#!/bin/sh\nexec "{bin_folder}/python" -P -m {command} "$@"\n')
            script.chmod(0o755)
        self.environment = {
            **{k: v for k, v in os.environ.items() if not re.match(r"PIP_|UV_|PYTEST_|UNETKIT_|PYTHONPATH$", k)},
            "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
            "VIRTUAL_ENV": str(self.venv),
            "NO_COLOR": "1",
            "NO_PROXY": "127.0.0.1",
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_INDEX_URL": f"{index.url}/simple/",
            "PIP_NO_BUILD_ISOLATION": "0",  # for pip a 0 means that there is none
            "PIP_NO_CACHE_DIR": "1",
            "PIP_NO_WARN_CONFLICTS": "1",  # or it reads the requirements of everything that is here
            "UV_NO_BUILD_ISOLATION": "1",
            "UV_NO_CONFIG": "1",
            "UV_PUBLISH_TOKEN": TOKEN,
            "UV_PUBLISH_URL": f"{index.url}/legacy/",
        }

    def run(self, line: str, expected: list[str]) -> None:
        """Run a line as a shell does; each expected line is one of its output, "..." stands for others."""
        done = subprocess.run(
            line,
            shell=True,
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}"
        given = [text.split() for text in done.stdout.splitlines()]
        missing = [text for text in expected if text.strip() not in ("", "...") and text.split() not in given]
        assert not missing, f"{line}\n{done.stdout}"

    def edit(self, diff: str) -> None:
        """Make the change that a diff shows: its lines with "-" stand in the file once, those with "+" replace them."""
        path = self.folder / re.findall(r"^\+\+\+ (.*)$", diff, re.MULTILINE)[0]
        old, new = (
            "".join(line[1:] for line in diff.splitlines(keepends=True)[2:] if line[0] in kept) for kept in (" -", " +")
        )
        text = path.read_text(encoding="utf-8")
        assert text.count(old) == 1
        path.write_text(text.replace(old, new), encoding="utf-8")

    def follow(self, text: str) -> list[str]:
        """Take every step of a text; gives the command lines."""
        lines: list[str] = []
        for language, block in blocks(text, "shellsession", "diff"):
            if language == "diff":
                self.edit(block)
                continue
            for step in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
                line, *expected = step.splitlines()
                self.run(line, expected)
                lines.append(line)
        return lines


SECTION = PAGE.read_text(encoding="utf-8").split("\n## Write one in five minutes\n")[1].split("\n## ")[0]


def test_the_page_names_every_kind_and_file() -> None:
    ((_, tree),) = blocks(SECTION, "text")
    assert set(re.findall(r"^  (\S+)", tree, re.MULTILINE)) == set(plugin_files("my-gate", "fusion"))
    assert [kind for kind in TITLES if f"`{kind}`" not in SECTION] == []


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("uv") is None, reason="uv is not on PATH: the tutorial builds and publishes with it")
def test_every_step_of_the_tutorial(index: Index, tmp_path: Path) -> None:
    written, elsewhere = SECTION.split("<!-- another machine -->")
    first = Machine(tmp_path / "first", index)
    second = Machine(tmp_path / "second", index, like=first)
    lines = first.follow(written)
    assert set(index.files) == {"my_gate-0.1.0.tar.gz", "my_gate-0.1.0-py3-none-any.whl"}
    assert re.findall(r"^\+ (.*)$", written, re.MULTILINE)
    lines += second.follow(elsewhere)
    assert len(lines) == len(re.findall(r"^\$ ", SECTION, re.MULTILINE))
    installed = next((tmp_path / "second").glob(".venv/lib/*/site-packages/my_gate/fusion.py"))
    for line in re.findall(r"^\+ (.*)$", written, re.MULTILINE):
        assert line in installed.read_text(encoding="utf-8")
