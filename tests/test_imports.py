"""The layers that pyproject.toml declares; what works without torch; and timm's names without timm."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
import timm

from unetkit.parts.encoders import timm_catalog

PROJECT = Path(__file__).parent.parent

#: What takes seconds to import, and is not needed to list parts or to read a line.
HEAVY = ("torch", "timm", "torchvision", "rich", "segmentation_models_pytorch")


def test_the_layers_of_the_package_are_kept() -> None:
    done = subprocess.run(["lint-imports", "--no-cache"], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


LIGHT = """
import sys
import unetkit
from unetkit import errors, hookspecs, options, parts, plan, plugins, registry, resolve
from unetkit.parts import recipes
made = unetkit.load_parts()
assert len(unetkit.list_parts("encoders")) > 1000
for found in made:
    names = found.names()
    assert names == [entry.qualified_name for entry in found.find()]
    assert found.find(names[0][:2] + "*")
    for entry in (*found.entries.values(), found.get(names[-1])):
        assert entry.signature.summary
resolve.resolve(unetkit.Plan.parse("--recipe resnet101-unet --fuse concat --up transposed:kernel=4"), made)
try:
    resolve.resolve(unetkit.Plan.parse("--encoder resnet19"), made)
except unetkit.UnetkitError as error:
    print(error)
print(*[name for name in sys.argv[1:] if name in sys.modules])
"""


def test_parts_are_listed_and_lines_read_without_torch(tmp_path: Path) -> None:
    environment = {"PATH": "", "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    for _ in range(2):  # without timm's names in the cache, and with them
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", LIGHT, *HEAVY],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        message, heavy = done.stdout.splitlines()
        assert message.startswith("--encoder resnet19: ")
        assert "did you mean resnet18" in message
        assert heavy == ""
    assert (tmp_path / "unetkit" / f"timm-{version('timm')}.json").is_file()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The user's cache folder, and nothing remembered in this process."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    timm_catalog.timm_model_names.cache_clear()
    yield tmp_path / "cache" / "unetkit"
    timm_catalog.timm_model_names.cache_clear()


def test_the_names_are_timms() -> None:
    assert timm_catalog.scan_timm_source() == timm.list_models()


def test_timm_is_asked_where_its_source_cannot_tell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Moved:
        origin = str(tmp_path / "__init__.py")

    monkeypatch.setattr(timm_catalog, "find_spec", lambda name: Moved)
    assert timm_catalog.scan_timm_source() == timm.list_models()


def test_the_names_are_kept_per_version_of_timm(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = timm_catalog.timm_model_names()
    (file,) = cache.iterdir()
    assert file.name == f"timm-{version('timm')}.json"
    assert json.loads(file.read_text()) == names == timm_catalog.scan_timm_source()
    timm_catalog.timm_model_names.cache_clear()
    file.write_text('["only"]')
    assert timm_catalog.timm_model_names() == ["only"]
    timm_catalog.timm_model_names.cache_clear()
    monkeypatch.setattr(timm_catalog, "version", lambda name: "0.0.1")
    assert timm_catalog.timm_model_names() == names
    assert {file.name for file in cache.iterdir()} == {f"timm-{version('timm')}.json", "timm-0.0.1.json"}


@pytest.mark.parametrize(
    "content", [b"", b"[", b"\xff\xfe", b"{}", b"[]", b"null", b"3", b'"resnet18"', b"[1]", b'["a", 1]']
)
def test_a_corrupt_cache_is_written_anew(cache: Path, content: bytes) -> None:
    cache.mkdir(parents=True)
    file = cache / f"timm-{version('timm')}.json"
    file.write_bytes(content)
    assert timm_catalog.timm_model_names() == timm_catalog.scan_timm_source()
    assert json.loads(file.read_text()) == timm_catalog.scan_timm_source()
    assert list(cache.iterdir()) == [file]


def test_a_cache_that_cannot_be_written_does_no_harm(cache: Path) -> None:
    cache.parent.write_text("a file where the folder should be: this holds for the superuser too")
    assert timm_catalog.timm_model_names() == timm_catalog.scan_timm_source()


def test_a_folder_in_the_caches_place_does_no_harm(cache: Path) -> None:
    file = cache / f"timm-{version('timm')}.json"
    file.mkdir(parents=True)
    assert timm_catalog.timm_model_names() == timm_catalog.scan_timm_source()
    assert list(cache.iterdir()) == [file]


BUILD = """
import atexit, sys
heavy = sys.argv.pop(1).split(",")
atexit.register(lambda: print("imported:", *[name for name in heavy if name in sys.modules]))
from unetkit.cli import main
main()
"""


@pytest.mark.slow
def test_a_network_of_built_in_parts_is_built_and_traced_without_timm_and_compiler() -> None:
    line = ["build", "--encoder", "plain:widths=[4,8],norm=group", "--block", "double:act=silu"]
    heavy = "timm,torchvision,segmentation_models_pytorch,torch._dynamo"
    done = subprocess.run([sys.executable, "-c", BUILD, heavy, *line], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "imported:"
